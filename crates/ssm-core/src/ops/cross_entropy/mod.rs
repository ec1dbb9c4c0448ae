//! Mean cross-entropy of a linear head, whose logits are never all there.
//!
//! For a vocabulary of 50,000 the logits of a batch are larger than everything else in training. Here
//! a chunk of positions has its logits computed, reduced to losses, and turned into their own gradient
//! where they stand; two more products take that to the gradients of the head and of its input. All
//! this happens in the forward pass, as what a loss depends on linearly is known there: the backward
//! pass multiplies by one number. The idea is that of Liger-Kernel (Hsu et al. 2024, arXiv:2410.10989).
//! [`host`] is the specification, [`reference()`] the loss as ordinary tensors. May import Burn.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::ops::cross_entropy::linear_cross_entropy;
//!
//! let device = Device::flex();
//! let (hidden, weight) = (Tensor::<2>::ones([3, 8], &device), Tensor::ones([5, 8], &device));
//! let loss = linear_cross_entropy(hidden, weight, &[4, -1, 0], 1 << 20);
//! assert!((loss.into_scalar::<f32>() - 5_f32.ln()).abs() < 1e-6);
//! ```

mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
pub mod host;
#[cfg(feature = "cube")]
mod kernel;
mod reference;

use std::sync::Arc;

use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Int, Tensor, TensorData},
};

use self::extension::{CrossEntropyOps, CrossEntropyOptions, CrossEntropyPrimitives};
pub use self::reference::reference;
use crate::ops::primitive::check_shape;

/// Mean over positions of `logsumexp(z) - z[target]` in nats, with `z = weight * hidden`.
///
/// A position with a negative target is left out of the mean and of the gradients, whatever its hidden
/// states are: also if they are no finite numbers.
///
/// # Shapes
/// - `hidden`: `[n, d_model]`;  `weight`: `[n_rows, d_model]`, a row a token
/// - `targets`: `n` rows of `weight`, or negative numbers
/// - output: `[1]`, f32
///
/// # Numerics
/// Products take their factors in the type of `hidden`, which the logits are in too; maximum, sum and
/// loss are f32, and so is the sum over chunks that the gradient of `weight` is. At most `max_logits`
/// logits, and at least those of one position, are there at a time. Neither loss nor gradient is a
/// difference of numbers near one, so both keep their digits however sure of its target a model is;
/// written as in the first line, they vanish in f32 from 16 nats on. On the CPU, results are bit-equal for
/// any number of threads.
///
/// # Gradients
/// `hidden` and `weight`. First order only.
///
/// # Panics
/// If a shape disagrees, if a target is no row of `weight`, or if no target counts.
///
/// # Source
/// `LigerFusedLinearCrossEntropyLoss`, arXiv:2410.10989, section 3.2.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: &[i32],
    max_logits: usize,
) -> Tensor<1> {
    let targets = Targets::new(targets.into(), &hidden.device());
    linear_cross_entropy_at(hidden, weight, targets, max_logits)
}

/// Targets that are on the device already.
#[derive(Clone, Debug)]
pub struct Targets {
    values: Arc<[i32]>,
    /// The same, `[n]` in i32.
    on_device: Tensor<1, Int>,
}

impl Targets {
    /// Brings targets to a device.
    #[must_use]
    pub fn new(values: Arc<[i32]>, device: &Device) -> Self {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Self { values, on_device: Tensor::from_data(data, (device, DType::I32)) }
    }

    /// With other memory in place of that on the device, `[n]` in i32. Where it holds other targets, as many
    /// of them have to count, and accelerators take these; processors, and the checks of values, do not.
    #[must_use]
    pub fn map_on_device(self, map: impl FnOnce(Tensor<1, Int>) -> Tensor<1, Int>) -> Self {
        Self { on_device: map(self.on_device), ..self }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// As [`linear_cross_entropy`]: nothing is sent to the device.
pub fn linear_cross_entropy_at(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Targets,
    max_logits: usize,
) -> Tensor<1> {
    let Targets { values, on_device } = targets;
    check(&hidden, &weight, &values);
    check_shape("cross_entropy", "targets", on_device.dims(), [("n", values.len())]);
    let [n_rows, _] = weight.dims();
    let chunk = chunk_len(values.len(), (max_logits / n_rows).max(1));
    let input =
        CrossEntropyPrimitives { hidden: hidden.into_dispatch(), weight: weight.into_dispatch() };
    let options = CrossEntropyOptions { chunk, gradients: false };
    let on_device = on_device.into_dispatch();
    let result = <Dispatch as CrossEntropyOps>::cross_entropy(input, values, on_device, options);
    Tensor::from_dispatch(result.loss)
}

fn check(hidden: &Tensor<2>, weight: &Tensor<2>, targets: &[i32]) {
    const OP: &str = "cross_entropy";
    let [n, d_model] = hidden.dims();
    let [n_rows, _] = weight.dims();
    // Any number of rows is right.
    check_shape(OP, "weight", weight.dims(), [("n_rows", n_rows), ("d_model", d_model)]);
    assert!(targets.len() == n, "{OP}: {} targets for n = {n} positions", targets.len());
    if let Some(target) = targets.iter().find(|target| **target >= 0 && **target as usize >= n_rows)
    {
        panic!("{OP}: target {target} is no row of `weight`, which has {n_rows}");
    }
    assert!(targets.iter().any(|target| *target >= 0), "{OP}: no target counts");
}

/// Rows that matrix kernels divide without rest.
const TILE: usize = 256;

/// Positions of a chunk, `most` at most: as few chunks as that takes, of whole tiles if they fit.
fn chunk_len(n: usize, most: usize) -> usize {
    let even = n.div_ceil(n.div_ceil(most));
    let tiles = even.next_multiple_of(TILE);
    if tiles <= most { tiles } else { even }
}

/// How many targets count.
fn count(targets: &[i32]) -> usize {
    targets.iter().filter(|target| **target >= 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_few_and_even_or_of_whole_tiles() {
        assert_eq!(chunk_len(100, 1000), 256);
        assert_eq!(chunk_len(100, 200), 100);
        assert_eq!(chunk_len(100, 60), 50);
        assert_eq!(chunk_len(16_384, 2669), 2560);
        assert_eq!(chunk_len(3, 1), 1);
    }
}
