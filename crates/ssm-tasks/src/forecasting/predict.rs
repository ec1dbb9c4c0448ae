//! Forecasts of new rows in original units, from a trained model and the artifacts of its run.

use std::fmt::Write;

use burn::tensor::Device;
use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{
    config::ForecastingOptions,
    data::{Borders, Series, TableFormat, date_step, list, parse_table},
    model::Forecaster,
    scale::Scaler,
    to_host,
    window::Windows,
};
use crate::data::DataFile;

/// What a forecast needs beside the weights: it is stored with the run, so that a forecast needs
/// neither the training data nor the statistics of the new rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifacts {
    /// Name of the training series.
    pub series: String,
    /// Columns that the model reads, in its order.
    pub columns: Vec<String>,
    /// Columns that are predicted: neighbours in `columns`.
    pub targets: Vec<String>,
    /// Column of the dates, for data that has them.
    pub date_column: Option<String>,
    /// Mean and deviation of the training rows.
    pub scaler: Scaler,
}

/// Predicted rows in original units.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Column of the dates and one date a row, for data that has them.
    pub dates: Option<(String, Vec<DateTime>)>,
    /// Predicted columns.
    pub columns: Vec<String>,
    /// One vector a column, of `pred_len` values.
    pub values: Vec<Vec<f32>>,
}

impl Forecast {
    /// The forecast as CSV: dates as `2016-07-01 00:00:00`, or the step from 1 without dates.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let quoted = |name: &str| {
            if name.contains(['"', ',', '\n', '\r']) {
                format!("\"{}\"", name.replace('"', "\"\""))
            } else {
                name.to_owned()
            }
        };
        let mut text = quoted(self.dates.as_ref().map_or("step", |(name, _)| name));
        for column in &self.columns {
            text.push(',');
            text.push_str(&quoted(column));
        }
        text.push('\n');
        let n_rows = self.values.first().map_or(0, Vec::len);
        for row in 0..n_rows {
            // Writing to a string cannot fail.
            let _ = match &self.dates {
                Some((_, dates)) => write!(text, "{}", dates[row].strftime("%Y-%m-%d %H:%M:%S")),
                None => write!(text, "{}", row + 1),
            };
            for column in &self.values {
                let _ = write!(text, ",{}", column[row]);
            }
            text.push('\n');
        }
        text
    }
}

/// Predicts the `pred_len` rows after the last one of a CSV file.
///
/// The last `lookback_len` rows are used. Columns are found by name; others are ignored. Dates go
/// on from the last one by the most frequent step of the file.
///
/// # Errors
/// [`Error::Data`] for a malformed file, a missing column, too few rows, or dates without a step.
pub fn predict(
    options: &ForecastingOptions,
    artifacts: &Artifacts,
    model: &Forecaster,
    input: &DataFile,
) -> Result<Forecast, Error> {
    let format = artifacts.date_column.as_deref().map_or(TableFormat::Undated, TableFormat::Dated);
    let series = by_name(parse_table("input", input, format)?, artifacts)?;
    let (n_rows, lookback_len) = (series.n_rows(), options.lookback_len);
    if n_rows < lookback_len {
        return Err(series.error(
            format!("too few rows: the model looks back on {lookback_len}, the file has {n_rows}"),
            None,
        ));
    }
    let (lookback, dates) = last_rows(series, options, artifacts)?;
    let targets = target_range(artifacts)
        .ok_or_else(|| lookback.error("the artifacts of the run name unknown targets", None))?;
    let device = model.device();
    let predicted = forward(&lookback, options, artifacts, model, &device)?;
    let values = targets
        .clone()
        .map(|variate| {
            let values = &predicted[variate * options.pred_len..][..options.pred_len];
            let unit = |value: &f32| artifacts.scaler.restore(variate, f64::from(*value)) as f32;
            values.iter().map(unit).collect()
        })
        .collect();
    Ok(Forecast { dates, columns: artifacts.targets.clone(), values })
}

/// Standardised forecast of every variate, `[n_variates, pred_len]`.
fn forward(
    lookback: &Series,
    options: &ForecastingOptions,
    artifacts: &Artifacts,
    model: &Forecaster,
    device: &Device,
) -> Result<Vec<f32>, Error> {
    let rows = 0..lookback.n_rows();
    let borders = Borders { train: rows.clone(), valid: rows.clone(), test: rows };
    // A window without rows to predict: the forecast lies after the file.
    let windows = Windows::new(
        lookback,
        &artifacts.scaler,
        borders,
        options.calendar,
        0..lookback.columns.len(),
        options.lookback_len,
        0,
    )
    .map_err(|message| lookback.error(message, None))?;
    let batch = windows.gather(ssm_train::task::Split::Test, &[0]);
    to_host(model.forward(windows.input(&batch, device)), device)
}

/// The series with the columns of the run, in their order.
fn by_name(mut series: Series, artifacts: &Artifacts) -> Result<Series, Error> {
    let mut values = Vec::with_capacity(artifacts.columns.len());
    for column in &artifacts.columns {
        let Some(index) = series.columns.iter().position(|name| name == column) else {
            return Err(series.error(
                format!("no column `{column}`, got {}", list(&series.columns)),
                Some(format!("the model was trained on {}", list(&artifacts.columns))),
            ));
        };
        values.push(std::mem::take(&mut series.values[index]));
    }
    let ignored = series.columns.len() - artifacts.columns.len();
    if ignored > 0 {
        tracing::warn!("`{}`: {ignored} columns are not used by the model", series.path.display());
    }
    Ok(Series { columns: artifacts.columns.clone(), values, ..series })
}

/// Name of the date column with the dates of the forecast.
type DatesAhead = Option<(String, Vec<DateTime>)>;

/// The last `lookback_len` rows, and the dates of the rows to predict.
fn last_rows(
    series: Series,
    options: &ForecastingOptions,
    artifacts: &Artifacts,
) -> Result<(Series, DatesAhead), Error> {
    let start = series.n_rows() - options.lookback_len;
    let ahead = match (&artifacts.date_column, &series.dates) {
        (Some(name), Some(dates)) => {
            let dates = dates_ahead(dates, options.pred_len).ok_or_else(|| {
                series.error(
                    format!("column `{name}`: the dates do not advance, so none can follow"),
                    None,
                )
            })?;
            Some((name.clone(), dates))
        }
        _ => None,
    };
    let lookback = Series {
        values: series.values.iter().map(|column| column[start..].to_vec()).collect(),
        dates: series.dates.as_ref().map(|dates| dates[start..].to_vec()),
        ..series
    };
    Ok((lookback, ahead))
}

fn dates_ahead(dates: &[DateTime], count: usize) -> Option<Vec<DateTime>> {
    let step = date_step(dates)?;
    let mut date = *dates.last()?;
    let mut ahead = Vec::with_capacity(count);
    for _ in 0..count {
        date = date.checked_add(step).ok()?;
        ahead.push(date);
    }
    Some(ahead)
}

fn target_range(artifacts: &Artifacts) -> Option<std::ops::Range<usize>> {
    let first = artifacts.targets.first()?;
    let start = artifacts.columns.iter().position(|column| column == first)?;
    let range = start..start + artifacts.targets.len();
    (artifacts.columns.get(range.clone()) == Some(&artifacts.targets)).then_some(range)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn dates_go_on_by_the_step_of_the_file() {
        let day = |d| date(2020, 2, d).at(12, 0, 0, 0);
        let ahead = dates_ahead(&[day(26), day(27), day(28)], 2).unwrap();
        assert_eq!(ahead, [day(29), date(2020, 3, 1).at(12, 0, 0, 0)]);
        assert_eq!(dates_ahead(&[day(1)], 2), None);
    }

    #[test]
    fn a_forecast_is_written_with_dates_or_steps() {
        let mut forecast = Forecast {
            dates: Some(("date".to_owned(), vec![date(2020, 1, 1).at(0, 15, 0, 0)])),
            columns: vec!["a".to_owned(), "T, air".to_owned()],
            values: vec![vec![1.5], vec![-0.1]],
        };
        assert_eq!(forecast.to_csv(), "date,a,\"T, air\"\n2020-01-01 00:15:00,1.5,-0.1\n");
        forecast.dates = Some(("day, hour \"UTC\"".to_owned(), forecast.dates.unwrap().1));
        assert!(forecast.to_csv().starts_with("\"day, hour \"\"UTC\"\"\",a,\"T, air\"\n"));
        forecast.dates = None;
        assert_eq!(forecast.to_csv(), "step,a,\"T, air\"\n1,1.5,-0.1\n");
    }
}
