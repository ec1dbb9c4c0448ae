//! Linear maps on devices of CubeCL, with few launches.

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Shape, Slice},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::{
    extension::{LinearGradPrimitives, LinearOps, LinearOptions, LinearPrimitives, Parts},
    kernel::{product as multiply, sum_of_products, sum_of_rows},
};
use crate::ops::{
    cube::{cast, check_device, column_sums, dtypes_of, join, rows, split},
    primitive::Maybe,
};

/// Widths of all parts together up to which they are one product that is cut, or put together
/// backwards: narrow products read `x` again and again, wide ones cost more to copy than to compute
/// apart.
const NARROW: usize = 256;

/// Elements of the output up to which wide parts are one product too: to copy them takes less than the
/// launches that it saves.
const SMALL: usize = 1 << 20;

/// Whether the parts of an output of this width are one product.
fn in_one(rows: usize, d_out: usize) -> bool {
    d_out <= NARROW || rows * d_out <= SMALL
}

type B = CubeBackend;

/// The last axis against all others.
fn matrix(x: CubeTensor) -> CubeTensor {
    let shape = x.shape();
    let columns = shape.to_vec().last().copied().unwrap_or(1);
    let rows = shape.num_elements() / columns;
    B::float_reshape(x, Shape::from([rows, columns]))
}

fn columns(x: CubeTensor, (from, len): (usize, usize)) -> CubeTensor {
    let [rows, _]: [usize; 2] = x.shape().dims();
    B::float_slice(x, &[Slice::from(0..rows), Slice::from(from..from + len)])
}

/// Rows up to which one cube for every few columns is enough.
const FEW_ROWS: usize = 4096;

/// `[1, columns]`, of a few rows in a kernel of our own: Burn's gives all of them to one cube.
fn sum_over_rows(x: CubeTensor) -> CubeTensor {
    let [n_rows, width]: [usize; 2] = x.shape().dims();
    if x.dtype != DType::F32 || n_rows > FEW_ROWS || width == 0 {
        return B::float_sum_dim(x, 0);
    }
    let [sum, _] = column_sums(&rows(x), n_rows, [width, 0]);
    B::float_reshape(sum, Shape::from([1, width]))
}

fn transposed(x: CubeTensor) -> CubeTensor {
    B::float_swap_dims(x, 0, 1)
}

fn forward(input: LinearPrimitives<B>, options: LinearOptions) -> Vec<CubeTensor> {
    let shape = input.x.shape().to_vec();
    let dtype = input.x.dtype;
    let dtypes = [dtype, input.weight.dtype].into_iter().chain(dtypes_of([&input.bias]));
    check_device("linear", &input.x, dtypes, 3);
    let [_, d_out]: [usize; 2] = input.weight.shape().dims();
    let (x, weight) = (matrix(input.x), cast(input.weight, dtype));
    let out = if options.wide { DType::F32 } else { dtype };
    let bias = input.bias.into_option().map(|bias| {
        let bias = cast(bias, out);
        B::float_reshape(bias, Shape::from([1, d_out]))
    });
    let product = |part: (usize, usize)| {
        let whole = part == (0, d_out);
        let cut = |t: &CubeTensor| if whole { t.clone() } else { columns(t.clone(), part) };
        let y = multiply(x.clone(), cut(&weight), out);
        match &bias {
            Some(bias) => B::float_add(y, cut(bias)),
            None => y,
        }
    };
    let shaped = |y: CubeTensor, width: usize| {
        let mut shape = shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        B::float_reshape(y, Shape::from(shape))
    };
    let parts: Vec<_> = options.columns().collect();
    let [n_rows, _]: [usize; 2] = x.shape().dims();
    if parts.len() > 1 && in_one(n_rows, d_out) {
        let cut = split(&rows(product((0, d_out))), n_rows, options.widths).into_iter();
        return cut.zip(&parts).map(|(y, part)| shaped(y, part.1)).collect();
    }
    parts.into_iter().map(|part| shaped(product(part), part.1)).collect()
}

fn backward(
    input: LinearPrimitives<B>,
    grad_y: Parts<B>,
    options: LinearOptions,
) -> LinearGradPrimitives<B> {
    let types = input.clone();
    let dtype = input.x.dtype;
    let shape = input.x.shape();
    let device = input.x.device();
    let [d_in, d_out]: [usize; 2] = input.weight.shape().dims();
    let (x, weight) = (matrix(input.x), cast(input.weight, dtype));
    let [n_rows, _]: [usize; 2] = x.shape().dims();
    let all: Vec<_> = grad_y.into_options().into_iter().zip(options.columns()).collect();
    let zeros =
        |shape: [usize; 2], dtype: DType| B::float_zeros(Shape::from(shape), &device, dtype.into());
    // Gradients of the outputs with their columns in `weight`.
    let parts: Vec<(CubeTensor, (usize, usize))> = if all.len() > 1 && in_one(n_rows, d_out) {
        let mut grads = all.into_iter().map(|(grad, _)| grad.map(|grad| rows(cast(grad, dtype))));
        let grads = std::array::from_fn(|_| grads.next().flatten());
        vec![(join(grads, n_rows, options.widths), (0, d_out))]
    } else {
        let present = all.into_iter().filter_map(|(grad, part)| grad.map(|grad| (grad, part)));
        present.map(|(grad, part)| (matrix(cast(grad, dtype)), part)).collect()
    };
    let grad_x = options.grad_x.then(|| {
        let used: usize = parts.iter().map(|(_, (_, len))| len).sum();
        if let [(first, _), (second, _)] = parts.as_slice()
            && used == d_out
            && let Some(sum) = sum_of_products([first, second], &transposed(weight.clone()), dtype)
        {
            return B::float_reshape(sum, shape);
        }
        let products = parts.iter().map(|(grad, part)| {
            let weight = match *part == (0, d_out) {
                true => weight.clone(),
                false => columns(weight.clone(), *part),
            };
            multiply(grad.clone(), transposed(weight), dtype)
        });
        let sum = products.reduce(B::float_add).unwrap_or_else(|| zeros([n_rows, d_in], dtype));
        B::float_reshape(sum, shape)
    });
    // The columns of all parts next to each other, zeros where a part is absent.
    let beside = |rows: usize, dtype: DType, of: &dyn Fn(&CubeTensor) -> CubeTensor| {
        let mut pieces = Vec::new();
        for (from, len) in options.columns() {
            match parts.iter().find(|(_, part)| part.0 == from) {
                Some((grad, _)) => pieces.push(of(grad)),
                None if parts.iter().any(|(_, part)| *part == (0, d_out)) => {}
                None => pieces.push(zeros([rows, len], dtype)),
            }
        }
        match pieces.len() {
            1 => pieces.remove(0),
            _ => B::float_cat(pieces, 1),
        }
    };
    let grad_weight = options.grad_weight.then(|| {
        let dtype = types.weight.dtype;
        beside(d_in, dtype, &|grad| sum_of_rows(x.clone(), grad.clone(), dtype))
    });
    let grad_bias = types.bias.into_option().map(|like| {
        let grad = beside(1, dtype, &|grad| sum_over_rows(grad.clone()));
        cast(B::float_reshape(grad, Shape::from([d_out])), like.dtype)
    });
    LinearGradPrimitives {
        x: Maybe::from(grad_x),
        weight: Maybe::from(grad_weight),
        bias: Maybe::from(grad_bias),
    }
}

impl LinearOps for CubeBackend {
    fn linear_fwd(input: LinearPrimitives<Self>, options: LinearOptions) -> Vec<FloatTensor<Self>> {
        forward(input, options)
    }

    fn linear_bwd(
        input: LinearPrimitives<Self>,
        grad_y: Parts<Self>,
        options: LinearOptions,
    ) -> LinearGradPrimitives<Self> {
        backward(input, grad_y, options)
    }
}
