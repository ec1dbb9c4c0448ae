//! Shift and add over tensors: any device, gradients by ordinary autodiff.

use burn::tensor::{DType, FloatDType, Tensor, activation};

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
    let keep = resets.map(|resets| resets.bool_not().float().cast(FloatDType::F32)); // [batch, seq_len]
    let mut y = Tensor::zeros([dims.batch, dims.seq_len, dims.channels], on);
    // `visible` is 1 where no reset lies between the source and the step.
    let mut visible: Option<Tensor<2>> = None;
    for lag in 0..dims.d_conv {
        let tap = before - lag;
        let mut term = padded.clone().narrow(1, tap, dims.seq_len)
            * weight.clone().narrow(1, tap, 1).swap_dims(0, 1).unsqueeze();
        if let Some(visible) = &visible {
            term = term * visible.clone().unsqueeze_dim(2);
        }
        y = y + term;
        if let Some(keep) = &keep {
            // One step further back passes the reset `lag` steps before this one.
            let ones = Tensor::ones([dims.batch, lag.min(dims.seq_len)], on);
            let shifted = if lag == 0 {
                keep.clone()
            } else if lag >= dims.seq_len {
                ones
            } else {
                Tensor::cat(vec![ones, keep.clone().narrow(1, 0, dims.seq_len - lag)], 1)
            };
            visible = Some(visible.map_or(shifted.clone(), |visible| visible * shifted));
        }
    }
    if let Some(bias) = bias {
        y = y + bias.cast(FloatDType::F32).unsqueeze();
    }
    let y = if silu { activation::silu(y) } else { y };
    y.cast(dtype)
}
