//! The loss: what a model leaves unsaid of each target, in nats.

use burn::tensor::{Int, Tensor, TensorData, activation};

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

/// Logits at the positions with a target, `[n_targets, n_rows]`.
///
/// `hidden`: `[batch, seq_len, d_model]`; there is at least one target.
pub(super) fn logits(model: &MambaLm, hidden: Tensor<3>, targets: &Targets) -> Tensor<2> {
    let device = hidden.device();
    let hidden = hidden.flatten::<2>(0, 1);
    let [n, _] = hidden.dims();
    if targets.places.len() == n {
        return model.head(hidden);
    }
    let places = TensorData::new(targets.places.clone(), [targets.places.len()]);
    model.head(hidden.select(0, Tensor::<1, Int>::from_data(places, &device)))
}

/// Cross-entropy of every target in nats, `[n_targets]`, in f32.
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &Targets) -> Tensor<1> {
    let n = targets.tokens.len();
    let tokens = TensorData::new(targets.tokens.clone(), [n, 1]);
    let tokens = Tensor::<2, Int>::from_data(tokens, &logits.device());
    let logits = logits.cast(burn::tensor::FloatDType::F32);
    -activation::log_softmax(logits, 1).gather(1, tokens).squeeze_dim(1)
}
