//! Position-wise linear maps of sequences, as one matrix product.

use burn::{module::Param, nn::Linear, tensor::Tensor};

/// `x W + bias` for every position.
///
/// Batch and sequence are flattened first. A matrix product with a batch axis would be
/// differentiated one sequence at a time: `batch` products for the weight, each written out whole,
/// and their sum; for short sequences that costs more than all the rest of a training step.
///
/// # Shapes
/// `x`: `[batch, seq_len, d_in]`; output: `[batch, seq_len, d_out]`
///
/// # Gradients
/// Input, weight and bias.
pub fn linear(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    linear_part(layer.weight.val(), layer.bias.as_ref().map(Param::val), x)
}

/// [`linear`] with loose weight `[d_in, d_out]` and bias `[d_out]`.
pub fn linear_part(weight: Tensor<2>, bias: Option<Tensor<1>>, x: Tensor<3>) -> Tensor<3> {
    let [batch, seq_len, d_in] = x.dims();
    let [_, d_out] = weight.dims();
    let mut y = x.reshape([batch * seq_len, d_in]).matmul(weight);
    if let Some(bias) = bias {
        y = y + bias.unsqueeze();
    }
    y.reshape([batch, seq_len, d_out])
}
