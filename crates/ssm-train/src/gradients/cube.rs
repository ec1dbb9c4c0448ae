//! Sums of squares on devices of CubeCL, and products with a number: few launches, and one buffer to read.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{CubeCount, CubeDim};

use super::kernel::{scaled, squares};
use crate::cube::{MultiTensorLaunch, UNITS, rows};

/// Elements that a cube adds up at least, unless there are less.
const PIECE: usize = 1 << 14;

/// Most cubes, and so sums, of a tensor.
const MAX_CUBES: usize = 256;

/// Elements above which a product with a number has a launch of its own.
const LARGE: usize = 1 << 20;

/// Tensors whose squares are to be added.
#[derive(Default)]
pub(super) struct Squares {
    tensors: Vec<[CubeTensor; 1]>,
}

impl Squares {
    /// Takes an f32 tensor, unless it is on another device.
    pub(super) fn push<const D: usize>(&mut self, tensor: Tensor<D>) -> bool {
        let Some(tensor) = rows(tensor) else { return false };
        if tensor.meta.num_elements() > 0 {
            self.tensors.push([tensor]);
        }
        true
    }

    /// Sums that add up to the sum of all squares; `None` of no elements.
    ///
    /// How the squares are parted among them depends on the shapes only, so equal gradients have
    /// equal norms.
    pub(super) fn sums(mut self) -> Option<Tensor<1>> {
        let [like] = self.tensors.first()?;
        let (client, device) = (like.client.clone(), like.device.clone());
        // Each with the cubes that it gives to every tensor, which leave a sum each.
        let launches = MultiTensorLaunch::launches(&mut self.tensors).map(|launch| {
            let cubes = (launch.longest() * launch.vector_size).div_ceil(PIECE).clamp(1, MAX_CUBES);
            (launch, cubes)
        });
        let launches: Vec<_> = launches.collect();
        let n_sums: usize = launches.iter().map(|(launch, cubes)| cubes * launch.n_groups()).sum();
        let sums = empty_device_contiguous_dtype(client, device, Shape::from([n_sums]), DType::F32);
        let mut offset = 0;
        for (launch, cubes) in launches {
            let count = CubeCount::Static(cubes as u32, launch.n_groups() as u32, 1);
            // SAFETY: units check their position against the length of their tensor, and `sums` has a
            // place for every cube behind `offset`.
            unsafe {
                squares::launch_unchecked(
                    launch.client(),
                    count,
                    CubeDim::new_1d(UNITS as u32),
                    launch.vector_size,
                    launch.tensors(0),
                    launch.lens(),
                    sums.clone().into_tensor_arg(),
                    offset,
                    UNITS,
                );
            }
            offset += cubes * launch.n_groups();
        }
        Some(Tensor::from_primitive::<CubeBackend>(sums))
    }
}

/// Tensors that are multiplied with one number.
#[derive(Default)]
pub(super) struct Scaling {
    /// Each with the memory of its product.
    pairs: Vec<[CubeTensor; 2]>,
}

impl Scaling {
    /// Takes an f32 tensor and returns its product, which is there after [`Scaling::launch`]; `None` of one
    /// that is on another device, or so large that a launch of its own is nothing beside its work: that can
    /// be multiplied where it is.
    pub(super) fn push<const D: usize>(&mut self, tensor: Tensor<D>) -> Option<Tensor<D>> {
        if tensor.shape().num_elements() > LARGE {
            return None;
        }
        let from = rows(tensor).filter(|tensor| tensor.dtype == DType::F32)?;
        let (client, device) = (from.client.clone(), from.device.clone());
        let shape = from.meta.shape().clone();
        let to = empty_device_contiguous_dtype(client, device, shape, DType::F32);
        let product = Tensor::from_primitive::<CubeBackend>(to.clone());
        if from.meta.num_elements() > 0 {
            self.pairs.push([from, to]);
        }
        Some(product)
    }

    pub(super) fn launch(mut self, factor: f64) {
        for launch in MultiTensorLaunch::launches(&mut self.pairs) {
            let (count, dim) = launch.grid();
            // SAFETY: units check their position against the length of their tensors; both of a pair have
            // it, and are contiguous.
            unsafe {
                scaled::launch_unchecked(
                    launch.client(),
                    count,
                    dim,
                    launch.vector_size,
                    launch.tensors(0),
                    launch.tensors(1),
                    launch.lens(),
                    factor as f32,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};

    use super::*;
    use crate::cube::MAX_GROUPS;

    /// Needs the GPU that the variable `SSM_TEST_DEVICE` names; passes without.
    #[test]
    fn sums_of_several_launches_add_up_to_all_squares() {
        let Some(device) = crate::device::test_device() else { return };
        let mut squares = Squares::default();
        let mut expected = 0.0;
        // Odd lengths, more tensors than a launch takes, and more pieces than one.
        let many = (0..=MAX_GROUPS).map(|i| 10 + i);
        let lens = [1, 3, 64, 3 * PIECE + 5, 100, 7, 5000, 12, MAX_CUBES * PIECE + 1];
        for len in lens.into_iter().chain(many) {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37 + len) % 101) as f32 / 50.0).collect();
            expected += values.iter().map(|x| f64::from(x * x)).sum::<f64>();
            let data = TensorData::new(values, [1, len]);
            assert!(squares.push(Tensor::<2>::from_data(data, &device).transpose()));
        }
        let sums = squares.sums().unwrap().into_data();
        let sum: f64 = sums.iter::<f64>().sum();
        assert!((sum - expected).abs() <= 1e-6 * expected, "{sum} is not {expected}");
    }

    /// Needs the GPU that the variable `SSM_TEST_DEVICE` names; passes without.
    #[test]
    fn products_of_several_launches_are_those_of_each() {
        let Some(device) = crate::device::test_device() else { return };
        let mut scaling = Scaling::default();
        let many = (0..=MAX_GROUPS).map(|i| 10 + i);
        let products = [1, 3, 64, 5000, 100_000].into_iter().chain(many).map(|len| {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37 + len) % 101) as f32 - 50.0).collect();
            let expected: Vec<f32> = values.iter().map(|x| x * 0.375).collect();
            let tensor = Tensor::<2>::from_data(TensorData::new(values, [1, len]), &device);
            // A view is brought into the order of its axes.
            (scaling.push(tensor.transpose()).unwrap(), expected)
        });
        let products: Vec<_> = products.collect();
        scaling.launch(0.375);
        for (product, expected) in products {
            assert_eq!(product.dims(), [expected.len(), 1]);
            assert_eq!(product.into_data().try_into_vec::<f32>().unwrap(), expected);
        }
    }

    #[test]
    #[cfg(feature = "flex")]
    fn a_tensor_of_the_host_is_left_to_others() {
        let device = crate::device::open("flex", 0).unwrap();
        let mut squares = Squares::default();
        assert!(!squares.push(Tensor::<1>::ones([3], &device)));
        assert!(squares.sums().is_none());
        assert!(Scaling::default().push(Tensor::<1>::ones([3], &device)).is_none());
    }
}
