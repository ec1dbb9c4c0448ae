//! Curves over a common x axis.

use std::fmt::Write as _;

use super::{
    super::{
        Series,
        html::escape,
        scale::{Axis, readable},
        training::thin,
    },
    CHAR, Canvas, Labels, Plot, RIGHT, ROW, colour, empty, frame, is_finite, px, range, wrap,
};

/// Drawn points of one curve; more than a screen has columns only adds bytes.
const MAX_POINTS: usize = 600;
/// Curves with so few points show each of them.
const MAX_DOTS: usize = 14;
/// Curves that turn up or down more often are drawn with a finer pen.
const MAX_TURNS: usize = 100;

/// Curves over a common axis.
pub(in crate::report) fn lines(canvas: Canvas, labels: Labels<'_>, series: &[Series]) -> String {
    let finite = |series: &Series| {
        let keep = |point: &&(f64, f64)| is_finite(**point);
        series.points.iter().filter(keep).copied().collect::<Vec<_>>()
    };
    let all: Vec<(f64, f64)> = series.iter().flat_map(finite).collect();
    if all.is_empty() {
        return empty(canvas, labels);
    }
    let (x_low, x_high) = range(all.iter().map(|point| point.0));
    // Steps and horizons that begin near zero are read from zero.
    let x_low = if x_low > 0.0 && x_low <= 0.15 * x_high { 0.0 } else { x_low };
    let x = Axis::exact(x_low, x_high, (canvas.width / 75.0).clamp(4.0, 9.0) as usize);
    let y_ticks = (canvas.plot_height / 30.0).clamp(4.0, 7.0) as usize;
    let y = Axis::of(all.iter().map(|point| point.1).collect(), y_ticks);

    let mut svg = String::new();
    let (plot, height) = frame(&mut svg, canvas, labels.y, series, &y, 2.0 * ROW);
    x_axis(&mut svg, &plot, &x, labels.x, height);
    // What lies on both sides of zero is read from there: before and after the last known row.
    if x.low < 0.0 && x.high > 0.0 {
        let (at, top) = (px(plot.x(x.share(0.0))), px(plot.top));
        let _ = write!(svg, "<path class=\"base\" d=\"M{at} {top}v{}\"/>", px(plot.height));
    }
    // The first series lies on top of the others.
    for (index, one) in series.iter().enumerate().rev().filter(|(_, one)| !one.points.is_empty()) {
        curve(&mut svg, &plot, (&x, &y), index, one);
    }
    let ends = series.iter().filter_map(|one| {
        let points = finite(one);
        let (first, last) = (points.first()?, points.last()?);
        Some(format!("{} from {} to {}", one.name, readable(first.1), readable(last.1)))
    });
    let about = format!(
        "{} over {} from {} to {}. {}.",
        labels.y,
        labels.x,
        readable(x.low),
        readable(x.high),
        ends.collect::<Vec<_>>().join("; ")
    );
    let data = format!(
        " data-plot=\"{} {} {} {} {} {} {} {} {}\" data-x=\"{}\"",
        px(plot.left),
        px(plot.top),
        px(plot.width),
        px(plot.height),
        x.low,
        x.high,
        y.low,
        y.high,
        u8::from(y.log),
        escape(labels.x)
    );
    wrap(canvas, labels, height, &about, &data, &svg)
}

fn x_axis(svg: &mut String, plot: &Plot, x: &Axis, label: &str, height: f64) {
    let bottom = plot.top + plot.height;
    let mut marks = format!("M{} {}h{}", px(plot.left), px(bottom), px(plot.width));
    for (value, text) in &x.ticks {
        let at = plot.x(x.share(*value));
        let half = text.chars().count() as f64 * CHAR / 2.0;
        let _ = write!(marks, "M{} {}v4", px(at), px(bottom));
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            px(at.min(plot.left + plot.width + RIGHT - half)),
            px(bottom + 17.0)
        );
    }
    let _ = write!(
        svg,
        "<path class=\"base\" d=\"{marks}\"/><text class=\"label\" x=\"{}\" y=\"{}\" \
         text-anchor=\"end\">{}{}</text>",
        px(plot.left + plot.width),
        px(height - 6.0),
        escape(label),
        x.unit()
    );
}

/// One curve, broken where a point is not finite; lone points become dots.
fn curve(svg: &mut String, plot: &Plot, (x, y): (&Axis, &Axis), index: usize, series: &Series) {
    let points = thin(&series.points, MAX_POINTS);
    let dots = points.len() <= MAX_DOTS;
    let turns = |w: &&[(f64, f64)]| (w[1].1 - w[0].1) * (w[2].1 - w[1].1) < 0.0;
    let noisy = if points.windows(3).filter(turns).count() > MAX_TURNS { " noisy" } else { "" };
    let mut values = String::new();
    let mut marks = String::new();
    let mut shape = String::new();
    for run in points.split(|point| !is_finite(*point)).filter(|run| !run.is_empty()) {
        shape += "<polyline points=\"";
        for &(px_value, py_value) in run {
            let at = (plot.x(x.share(px_value)), plot.y(y.share(py_value)));
            let _ = write!(shape, "{},{} ", px(at.0), px(at.1));
            let _ = write!(values, "{},{} ", brief(px_value), brief(py_value));
            if dots || run.len() == 1 {
                let _ =
                    write!(marks, "<circle cx=\"{}\" cy=\"{}\" r=\"2.5\"/>", px(at.0), px(at.1));
            }
        }
        shape.truncate(shape.trim_end().len());
        shape += "\"/>";
    }
    let _ = write!(
        svg,
        "<g class=\"line {}{noisy}\" data-name=\"{}\" data-v=\"{}\">{shape}{marks}</g>",
        colour(index),
        escape(&series.name),
        values.trim_end()
    );
}

/// A value for the read-out: six significant digits, in a form that a script can parse.
fn brief(value: f64) -> String {
    let exact = format!("{value}");
    let short = format!("{value:.5e}");
    if exact.len() <= short.len() { exact } else { short }
}
