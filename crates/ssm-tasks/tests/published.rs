//! Real data: the published numbers of windows, the scaler, and the score of the last value.
//!
//! Sets that are not at hand are left out; `SSM_DATA` or `data/` says where they are.

use ssm_tasks::forecasting::{ForecastingTask, data::DataConfig};
use ssm_train::task::{Split, Task};

use crate::support::{data_dirs, device, dlinear, settings};

/// The task on a published set at 96 -> 96, if the file is there.
fn benchmark(data: &str, file: &str) -> Option<ForecastingTask> {
    let here = data_dirs().iter().any(|dir| {
        let path = dir.join("timeseries").join(file);
        path.is_file() || path.with_extension("csv.gz").is_file()
    });
    if !here {
        return None;
    }
    let data: DataConfig = toml::from_str(data).unwrap();
    let options = toml::from_str("").unwrap();
    let (task, _) =
        ForecastingTask::new(&options, &data, &dlinear(), &settings(64), &device()).unwrap();
    Some(task)
}

#[test]
fn window_counts_are_the_published_ones() {
    for (data, file, counts) in [
        ("[ett]\nvariant = \"h1\"", "ETTh1.csv", [8449, 2785, 2785]),
        ("[ett]\nvariant = \"h2\"", "ETTh2.csv", [8449, 2785, 2785]),
        ("[ett]\nvariant = \"m1\"", "ETTm1.csv", [34369, 11425, 11425]),
        ("[ett]\nvariant = \"m2\"", "ETTm2.csv", [34369, 11425, 11425]),
        ("[exchange]", "exchange_rate.csv", [5120, 665, 1422]),
        ("[weather]", "weather.csv", [36696, 5175, 10444]),
    ] {
        let Some(task) = benchmark(data, file) else { continue };
        let windows = task.windows();
        let got = [Split::Train, Split::Valid, Split::Test].map(|split| windows.n_windows(split));
        assert_eq!(got, counts, "{file}");
    }
}

#[test]
fn the_scaler_of_etth1_is_that_of_the_training_rows() {
    let Some(task) = benchmark("[ett]\nvariant = \"h1\"", "ETTh1.csv") else { return };
    let artifacts = task.artifacts();
    assert_eq!(artifacts.columns, ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]);
    // Mean and population deviation of OT over the first 8640 rows, by awk in f64.
    assert!(
        (artifacts.scaler.mean[6] - 17.1282616982271).abs() < 1e-9,
        "{}",
        artifacts.scaler.mean[6]
    );
    assert!(
        (artifacts.scaler.std[6] - 9.17649102494438).abs() < 1e-9,
        "{}",
        artifacts.scaler.std[6]
    );
}

#[test]
fn the_last_value_scores_as_published() {
    // "Repeat" at horizon 96 in Zeng et al. 2022, arXiv:2205.13504, table 2.
    for (data, file, mse, mae) in [
        ("[ett]\nvariant = \"h1\"", "ETTh1.csv", 1.295, 0.713),
        ("[ett]\nvariant = \"h2\"", "ETTh2.csv", 0.432, 0.422),
        ("[ett]\nvariant = \"m1\"", "ETTm1.csv", 1.214, 0.665),
        ("[exchange]", "exchange_rate.csv", 0.081, 0.196),
    ] {
        let Some(task) = benchmark(data, file) else { continue };
        let scores = task
            .score(Split::Test, &device(), |input| input.x.narrow(2, 95, 1).repeat_dim(2, 96))
            .unwrap();
        // Three digits are published, and that loader leaves out the last partial batch.
        assert!((scores.mse() - mse).abs() < 1e-3, "{file}: {}", scores.mse());
        assert!((scores.mae() - mae).abs() < 1e-3, "{file}: {}", scores.mae());
    }
}
