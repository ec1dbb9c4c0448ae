//! Linear maps on host memory: matrix products on views, threads over tiles of the result.
//!
//! Every tile is one product on one thread and no sum crosses tiles, so threads never wait for each
//! other. The number of threads decides where tiles end, and nothing else: `gemm` adds in another
//! order for long sums and for tiny tiles, so long sums are cut here and tiles are never tiny.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::extension::{LinearGradPrimitives, LinearOps, LinearOptions, LinearPrimitives, Parts};
use crate::ops::{
    disjoint::{Disjoint, Unwritten},
    primitive::HostBackend,
    simd::sum_outer,
    threads::keep_awake,
};

/// Products with fewer multiplications than this stay on one thread: waking another takes longer.
const SERIAL: usize = 1 << 18;

/// Smallest tile that a product is cut into, rows and columns: below it packing costs more than the
/// product itself.
const MIN_TILE: [usize; 2] = [32, 64];

/// Results up to this size have a kernel of their own in `gemm`, so none is cut down to it.
const TINY: usize = 16 * 16;

/// The longest sum that `gemm` takes in one go whatever the size of the result.
const MAX_SUM: usize = 512;

/// Widths of the whole result up to which it is computed in one piece and then cut, or gradients of
/// parts are put together first: three narrow products leave most of a register tile empty.
const NARROW: usize = 128;

/// Rows from which a transposed copy of the weight is faster than a product that walks it against
/// its order (measured: 82 against 107 GFLOP/s on one thread).
const TRANSPOSE_ROWS: usize = 64;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(in crate::ops) struct View<'a> {
    values: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    pub(in crate::ops) fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row_stride: width, col_stride: 1 }
    }

    pub(in crate::ops) fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The view without what lies before `row` and `col`.
    fn from(self, row: usize, col: usize) -> Self {
        Self { values: &self.values[row * self.row_stride + col * self.col_stride..], ..self }
    }

    /// One past the last element of a matrix of this size.
    fn end(self, rows: usize, cols: usize) -> usize {
        (rows - 1) * self.row_stride + (cols - 1) * self.col_stride + 1
    }
}

/// One product: `out[.., first..first + n] (+)= lhs * rhs`.
pub(in crate::ops) struct Product<'a> {
    pub(in crate::ops) lhs: View<'a>,
    pub(in crate::ops) rhs: View<'a>,
    /// First column of the result inside of `out`.
    pub(in crate::ops) first: usize,
    /// Columns of the result.
    pub(in crate::ops) n: usize,
    /// Length of the sums.
    pub(in crate::ops) k: usize,
    /// Whether to add to what is there.
    pub(in crate::ops) add: bool,
}

impl Product<'_> {
    /// Computes the tile of `rows` rows and `cols` columns at `(row, col)`.
    ///
    /// # Safety
    /// No other thread may touch this tile of `out`.
    unsafe fn tile(
        &self,
        out: &Disjoint<'_>,
        out_stride: usize,
        [row, col]: [usize; 2],
        [rows, cols]: [usize; 2],
    ) {
        let at = row * out_stride + self.first + col;
        for from in (0..self.k).step_by(MAX_SUM) {
            let k = MAX_SUM.min(self.k - from);
            let (lhs, rhs) = (self.lhs.from(row, from), self.rhs.from(from, col));
            assert!(lhs.end(rows, k) <= lhs.values.len(), "left operand is too short");
            assert!(rhs.end(k, cols) <= rhs.values.len(), "right operand is too short");
            // SAFETY: the operands hold what is read by the assertions above, `out.tile` checks the
            // result, and its tile belongs to this thread by the caller's promise.
            unsafe {
                gemm(
                    rows,
                    cols,
                    k,
                    out.tile(at, [rows, cols], out_stride),
                    1,
                    out_stride as isize,
                    self.add || from > 0,
                    lhs.values.as_ptr(),
                    lhs.col_stride as isize,
                    lhs.row_stride as isize,
                    rhs.values.as_ptr(),
                    rhs.col_stride as isize,
                    rhs.row_stride as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        }
    }
}

/// Where part `index` of `parts` almost equal ones begins and how long it is.
fn part_of(len: usize, index: usize, parts: usize) -> (usize, usize) {
    let start = len * index / parts;
    (start, len * (index + 1) / parts - start)
}

/// Runs products one after the other that share their rows; threads over tiles.
///
/// Products that write the same columns write all of them.
pub(in crate::ops) fn run(
    m: usize,
    out: &Disjoint<'_>,
    out_stride: usize,
    products: &[Product<'_>],
) {
    let work: usize = products.iter().map(|product| m * product.n * product.k).sum();
    let (Some(narrowest), Some(widest)) =
        (products.iter().map(|p| p.n).min(), products.iter().map(|p| p.n).max())
    else {
        return;
    };
    if work == 0 {
        return;
    }
    let threads = if work < SERIAL { 1 } else { rayon::current_num_threads() };
    let min_rows = MIN_TILE[0].max(TINY / narrowest + 1);
    let row_tiles = threads.min(m / min_rows).max(1);
    let col_tiles = threads.div_ceil(row_tiles).min(widest / MIN_TILE[1]).max(1);
    let tile = |index: usize| {
        let (row, rows) = part_of(m, index / col_tiles, row_tiles);
        for product in products {
            let whole = product.n < col_tiles * MIN_TILE[1] || m * MIN_TILE[1] <= TINY;
            let (col, cols) = match (whole, index % col_tiles) {
                (true, 0) => (0, product.n),
                (true, _) => continue,
                (false, index) => part_of(product.n, index, col_tiles),
            };
            // SAFETY: tiles differ in their rows or columns, and one thread runs a tile's products
            // in order.
            unsafe { product.tile(out, out_stride, [row, col], [rows, cols]) };
        }
    };
    match row_tiles * col_tiles {
        1 => tile(0),
        tiles => (0..tiles).into_par_iter().for_each(tile),
    }
}

/// The result of products that together write every element of `[m, stride]`.
fn written(m: usize, stride: usize, products: &[Product<'_>]) -> Vec<f32> {
    let covered: usize = products.iter().filter(|p| !p.add).map(|p| p.n).sum();
    if covered != stride || products.iter().any(|product| product.k == 0) {
        let mut to = vec![0.0; m * stride];
        run(m, &Disjoint::new(&mut to), stride, products);
        return to;
    }
    let mut to = Unwritten::new(m * stride);
    run(m, &to.disjoint(), stride, products);
    // SAFETY: the products cover all columns, each without reading what was there.
    unsafe { to.written() }
}

/// The transpose of a row-major matrix with rows of `cols` values.
pub(in crate::ops) fn transpose(values: &[f32], cols: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let rows = values.len() / cols;
    let mut to = Unwritten::new(values.len());
    to.as_mut_slice().par_chunks_mut(BLOCK * rows).enumerate().for_each(|(block, to)| {
        let first = block * BLOCK;
        let width = to.len() / rows;
        // Through a copy: rows that are powers of two apart throw each other out of the cache when they
        // are read column by column.
        let mut tile = [[0.0; BLOCK]; BLOCK];
        for start in (0..rows).step_by(BLOCK) {
            let height = BLOCK.min(rows - start);
            for (row, tile) in tile[..height].iter_mut().enumerate() {
                let from = &values[(start + row) * cols + first..][..width];
                match from.as_array() {
                    Some(from) => *tile = *from,
                    None => tile[..width].copy_from_slice(from),
                }
            }
            for (col, to) in to.chunks_exact_mut(rows).enumerate() {
                for (to, row) in to[start..start + height].iter_mut().zip(&tile) {
                    to.write(row[col]);
                }
            }
        }
    });
    // SAFETY: every column is in one block, and its rows in one tile each.
    unsafe { to.written() }
}

/// Shape of a part: that of `x` with another last axis.
fn part_shape(x: &Shape, width: usize) -> Shape {
    let mut dims = x.to_vec();
    if let Some(last) = dims.last_mut() {
        *last = width;
    }
    Shape::from(dims)
}

fn forward<B: HostBackend>(
    input: LinearPrimitives<B>,
    options: LinearOptions,
) -> Vec<FloatTensor<B>> {
    keep_awake();
    let [d_in, d_out] = input.weight.shape().dims();
    let shape = input.x.shape();
    let like = input.x.clone();
    let dtype = if options.wide { DType::F32 } else { like.dtype() };
    let (x, weight) = (B::values(input.x), B::values(input.weight));
    let bias = B::maybe_values(input.bias);
    let (x, weight) = (x.as_ref(), weight.as_ref());
    let rows = x.len() / d_in;
    if bias.is_none() && d_out <= NARROW && options.columns().count() > 1 {
        let (lhs, rhs) = (View::rows(x, d_in), View::rows(weight, d_out));
        let product = Product { lhs, rhs, first: 0, n: d_out, k: d_in, add: false };
        let whole = written(rows, d_out, &[product]);
        let part = |(first, n): (usize, usize)| {
            let mut y = Vec::with_capacity(rows * n);
            whole.chunks_exact(d_out).for_each(|row| y.extend_from_slice(&row[first..first + n]));
            B::tensor_as(y, part_shape(&shape, n), dtype, &like)
        };
        return options.columns().map(part).collect();
    }
    let part = |(first, n): (usize, usize)| {
        let product = Product {
            lhs: View::rows(x, d_in),
            rhs: View::rows(weight, d_out).from(0, first),
            first: 0,
            n,
            k: d_in,
            add: bias.is_some(),
        };
        let y = match &bias {
            Some(bias) => {
                let mut y = bias.as_ref()[first..first + n].repeat(rows);
                run(rows, &Disjoint::new(&mut y), n, &[product]);
                y
            }
            None => written(rows, n, &[product]),
        };
        B::tensor_as(y, part_shape(&shape, n), dtype, &like)
    };
    options.columns().map(part).collect()
}

fn backward<B: HostBackend>(
    input: LinearPrimitives<B>,
    grad_y: Parts<B>,
    options: LinearOptions,
) -> LinearGradPrimitives<B> {
    keep_awake();
    let [d_in, d_out] = input.weight.shape().dims();
    let types = input.clone();
    let (x, weight) = (B::values(input.x), B::values(input.weight));
    let (x, weight) = (x.as_ref(), weight.as_ref());
    let rows = x.len() / d_in;
    let parts: Vec<_> = grad_y
        .into_options()
        .into_iter()
        .zip(options.columns())
        .filter_map(|(grad, columns)| grad.map(|grad| (B::values(grad), columns)))
        .collect();
    let mut parts: Vec<(&[f32], (usize, usize))> =
        parts.iter().map(|(grad, columns)| (grad.as_ref(), *columns)).collect();
    let together;
    if parts.len() > 1
        && d_out <= NARROW
        && parts.iter().map(|(_, (_, n))| n).sum::<usize>() == d_out
    {
        let mut to = vec![0.0; rows * d_out];
        for (grad, (first, n)) in &parts {
            for (to, grad) in to.chunks_exact_mut(d_out).zip(grad.chunks_exact(*n)) {
                to[*first..first + n].copy_from_slice(grad);
            }
        }
        together = to;
        parts = vec![(&together[..], (0, d_out))];
    }
    let of_x = || {
        let flipped = (rows >= TRANSPOSE_ROWS).then(|| transpose(weight, d_out));
        let weight = match &flipped {
            Some(flipped) => View::rows(flipped, d_in),
            None => View::rows(weight, d_out).transposed(),
        };
        let products: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(index, (grad, (first, n)))| Product {
                lhs: View::rows(grad, *n),
                rhs: weight.from(*first, 0),
                first: 0,
                n: d_in,
                k: *n,
                add: index > 0,
            })
            .collect();
        written(rows, d_in, &products)
    };
    let of_weight = || {
        let products: Vec<_> = parts
            .iter()
            .map(|(grad, (first, n))| Product {
                lhs: View::rows(x, d_in).transposed(),
                rhs: View::rows(grad, *n),
                first: *first,
                n: *n,
                k: rows,
                add: false,
            })
            .collect();
        written(d_in, d_out, &products)
    };
    let (grad_x, grad_weight) =
        rayon::join(|| options.grad_x.then(of_x), || options.grad_weight.then(of_weight));
    let grad_bias = types.bias.clone().into_option().map(|like| {
        let mut to = vec![0.0; d_out];
        for (grad, (first, n)) in &parts {
            let sum = sum_outer(grad.to_vec(), rows);
            to[*first..*first + *n].copy_from_slice(&sum);
        }
        B::tensor_like(to, &like)
    });
    LinearGradPrimitives {
        x: grad_x.map(|to| B::tensor_like(to, &types.x)).into(),
        weight: grad_weight.map(|to| B::tensor_like(to, &types.weight)).into(),
        bias: grad_bias.into(),
    }
}

#[cfg(feature = "flex")]
impl LinearOps for Flex {
    fn linear_fwd(input: LinearPrimitives<Self>, options: LinearOptions) -> Vec<FloatTensor<Self>> {
        forward::<Self>(input, options)
    }

    fn linear_bwd(
        input: LinearPrimitives<Self>,
        grad_y: Parts<Self>,
        options: LinearOptions,
    ) -> LinearGradPrimitives<Self> {
        backward::<Self>(input, grad_y, options)
    }
}

#[cfg(feature = "ndarray")]
impl LinearOps for NdArray {
    fn linear_fwd(input: LinearPrimitives<Self>, options: LinearOptions) -> Vec<FloatTensor<Self>> {
        forward::<Self>(input, options)
    }

    fn linear_bwd(
        input: LinearPrimitives<Self>,
        grad_y: Parts<Self>,
        options: LinearOptions,
    ) -> LinearGradPrimitives<Self> {
        backward::<Self>(input, grad_y, options)
    }
}
