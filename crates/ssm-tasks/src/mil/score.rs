//! From a model and a split to predictions, and from these to scores.

use std::sync::Arc;

use burn::tensor::Device;
use ssm_train::{
    error::Error,
    task::{Metrics, Split},
};

use super::{
    MilTask,
    cohort::{Bag, Target},
    instances,
    metrics::{Predictions, Score},
    model::BagModel,
    survival::{FollowUp, concordance, hazard_loss_of, risk},
};

/// What a model says of one bag, on the host.
pub(super) struct Said {
    pub(super) logits: Vec<f64>,
    pub(super) attention: Option<Vec<f32>>,
}

/// Applies a model to one bag.
pub(super) fn ask(model: &BagModel, bag: Arc<Bag>, device: &Device) -> Result<Said, Error> {
    let failed = |reason: String| Error::Device {
        device: format!("{device:?}"),
        message: reason,
        hint: Some("the longest bag may be too long for the memory of the device".to_owned()),
    };
    let output = model.forward(instances(bag, device));
    let logits: Vec<f32> =
        output.logits.try_into_vec_as().map_err(|reason| failed(reason.to_string()))?;
    let attention = match output.attention {
        Some(attention) => {
            Some(attention.try_into_vec_as().map_err(|reason| failed(reason.to_string()))?)
        }
        None => None,
    };
    Ok(Said { logits: logits.into_iter().map(f64::from).collect(), attention })
}

/// Probabilities of the classes.
pub(super) fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|value| value / sum).collect()
}

/// Predictions of all slides of a split, in the order of the data.
pub(super) enum Scored {
    Classes { slides: Vec<usize>, predictions: Predictions, losses: Vec<f64> },
    Survival { slides: Vec<usize>, patients: Vec<FollowUp>, losses: Vec<f64> },
}

/// Asks a model of every slide of a split.
pub(super) fn score(task: &MilTask, model: &BagModel, split: Split) -> Result<Scored, Error> {
    let device = model.device();
    let slides = task.part(split).to_vec();
    let mut losses = Vec::new();
    let n_classes = task.artifacts.classes.len();
    let mut predictions = Predictions { n_classes, ..Predictions::default() };
    let mut patients = Vec::new();
    for &slide in &slides {
        let said = ask(model, task.bag(slide)?, &device)?;
        match task.cohort.slides[slide].target {
            Target::Class(class) => {
                let probabilities = softmax(&said.logits);
                losses.push(-probabilities[class].max(f64::MIN_POSITIVE).ln());
                predictions.truth.push(class);
                predictions.probabilities.extend(probabilities);
            }
            Target::Survival { time, event } => {
                let bin = task.artifacts.bins.as_ref().map_or(0, |bins| bins.bin(time));
                losses.push(hazard_loss_of(&said.logits, bin, event));
                patients.push(FollowUp { time, event, risk: risk(&said.logits) });
            }
        }
    }
    Ok(if n_classes > 0 {
        Scored::Classes { slides, predictions, losses }
    } else {
        Scored::Survival { slides, patients, losses }
    })
}

impl Scored {
    /// Name, value and direction of every score, the reason in place of an undefined value.
    pub(super) fn scores(&self) -> Vec<(&'static str, Score)> {
        let mean = |losses: &[f64]| {
            if losses.is_empty() {
                return Err("no sample".to_owned());
            }
            Ok(losses.iter().sum::<f64>() / losses.len() as f64)
        };
        match self {
            Self::Classes { predictions, losses, .. } => vec![
                ("accuracy", predictions.accuracy()),
                ("auc", predictions.auc()),
                ("balanced_accuracy", predictions.balanced_accuracy()),
                ("f1", predictions.f1()),
                ("loss", mean(losses)),
            ],
            Self::Survival { patients, losses, .. } => {
                vec![("c_index", concordance(patients)), ("loss", mean(losses))]
            }
        }
    }

    /// The scores by name; what is undefined is not a number.
    pub(super) fn metrics(&self) -> Metrics {
        let scores = self.scores().into_iter();
        scores.map(|(name, score)| (name.to_owned(), score.unwrap_or(f64::NAN))).collect()
    }
}
