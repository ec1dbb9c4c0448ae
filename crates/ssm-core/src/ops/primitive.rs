//! Tensors as extension traits see them: optional inputs, and host slices of backend primitives.

use burn::{
    backend::{Backend, ExtensionType, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape, Tensor},
};

/// An optional tensor, in a form that `#[backend_extension]` can translate between backends
/// (it does not look inside `Option`).
#[derive(ExtensionType, Clone, Debug)]
pub enum Maybe<B: Backend> {
    /// No tensor.
    Absent,
    /// A tensor.
    Present(FloatTensor<B>),
}

impl<B: Backend> Maybe<B> {
    /// The tensor, if there is one.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Absent => None,
            Self::Present(tensor) => Some(tensor),
        }
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Maybe<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::Present)
    }
}

/// Hands an optional tensor to an extension trait.
pub(crate) fn maybe<const D: usize>(tensor: Option<Tensor<D>>) -> Maybe<burn::backend::Dispatch> {
    tensor.map(Tensor::into_dispatch).into()
}

/// Panics with the first axis of `got` that is not as `expected`.
pub(crate) fn check_shape<const D: usize>(
    op: &str,
    argument: &str,
    got: [usize; D],
    expected: [(&str, usize); D],
) {
    for (axis, (got, (name, size))) in got.into_iter().zip(expected).enumerate() {
        assert!(
            got == size,
            "{op}: axis {axis} of `{argument}` is {got}, expected {name} = {size}"
        );
    }
}

/// A backend whose tensors live in host memory.
pub(crate) trait HostBackend: Backend {
    /// A tensor held as contiguous f32 values.
    type Values: AsRef<[f32]> + Sync;

    /// The values in row-major order, converted to f32 if need be and borrowed if they are f32.
    fn values(tensor: FloatTensor<Self>) -> Self::Values;

    /// A tensor of a dtype, on the device of `like`.
    fn tensor_as(
        values: Vec<f32>,
        shape: impl Into<Shape>,
        dtype: DType,
        like: &FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// A tensor of the dtype of `like`, on its device.
    fn tensor(
        values: Vec<f32>,
        shape: impl Into<Shape>,
        like: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::tensor_as(values, shape, like.dtype(), like)
    }

    /// A tensor of the shape and dtype of `like`, on its device.
    fn tensor_like(values: Vec<f32>, like: &FloatTensor<Self>) -> FloatTensor<Self> {
        Self::tensor_as(values, like.shape(), like.dtype(), like)
    }

    /// An f32 tensor on the device of `like`.
    fn tensor_f32<const D: usize>(
        values: Vec<f32>,
        shape: [usize; D],
        like: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::tensor_as(values, shape, DType::F32, like)
    }

    /// The values of an optional tensor.
    fn maybe_values(tensor: Maybe<Self>) -> Option<Self::Values> {
        tensor.into_option().map(Self::values)
    }
}

#[cfg(feature = "flex")]
mod flex {
    use burn::{
        backend::Flex,
        tensor::{DType, Shape, TensorData},
    };
    use burn_flex::FlexTensor;

    use super::HostBackend;

    /// A contiguous f32 tensor that keeps its storage alive.
    pub(crate) struct FlexValues(FlexTensor);

    impl AsRef<[f32]> for FlexValues {
        fn as_ref(&self) -> &[f32] {
            // `values` stores nothing but contiguous f32 tensors.
            self.0.as_slice().expect("a contiguous f32 tensor")
        }
    }

    impl HostBackend for Flex {
        type Values = FlexValues;

        fn values(tensor: FlexTensor) -> FlexValues {
            let tensor = tensor.to_contiguous();
            if tensor.as_slice::<f32>().is_some() {
                return FlexValues(tensor);
            }
            FlexValues(FlexTensor::from_data(tensor.into_data().convert::<f32>()))
        }

        fn tensor_as(
            values: Vec<f32>,
            shape: impl Into<Shape>,
            dtype: DType,
            _like: &FlexTensor,
        ) -> FlexTensor {
            let data = TensorData::new(values, shape);
            match dtype {
                DType::F32 => FlexTensor::from_data(data),
                dtype => FlexTensor::from_data(data.convert_dtype(dtype)),
            }
        }
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn::{
        backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
        tensor::{DType, Shape, TensorData, read_sync},
    };

    use super::HostBackend;

    #[allow(
        deprecated,
        reason = "the backend is deprecated in Burn and stays selectable here"
    )]
    use burn::backend::NdArray;

    #[allow(deprecated, reason = "as above")]
    impl HostBackend for NdArray {
        type Values = Vec<f32>;

        fn values(tensor: FloatTensor<Self>) -> Vec<f32> {
            // Host memory is always readable, and `convert` makes the element type f32.
            let data = read_sync(Self::float_into_data(tensor)).expect("host data");
            data.convert::<f32>().try_into_vec().expect("f32 data")
        }

        fn tensor_as(
            values: Vec<f32>,
            shape: impl Into<Shape>,
            dtype: DType,
            like: &FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let data = TensorData::new(values, shape).convert_dtype(dtype);
            Self::float_from_data(data, &like.device())
        }
    }
}
