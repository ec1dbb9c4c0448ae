//! What a finished run has to show: scores beside the baselines, and figures.

use burn::module::Module;
use ssm_train::{
    error::Error,
    report::{Figure, Series, Table},
    task::{Outcome, Split},
};

use super::{ForecastingTask, baseline::BaselineKind, model::Forecaster, score::Scores, to_host};

/// Most variates that one figure shows.
const MAX_PANELS: usize = 4;
const MAX_BARS: usize = 32;

/// Scores the model and the baselines on the test split and draws the figures.
pub(super) fn conclude(task: &ForecastingTask, model: &Forecaster) -> Result<Outcome, Error> {
    let scores = task.score(Split::Test, &model.device(), |input| model.forward(input))?;
    let mut rows = vec![row(task.model, &model.num_params().to_string(), &scores)];
    let mut metrics = scores.metrics();
    let mut all = vec![(task.model.to_owned(), scores)];
    for &kind in &task.options.baselines {
        let scores = kind.score(task, Split::Test)?;
        let name = if kind.name() == task.model {
            format!("{} (baseline)", kind.name())
        } else {
            kind.name().to_owned()
        };
        rows.push(row(&name, &kind.n_params(task).to_string(), &scores));
        for (metric, value) in scores.metrics() {
            metrics.insert(format!("{}_{metric}", kind.name()), value);
        }
        all.push((name, scores));
    }
    Ok(Outcome {
        metrics,
        tables: vec![table(task, rows)],
        figures: vec![examples(task, model)?, by_step(&all), by_variate(task, &all)],
        ..Outcome::default()
    })
}

fn row(name: &str, n_params: &str, scores: &Scores) -> Vec<String> {
    vec![
        name.to_owned(),
        n_params.to_owned(),
        format!("{:.4}", scores.mse()),
        format!("{:.4}", scores.mae()),
    ]
}

fn table(task: &ForecastingTask, rows: Vec<Vec<String>>) -> Table {
    let mut note = format!(
        "Mean over all {} test windows, {} variates and {} steps, of values standardised by the \
         training rows.",
        task.windows.n_windows(Split::Test),
        task.windows.targets().len(),
        task.windows.pred_len()
    );
    if task.options.baselines.contains(&BaselineKind::DLinear) {
        note.push_str(" DLinear was trained on the same training windows when the run concluded.");
    }
    Table {
        title: format!(
            "Test scores on {}, {} → {} steps",
            task.series.name,
            task.windows.lookback_len(),
            task.windows.pred_len()
        ),
        columns: ["forecaster", "parameters", "MSE", "MAE"].map(str::to_owned).to_vec(),
        names: 1,
        rows,
        note,
    }
}

/// Up to `count` of `0..n`, evenly spread, both ends included.
fn spread(n: usize, count: usize) -> Vec<usize> {
    if n <= count {
        return (0..n).collect();
    }
    (0..count).map(|i| i * (n - 1) / (count - 1)).collect()
}

/// Predicted against true values of a few variates at two windows, in original units.
fn examples(task: &ForecastingTask, model: &Forecaster) -> Result<Figure, Error> {
    let windows = &task.windows;
    let (lookback_len, pred_len) = (windows.lookback_len(), windows.pred_len());
    let n_windows = windows.n_windows(Split::Test);
    let chosen = [n_windows / 4, n_windows * 3 / 4];
    let batch = windows.gather(Split::Test, &chosen);
    let device = model.device();
    let predicted = task.select_targets(model.forward(windows.input(&batch, &device)));
    let predicted = to_host(predicted, &device)?;

    let targets = windows.targets();
    let mut panels = Vec::new();
    for (place, window) in chosen.iter().enumerate() {
        for target in spread(targets.len(), MAX_PANELS) {
            let variate = targets.start + target;
            let curve = |values: &[f32], first_step: f64| -> Vec<(f64, f64)> {
                let unit = |value: &f32| task.scaler.restore(variate, f64::from(*value));
                let points = values.iter().enumerate();
                points.map(|(step, value)| (first_step + step as f64, unit(value))).collect()
            };
            let cell = (place * targets.len() + target) * pred_len;
            let past = (place * windows.n_variates() + variate) * lookback_len;
            // As much of the past as of the future: more would squeeze the forecast.
            let shown = lookback_len.min(pred_len);
            let past = &batch.x[past + lookback_len - shown..past + lookback_len];
            let mut truth = curve(past, 1.0 - shown as f64);
            truth.extend(curve(&batch.y[cell..cell + pred_len], 1.0));
            panels.push(Figure::Lines {
                title: format!("{}, test window {window}", task.series.columns[variate]),
                x_label: "steps after the last known row".to_owned(),
                y_label: "original units".to_owned(),
                series: vec![
                    Series {
                        name: "predicted".to_owned(),
                        points: curve(&predicted[cell..cell + pred_len], 1.0),
                    },
                    Series { name: "true".to_owned(), points: truth },
                ],
                note: String::new(),
            });
        }
    }
    Ok(Figure::Panels {
        title: "Forecasts on the test split".to_owned(),
        panels,
        note: "Windows at one and three quarters of the split, not chosen by their error. The \
               upright line marks the last known row."
            .to_owned(),
    })
}

fn by_step(all: &[(String, Scores)]) -> Figure {
    let series = all.iter().map(|(name, scores)| Series {
        name: name.clone(),
        points: indexed(scores.mse_by_step(), 1.0),
    });
    Figure::Lines {
        title: "Error by horizon step".to_owned(),
        x_label: "steps after the last known row".to_owned(),
        y_label: "MSE, standardised".to_owned(),
        series: series.collect(),
        note: String::new(),
    }
}

fn by_variate(task: &ForecastingTask, all: &[(String, Scores)]) -> Figure {
    let targets = task.windows.targets();
    let of_model = all[0].1.mse_by_variate();
    let mut shown: Vec<usize> = (0..targets.len()).collect();
    let mut note = String::new();
    if shown.len() > MAX_BARS {
        shown.sort_by(|a, b| of_model[*b].total_cmp(&of_model[*a]));
        shown.truncate(MAX_BARS);
        note = format!("The {MAX_BARS} of {} variates with the largest error.", targets.len());
    }
    let series = all.iter().map(|(name, scores)| {
        let errors = scores.mse_by_variate();
        let points = indexed(shown.iter().map(|&target| errors[target]).collect(), 0.0);
        Series { name: name.clone(), points }
    });
    Figure::Bars {
        title: "Error by variate".to_owned(),
        categories: shown
            .iter()
            .map(|&target| task.series.columns[targets.start + target].clone())
            .collect(),
        y_label: "MSE, standardised".to_owned(),
        series: series.collect(),
        note,
    }
}

fn indexed(values: Vec<f64>, first: f64) -> Vec<(f64, f64)> {
    values.into_iter().enumerate().map(|(i, value)| (first + i as f64, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_of_many_include_both_ends() {
        assert_eq!(spread(3, 4), [0, 1, 2]);
        assert_eq!(spread(7, 4), [0, 2, 4, 6]);
        assert_eq!(spread(862, 4), [0, 287, 574, 861]);
    }
}
