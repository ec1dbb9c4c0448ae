//! What a data set of bags is: slides of patients, what is known of them, and where their instances are.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use ssm_train::error::Error;

use super::features;

/// The instances of one slide, in the order of its file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bag {
    /// One row an instance, one after the other: `n_instances * d_feature` values.
    pub features: Vec<f32>,
    /// Width of a row.
    pub d_feature: usize,
    /// Left upper corner of each patch in pixels of the full resolution, where it is known.
    pub coords: Option<Vec<[f64; 2]>>,
    /// Side of a patch in pixels of the full resolution, where it is known.
    pub patch_size: Option<f64>,
}

impl Bag {
    /// Number of instances.
    #[must_use]
    pub fn n_instances(&self) -> usize {
        self.features.len().checked_div(self.d_feature).unwrap_or(0)
    }

    /// The bag with its instances in another order.
    #[must_use]
    pub fn reordered(&self, order: &[usize]) -> Self {
        let rows = order.iter().map(|row| &self.features[row * self.d_feature..][..self.d_feature]);
        let coords = self.coords.as_ref();
        Self {
            features: rows.flatten().copied().collect(),
            d_feature: self.d_feature,
            coords: coords.map(|coords| order.iter().map(|row| coords[*row]).collect()),
            patch_size: self.patch_size,
        }
    }

    /// The bag with every feature times a factor of its own.
    #[must_use]
    pub fn scaled(mut self, factors: &[f32]) -> Self {
        for row in self.features.chunks_mut(self.d_feature) {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
        self
    }
}

/// What a model has to predict of a slide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Index into [`Cohort::classes`].
    Class(usize),
    /// Follow-up of the patient.
    Survival {
        /// Time until the event or until the last contact, above 0.
        time: f64,
        /// Whether the event was seen; otherwise the time is censored.
        event: bool,
    },
}

/// One slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Slide {
    /// Name, different for every slide.
    pub id: String,
    /// The patient, who may have several slides.
    pub case: String,
    /// What is to be predicted.
    pub target: Target,
}

/// Where instances come from.
#[derive(Clone, Debug)]
pub enum Bags {
    /// All in memory.
    Memory(Vec<Arc<Bag>>),
    /// One file a slide, read whenever the slide is needed: memory holds one at a time.
    Files(Vec<PathBuf>),
}

impl Default for Bags {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

/// A part of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Gradients come from it.
    Train,
    /// Selects and stops.
    Valid,
    /// Is scored once.
    Test,
    /// Not used.
    Unused,
}

/// A data set of bags.
#[derive(Clone, Debug, Default)]
pub struct Cohort {
    /// Name for people.
    pub name: String,
    /// In the order of the file.
    pub slides: Vec<Slide>,
    /// Where the instances of each slide are.
    pub bags: Bags,
    /// Width of an instance.
    pub d_feature: usize,
    /// Names of the classes, empty for survival.
    pub classes: Vec<String>,
    /// Splits that come with the data, one entry a slide in each; empty if folds are made here.
    pub given: Vec<Vec<Part>>,
    /// True risk of every patient, for survival that is made up; else empty.
    pub oracle: Vec<f64>,
    /// SHA-256 of the files that were read whole, by name.
    pub hashes: BTreeMap<String, String>,
}

impl Cohort {
    /// The instances of a slide.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is missing, damaged, or not of the width of the others.
    pub fn bag(&self, slide: usize) -> Result<Arc<Bag>, Error> {
        match &self.bags {
            Bags::Memory(bags) => Ok(bags[slide].clone()),
            Bags::Files(paths) => {
                let bag = features::read(&paths[slide])?;
                if bag.d_feature != self.d_feature {
                    return Err(Error::Data {
                        path: paths[slide].clone(),
                        message: format!(
                            "expected features of width {}, got {}",
                            self.d_feature, bag.d_feature
                        ),
                        hint: Some("extract all slides with the same encoder".to_owned()),
                    });
                }
                if let Some(at) = bag.features.iter().position(|value| !value.is_finite()) {
                    return Err(Error::Data {
                        path: paths[slide].clone(),
                        message: format!(
                            "feature {} of instance {} is {}",
                            at % bag.d_feature,
                            at / bag.d_feature,
                            bag.features[at]
                        ),
                        hint: Some("`ssm check` lists every slide with such values".to_owned()),
                    });
                }
                Ok(Arc::new(bag))
            }
        }
    }

    /// Class of a slide, for stratification and sampling; of survival, whether the event was seen.
    #[must_use]
    pub fn stratum(&self, slide: usize) -> usize {
        match self.slides[slide].target {
            Target::Class(class) => class,
            Target::Survival { event, .. } => usize::from(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reordered_bag_keeps_each_instance_with_its_place() {
        let bag = Bag {
            features: vec![0.0, 0.5, 1.0, 1.5, 2.0, 2.5],
            d_feature: 2,
            coords: Some(vec![[0.0, 9.0], [1.0, 8.0], [2.0, 7.0]]),
            patch_size: Some(256.0),
        };
        let reordered = bag.reordered(&[2, 0, 1]);
        assert_eq!(reordered.features, [2.0, 2.5, 0.0, 0.5, 1.0, 1.5]);
        assert_eq!(reordered.coords, Some(vec![[2.0, 7.0], [0.0, 9.0], [1.0, 8.0]]));
        assert_eq!(reordered.reordered(&[1, 2, 0]), bag);
    }
}
