//! Multiple-instance learning: a label for a bag of instances, as of a slide for its patches.
//!
//! A bag is one sequence of feature vectors, in the order of its file. Bags go through the model one
//! by one, whatever their length; a batch of several only averages their losses. Splits are made of
//! patients. A score that is undefined on a split is reported as such, with the reason.
//!
//! ```
//! use ssm_tasks::mil::metrics::auc;
//!
//! assert_eq!(auc(&[0.9, 0.4, 0.6], &[true, false, false]), Ok(1.0));
//! assert_eq!(auc(&[0.9, 0.4], &[true, true]), Err("no negative sample".to_owned()));
//! ```

pub mod audit;
pub mod cohort;
pub mod config;
pub mod data;
pub mod features;
mod heatmap;
pub mod metrics;
pub mod model;
mod predict;
mod report;
pub mod scale;
mod score;
pub mod splits;
pub mod survival;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};
use ssm_core::init::Init;
use ssm_train::{
    config::{Issue, Recompute, Settings},
    error::Error,
    report::Table,
    result::RunResult,
    task::{Goal, Host, Loss, Metrics, Outcome, Reader, Selection, Split, Task},
};

use self::{
    cohort::{Bag, Bags, Cohort, Target},
    config::{MilConfig, MilOptions, Select},
    data::DataConfig,
    model::{BagModel, BagModelConfig},
    scale::FeatureScaler,
    splits::{Fold, Purpose, below, shuffle, stream, unit},
    survival::{TimeBins, hazard_loss},
};
use crate::{Example, HeatmapRequest, TaskEntry, data::KnownSet};

/// What a later use of the model needs beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Name of the data.
    pub cohort: String,
    /// Width of an instance.
    pub d_feature: usize,
    /// Names of the classes, empty for survival.
    pub classes: Vec<String>,
    /// How instances were standardised, if they were.
    pub scaler: Option<FeatureScaler>,
    /// Time bins, for survival.
    pub bins: Option<TimeBins>,
}

impl Artifacts {
    /// Logits of the model: one a class, or one a time bin.
    #[must_use]
    pub fn n_outputs(&self) -> usize {
        self.bins.as_ref().map_or(self.classes.len(), |bins| bins.edges.len() + 1)
    }
}

/// Multiple-instance learning on one fold of one data set.
#[derive(Clone)]
pub struct MilTask {
    options: MilOptions,
    settings: Settings,
    /// Key of the model, for tables.
    model: &'static str,
    /// Shared with the thread that reads bags.
    cohort: Arc<Cohort>,
    fold: Fold,
    /// What the audit found and let pass.
    warnings: Vec<String>,
    artifacts: Artifacts,
}

/// Bags of one micro-batch.
#[derive(Clone)]
pub struct BagBatch(Vec<(usize, Arc<Bag>)>);

impl Task for MilTask {
    type Config = MilConfig;
    type Model = BagModel;
    type Batch = BagBatch;
    /// Bags differ in size.
    type Input = Host<BagBatch>;

    fn n_folds(options: &MilOptions, data: &DataConfig, _dirs: &[PathBuf]) -> Result<usize, Error> {
        Ok(match data.data_set().n_given_splits() {
            0 => options.split.folds * options.split.repeats,
            given => given,
        })
    }

    fn combine(
        options: &MilOptions,
        data: &DataConfig,
        folds: &[RunResult],
    ) -> Result<Outcome, Error> {
        let name = data.data_set().set_name().unwrap_or(data.section());
        report::combine(options, name, folds)
    }

    fn new(
        options: &MilOptions,
        data: &DataConfig,
        model: &BagModelConfig,
        settings: &Settings,
        device: &Device,
    ) -> Result<(Self, BagModel), Error> {
        let cohort = data.data_set().load(&settings.data_dirs)?;
        let refuse = |path: &str, message: String| {
            Error::issues("configuration", vec![Issue::new(path, message)])
        };
        let fold = splits::fold(&cohort, &options.split, settings.seed, settings.fold)
            .map_err(|message| refuse("task.mil.split.folds", message))?;
        let of_survival = cohort.classes.is_empty();
        match (options.select, of_survival) {
            (Select::Auc, true) => {
                let message = "expected `loss` or `c_index` for survival, got `auc`";
                return Err(refuse("task.mil.select", message.into()));
            }
            (Select::CIndex, false) => {
                let message = "expected `loss` or `auc` for classes, got `c_index`";
                return Err(refuse("task.mil.select", message.into()));
            }
            _ => {}
        }
        if of_survival && options.label_smoothing > 0.0 {
            let message = format!("expected 0 for survival, got `{}`", options.label_smoothing);
            return Err(refuse("task.mil.label_smoothing", message));
        }
        let findings = audit::fold_findings(&cohort, &fold, options);
        audit::refuse(&findings)?;
        let warnings: Vec<String> = findings.into_iter().map(|finding| finding.what).collect();
        for warning in &warnings {
            tracing::warn!("fold {}: {warning}", settings.fold);
        }
        let scaler = if options.standardise {
            Some(FeatureScaler::fit(&cohort, &fold.train)?)
        } else {
            None
        };
        let bins = if of_survival {
            let times: Vec<(f64, bool)> = fold
                .train
                .iter()
                .filter_map(|slide| match cohort.slides[*slide].target {
                    Target::Survival { time, event } => Some((time, event)),
                    Target::Class(_) => None,
                })
                .collect();
            let bins = TimeBins::fit(&times, options.n_bins);
            Some(bins.map_err(|message| refuse("task.mil.n_bins", message))?)
        } else {
            None
        };
        let artifacts = Artifacts {
            cohort: cohort.name.clone(),
            d_feature: cohort.d_feature,
            classes: cohort.classes.clone(),
            scaler,
            bins,
        };
        let mut bag_model = restore(&artifacts, model, settings, settings.fold, device);
        if let (BagModel::MambaMil(mamba_mil), Some(Recompute::Layer)) =
            (&mut bag_model, settings.recompute)
        {
            mamba_mil.recompute_layers();
        }
        let task = Self {
            options: options.clone(),
            settings: settings.clone(),
            model: model.section(),
            cohort: Arc::new(cohort),
            fold,
            warnings,
            artifacts,
        };
        Ok((task, bag_model))
    }

    fn describe(&self) -> String {
        let cases: std::collections::BTreeSet<&str> =
            self.cohort.slides.iter().map(|slide| slide.case.as_str()).collect();
        format!(
            "{}: {} bags of {} cases, {} features; fold {}: {} training, {} validation, {} test",
            self.cohort.name,
            self.cohort.slides.len(),
            cases.len(),
            self.cohort.d_feature,
            self.settings.fold,
            self.fold.train.len(),
            self.fold.valid.len(),
            self.fold.test.len(),
        )
    }

    fn data_hashes(&self) -> BTreeMap<String, String> {
        self.cohort.hashes.clone()
    }

    fn artifacts(&self) -> serde_json::Value {
        serde_json::json!(self.artifacts)
    }

    fn batches_per_epoch(&self) -> u64 {
        self.fold.train.len().div_ceil(self.settings.batch_size) as u64
    }

    fn batch(&self, index: u64) -> Result<BagBatch, Error> {
        let (slides, first) = self.slides_of(index);
        let samples = slides.into_iter().zip(first..);
        let bags = samples.map(|(slide, sample)| Ok((slide, self.training_bag(slide, sample)?)));
        Ok(BagBatch(bags.collect::<Result<_, Error>>()?))
    }

    fn samples(&self, index: u64) -> Vec<String> {
        let name = |slide: &usize| format!("slide `{}`", self.cohort.slides[*slide].id);
        self.slides_of(index).0.iter().map(name).collect()
    }

    fn reader(&self) -> Option<Reader<BagBatch>> {
        match self.cohort.bags {
            Bags::Memory(_) => None,
            Bags::Files(_) => {
                let task = self.clone();
                Some(Box::new(move |index| task.batch(index)))
            }
        }
    }

    fn input(&self, batch: BagBatch, _seed: u64, _device: &Device) -> Host<BagBatch> {
        Host(batch)
    }

    fn loss(&self, model: &BagModel, Host(batch): Host<BagBatch>) -> Loss {
        let device = model.device();
        let weight = batch.0.len() as f64;
        let losses = batch.0.into_iter().map(|(slide, bag)| {
            let logits = model.forward(instances(bag, &device)).logits;
            self.loss_of(logits, slide)
        });
        let sum = losses.reduce(|sum, loss| sum + loss);
        // An epoch ends with a batch that holds what is left of it, at least one bag.
        let sum = sum.unwrap_or_else(|| panic!("a batch without a bag"));
        Loss { mean: sum / weight, weight }
    }

    fn selection(&self) -> Selection {
        match self.options.select {
            Select::Loss => Selection { metric: "loss", goal: Goal::Minimise },
            Select::Auc => Selection { metric: "auc", goal: Goal::Maximise },
            Select::CIndex => Selection { metric: "c_index", goal: Goal::Maximise },
        }
    }

    fn evaluate(&self, model: &BagModel, split: Split) -> Result<Metrics, Error> {
        Ok(score::score(self, model, split)?.metrics())
    }

    fn conclude(&self, model: &BagModel) -> Result<Outcome, Error> {
        report::conclude(self, model)
    }
}

impl MilTask {
    /// The slides of each part.
    #[must_use]
    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    /// The data.
    #[must_use]
    pub fn cohort(&self) -> &Cohort {
        &self.cohort
    }

    /// The slides of a micro-batch, and how many came before it in the run.
    fn slides_of(&self, index: u64) -> (Vec<usize>, u64) {
        let (epoch, place) = (index / self.batches_per_epoch(), index % self.batches_per_epoch());
        let order = self.order(epoch);
        let start = place as usize * self.settings.batch_size;
        let end = order.len().min(start + self.settings.batch_size);
        (order[start..end].to_vec(), epoch * order.len() as u64 + start as u64)
    }

    fn part(&self, split: Split) -> &[usize] {
        match split {
            Split::Train => &self.fold.train,
            Split::Valid => &self.fold.valid,
            Split::Test => &self.fold.test,
        }
    }

    /// The instances of a slide as the model wants them.
    fn bag(&self, slide: usize) -> Result<Arc<Bag>, Error> {
        let bag = self.cohort.bag(slide)?;
        Ok(match &self.artifacts.scaler {
            Some(scaler) => scaler.apply(bag),
            None => bag,
        })
    }

    /// The instances of a slide as training reads them, `sample` bags after its start.
    fn training_bag(&self, slide: usize, sample: u64) -> Result<Arc<Bag>, Error> {
        let mut bag = self.bag(slide)?;
        let share = self.options.feature_dropout;
        if share > 0.0 {
            let mut rng = stream(self.seed_of_fold(), Purpose::Features, sample);
            let kept = (1.0 / (1.0 - share)) as f32;
            let mut draw = || if unit(&mut rng) < share { 0.0 } else { kept };
            let factors: Vec<f32> = (0..bag.d_feature).map(|_| draw()).collect();
            bag = Arc::new(Arc::unwrap_or_clone(bag).scaled(&factors));
        }
        if !self.options.shuffle_instances {
            return Ok(bag);
        }
        let mut order: Vec<usize> = (0..bag.n_instances()).collect();
        shuffle(&mut order, &mut stream(self.seed_of_fold(), Purpose::Instances, sample));
        Ok(Arc::new(bag.reordered(&order)))
    }

    /// Every fold of a seed has random numbers of its own.
    fn seed_of_fold(&self) -> u64 {
        self.settings.seed ^ ((self.settings.fold as u64) << 32)
    }

    /// Training slides in the order of an epoch.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut rng = stream(self.seed_of_fold(), Purpose::Order, epoch);
        let train = &self.fold.train;
        if !self.options.class_weighted {
            let mut order = train.clone();
            shuffle(&mut order, &mut rng);
            return order;
        }
        let mut strata: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &slide in train {
            strata.entry(self.cohort.stratum(slide)).or_default().push(slide);
        }
        let strata: Vec<Vec<usize>> = strata.into_values().collect();
        let mut draw = || {
            let stratum = &strata[below(&mut rng, strata.len())];
            stratum[below(&mut rng, stratum.len())]
        };
        (0..train.len()).map(|_| draw()).collect()
    }

    /// Loss of one bag, shape `[1]`.
    fn loss_of(&self, logits: Tensor<1>, slide: usize) -> Tensor<1> {
        match self.cohort.slides[slide].target {
            Target::Class(class) => {
                let losses = -activation::log_softmax(logits, 0);
                let share = self.options.label_smoothing;
                if share > 0.0 {
                    losses.clone().narrow(0, class, 1) * (1.0 - share) + losses.mean() * share
                } else {
                    losses.narrow(0, class, 1)
                }
            }
            Target::Survival { time, event } => {
                // Survival has bins; see `new`.
                let bin = self.artifacts.bins.as_ref().map_or(0, |bins| bins.bin(time));
                hazard_loss(logits, bin, event)
            }
        }
    }
}

/// `[n_instances, d_feature]` on a device. A bag that came from a file is not copied for it.
fn instances(bag: Arc<Bag>, device: &Device) -> Tensor<2> {
    let shape = [bag.n_instances(), bag.d_feature];
    Tensor::from_data(TensorData::new(Arc::unwrap_or_clone(bag).features, shape), device)
}

/// The model with fresh parameters, which every fold draws for itself.
fn restore(
    artifacts: &Artifacts,
    model: &BagModelConfig,
    settings: &Settings,
    fold: usize,
    device: &Device,
) -> BagModel {
    use rand_chacha::rand_core::Rng;
    let seed = stream(settings.seed, Purpose::Model, fold as u64).next_u64();
    let init = &mut Init::new(seed, device);
    let mut bag_model = model.init(artifacts.d_feature, artifacts.n_outputs(), init);
    if let (BagModel::MambaMil(mamba_mil), Some(dtype)) =
        (&mut bag_model, settings.precision.activations())
    {
        mamba_mil.compute_in(dtype);
    }
    bag_model
}

impl TaskEntry for MilTask {
    fn known_sets() -> Vec<KnownSet> {
        data::known_sets()
    }

    fn example() -> Option<Example> {
        // Its data is made up when it is read.
        Some(Example { config: include_str!("../../../../configs/mil/debug.toml"), data: None })
    }

    fn restore(
        _options: &MilOptions,
        model: &BagModelConfig,
        artifacts: &serde_json::Value,
        settings: &Settings,
        device: &Device,
    ) -> Result<BagModel, Error> {
        Ok(restore(&artifacts_of(artifacts)?, model, settings, 0, device))
    }

    fn predict(
        _options: &MilOptions,
        artifacts: &serde_json::Value,
        model: &BagModel,
        input: &Path,
    ) -> Result<String, Error> {
        let artifacts = artifacts_of(artifacts)?;
        let reading = predict::read(&artifacts, model, input)?;
        Ok(predict::to_json(&artifacts, input, &reading))
    }

    fn heatmap(
        artifacts: &serde_json::Value,
        model: &BagModel,
        request: &HeatmapRequest,
    ) -> Result<Vec<u8>, Error> {
        let artifacts = artifacts_of(artifacts)?;
        let thumbnail = request.thumbnail.as_deref().map(crate::data::read).transpose()?;
        let thumbnail = thumbnail.as_ref().map(heatmap::Picture::read).transpose()?;
        let reading = predict::read(&artifacts, model, &request.slide)?;
        let attention = reading.said.attention.as_deref().ok_or_else(|| Error::Usage {
            message: "the model of the run does not attend, so there is nothing to draw".to_owned(),
            hint: Some("`abmil` and `mamba_mil` attend".to_owned()),
        })?;
        let slide_size = request.slide_size;
        let map = heatmap::Heatmap { bag: &reading.bag, attention, thumbnail, slide_size };
        map.to_png().map_err(|message| Error::Data {
            path: request.slide.clone(),
            message,
            hint: None,
        })
    }

    fn check(
        options: &MilOptions,
        data: &DataConfig,
        _model: &BagModelConfig,
        settings: &Settings,
        _device: &Device,
    ) -> Result<(Vec<Table>, usize), Error> {
        let cohort = data.data_set().load(&settings.data_dirs)?;
        let n_folds = Self::n_folds(options, data, &settings.data_dirs)?;
        audit::audit(&cohort, options, settings.seed, n_folds)
    }
}

fn artifacts_of(artifacts: &serde_json::Value) -> Result<Artifacts, Error> {
    Artifacts::deserialize(artifacts).map_err(|reason| Error::Usage {
        message: format!("the artifacts of the run are not those of a bag model: {reason}"),
        hint: Some("name the run directory of a single fold, as in `runs/NAME/fold_00`".to_owned()),
    })
}
