//! A step on devices of CubeCL: one launch a parameter, in place.

use burn::tensor::Tensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};

use super::{
    Factors,
    kernel::{ScalarsLaunch, adam_step},
};
use crate::cube::{independent, rows, vector_size};

/// The tensor in row-major order, in memory that nothing else reads.
fn owned<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    let tensor = contiguous(tensor);
    // A copy is laid out as the device likes it.
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// The tensor in row-major order.
fn contiguous<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    // `Route::Kernel` is for devices of CubeCL only.
    rows(tensor).expect("a tensor on a device of CubeCL")
}

/// Weights and moments one step on; all four tensors are f32.
pub(super) fn step<const D: usize>(
    factors: &Factors,
    [w, m, v]: [Tensor<D>; 3],
    grad: Tensor<D>,
) -> [Tensor<D>; 3] {
    let grad = contiguous(grad);
    let [w, m, v] = [owned(w), owned(m), owned(v)];
    let len = w.meta.num_elements();
    let vector = vector_size(len);
    let (count, dim) = independent(len / vector);
    let Factors { beta_1, beta_2, l2, keep, rate, correction, eps } = *factors;
    let scalars = ScalarsLaunch::new(
        beta_1 as f32,
        (1.0 - beta_1) as f32,
        beta_2 as f32,
        (1.0 - beta_2) as f32,
        l2 as f32,
        keep as f32,
        rate as f32,
        correction as f32,
        eps as f32,
    );
    // SAFETY: the kernel checks its unit against the number of vectors; all four tensors have the
    // shape of the parameter, are contiguous, and `vector` divides their length.
    unsafe {
        adam_step::launch_unchecked(
            &w.client,
            count,
            dim,
            vector,
            w.clone().into_tensor_arg(),
            m.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            grad.into_tensor_arg(),
            scalars,
            len / vector,
        );
    }
    [w, m, v].map(Tensor::from_primitive::<CubeBackend>)
}
