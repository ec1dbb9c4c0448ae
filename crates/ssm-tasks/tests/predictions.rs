//! Forecasts of new rows from a trained model and the artifacts of its run.

use std::{fs, path::Path};

use burn::tensor::Tensor;
use serde_json::Value;
use ssm_tasks::{
    TaskEntry,
    forecasting::{ForecastingTask, config::ForecastingOptions, model::Forecaster},
};
use ssm_train::task::{Split, Task};

use crate::support::{csv, device, options, s_mamba, settings, waves};

fn trained(dir: &Path, options: &ForecastingOptions) -> (ForecastingTask, Forecaster, Value) {
    let path = waves(dir, 500);
    let (task, model) =
        ForecastingTask::new(options, &csv(&path), &s_mamba(""), &settings(16), &device()).unwrap();
    // Artifacts go through JSON, as they do in a run directory.
    let text = Task::artifacts(&task).to_string();
    let artifacts = serde_json::from_str(&text).unwrap();
    (task, model, artifacts)
}

fn predict(
    options: &ForecastingOptions,
    artifacts: &Value,
    model: &Forecaster,
    text: &str,
) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.csv");
    fs::File::create(&path)
        .and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()))
        .unwrap();
    <ForecastingTask as TaskEntry>::predict(options, artifacts, model, &path).map_err(|error| {
        error.to_string().rsplit("new.csv`: ").next().unwrap_or_default().to_owned()
    })
}

#[test]
fn a_forecast_is_the_last_test_window_in_original_units() {
    let dir = tempfile::tempdir().unwrap();
    let options = options("features = \"MS\"");
    let (task, model, artifacts) = trained(dir.path(), &options);
    let text = fs::read_to_string(dir.path().join("waves.csv")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // All but the last six rows: what follows is the last test window.
    let known = lines[..lines.len() - 6].join("\n");
    let forecast = predict(&options, &artifacts, &model, &known).unwrap();

    let windows = task.windows();
    let batch = windows.gather(Split::Test, &[windows.n_windows(Split::Test) - 1]);
    let expected = model.forward(windows.input(&batch, &device()));
    let expected: Tensor<3> = expected.narrow(1, 2, 1);
    let expected: Vec<f32> = expected.into_data_as::<f32>().try_into_vec().unwrap();
    let scaler = task.artifacts().scaler;

    let rows: Vec<&str> = forecast.lines().collect();
    assert_eq!(rows[0], "date,OT");
    assert_eq!(rows.len(), 7);
    for (step, row) in rows[1..].iter().enumerate() {
        let (date, value) = row.split_once(',').unwrap();
        assert!(lines[lines.len() - 6 + step].starts_with(date), "{date}");
        let value: f64 = value.parse().unwrap();
        let expected = scaler.restore(2, f64::from(expected[step]));
        assert!((value - expected).abs() < 1e-5, "{value} and {expected}");
    }
}

#[test]
fn columns_are_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let options = options("");
    let (_, model, artifacts) = trained(dir.path(), &options);
    let text = fs::read_to_string(dir.path().join("waves.csv")).unwrap();
    let shuffled: Vec<String> = text
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            let extra = if cells[0] == "date" { "extra" } else { "1" };
            format!("{},{extra},{},{},{}", cells[3], cells[1], cells[0], cells[2])
        })
        .collect();
    let plain = predict(&options, &artifacts, &model, &text).unwrap();
    assert_eq!(predict(&options, &artifacts, &model, &shuffled.join("\n")).unwrap(), plain);
    assert!(plain.starts_with("date,first,second,OT\n"));
}

#[test]
fn input_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = options("");
    let (_, model, artifacts) = trained(dir.path(), &options);
    let rows = |dates: &dyn Fn(usize) -> String, count: usize| {
        let rows: Vec<String> = (0..count).map(|row| format!("{},1,2,3", dates(row))).collect();
        format!("date,first,second,OT\n{}", rows.join("\n"))
    };
    let hourly = |row: usize| format!("2020-01-01 {row:02}:00:00");
    let refused = |text: &str| predict(&options, &artifacts, &model, text).unwrap_err();
    assert_eq!(
        refused(&rows(&hourly, 23)),
        "too few rows: the model looks back on 24, the file has 23"
    );
    assert_eq!(refused("date,first,OT\n2020-01-01,1,2"), "no column `second`, got `first`, `OT`");
    assert_eq!(
        refused("first,second,OT\n1,2,3"),
        "line 1: no date column `date`, got `first`, `second`, `OT`"
    );
    assert_eq!(
        refused(&rows(&|_| "2020-01-01".to_owned(), 24)),
        "column `date`: the dates do not advance, so none can follow"
    );
}
