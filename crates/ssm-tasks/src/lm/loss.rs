//! The loss: what a model leaves unsaid of each target, in nats.

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use ssm_core::ops::cross_entropy;
use ssm_train::task::{Input, InputMapper};

use super::{
    batch::{IGNORE, LmBatch},
    model::MambaLm,
};

/// The targets of a batch and where they are, so that the head runs over these positions only.
pub(super) struct Targets {
    /// Positions in `batch * seq_len`, ascending.
    pub(super) places: Vec<i32>,
    /// Token at each of them.
    pub(super) tokens: Vec<i32>,
}

impl Targets {
    pub(super) fn of(batch: &LmBatch) -> Self {
        let known = batch.targets.iter().enumerate().filter(|(_, target)| **target != IGNORE);
        let (places, tokens) = known.map(|(place, target)| (place as i32, *target)).unzip();
        Self { places, tokens }
    }
}

/// Logits that a loss holds at once: of a vocabulary of 50,000 they are most of the memory otherwise.
const LOGITS_MAX: usize = 1 << 27;

/// Less than any logit, and no infinity, of which differences are no number.
const LOWEST: f32 = -1e30;

/// Normed outputs of the last block at the positions with a target, `[n_targets, d_model]`.
///
/// `hidden`: `[batch, seq_len, d_model]`; `places` as [`Targets::places`] gives them.
pub(super) fn at_targets(hidden: Tensor<3>, places: Option<Tensor<1, Int>>) -> Tensor<2> {
    let hidden = hidden.flatten::<2>(0, 1);
    match places {
        Some(places) => hidden.select(0, places),
        None => hidden,
    }
}

/// The same on the device that the loss is computed on.
#[derive(Clone, Debug)]
pub(super) struct OnDevice {
    /// As [`Targets::places`] gives them.
    places: Option<Tensor<1, Int>>,
    /// Token at each of them.
    tokens: cross_entropy::Targets,
}

impl Targets {
    /// Positions with a target on a device, unless all of the `n` positions of the batch have one.
    pub(super) fn places(&self, n: usize, device: &Device) -> Option<Tensor<1, Int>> {
        (self.places.len() < n).then(|| {
            let places = TensorData::new(self.places.clone(), [self.places.len()]);
            Tensor::from_data(places, device)
        })
    }

    /// Brings them to a device; `n`: positions of the batch.
    pub(super) fn to_device(&self, n: usize, device: &Device) -> OnDevice {
        let tokens = cross_entropy::Targets::new(self.tokens.as_slice().into(), device);
        OnDevice { places: self.places(n, device), tokens }
    }
}

impl OnDevice {
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

impl Input for OnDevice {
    /// All targets count, in a batch as in every other.
    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        Self {
            places: self.places.map_tensors(mapper),
            tokens: self.tokens.map_on_device(|tokens| tokens.map_tensors(mapper)),
        }
    }
}

/// Mean cross-entropy of the targets in nats, `[1]`; `hidden`: `[batch, seq_len, d_model]`.
pub(super) fn mean(model: &MambaLm, hidden: Tensor<3>, targets: OnDevice) -> Tensor<1> {
    let hidden = at_targets(hidden, targets.places);
    let weight = model.embedding.weight.val();
    cross_entropy::linear_cross_entropy_at(hidden, weight, targets.tokens, LOGITS_MAX)
}

/// Rows of logits that a score computes at once: it holds several tensors of their size.
pub(super) fn rows_at_once(model: &MambaLm) -> usize {
    let [n_rows, _] = model.embedding.weight.val().dims();
    (LOGITS_MAX / 2 / n_rows).max(1)
}

/// Cross-entropy of every target in nats, `[n]`, in f32; `logits`: `[n, n_rows]`.
///
/// `ln(1 + e^x)` of what all other tokens weigh beside the target: `-log_softmax` is the same number, but
/// zero in f32 where a model is sure to more than sixteen nats, and such losses still select weights.
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &[i32]) -> Tensor<1> {
    let ([n, n_rows], device) = (logits.dims(), logits.device());
    let logits = logits.cast(FloatDType::F32);
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(targets.to_vec(), [n, 1]), &device);
    let said = logits.clone().gather(1, tokens.clone()); // [n, 1]
    let rows = Tensor::<1, Int>::arange(0..n_rows as i64, &device).unsqueeze_dim::<2>(0);
    let is_target = rows.expand([n, n_rows]).equal(tokens.expand([n, n_rows]));
    let others = (logits - said).mask_fill(is_target, LOWEST);
    let max = others.clone().max_dim(1);
    let x = (others - max.clone()).exp().sum_dim(1).log() + max; // [n, 1]
    let loss = x.clone().clamp_min(0.0) + (-x.abs()).exp().log1p();
    loss.squeeze_dim::<1>(1)
}

#[cfg(test)]
mod tests {
    use ssm_core::init::Init;

    use super::*;
    use crate::lm::{batch::Example, model::MambaLmConfig};

    /// The loss of training, and that of scores.
    #[test]
    fn the_loss_has_the_value_and_the_gradients_of_the_mean_of_all() {
        let device = Device::flex().autodiff();
        let config: MambaLmConfig =
            toml::from_str("d_model = 8\nn_layer = 1\nmixer.mamba = { d_state = 2 }").unwrap();
        let model = config.init(13, &mut Init::new(3, &device));
        let example = Example {
            inputs: (0..11).collect(),
            targets: (0..11).map(|token| if token == 4 { IGNORE } else { 12 - token }).collect(),
            starts: Vec::new(),
        };
        let batch = LmBatch::of(&[example]);
        let targets = Targets::of(&batch);
        let values = |loss: Tensor<1>| {
            let grads = loss.backward();
            let gradient = model.embedding.weight.val().grad(&grads).unwrap();
            let gradient: Vec<f32> = gradient.into_data().try_into_vec_as().unwrap();
            let loss: Vec<f32> = loss.into_data().try_into_vec_as().unwrap();
            [loss, gradient].concat()
        };
        let hidden = || model.hidden(batch.tokens(&device));
        let logits = model.head(at_targets(hidden(), targets.places(11, &device)));
        let whole = values(cross_entropy(logits, &targets.tokens).mean());
        for (got, whole) in
            values(mean(&model, hidden(), targets.to_device(11, &device))).iter().zip(&whole)
        {
            assert!((got - whole).abs() < 1e-6, "{got} is not {whole}");
        }
    }

    /// Where a model is sure, and where it is sure of something else.
    #[test]
    fn losses_far_below_the_rounding_of_one_are_exact() {
        let device = Device::flex();
        let logits =
            Tensor::<2>::from_floats([[40.0, 1.0, 0.0, 0.0], [9.0, 1.0, 0.0, -50.0]], &device);
        let losses = |targets: &[i32]| -> Vec<f32> {
            cross_entropy(logits.clone(), targets).into_data().try_into_vec_as().unwrap()
        };
        let others = (1_f64.exp() + 2.0) * (-40_f64).exp();
        let [sure, wrong] = losses(&[0, 3])[..] else { panic!("two losses") };
        assert!((f64::from(sure) / others - 1.0).abs() < 1e-5, "{sure} is not {others}");
        assert!((wrong - 59.000_46).abs() < 1e-4, "{wrong}");
    }
}
