//! MNIST-bags: about ten digits a bag, positive if a nine is among them.
//!
//! Made from the 10,000 test digits: bags to learn from hold the first 8,000, bags to score the rest.

use std::{path::PathBuf, sync::Arc};

use rand_chacha::rand_core::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{DataSet, parts, range_issues};
use crate::{
    data::{DataFile, KnownSet, read_known},
    mil::{
        cohort::{Bag, Bags, Cohort, Slide, Target},
        splits::{Purpose, below, normal, stream},
    },
};

const LICENCE: &str = "CC BY-SA 3.0 (LeCun, Cortes, Burges)";
const ORIGIN: &str = "https://ossci-datasets.s3.amazonaws.com/mnist/";

pub(super) const KNOWN: [KnownSet; 2] = [
    KnownSet {
        name: "MNIST t10k images",
        task: "mil",
        config: "mnist_bags = {}",
        file: "image/mnist/t10k-images-idx3-ubyte",
        shape: "10000 x 28 x 28",
        licence: LICENCE,
        origin: ORIGIN,
        sha256: Some("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    },
    KnownSet {
        name: "MNIST t10k labels",
        task: "mil",
        config: "mnist_bags = {}",
        file: "image/mnist/t10k-labels-idx1-ubyte",
        shape: "10000",
        licence: LICENCE,
        origin: ORIGIN,
        sha256: Some("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
];

/// Digits of the file that bags to learn from are made of; the rest is for bags to score.
const N_LEARNING: usize = 8000;
const N_PIXELS: usize = 28 * 28;
/// Mean and deviation of all training pixels, as everyone standardises MNIST.
const PIXEL_MEAN: f32 = 0.1307;
const PIXEL_STD: f32 = 0.3081;

/// `[data.mnist_bags]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MnistBagsConfig {
    /// The digit that makes a bag positive, 0..=9. Default 9 (Ilse et al. 2018).
    pub digit: usize,
    /// Mean number of digits in a bag, at least 1. Default 10.
    pub mean_len: f64,
    /// Standard deviation of that number. Default 2.
    pub std_len: f64,
    /// Training bags, 2..=1000000. Default 200.
    pub n_train: usize,
    /// Validation bags, of the same digits as the training bags. Default 100.
    pub n_valid: usize,
    /// Test bags. Default 1000.
    pub n_test: usize,
    /// Seed of the bags. Default 0.
    pub seed: u64,
}

impl Default for MnistBagsConfig {
    fn default() -> Self {
        Self {
            digit: 9,
            mean_len: 10.0,
            std_len: 2.0,
            n_train: 200,
            n_valid: 100,
            n_test: 1000,
            seed: 0,
        }
    }
}

impl DataSet for MnistBagsConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = range_issues(&[
            ("digit", self.digit, 0, 9),
            ("n_train", self.n_train, 2, 1_000_000),
            ("n_valid", self.n_valid, 2, 1_000_000),
            ("n_test", self.n_test, 2, 1_000_000),
        ]);
        if !(1.0..=1e6).contains(&self.mean_len) {
            issues.push(Issue::range("mean_len", "1 to 1000000", self.mean_len));
        }
        if !(0.0..=1e6).contains(&self.std_len) {
            issues.push(Issue::range("std_len", "0 to 1000000", self.std_len));
        }
        issues
    }

    fn n_given_splits(&self) -> usize {
        1
    }

    fn load(&self, dirs: &[PathBuf]) -> Result<Cohort, Error> {
        let (images, labels) = (read_known(&KNOWN[0], dirs)?, read_known(&KNOWN[1], dirs)?);
        let n = idx_items(&labels, 1, 8)?;
        if idx_items(&images, 3, 16)? != n * N_PIXELS || n <= N_LEARNING {
            return Err(images.error("expected 10000 images of 28 x 28, one for each label", None));
        }
        let (pixels, digits) = (&images.bytes[16..], &labels.bytes[8..]);
        let (mut slides, mut bags) = (Vec::new(), Vec::new());
        for index in 0..self.n_train + self.n_valid + self.n_test {
            let learning = index < self.n_train + self.n_valid;
            let (start, end) = if learning { (0, N_LEARNING) } else { (N_LEARNING, n) };
            let mut rng = stream(self.seed, Purpose::Synthesis, index as u64);
            let members = self.members(start, end, &mut rng);
            let positive = members.iter().any(|digit| usize::from(digits[*digit]) == self.digit);
            let image = |digit: &usize| pixels[digit * N_PIXELS..][..N_PIXELS].iter();
            let value = |pixel: &u8| (f32::from(*pixel) / 255.0 - PIXEL_MEAN) / PIXEL_STD;
            let features = members.iter().flat_map(image).map(value).collect();
            bags.push(Arc::new(Bag { features, d_feature: N_PIXELS, ..Bag::default() }));
            let id = format!("bag_{index}");
            let target = Target::Class(usize::from(positive));
            slides.push(Slide { id: id.clone(), case: id, target });
        }
        Ok(Cohort {
            name: "MNIST-bags".to_owned(),
            slides,
            bags: Bags::Memory(bags),
            d_feature: N_PIXELS,
            classes: vec![format!("no {}", self.digit), format!("a {}", self.digit)],
            given: vec![parts(self.n_train, self.n_valid, self.n_test)],
            hashes: [&images, &labels].map(|file| (file.name(), file.sha256.clone())).into(),
            ..Cohort::default()
        })
    }
}

impl MnistBagsConfig {
    /// Positions of the digits of a bag, drawn with replacement.
    fn members(&self, start: usize, end: usize, rng: &mut impl Rng) -> Vec<usize> {
        let len = (self.mean_len + self.std_len * normal(rng)).max(1.0) as usize;
        (0..len).map(|_| start + below(rng, end - start)).collect()
    }
}

/// Bytes after the header of an IDX file with so many axes.
fn idx_items(file: &DataFile, n_axes: u8, header_len: usize) -> Result<usize, Error> {
    let is_idx = file.bytes.starts_with(&[0, 0, 8, n_axes]) && file.bytes.len() >= header_len;
    if !is_idx {
        return Err(file.error(format!("expected an IDX file of bytes with {n_axes} axes"), None));
    }
    Ok(file.bytes.len() - header_len)
}
