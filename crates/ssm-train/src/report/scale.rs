//! Axes: 1-2-5 ticks, decades for wide positive data, and numbers with sensible digits.

/// Data that span more powers of ten than this, all above zero, get a logarithmic axis.
const LOG_DECADES: f64 = 3.0;
/// Sizes below this count as zero: their powers of ten are lost to the limits of f64.
const SMALLEST: f64 = 1e-200;

/// One axis: its range, its ticks, and where a value lies on it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// Value at the start of the axis.
    pub(super) low: f64,
    /// Value at its end, above `low`.
    pub(super) high: f64,
    /// Whether distances are ratios.
    pub(super) log: bool,
    /// Power of ten that the labels leave out, 0 for none.
    pub(super) exponent: i32,
    /// Values and their labels, ascending, inside the range.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis over exactly `low..=high`, with at most `max_ticks` ticks.
    pub(super) fn exact(low: f64, high: f64, max_ticks: usize) -> Self {
        let (low, high) = widen(low, high);
        Self::linear(low, high, nice_step(high - low, max_ticks))
    }

    /// An axis that holds all `values`, of which there is at least one, and ends on ticks; logarithmic
    /// when most of them ask for it and they fill the decades. Tiny ones among values of one size, such
    /// as zeros that were rounded, would stretch the axis over decades in which nothing lies.
    pub(super) fn of(mut values: Vec<f64>, max_ticks: usize) -> Self {
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[0], values[values.len() - 1]);
        let typical = values[(values.len() / 10).max(1).min(values.len() - 1)];
        if low > SMALLEST && (high / typical).log10() > LOG_DECADES {
            let mut filled: Vec<i32> = values.iter().map(|v| v.log10().floor() as i32).collect();
            let spanned = filled[filled.len() - 1] - filled[0] + 1;
            filled.dedup();
            if 2 * filled.len() > spanned as usize {
                return Self::decades(low, high, max_ticks);
            }
        }
        Self::nice(low, high, max_ticks)
    }

    /// A linear axis that holds `low..=high` and ends on ticks.
    pub(super) fn nice(low: f64, high: f64, max_ticks: usize) -> Self {
        let (low, high) = widen(low, high);
        let step = nice_step(high - low, max_ticks);
        Self::linear((low / step).floor() * step, (high / step).ceil() * step, step)
    }

    /// Share of the way from the start of the axis (0) to its end (1).
    pub(super) fn share(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// What the labels are multiples of, as ` (×10⁻⁵)`, or nothing.
    pub(super) fn unit(&self) -> String {
        if self.exponent == 0 {
            return String::new();
        }
        format!(" (×10{})", superscript(self.exponent))
    }

    fn linear(low: f64, high: f64, step: f64) -> Self {
        let exponent = shared_exponent(low.abs().max(high.abs()));
        let unit = 10f64.powi(exponent);
        let decimals = decimals_of(step / unit);
        // A whole multiple of the step never drifts, a running sum does.
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last)
            .map(|index| index as f64 * step)
            .map(|value| (value, grouped(value / unit, decimals)))
            .collect();
        Self { low, high, log: false, exponent, ticks }
    }

    fn decades(low: f64, high: f64, max_ticks: usize) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let stride = ((last - first) as usize).div_ceil(max_ticks.max(1)).max(1);
        let ticks = (first..=last)
            .step_by(stride)
            .map(|power| (10f64.powi(power), format!("10{}", superscript(power))))
            .collect();
        Self { low: 10f64.powi(first), high: 10f64.powi(last), log: true, exponent: 0, ticks }
    }
}

/// The smallest of 1, 2 or 5 times a power of ten that cuts `span` into fewer than `max_ticks` parts.
pub(super) fn nice_step(span: f64, max_ticks: usize) -> f64 {
    let raw = span / max_ticks.saturating_sub(1).max(1) as f64;
    let power = (raw.log10().floor() as i32).max(-290);
    let lead = raw / 10f64.powi(power);
    let nice = [1.0, 2.0, 5.0].into_iter().find(|nice| lead <= nice + 1e-9).unwrap_or(10.0);
    // Dividing by a whole power of ten is exact where multiplying by a negative one is not.
    if power < 0 { nice / 10f64.powi(-power) } else { nice * 10f64.powi(power) }
}

/// A number for reading: four significant digits, thousands apart, a power of ten at the extremes.
pub(super) fn readable(value: f64) -> String {
    if !value.is_finite() {
        return "not finite".to_owned();
    }
    let value = if value.abs() < SMALLEST { 0.0 } else { value };
    let exponent = shared_exponent(value.abs());
    let mantissa = value / 10f64.powi(exponent);
    let digits = if mantissa == 0.0 { 1 } else { mantissa.abs().log10().floor() as i32 + 1 };
    let mut text = grouped(mantissa, (4 - digits).max(0) as usize);
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    if exponent != 0 { format!("{text}×10{}", superscript(exponent)) } else { text }
}

/// `-3` as `⁻³`.
fn superscript(power: i32) -> String {
    let raise = |c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        // The remaining superscript digits are consecutive code points.
        _ => char::from_u32('⁰' as u32 + (c as u32 - '0' as u32)).unwrap_or(c),
    };
    power.to_string().chars().map(raise).collect()
}

/// Ranges of no width get one, so that a constant curve lies in the middle.
fn widen(low: f64, high: f64) -> (f64, f64) {
    let slack = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    if high - low > low.abs().max(high.abs()) * 1e-12 {
        (low, high)
    } else {
        (low - slack, high + slack)
    }
}

/// The power of ten taken out of labels whose largest size is `size`.
fn shared_exponent(size: f64) -> i32 {
    if size < SMALLEST || (1e-3..1e6).contains(&size) { 0 } else { size.log10().floor() as i32 }
}

fn decimals_of(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize
}

/// Fixed decimals, a comma between thousands, and a true minus sign.
fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::new();
    if value < 0.0 && plain.contains(|c: char| ('1'..='9').contains(&c)) {
        text.push('−');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn steps_are_one_two_or_five() {
        for (span, ticks, step) in [
            (1.0, 6, 0.2),
            (0.9, 6, 0.2),
            (10.0, 6, 2.0),
            (7.0, 4, 5.0),
            (3e-5, 4, 1e-5),
            (99.0, 3, 50.0),
        ] {
            assert_eq!(nice_step(span, ticks), step, "span {span}, {ticks} ticks");
        }
    }

    #[test]
    fn a_nice_axis_ends_on_ticks() {
        let axis = Axis::nice(0.213, 0.871, 6);
        assert_eq!(labels(&axis), ["0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!((axis.low, axis.high), (0.2, 1.0));
    }

    #[test]
    fn an_exact_axis_keeps_its_range() {
        let axis = Axis::exact(1.0, 2640.0, 7);
        assert_eq!((axis.low, axis.high), (1.0, 2640.0));
        assert_eq!(labels(&axis), ["500", "1,000", "1,500", "2,000", "2,500"]);
    }

    #[test]
    fn wide_positive_data_get_decades() {
        let axis = Axis::of(vec![31.0, 0.002, 4.0, 0.03, 0.05], 6);
        assert!(axis.log);
        assert_eq!(labels(&axis), ["10⁻³", "10⁻²", "10⁻¹", "10⁰", "10¹", "10²"]);
        assert!((axis.share(0.1) - 0.4).abs() < 1e-12);
        assert!(!Axis::of(vec![0.0, 31.0], 6).log, "zero has no logarithm");
        assert!(!Axis::of(vec![-0.002, 31.0], 6).log);
        assert!(!Axis::of(vec![0.04, 31.0], 6).log, "three decades are not wide");
    }

    #[test]
    fn a_few_tiny_values_do_not_make_an_axis_logarithmic() {
        let mut values: Vec<f64> = (1..=40).map(f64::from).collect();
        for tiny in [3, 10] {
            values[..tiny].fill(1e-6);
            let axis = Axis::of(values.clone(), 6);
            assert!(!axis.log, "{tiny} of 40");
            assert_eq!((axis.low, axis.high), (0.0, 40.0));
        }
        // The end of a cosine, of which few steps were logged.
        assert!(!Axis::of(vec![5e-3, 4e-3, 2.8e-3, 1.4e-3, 4e-4, 1.4e-7], 6).log);
        let halving = (0..40).map(|step| 0.5_f64.powi(step)).collect();
        assert!(Axis::of(halving, 6).log, "here every decade has values");
    }

    #[test]
    fn small_and_large_axes_leave_the_power_of_ten_out() {
        let axis = Axis::nice(0.0, 7e-5, 6);
        assert_eq!(axis.exponent, -5);
        assert_eq!(labels(&axis), ["0", "2", "4", "6", "8"]);
        assert_eq!(Axis::nice(0.0, 3e7, 4).exponent, 7);
    }

    #[test]
    fn a_constant_lies_in_the_middle() {
        for value in [0.0, 3.5, -2e-9, 1e12] {
            let axis = Axis::nice(value, value, 5);
            assert!(axis.high > axis.low);
            assert!((0.2..=0.8).contains(&axis.share(value)), "{axis:?}");
            assert!(axis.ticks.len() >= 2);
        }
    }

    #[test]
    fn axes_survive_the_edges_of_f64() {
        for (low, high) in [(-1e200, 1e200), (0.0, 1e-310), (1e-320, 1e-310), (1e16, 1e16 + 2.0)] {
            for axis in [Axis::nice(low, high, 6), Axis::exact(low, high, 6)] {
                assert!(axis.ticks.len() <= 12, "{axis:?}");
                assert!((0.0..=1.0).contains(&axis.share(low)), "{axis:?}");
            }
        }
        assert_eq!(readable(1e-310), "0");
    }

    #[test]
    fn numbers_have_sensible_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.386_12, "0.3861"),
            (12_345.6, "12,346"),
            (-2.5, "−2.5"),
            (1e-4, "1×10⁻⁴"),
            (7.25e-5, "7.25×10⁻⁵"),
            (100.0, "100"),
            (1.5e9, "1.5×10⁹"),
            (f64::NAN, "not finite"),
        ] {
            assert_eq!(readable(value), text);
        }
    }
}
