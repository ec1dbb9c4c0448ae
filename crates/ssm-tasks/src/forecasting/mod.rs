//! Forecasting of multivariate series: data, windows, models, scores and predictions.
//!
//! The protocol is that of Informer, Autoformer, iTransformer and S-Mamba. Every variate is
//! standardised by mean and deviation of the training rows. A model reads `lookback_len` rows and
//! predicts the next `pred_len`; windows slide by one row. Scores are the mean squared and the mean
//! absolute error of standardised values over all windows, targets and steps of a split.
//!
//! ```
//! use ssm_tasks::forecasting::window::{Purpose, permutation};
//!
//! // The order of training windows is a pure function of the seed and the epoch.
//! let order = permutation(100, 2023, Purpose::Train, 4);
//! assert_eq!(order, permutation(100, 2023, Purpose::Train, 4));
//! assert_ne!(order, permutation(100, 2023, Purpose::Train, 5));
//! ```

pub mod baseline;
pub mod config;
pub mod data;
pub mod model;
pub mod predict;
mod report;
pub mod scale;
pub mod score;
pub mod window;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;
use ssm_core::{init::Init, nn};
use ssm_train::{
    config::Settings,
    error::Error,
    task::{self, Goal, InputMapper, Loss, Metrics, Outcome, Selection, Split, Task},
};

use self::{
    config::{Features, ForecastingConfig, ForecastingOptions},
    data::{DataConfig, Series},
    model::{Forecaster, ForecasterConfig},
    predict::Artifacts,
    scale::Scaler,
    score::Scores,
    window::{Input, Purpose, WindowBatch, Windows, permutation},
};
use crate::{Example, ExampleData, TaskEntry, data::KnownSet};

/// Order of the windows of one epoch, kept until another epoch is asked for.
type CachedOrder = Mutex<Option<(u64, Arc<Vec<usize>>)>>;

/// Forecasting on one series.
pub struct ForecastingTask {
    options: ForecastingOptions,
    settings: Settings,
    /// As given by the engine, autodiff included.
    device: Device,
    /// Key of the model, for tables.
    model: &'static str,
    /// Name, columns and file of the data; its values moved into `windows`.
    series: Series,
    date_column: Option<String>,
    scaler: Scaler,
    windows: Windows,
    order: CachedOrder,
}

/// What a loss reads.
#[derive(Clone, Debug)]
pub struct TrainingInput {
    /// What dropout draws from.
    seed: Tensor<1, Int>,
    windows: Input,
    /// `[batch, n_targets, pred_len]`
    target: Tensor<3>,
}

impl task::Input for TrainingInput {
    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        let Self { seed, windows: Input { x, marks }, target } = self;
        Self {
            seed: seed.map_tensors(mapper),
            windows: Input { x: x.map_tensors(mapper), marks: marks.map_tensors(mapper) },
            target: target.map_tensors(mapper),
        }
    }
}

impl Task for ForecastingTask {
    type Config = ForecastingConfig;
    type Model = Forecaster;
    type Batch = WindowBatch;
    type Input = TrainingInput;

    fn new(
        options: &ForecastingOptions,
        data: &DataConfig,
        model: &ForecasterConfig,
        settings: &Settings,
        device: &Device,
    ) -> Result<(Self, Forecaster), Error> {
        let data_set = data.data_set();
        let mut series = data_set.load(&settings.data_dirs)?;
        let targets = choose_columns(&mut series, options)?;
        let borders = data_set
            .borders(series.n_rows(), options.lookback_len)
            .map_err(|message| series.error(message, None))?;
        if borders.train.is_empty() {
            return Err(series.error("too few rows: the training split is empty", None));
        }
        let scaler = Scaler::fit(&series.values, borders.train.clone());
        let windows = Windows::new(
            &series,
            &scaler,
            borders,
            options.calendar,
            targets,
            options.lookback_len,
            options.pred_len,
        )
        .map_err(|message| {
            let hint = "shorten `task.forecasting.lookback_len` or `task.forecasting.pred_len`";
            series.error(message, Some(hint.to_owned()))
        })?;
        let n_train = windows.n_windows(Split::Train);
        if options.train_drop_last && n_train < settings.batch_size {
            return Err(series.error(
                format!(
                    "too few rows: {n_train} training windows are less than one batch of {}",
                    settings.batch_size
                ),
                Some("lower `train.batch_size`, or set `train_drop_last = false`".to_owned()),
            ));
        }
        series.values = Vec::new();
        series.dates = None;
        let task = Self {
            options: options.clone(),
            settings: settings.clone(),
            device: device.clone(),
            model: model.section(),
            series,
            date_column: data_set.date_column().map(str::to_owned),
            scaler,
            windows,
            order: Mutex::new(None),
        };
        let model = restore(options, model, settings, device);
        Ok((task, model))
    }

    fn describe(&self) -> String {
        let counts = [Split::Train, Split::Valid, Split::Test].map(|s| self.windows.n_windows(s));
        format!(
            "{} from {}: {} variates, {} to predict, {} → {} steps; windows: {} training, {} \
             validation, {} test",
            self.series.name,
            self.series.path.display(),
            self.windows.n_variates(),
            self.windows.targets().len(),
            self.windows.lookback_len(),
            self.windows.pred_len(),
            counts[0],
            counts[1],
            counts[2],
        )
    }

    fn data_hashes(&self) -> BTreeMap<String, String> {
        let name = self.series.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        // The hash is that of the uncompressed file.
        let name = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
        BTreeMap::from([(name, self.series.sha256.clone())])
    }

    fn artifacts(&self) -> serde_json::Value {
        serde_json::json!(ForecastingTask::artifacts(self))
    }

    fn batches_per_epoch(&self) -> u64 {
        let n_windows = self.windows.n_windows(Split::Train);
        let batch_size = self.settings.batch_size;
        let n_batches = if self.options.train_drop_last {
            n_windows / batch_size
        } else {
            n_windows.div_ceil(batch_size)
        };
        n_batches as u64
    }

    fn batch(&self, index: u64) -> Result<WindowBatch, Error> {
        Ok(self.windows.gather(Split::Train, &self.windows_of(index)))
    }

    fn samples(&self, index: u64) -> Vec<String> {
        let file = self.series.path.file_name().map(|name| name.to_string_lossy());
        let file = file.unwrap_or_else(|| self.series.name.as_str().into());
        let name = |window: &usize| {
            // From 1 on, below the header.
            let first = self.windows.first_row(Split::Train, *window) + 1;
            let last = first + self.windows.lookback_len() + self.windows.pred_len() - 1;
            format!("rows {first} to {last} of `{file}`")
        };
        self.windows_of(index).iter().map(name).collect()
    }

    fn input(&self, batch: WindowBatch, seed: u64, device: &Device) -> TrainingInput {
        TrainingInput {
            seed: nn::seed_on(seed, device),
            windows: self.windows.input(&batch, device),
            target: self.windows.target(&batch, device),
        }
    }

    fn loss(&self, model: &Forecaster, input: TrainingInput) -> Loss {
        let TrainingInput { seed, windows, target } = input;
        let [n_windows, ..] = target.dims();
        let predicted = nn::seeded(seed, || self.select_targets(model.forward(windows)));
        Loss { mean: (predicted - target).square().mean(), weight: n_windows as f64 }
    }

    fn selection(&self) -> Selection {
        Selection { metric: "mse", goal: Goal::Minimise }
    }

    fn evaluate(&self, model: &Forecaster, split: Split) -> Result<Metrics, Error> {
        let scores = self.score(split, &model.device(), |input| model.forward(input))?;
        Ok(scores.metrics())
    }

    fn conclude(&self, model: &Forecaster) -> Result<Outcome, Error> {
        report::conclude(self, model)
    }
}

impl ForecastingTask {
    /// What a later forecast needs beside the weights; see [`predict`].
    #[must_use]
    pub fn artifacts(&self) -> Artifacts {
        let columns = &self.series.columns;
        Artifacts {
            series: self.series.name.clone(),
            columns: columns.clone(),
            targets: columns[self.windows.targets()].to_vec(),
            date_column: self.date_column.clone(),
            scaler: self.scaler.clone(),
        }
    }

    /// The windows of every split.
    #[must_use]
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Errors of any forecaster on a split: every window, in order, `eval_batch_size` at a time.
    ///
    /// `forecast` maps the input to `[batch, n_variates, pred_len]` on `device`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn score(
        &self,
        split: Split,
        device: &Device,
        forecast: impl Fn(Input) -> Tensor<3>,
    ) -> Result<Scores, Error> {
        let windows = &self.windows;
        let (indices, batch_size) = self.evaluation_order(split);
        let mut scores = Scores::new(windows.targets().len(), windows.pred_len());
        for indices in indices.chunks(batch_size) {
            let batch = windows.gather(split, indices);
            let predicted = self.select_targets(forecast(windows.input(&batch, device)));
            scores.add(&to_host(predicted, device)?, &batch.y);
        }
        Ok(scores)
    }

    /// The windows of a micro-batch.
    fn windows_of(&self, index: u64) -> Vec<usize> {
        let (epoch, place) = (index / self.batches_per_epoch(), index % self.batches_per_epoch());
        let order = self.order_of(epoch);
        let start = place as usize * self.settings.batch_size;
        order[start..order.len().min(start + self.settings.batch_size)].to_vec()
    }

    /// The windows of an evaluation and how many to take at a time.
    fn evaluation_order(&self, split: Split) -> (Vec<usize>, usize) {
        let n_windows = self.windows.n_windows(split);
        if split == Split::Valid && self.options.compat.smamba_validation {
            let batch_size = self.settings.batch_size;
            let mut order = permutation(n_windows, self.settings.seed, Purpose::Valid, 0);
            // With less than one batch the published loader has no validation at all.
            if n_windows >= batch_size {
                order.truncate(n_windows / batch_size * batch_size);
            }
            return (order, batch_size);
        }
        ((0..n_windows).collect(), self.settings.eval_batch_size.max(1))
    }

    /// Keeps the variates to predict: `[batch, n_variates, pred_len]` to `[batch, n_targets, ..]`.
    fn select_targets(&self, predicted: Tensor<3>) -> Tensor<3> {
        let targets = self.windows.targets();
        if targets.len() == self.windows.n_variates() {
            return predicted;
        }
        predicted.narrow(1, targets.start, targets.len())
    }

    fn order_of(&self, epoch: u64) -> Arc<Vec<usize>> {
        // A poisoned cache still holds a whole order or none.
        let mut cached = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kept, order)) = cached.as_ref()
            && *kept == epoch
        {
            return order.clone();
        }
        let n_windows = self.windows.n_windows(Split::Train);
        let order = permutation(n_windows, self.settings.seed, Purpose::Train, epoch);
        let order = Arc::new(order);
        *cached = Some((epoch, order.clone()));
        order
    }

    /// An error about the data of the run.
    fn data_error(&self, message: &str, hint: &str) -> Error {
        self.series.error(message, Some(hint.to_owned()))
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

/// The model of a configuration with fresh parameters, without any data.
#[must_use]
pub fn restore(
    options: &ForecastingOptions,
    model: &ForecasterConfig,
    settings: &Settings,
    device: &Device,
) -> Forecaster {
    let mut init = Init::new(settings.seed, device);
    let mut forecaster = model.init(options.lookback_len, options.pred_len, &mut init);
    if let (Forecaster::SMamba(s_mamba), Some(dtype)) =
        (&mut forecaster, settings.precision.activations())
    {
        s_mamba.compute_in(dtype);
    }
    forecaster
}

/// Keeps the columns that `features` asks for and returns the positions to predict.
fn choose_columns(
    series: &mut Series,
    options: &ForecastingOptions,
) -> Result<Range<usize>, Error> {
    if options.features == Features::M {
        return Ok(0..series.columns.len());
    }
    let Some(target) = series.columns.iter().position(|name| *name == options.target) else {
        return Err(series.error(
            format!(
                "no column `{}` to predict, got {}",
                options.target,
                data::list(&series.columns)
            ),
            Some("name one of them by `task.forecasting.target`".to_owned()),
        ));
    };
    if options.features == Features::S {
        series.columns = vec![series.columns.swap_remove(target)];
        series.values = vec![series.values.swap_remove(target)];
        return Ok(0..1);
    }
    Ok(target..target + 1)
}

/// Reads a tensor back.
fn to_host(tensor: Tensor<3>, device: &Device) -> Result<Vec<f32>, Error> {
    tensor.try_into_vec_as().map_err(|reason| Error::Device {
        device: format!("{device:?}"),
        message: reason.to_string(),
        hint: Some("lower `train.eval_batch_size` if memory ran out".to_owned()),
    })
}

impl TaskEntry for ForecastingTask {
    fn known_sets() -> Vec<KnownSet> {
        data::known_sets()
    }

    fn example() -> Option<Example> {
        let data = ExampleData {
            key: "data.csv.path",
            name: "nyc_airports.csv",
            file: "nyc_airports.csv.gz",
            bytes: include_bytes!("../../../../examples/data/nyc_airports.csv.gz"),
        };
        let config = include_str!("../../../../configs/forecasting/nyc_24_smamba.toml");
        Some(Example { config, data: Some(data) })
    }

    fn restore(
        options: &ForecastingOptions,
        model: &ForecasterConfig,
        _artifacts: &serde_json::Value,
        settings: &Settings,
        device: &Device,
    ) -> Result<Forecaster, Error> {
        Ok(restore(options, model, settings, device))
    }

    fn predict(
        options: &ForecastingOptions,
        artifacts: &serde_json::Value,
        model: &Forecaster,
        input: &Path,
    ) -> Result<String, Error> {
        let artifacts = Artifacts::deserialize(artifacts).map_err(|reason| Error::Usage {
            message: format!("the artifacts of the run are not those of a forecast: {reason}"),
            hint: Some("predict with the run directory of a forecasting run".to_owned()),
        })?;
        Ok(predict::predict(options, &artifacts, model, &crate::data::read(input)?)?.to_csv())
    }
}
