//! A step on devices of CubeCL, in place: one launch for a large parameter or for several small ones.

use std::cell::RefCell;

use burn::tensor::Tensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};

use super::{
    Factors,
    kernel::{ScalarsLaunch, adam_step, adam_steps},
};
use crate::cube::{MultiTensorLaunch, independent, rows, vector_size};

/// Elements from which a parameter has a launch of its own: less work than that takes no longer than to
/// launch it.
const LARGE: usize = 1 << 18;

/// The tensor in row-major order, in memory that nothing else reads.
fn owned<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    let tensor = contiguous(tensor);
    // A copy is laid out as the device likes it.
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// The tensor in row-major order.
fn contiguous<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    rows(tensor).expect("`Route::Kernel` is chosen on devices of CubeCL only")
}

/// A small parameter whose step has not been launched.
struct Waiting {
    /// Weight, moments and gradient.
    tensors: [CubeTensor; 4],
    factors: Factors,
}

thread_local! {
    /// Steps that wait to be launched together, inside of [`together`].
    static WAITING: RefCell<Option<Vec<Waiting>>> = const { RefCell::new(None) };
}

/// Runs `steps`, whose small parameters are stepped when all of it has run: their values must not be
/// read before.
pub(super) fn together<T>(steps: impl FnOnce() -> T) -> T {
    /// What still waits when `steps` panics is never launched.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            WAITING.take();
        }
    }
    WAITING.set(Some(Vec::new()));
    let scope = Scope;
    let out = steps();
    launch_all(WAITING.take().unwrap_or_default());
    drop(scope);
    out
}

/// Launches steps with equal factors and vectors together.
fn launch_all(mut waiting: Vec<Waiting>) {
    let vector = |step: &Waiting| vector_size(step.tensors[0].meta.num_elements());
    while let Some(first) = waiting.first() {
        let (factors, size) = (first.factors, vector(first));
        let alike = |step: &Waiting| step.factors == factors && vector(step) == size;
        let (alike, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(alike);
        let mut steps: Vec<_> = alike.into_iter().map(|step| step.tensors).collect();
        for launch in MultiTensorLaunch::launches(&mut steps) {
            let (count, dim) = launch.grid();
            // SAFETY: units check their place against the number of vectors of their parameter, whose four
            // tensors are contiguous and of one length.
            unsafe {
                adam_steps::launch_unchecked(
                    launch.client(),
                    count,
                    dim,
                    launch.vector_size,
                    launch.tensors(0),
                    launch.tensors(1),
                    launch.tensors(2),
                    launch.tensors(3),
                    launch.lens(),
                    factors.scalars(),
                );
            }
        }
        waiting = others;
    }
}

impl Factors {
    fn scalars(&self) -> ScalarsLaunch {
        let Self { beta_1, beta_2, l2, keep, rate, correction, eps } = *self;
        ScalarsLaunch::new(
            beta_1 as f32,
            (1.0 - beta_1) as f32,
            beta_2 as f32,
            (1.0 - beta_2) as f32,
            l2 as f32,
            keep as f32,
            rate as f32,
            correction as f32,
            eps as f32,
        )
    }
}

/// Weights and moments one step on; all four tensors are f32. Inside of [`together`] that may be later.
pub(super) fn step<const D: usize>(
    factors: &Factors,
    [w, m, v]: [Tensor<D>; 3],
    grad: Tensor<D>,
) -> [Tensor<D>; 3] {
    let grad = contiguous(grad);
    let stepped = [owned(w), owned(m), owned(v)];
    let [w, m, v] = stepped.clone();
    let len = w.meta.num_elements();
    let waits = len < LARGE
        && WAITING.with_borrow_mut(|waiting| {
            let Some(waiting) = waiting else { return false };
            let tensors = [w.clone(), m.clone(), v.clone(), grad.clone()];
            waiting.push(Waiting { tensors, factors: *factors });
            true
        });
    if !waits {
        let vector = vector_size(len);
        let (count, dim) = independent(len / vector);
        // SAFETY: the kernel checks its unit against the number of vectors; all four tensors have the
        // shape of the parameter, are contiguous, and `vector` divides their length.
        unsafe {
            adam_step::launch_unchecked(
                &w.client.clone(),
                count,
                dim,
                vector,
                w.into_tensor_arg(),
                m.into_tensor_arg(),
                v.into_tensor_arg(),
                grad.into_tensor_arg(),
                factors.scalars(),
                len / vector,
            );
        }
    }
    stepped.map(Tensor::from_primitive::<CubeBackend>)
}
