//! The convolution on devices of CubeCL: buffers, sizes of the units' work, launches.

use burn::backend::{TensorMetadata, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::{frontend::OwnedTensor, prelude::SequenceArg};

use super::{
    extension::{CausalConv1dOps, ConvGradPrimitives, ConvPrimitives},
    host::ConvDims,
    kernel::{Variant, conv_bwd, conv_fwd, conv_reduce},
};
use crate::ops::{
    cube::{
        binds_any, cast, check_device, check_len, dtypes_of, elem, empty, empty_f32, independent,
        is_cuda, packed, part, rows, rows_f32, rows_f32_or, vector_size,
    },
    primitive::Maybe,
};

/// Buffers of the backward kernel, which has the most.
const BUFFERS: usize = 7;

/// Units that keep a large device busy.
const ENOUGH_UNITS: usize = 1 << 18;

/// Fewest and most steps of a unit: it reads some more than its own, and leaves partial sums.
const SPAN: (usize, usize) = (16, 256);

/// Inputs in row-major order, what the kernels are compiled for, and how the work is cut.
struct Launch {
    x: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    history: Vec<CubeTensor>,
    /// Place of the resets in their tensor.
    at_resets: usize,
    variant: Variant,
    dims: ConvDims,
    vector: usize,
    span: usize,
}

impl Launch {
    fn new(input: ConvPrimitives<CubeBackend>, silu: bool) -> Self {
        let [batch, seq_len, channels] = input.x.shape().dims();
        let [_, d_conv] = input.weight.shape().dims();
        let given = dtypes_of([&input.bias, &input.initial_state]);
        let dtypes = [input.x.dtype, input.weight.dtype].into_iter().chain(given);
        check_device("causal_conv1d", &input.x, dtypes, BUFFERS);
        let x = rows(input.x);
        check_len("causal_conv1d", "`x`", x.meta.num_elements());
        let weight = rows_f32(input.weight);
        let initial = input.initial_state.into_option().filter(|_| d_conv > 1);
        let resets = input.resets.into_option();
        let mut variant = Variant {
            d_conv,
            bias: matches!(input.bias, Maybe::Present(_)),
            initial: initial.is_some(),
            resets: resets.is_some(),
            resets_in: 0,
            silu,
            cuda: is_cuda(&x.client),
            window: (d_conv - 1).max(1),
        };
        let mut at_resets = 0;
        let history = match (initial, resets) {
            (Some(initial), Some(resets)) if binds_any(&x.client) => {
                variant.resets_in = 1;
                vec![rows_f32(initial), rows_f32(resets)]
            }
            (Some(initial), Some(resets)) => {
                at_resets = initial.meta.num_elements();
                let resets = (Some(resets), batch * seq_len);
                vec![packed("causal_conv1d", vec![(Some(initial), at_resets), resets], &x)]
            }
            (one, other) => vec![one.or(other).map_or_else(|| weight.clone(), rows_f32)],
        };
        let vector = vector_size(channels);
        let units = batch * seq_len * channels / vector;
        Self {
            bias: rows_f32_or(input.bias, &weight),
            history,
            at_resets,
            x,
            weight,
            variant,
            dims: ConvDims { batch, seq_len, channels, d_conv },
            vector,
            span: (units / ENOUGH_UNITS).clamp(SPAN.0, SPAN.1),
        }
    }

    fn history(&self) -> SequenceArg<OwnedTensor<f32>> {
        let mut history = SequenceArg::new();
        for tensor in &self.history {
            history.push(tensor.clone().into_tensor_arg());
        }
        history
    }

    fn spans(&self) -> usize {
        self.dims.seq_len.div_ceil(self.span)
    }

    fn units(&self) -> usize {
        self.dims.batch * self.spans() * self.dims.channels / self.vector
    }
}

fn forward(input: ConvPrimitives<CubeBackend>, silu: bool) -> CubeTensor {
    let launch = Launch::new(input, silu);
    let (count, dim) = independent(launch.units());
    let ConvDims { batch, seq_len, channels, .. } = launch.dims;
    let y = empty(&launch.x, [batch, seq_len, channels], launch.x.dtype);
    let (dtype, history) = (elem(&launch.x), launch.history());
    // SAFETY: the kernel checks the number of units, and all buffers have the shapes of the operation;
    // `vector` divides the channels.
    unsafe {
        conv_fwd::launch_unchecked(
            &y.client,
            count,
            dim,
            launch.vector,
            launch.x.into_tensor_arg(),
            launch.weight.into_tensor_arg(),
            launch.bias.into_tensor_arg(),
            history,
            y.clone().into_tensor_arg(),
            batch,
            seq_len,
            channels / launch.vector,
            launch.span,
            launch.at_resets,
            launch.variant,
            dtype,
        );
    }
    y
}

fn backward(
    input: ConvPrimitives<CubeBackend>,
    grad_y: CubeTensor,
    silu: bool,
) -> ConvGradPrimitives<CubeBackend> {
    let types = input.clone();
    let launch = Launch::new(input, silu);
    let (count, dim) = independent(launch.units());
    let ConvDims { batch, seq_len, channels, d_conv } = launch.dims;
    let (variant, vector) = (launch.variant, launch.vector);
    let grad_y = rows(cast(grad_y, launch.x.dtype));
    let grad_x = empty(&launch.x, [batch, seq_len, channels], launch.x.dtype);
    let entries = batch * launch.spans();
    let n_params = entries * (d_conv + 1) * channels;
    let n_initial = if variant.initial { batch * (d_conv - 1) * channels } else { 0 };
    let param_grads = empty_f32(&launch.x, [n_params + n_initial]);
    let client = grad_x.client.clone();
    let (dtype, history) = (elem(&launch.x), launch.history());
    // SAFETY: as in `forward`; `param_grads` has the parts that the kernel documents.
    unsafe {
        conv_bwd::launch_unchecked(
            &client,
            count,
            dim,
            vector,
            launch.x.into_tensor_arg(),
            launch.weight.into_tensor_arg(),
            launch.bias.into_tensor_arg(),
            history,
            grad_y.into_tensor_arg(),
            grad_x.clone().into_tensor_arg(),
            param_grads.clone().into_tensor_arg(),
            batch,
            seq_len,
            channels / vector,
            launch.span,
            launch.at_resets,
            variant,
            dtype,
        );
    }
    let weight = empty_f32(&grad_x, [channels, d_conv]);
    let bias = empty_f32(&grad_x, [channels]);
    let (count, dim) = independent((d_conv + 1) * channels);
    // SAFETY: the kernel checks the number of sums.
    unsafe {
        conv_reduce::launch_unchecked(
            &client,
            count,
            dim,
            param_grads.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.clone().into_tensor_arg(),
            entries,
            channels,
            d_conv,
            variant.bias,
        );
    }
    let initial_state = types.initial_state.into_option().map(|like| {
        let shape = [batch, d_conv - 1, channels];
        match variant.initial {
            true => part(&param_grads, n_params, shape, like.dtype),
            // A filter of one tap has a history without elements.
            false => empty(&like, shape, like.dtype),
        }
    });
    ConvGradPrimitives {
        x: grad_x,
        weight: cast(weight, types.weight.dtype),
        bias: types.bias.into_option().map(|like| cast(bias, like.dtype)).into(),
        initial_state: initial_state.into(),
    }
}

impl CausalConv1dOps for CubeBackend {
    fn causal_conv1d_fwd(input: ConvPrimitives<Self>, silu: bool) -> FloatTensor<Self> {
        forward(input, silu)
    }

    fn causal_conv1d_bwd(
        input: ConvPrimitives<Self>,
        grad_y: FloatTensor<Self>,
        silu: bool,
    ) -> ConvGradPrimitives<Self> {
        backward(input, grad_y, silu)
    }
}
