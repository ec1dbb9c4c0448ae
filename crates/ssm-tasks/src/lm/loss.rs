//! The loss: what a model leaves unsaid of each target, in nats.

use burn::{
    module::{Module, Param},
    tensor::{FloatDType, Int, Tensor, TensorData, activation},
};
use ssm_core::ops::recompute::recompute;

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

/// Logits that a loss holds at once; more are made in parts, and again in the backward pass: of a
/// vocabulary of 50 000 they are most of the memory otherwise.
const LOGITS_MAX: usize = 1 << 27;

/// Normed outputs of the last block at the positions with a target, `[n_targets, d_model]`.
///
/// `hidden`: `[batch, seq_len, d_model]`; there is at least one target.
pub(super) fn at_targets(hidden: Tensor<3>, targets: &Targets) -> Tensor<2> {
    let device = hidden.device();
    let hidden = hidden.flatten::<2>(0, 1);
    let [n, _] = hidden.dims();
    if targets.places.len() == n {
        return hidden;
    }
    let places = TensorData::new(targets.places.clone(), [targets.places.len()]);
    hidden.select(0, Tensor::<1, Int>::from_data(places, &device))
}

/// Mean cross-entropy of the targets in nats, `[1]`.
pub(super) fn mean(model: &MambaLm, hidden: Tensor<3>, targets: &Targets) -> Tensor<1> {
    let [n_rows, _] = model.embedding.weight.dims();
    mean_in_parts(model, hidden, targets, (LOGITS_MAX / n_rows).max(1))
}

fn mean_in_parts(model: &MambaLm, hidden: Tensor<3>, targets: &Targets, most: usize) -> Tensor<1> {
    let hidden = at_targets(hidden, targets);
    let n = targets.tokens.len();
    if n <= most {
        return cross_entropy(model.head(hidden), &targets.tokens).mean();
    }
    let part = |start: usize| {
        let len = most.min(n - start);
        let head = Head {
            weight: model.embedding.weight.clone(),
            targets: targets.tokens[start..start + len].to_vec(),
        };
        let hidden = hidden.clone().narrow(0, start, len).unsqueeze_dim(0);
        recompute(&head, hidden, Head::forward).sum()
    };
    let sum = (0..n).step_by(most).map(part).reduce(|sum, part| sum + part);
    // There is at least one target.
    sum.unwrap_or_else(|| panic!("a loss without a target")) / n as f64
}

/// The head with the targets of some positions.
#[derive(Module, Debug)]
struct Head {
    weight: Param<Tensor<2>>,
    #[module(skip)]
    targets: Vec<i32>,
}

impl Head {
    /// `[1, n, d_model]` to cross-entropies `[1, n, 1]`.
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let weight = self.weight.val().cast(FloatDType::from(hidden.dtype()));
        let logits = hidden.squeeze_dim::<2>(0).matmul(weight.transpose());
        cross_entropy(logits, &self.targets).unsqueeze_dim::<2>(1).unsqueeze_dim(0)
    }
}

/// Cross-entropy of every target in nats, `[n]`, in f32; `logits`: `[n, n_rows]`.
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &[i32]) -> Tensor<1> {
    let tokens = TensorData::new(targets.to_vec(), [targets.len(), 1]);
    let tokens = Tensor::<2, Int>::from_data(tokens, &logits.device());
    let logits = logits.cast(FloatDType::F32);
    -activation::log_softmax(logits, 1).gather(1, tokens).squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use ssm_core::init::Init;

    use super::*;
    use crate::lm::{batch::Example, model::MambaLmConfig};

    #[test]
    fn a_loss_in_parts_has_the_value_and_the_gradients_of_the_whole() {
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
        let differentiated = |most: usize| {
            let hidden = model.hidden(batch.tokens(&device));
            let loss = mean_in_parts(&model, hidden, &targets, most);
            let grads = loss.backward();
            let gradient = model.embedding.weight.val().grad(&grads).unwrap();
            let gradient: Vec<f32> = gradient.into_data().try_into_vec_as().unwrap();
            let loss: Vec<f32> = loss.into_data().try_into_vec_as().unwrap();
            [loss, gradient].concat()
        };
        let whole = differentiated(100);
        for most in [1, 3, 10] {
            for (part, whole) in differentiated(most).iter().zip(&whole) {
                assert!((part - whole).abs() < 1e-6, "{most}: {part} is not {whole}");
            }
        }
    }
}
