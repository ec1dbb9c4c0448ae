//! Small series, small models and the places of real data.

use std::{
    f64::consts::TAU,
    fmt::Write as _,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use ssm_tasks::forecasting::{
    ForecastingTask,
    config::ForecastingOptions,
    data::DataConfig,
    model::{Forecaster, ForecasterConfig},
};
use ssm_train::{
    config::{Precision, Settings},
    error::Error,
    task::Task,
};

/// The device of every test.
pub(crate) fn device() -> Device {
    Device::flex()
}

/// Directories with the published data, empty where they are not at hand.
pub(crate) fn data_dirs() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let named = std::env::var_os("SSM_DATA").map(PathBuf::from);
    let places = [named, Some(repository.join("data")), Some(repository.join("../shared/data"))];
    places.into_iter().flatten().filter(|dir| dir.join("timeseries").is_dir()).collect()
}

/// A hourly CSV with three variates: two waves of a day and their product with some noise, in
/// units of very different size.
pub(crate) fn waves(dir: &Path, n_rows: usize) -> PathBuf {
    let path = dir.join("waves.csv");
    let mut text = "date,first,second,OT\n".to_owned();
    for row in 0..n_rows {
        let phase = TAU * row as f64 / 24.0;
        let noise = ((row * 7919 + 13) % 1009) as f64 / 1009.0 - 0.5;
        let (day, hour) = (row / 24, row % 24);
        // Months of 28 days keep the arithmetic short.
        let (month, day) = (day / 28 % 12 + 1, day % 28 + 1);
        let year = 2020 + row / (24 * 28 * 12);
        writeln!(
            text,
            "{year}-{month:02}-{day:02} {hour:02}:00:00,{},{},{}",
            100.0 + 50.0 * phase.sin() + noise,
            0.01 * (phase * 2.0).cos() + 0.001 * noise,
            (phase.sin() * (phase * 2.0).cos()) + 0.1 * noise
        )
        .unwrap();
    }
    File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

/// Options for small windows; `extra` is TOML.
pub(crate) fn options(extra: &str) -> ForecastingOptions {
    let text = format!("lookback_len = 24\npred_len = 6\n{extra}");
    toml::from_str(&text).unwrap()
}

/// The section of a CSV file.
pub(crate) fn csv(path: &Path) -> DataConfig {
    let path = toml::Value::from(path.to_str().unwrap());
    toml::from_str(&format!("[csv]\npath = {path}")).unwrap()
}

/// Batches of 16 and evaluation in batches of `eval_batch_size`.
pub(crate) fn settings(eval_batch_size: usize) -> Settings {
    let data_dirs = data_dirs();
    Settings {
        seed: 2023,
        batch_size: 16,
        eval_batch_size,
        accumulate: 1,
        recompute: None,
        precision: Precision::F32,
        fold: 0,
        data_dirs,
    }
}

/// A small S-Mamba.
pub(crate) fn s_mamba(extra: &str) -> ForecasterConfig {
    toml::from_str(&format!(
        "[s_mamba]\nd_model = 16\nd_ff = 24\nn_layer = 2\n{extra}\n\
         [s_mamba.mixer.mamba]\nd_state = 4\nd_conv = 2\nexpand = 1"
    ))
    .unwrap()
}

/// DLinear with its defaults.
pub(crate) fn dlinear() -> ForecasterConfig {
    toml::from_str("[dlinear]").unwrap()
}

/// A task on [`waves`] with the model on a device without autodiff.
pub(crate) fn task(
    options: &ForecastingOptions,
    model: &ForecasterConfig,
    settings: &Settings,
    n_rows: usize,
) -> Result<(ForecastingTask, Forecaster), Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = waves(dir.path(), n_rows);
    ForecastingTask::new(options, &csv(&path), model, settings, &device())
}
