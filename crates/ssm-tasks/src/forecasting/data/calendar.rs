//! Calendar features, and dates after the last one.

use jiff::{SignedDuration, civil::DateTime};

/// Number of calendar features: hour, day of the week, day of the month, day of the year.
pub const N_MARKS: usize = 4;

/// The four calendar features of a date, each linear in `[-0.5, 0.5]`.
///
/// There is no feature of the minute, also for data of 10 or 15 minutes: the published scripts
/// leave the frequency at hours.
///
/// # Source
/// GluonTS time features as used by Informer, Autoformer and S-Mamba with `freq = "h"`.
#[must_use]
pub fn marks(date: DateTime) -> [f32; N_MARKS] {
    let part = |value: f64, last: f64| (value / last - 0.5) as f32;
    [
        part(f64::from(date.hour()), 23.0),
        part(f64::from(date.weekday().to_monday_zero_offset()), 6.0),
        part(f64::from(date.day() - 1), 30.0),
        part(f64::from(date.day_of_year() - 1), 365.0),
    ]
}

/// The most frequent step between dates that follow each other, the shorter one if two are as
/// frequent; none for less than two dates or if time stands still.
#[must_use]
pub fn date_step(dates: &[DateTime]) -> Option<SignedDuration> {
    let mut steps: Vec<SignedDuration> =
        dates.windows(2).map(|pair| pair[0].duration_until(pair[1])).collect();
    steps.sort();
    let longest_run = steps.chunk_by(|a, b| a == b).rev().max_by_key(|run| run.len())?;
    longest_run.first().copied().filter(|step| step.is_positive())
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn marks_are_those_of_pandas() {
        // A Friday, day 183 of a leap year.
        let friday = marks(date(2016, 7, 1).at(0, 0, 0, 0));
        let expected = [-0.5, 4.0 / 6.0 - 0.5, -0.5, 182.0 / 365.0 - 0.5];
        assert_eq!(friday, expected.map(|value: f64| value as f32));
        // The ends of every range: Sunday, 31 December of a leap year, 23 hours.
        let sunday = marks(date(2000, 12, 31).at(23, 59, 59, 0));
        assert_eq!(sunday, [0.5, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn the_step_is_the_most_frequent_one() {
        let hour = |h: i8| date(2020, 1, 1).at(h, 0, 0, 0);
        assert_eq!(
            date_step(&[hour(0), hour(1), hour(5), hour(6)]),
            Some(SignedDuration::from_hours(1))
        );
        assert_eq!(date_step(&[hour(0)]), None);
        assert_eq!(date_step(&[hour(3), hour(3), hour(3)]), None);
    }
}
