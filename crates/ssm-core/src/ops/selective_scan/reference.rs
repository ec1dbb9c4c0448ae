//! The paper's loop over tensors: any device, gradients by ordinary autodiff.
//!
//! About `8 * seq_len` small operations; use it to check kernels and to run on devices without one.

use burn::tensor::{Tensor, activation};

use super::{ScanArgs, ScanOutput};

/// As [`selective_scan`](super::selective_scan), step by step.
///
/// # Panics
/// If a shape disagrees with [`ScanArgs`].
pub fn selective_scan(args: ScanArgs) -> ScanOutput {
    let dims = args.dims();
    let ScanArgs { u, delta, a, b, c, d, z, delta_bias, delta_softplus, initial_state, resets } =
        args;
    let (device, dtype) = (u.device(), u.dtype());
    let f32 = burn::tensor::FloatDType::F32;
    let (u, a, b, c) = (u.cast(f32), a.cast(f32), b.cast(f32), c.cast(f32));
    let mut delta = delta.cast(f32);
    if let Some(bias) = delta_bias {
        delta = delta + bias.cast(f32).unsqueeze();
    }
    if delta_softplus {
        delta = softplus(delta);
    }
    // One row of `b` and `c` per channel: [batch, seq_len, d_inner, d_state].
    let spread = |rows: Tensor<3>| -> Tensor<4> {
        rows.reshape([dims.batch, dims.seq_len, dims.n_groups, dims.d_state])
            .unsqueeze_dim::<5>(3)
            .repeat_dim(3, dims.channels_per_group())
            .reshape([dims.batch, dims.seq_len, dims.d_inner, dims.d_state])
    };
    let (b, c) = (spread(b), spread(c));
    let mut state = match initial_state {
        Some(state) => state.cast(f32),
        None => Tensor::zeros(
            [dims.batch, dims.d_inner, dims.d_state],
            (&device, burn::tensor::DType::F32),
        ),
    };
    let mut outputs = Vec::with_capacity(dims.seq_len);
    for t in 0..dims.seq_len {
        let delta_t: Tensor<3> = delta.clone().narrow(1, t, 1).swap_dims(1, 2); // [batch, d_inner, 1]
        let u_t: Tensor<3> = u.clone().narrow(1, t, 1).swap_dims(1, 2); // [batch, d_inner, 1]
        let b_t: Tensor<3> = b.clone().narrow(1, t, 1).squeeze_dim(1); // [batch, d_inner, d_state]
        let c_t: Tensor<3> = c.clone().narrow(1, t, 1).squeeze_dim(1); // [batch, d_inner, d_state]
        if let Some(resets) = &resets {
            // Not a product with 0, which would let NaN and infinity through.
            let reset = resets.clone().narrow(1, t, 1).unsqueeze_dim::<3>(2);
            state = state.mask_fill(reset.expand([dims.batch, dims.d_inner, dims.d_state]), 0.0);
        }
        let decay = (delta_t.clone() * a.clone().unsqueeze()).exp();
        state = decay * state + delta_t * b_t * u_t;
        outputs.push((c_t * state.clone()).sum_dim(2).swap_dims(1, 2)); // [batch, 1, d_inner]
    }
    let mut y = Tensor::cat(outputs, 1);
    if let Some(d) = d {
        y = y + u * d.cast(f32).unsqueeze();
    }
    if let Some(z) = z {
        y = y * activation::silu(z.cast(f32));
    }
    ScanOutput { y: y.cast(dtype), final_state: state }
}

/// `ln(1 + e^x)` that neither overflows nor loses small values.
fn softplus(x: Tensor<3>) -> Tensor<3> {
    let positive = x.clone().clamp_min(0.0);
    positive + (-x.abs()).exp().log1p()
}
