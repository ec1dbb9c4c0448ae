//! The scan on host memory: primitives to slices, the SIMD kernel, slices to primitives.

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "the backend is deprecated in Burn and stays selectable here")]
use burn::backend::NdArray;
use burn::backend::{TensorMetadata, tensor::FloatTensor};

use super::{
    extension::{ScanGradPrimitives, ScanOptions, ScanPrimitives, SelectiveScanOps},
    host::{ScanDims, ScanSlices},
    simd,
};
use crate::ops::primitive::{HostBackend, Maybe};

/// Primitives read as slices.
struct Inputs<B: HostBackend> {
    dims: ScanDims,
    u: B::Values,
    delta: B::Values,
    a: B::Values,
    b: B::Values,
    c: B::Values,
    d: Option<B::Values>,
    z: Option<B::Values>,
    delta_bias: Option<B::Values>,
    initial_state: Option<B::Values>,
    resets: Option<B::Values>,
    delta_softplus: bool,
}

impl<B: HostBackend> Inputs<B> {
    fn new(input: ScanPrimitives<B>, options: ScanOptions) -> Self {
        let [batch, seq_len, d_inner] = input.u.shape().dims();
        let [_, d_state] = input.a.shape().dims();
        let [_, _, grouped] = input.b.shape().dims();
        Self {
            dims: ScanDims { batch, seq_len, d_inner, d_state, n_groups: grouped / d_state },
            u: B::values(input.u),
            delta: B::values(input.delta),
            a: B::values(input.a),
            b: B::values(input.b),
            c: B::values(input.c),
            d: B::maybe_values(input.d),
            z: B::maybe_values(input.z),
            delta_bias: B::maybe_values(input.delta_bias),
            initial_state: B::maybe_values(input.initial_state),
            resets: B::maybe_values(input.resets),
            delta_softplus: options.delta_softplus,
        }
    }

    fn slices(&self) -> ScanSlices<'_, f32> {
        fn get<V: AsRef<[f32]>>(values: &Option<V>) -> Option<&[f32]> {
            values.as_ref().map(AsRef::as_ref)
        }
        ScanSlices {
            u: self.u.as_ref(),
            delta: self.delta.as_ref(),
            a: self.a.as_ref(),
            b: self.b.as_ref(),
            c: self.c.as_ref(),
            d: get(&self.d),
            z: get(&self.z),
            delta_bias: get(&self.delta_bias),
            initial_state: get(&self.initial_state),
            resets: get(&self.resets),
            delta_softplus: self.delta_softplus,
        }
    }
}

fn forward<B: HostBackend>(
    input: ScanPrimitives<B>,
    options: ScanOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let like = input.u.clone();
    let inputs = Inputs::<B>::new(input, options);
    let dims @ ScanDims { batch, seq_len, d_inner, d_state, .. } = inputs.dims;
    let out = simd::forward(dims, &inputs.slices(), options.save_states);
    let n_saved = if options.save_states { simd::n_chunks(seq_len) } else { 0 };
    (
        B::tensor(out.y, [batch, seq_len, d_inner], &like),
        B::tensor_f32(out.final_state, [batch, d_inner, d_state], &like),
        B::tensor_f32(out.states, [batch, n_saved, d_state, d_inner], &like),
    )
}

fn backward<B: HostBackend>(
    input: ScanPrimitives<B>,
    states: FloatTensor<B>,
    grad_y: FloatTensor<B>,
    grad_final: Maybe<B>,
    options: ScanOptions,
) -> ScanGradPrimitives<B> {
    let types = input.clone();
    let inputs = Inputs::<B>::new(input, options);
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = inputs.dims;
    let (states, grad_y) = (B::values(states), B::values(grad_y));
    let grad_final = B::maybe_values(grad_final);
    let grads = simd::backward(
        inputs.dims,
        &inputs.slices(),
        states.as_ref(),
        grad_y.as_ref(),
        grad_final.as_ref().map(AsRef::as_ref),
    );
    let steps = [batch, seq_len, d_inner];
    let rows = [batch, seq_len, n_groups * d_state];
    ScanGradPrimitives {
        u: B::tensor(grads.u, steps, &types.u),
        delta: B::tensor(grads.delta, steps, &types.delta),
        a: B::tensor(grads.a, [d_inner, d_state], &types.a),
        b: B::tensor(grads.b, rows, &types.b),
        c: B::tensor(grads.c, rows, &types.c),
        d: types.d.into_option().map(|like| B::tensor(grads.d, [d_inner], &like)).into(),
        z: types.z.into_option().map(|like| B::tensor(grads.z, steps, &like)).into(),
        delta_bias: types
            .delta_bias
            .into_option()
            .map(|like| B::tensor(grads.delta_bias, [d_inner], &like))
            .into(),
        initial_state: types
            .initial_state
            .into_option()
            .map(|like| B::tensor(grads.initial_state, [batch, d_inner, d_state], &like))
            .into(),
    }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl SelectiveScanOps for $backend {
            fn selective_scan_fwd(
                input: ScanPrimitives<Self>,
                options: ScanOptions,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                forward(input, options)
            }

            fn selective_scan_bwd(
                input: ScanPrimitives<Self>,
                states: FloatTensor<Self>,
                grad_y: FloatTensor<Self>,
                grad_final: Maybe<Self>,
                options: ScanOptions,
            ) -> ScanGradPrimitives<Self> {
                backward(input, states, grad_y, grad_final, options)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "the backend is deprecated in Burn and stays selectable here")]
const _: () = {
    on_host!(NdArray);
};
