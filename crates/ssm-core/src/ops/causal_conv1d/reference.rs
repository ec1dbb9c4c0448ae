//! Shift and add over tensors: any device, gradients by ordinary autodiff.

use burn::tensor::{Bool, DType, FloatDType, Tensor, activation};

use super::ConvArgs;

/// As [`causal_conv1d`](super::causal_conv1d), one shifted product for each tap.
///
/// # Panics
/// If a shape disagrees with [`ConvArgs`].
pub fn causal_conv1d(args: ConvArgs) -> Tensor<3> {
    let dims = args.dims();
    let ConvArgs { x, weight, bias, silu, initial_state, resets } = args;
    let before = dims.d_conv - 1;
    let dtype = x.dtype();
    let (x, weight) = (x.cast(FloatDType::F32), weight.cast(FloatDType::F32));
    let padded = super::with_history(x, initial_state, before);
    let on = (&padded.device(), DType::F32);
    let mut y = Tensor::zeros([dims.batch, dims.seq_len, dims.channels], on);
    // Whether a reset lies between the source and the step.
    let mut hidden: Option<Tensor<2, Bool>> = None; // [batch, seq_len]
    for lag in 0..dims.d_conv {
        let tap = before - lag;
        // Hidden before the product, so that what is hidden does not reach the filter's gradient either.
        let source = super::hide(padded.clone().narrow(1, tap, dims.seq_len), hidden.clone());
        y = y + source * weight.clone().narrow(1, tap, 1).swap_dims(0, 1).unsqueeze();
        if let Some(resets) = &resets {
            // One step further back passes the reset `lag` steps before this one.
            let shifted = if lag == 0 {
                resets.clone()
            } else {
                let passed = lag.min(dims.seq_len);
                let none = resets.zeros_like().narrow(1, 0, passed);
                match dims.seq_len - passed {
                    0 => none,
                    rest => Tensor::cat(vec![none, resets.clone().narrow(1, 0, rest)], 1),
                }
            };
            hidden = Some(hidden.map_or(shifted.clone(), |hidden| hidden.bool_or(shifted)));
        }
    }
    if let Some(bias) = bias {
        y = y + bias.cast(FloatDType::F32).unsqueeze();
    }
    let y = if silu { activation::silu(y) } else { y };
    y.cast(dtype)
}
