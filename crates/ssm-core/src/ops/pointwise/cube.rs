//! The operations on devices of CubeCL.

use burn::backend::{
    TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::{
    extension::{Dropout, PointwiseOps},
    kernel,
};
use crate::ops::cube::{cast, check_device, elem, empty, independent, rows, vector_size};

fn gelu(x: CubeTensor, grad_y: Option<CubeTensor>) -> CubeTensor {
    check_device("gelu", &x, [x.dtype], 3);
    let x = rows(x);
    let (len, grad) = (x.meta.num_elements(), grad_y.is_some());
    let grad_y = grad_y.map_or_else(|| x.clone(), |grad_y| rows(cast(grad_y, x.dtype)));
    let y = empty(&x, x.shape(), x.dtype);
    let vector = vector_size(len);
    let (count, dim) = independent(len / vector);
    let dtype = elem(&x);
    // SAFETY: the kernel checks the number of vectors, and `vector` divides the length of all three.
    unsafe {
        kernel::gelu::launch_unchecked(
            &y.client,
            count,
            dim,
            vector,
            x.into_tensor_arg(),
            grad_y.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            len / vector,
            grad,
            dtype,
        );
    }
    y
}

impl PointwiseOps for CubeBackend {
    fn reverse(x: FloatTensor<Self>) -> FloatTensor<Self> {
        check_device("reverse", &x, [x.dtype], 2);
        let x = rows(x);
        let [_, seq_len, channels]: [usize; 3] = x.shape().dims();
        let y = empty(&x, x.shape(), x.dtype);
        let vector = vector_size(channels);
        let len = x.meta.num_elements() / vector;
        let (count, dim) = independent(len);
        let dtype = elem(&x);
        // SAFETY: as in `gelu`.
        unsafe {
            kernel::reverse::launch_unchecked(
                &y.client,
                count,
                dim,
                vector,
                x.into_tensor_arg(),
                y.clone().into_tensor_arg(),
                len,
                seq_len,
                channels / vector,
                dtype,
            );
        }
        y
    }

    fn gelu_fwd(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu(x, None)
    }

    fn gelu_bwd(x: FloatTensor<Self>, grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu(x, Some(grad_y))
    }

    fn neg_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        check_device("neg_exp", &x, [x.dtype], 2);
        let x = rows(x);
        let y = empty(&x, x.shape(), x.dtype);
        let len = x.meta.num_elements();
        let vector = vector_size(len);
        let (count, dim) = independent(len / vector);
        let dtype = elem(&x);
        // SAFETY: as in `gelu`.
        unsafe {
            kernel::neg_exp::launch_unchecked(
                &y.client,
                count,
                dim,
                vector,
                x.into_tensor_arg(),
                y.clone().into_tensor_arg(),
                len / vector,
                dtype,
            );
        }
        y
    }

    fn masked(x: FloatTensor<Self>, mask: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        check_device("masked", &x, [x.dtype, mask.dtype], 3);
        let (x, mask) = (rows(x), rows(mask));
        let mask = cast(mask, x.dtype);
        let y = empty(&x, x.shape(), x.dtype);
        let len = x.meta.num_elements();
        let vector = vector_size(len);
        let (count, dim) = independent(len / vector);
        let dtype = elem(&x);
        // SAFETY: as in `gelu`.
        unsafe {
            kernel::masked::launch_unchecked(
                &y.client,
                count,
                dim,
                vector,
                x.into_tensor_arg(),
                mask.into_tensor_arg(),
                y.clone().into_tensor_arg(),
                len / vector,
                scale,
                dtype,
            );
        }
        y
    }

    fn dropped(x: FloatTensor<Self>, seed: IntTensor<Self>, options: Dropout) -> FloatTensor<Self> {
        check_device("dropout", &x, [x.dtype], 3);
        if x.meta.num_elements() == 0 {
            return x;
        }
        let (x, seed) = (rows(x), rows(seed));
        let y = empty(&x, x.shape(), x.dtype);
        let len = x.meta.num_elements();
        let vector = vector_size(len);
        let (count, dim) = independent(len / vector);
        let dtype = elem(&x);
        let Dropout { site, below, scale } = options;
        // SAFETY: as in `gelu`; `seed` holds two words, which `super::dropped` checked.
        unsafe {
            kernel::dropped::launch_unchecked(
                &y.client,
                count,
                dim,
                vector,
                x.into_tensor_arg(),
                seed.into_tensor_arg(),
                y.clone().into_tensor_arg(),
                len / vector,
                site,
                below,
                scale,
                dtype,
            );
        }
        y
    }
}
