//! The loss on devices of CubeCL.

use std::sync::Arc;

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::IntTensor},
    tensor::{DType, Shape, Slice},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::CubeDim;

use super::{
    count,
    extension::{CrossEntropyOps, CrossEntropyOptions, CrossEntropyPrimitives, CrossEntropyResult},
    kernel::{counted_rows, softmax_rows},
};
use crate::ops::{
    cube::{
        cast, check_device, check_len, cubes, elem, empty, empty_f32, independent, rows, sum_all,
        vector_size,
    },
    linear::kernel::{product, sum_of_rows},
};

/// Units of a cube, at most.
const UNITS: usize = 256;

/// Bytes that a unit loads at once, at most.
const LOAD: usize = 16;

type B = CubeBackend;

/// Losses of the positions from `first` on go to `losses`; `logits` become their gradient if `scale`
/// says by what it is multiplied.
fn softmax(
    logits: &CubeTensor,
    targets: &CubeTensor,
    losses: &CubeTensor,
    first: usize,
    scale: Option<f32>,
) {
    let [n, width]: [usize; 2] = logits.shape().dims();
    check_len("cross_entropy", "a chunk of logits", n * width);
    let most = LOAD / logits.dtype.size();
    let vector = [8, 4, 2, 1].into_iter().find(|v| *v <= most && width.is_multiple_of(*v));
    let vector = vector.unwrap_or(1);
    let width = width / vector;
    let units = width.next_power_of_two().clamp(32, UNITS);
    // SAFETY: cubes check their row and units their lane, `vector` divides the width, and `targets` and
    // `losses` have an element for every position; targets are rows of the weight, so columns here.
    unsafe {
        softmax_rows::launch_unchecked(
            &logits.client,
            cubes(n),
            CubeDim::new_1d(units as u32),
            vector,
            logits.clone().into_tensor_arg(),
            targets.clone().into_tensor_arg(),
            losses.clone().into_tensor_arg(),
            n,
            first,
            width,
            scale.unwrap_or(0.0),
            units,
            scale.is_some(),
            elem(logits),
        );
    }
}

/// `hidden` with zeros at the positions that do not count.
fn counted(hidden: &CubeTensor, targets: &CubeTensor) -> CubeTensor {
    let [n, d_model]: [usize; 2] = hidden.shape().dims();
    check_len("cross_entropy", "`hidden`", n * d_model);
    let to = empty(hidden, [n, d_model], hidden.dtype);
    let vector = vector_size(d_model);
    let len = n * d_model / vector;
    let (count, dim) = independent(len);
    // SAFETY: the kernel checks the number of vectors, `vector` divides the width, and `targets` has an
    // element for every row.
    unsafe {
        counted_rows::launch_unchecked(
            &hidden.client,
            count,
            dim,
            vector,
            hidden.clone().into_tensor_arg(),
            targets.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            len,
            d_model / vector,
            elem(hidden),
        );
    }
    to
}

impl CrossEntropyOps for CubeBackend {
    fn cross_entropy(
        input: CrossEntropyPrimitives<Self>,
        targets: Arc<[i32]>,
        on_device: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> CrossEntropyResult<Self> {
        let [n, d_model]: [usize; 2] = input.hidden.shape().dims();
        let (dtype, weight_dtype) = (input.hidden.dtype, input.weight.dtype);
        check_device("cross_entropy", &input.hidden, [dtype, weight_dtype], 3);
        let mut hidden = rows(input.hidden);
        let weight = cast(rows(input.weight), dtype);
        let n_counted = count(&targets);
        let mean = (1.0 / n_counted as f64) as f32;
        let scale = options.gradients.then_some(mean);
        let targets = rows(on_device);
        if options.gradients && n_counted < n {
            // In the gradient of the weight they are multiplied by zero, which what is no number survives.
            hidden = counted(&hidden, &targets);
        }
        let losses = empty_f32(&hidden, [n]);
        let chunk = options.chunk.min(n);
        let mut grad_hidden = Vec::new();
        let mut grad_weight: Option<CubeTensor> = None;
        for first in (0..n).step_by(chunk) {
            let end = n.min(first + chunk);
            let hidden = match chunk < n {
                true => {
                    let part = [Slice::from(first..end), Slice::from(0..d_model)];
                    rows(B::float_slice(hidden.clone(), &part))
                }
                false => hidden.clone(),
            };
            let logits = product(hidden.clone(), B::float_swap_dims(weight.clone(), 0, 1), dtype);
            softmax(&logits, &targets, &losses, first, scale);
            if !options.gradients {
                continue;
            }
            grad_hidden.push(product(logits.clone(), weight.clone(), dtype));
            let sum = sum_of_rows(logits, hidden, DType::F32);
            grad_weight = Some(match grad_weight {
                Some(grad) => B::float_add(grad, sum),
                None => sum,
            });
        }
        let hidden = match grad_hidden.len() {
            0 => None,
            1 => grad_hidden.pop(),
            _ => Some(B::float_cat(grad_hidden, 0)),
        };
        CrossEntropyResult {
            loss: sum_all(&losses, mean),
            hidden: hidden.map(|grad| B::float_reshape(grad, Shape::from([n, d_model]))).into(),
            weight: grad_weight.map(|grad| cast(grad, weight_dtype)).into(),
        }
    }
}
