//! Orders in which a sequence is scanned: each is a way there and the way back.
//!
//! An order knows nothing of the layer between the two ways, so any order composes with any mixer:
//! [`crate::nn::Reordered`] puts one around a whole mixer, `SrMamba` and `BiMamba` one around each branch.

use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ops::pointwise::reverse;

/// In which order a layer reads a sequence.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ScanOrder {
    /// As it is.
    Raster,
    /// From the end to the start.
    Reversed,
    /// Every `rate`-th position from 0 on, then every `rate`-th from 1 on, and so on.
    ///
    /// With `rate` = width of a raster, the columns of the raster one after the other. A rate of 1,
    /// or one of at least the length, changes nothing.
    ///
    /// Yang et al. 2024, arXiv:2403.06800 (sequence re-ordering of MambaMIL).
    Strided {
        /// Distance of neighbours in the new order, at least 1.
        rate: usize,
        /// Whether the sequence is first filled up with zeros to a multiple of `rate`, as published.
        /// The zeros are then steps like any other: what reads the new order sees them.
        padded: bool,
    },
}

impl ScanOrder {
    /// Which old position stands at each new one; `None` is padding.
    ///
    /// The specification of [`ScanOrder::apply`].
    pub fn positions(&self, seq_len: usize) -> Vec<Option<usize>> {
        match *self {
            Self::Raster => (0..seq_len).map(Some).collect(),
            Self::Reversed => (0..seq_len).rev().map(Some).collect(),
            Self::Strided { rate, padded } => {
                let rows = seq_len.div_ceil(rate);
                let columns = (0..rate).flat_map(|j| (0..rows).map(move |i| i * rate + j));
                let positions = columns.map(|old| (old < seq_len).then_some(old));
                positions.filter(|old| padded || old.is_some()).collect()
            }
        }
    }

    /// Brings a sequence into this order: `[batch, seq_len, channels]`, longer where zeros are filled in.
    pub fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        match *self {
            Self::Raster => x,
            Self::Reversed => reverse(x),
            Self::Strided { rate, padded } => {
                let [_, seq_len, _] = x.dims();
                if rate == 1 || (rate >= seq_len && !padded) {
                    return x;
                }
                let x = transpose(pad(x, seq_len.next_multiple_of(rate)), rate);
                if padded { x } else { drop_padding(x, seq_len, rate) }
            }
        }
    }

    /// The inverse of [`ScanOrder::apply`] for a sequence that had `seq_len` positions.
    pub fn undo(&self, y: Tensor<3>, seq_len: usize) -> Tensor<3> {
        match *self {
            Self::Raster => y,
            Self::Reversed => reverse(y),
            Self::Strided { rate, padded } => {
                if rate == 1 || (rate >= seq_len && !padded) {
                    return y;
                }
                let y = if padded { y } else { restore_padding(y, seq_len, rate) };
                let rows = seq_len.div_ceil(rate);
                transpose(y, rows).narrow(1, 0, seq_len)
            }
        }
    }
}

/// Reads `[batch, rows * columns, channels]` by columns instead of by rows.
fn transpose(x: Tensor<3>, columns: usize) -> Tensor<3> {
    let [batch, len, channels] = x.dims();
    let rows = len / columns;
    if rows == 1 || columns == 1 {
        return x;
    }
    let grid: Tensor<4> = x.reshape([batch, rows, columns, channels]);
    grid.swap_dims(1, 2).reshape([batch, len, channels])
}

fn pad(x: Tensor<3>, len: usize) -> Tensor<3> {
    let [batch, seq_len, channels] = x.dims();
    if len == seq_len {
        return x;
    }
    let zeros = Tensor::zeros([batch, len - seq_len, channels], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 1)
}

/// Number of columns that end in an instance, and of rows.
fn full_columns(seq_len: usize, rate: usize) -> (usize, usize) {
    let rows = seq_len.div_ceil(rate);
    (seq_len - (rows - 1) * rate, rows)
}

/// Of the columns one after the other, the last `rate - full` end in one zero each: removes them.
fn drop_padding(x: Tensor<3>, seq_len: usize, rate: usize) -> Tensor<3> {
    let [batch, _, channels] = x.dims();
    let (full, rows) = full_columns(seq_len, rate);
    if full == rate {
        return x;
    }
    let head = x.clone().narrow(1, 0, full * rows);
    let tail = x.narrow(1, full * rows, (rate - full) * rows);
    let tail: Tensor<4> = tail.reshape([batch, rate - full, rows, channels]);
    let tail = tail.narrow(2, 0, rows - 1).reshape([batch, (rate - full) * (rows - 1), channels]);
    Tensor::cat(vec![head, tail], 1)
}

/// The inverse of [`drop_padding`].
fn restore_padding(y: Tensor<3>, seq_len: usize, rate: usize) -> Tensor<3> {
    let [batch, _, channels] = y.dims();
    let (full, rows) = full_columns(seq_len, rate);
    if full == rate {
        return y;
    }
    let head = y.clone().narrow(1, 0, full * rows);
    let tail = y.narrow(1, full * rows, (rate - full) * (rows - 1));
    let tail: Tensor<4> = tail.reshape([batch, rate - full, rows - 1, channels]);
    let zeros = Tensor::zeros([batch, rate - full, 1, channels], (&tail.device(), tail.dtype()));
    let tail = Tensor::cat(vec![tail, zeros], 2).reshape([batch, (rate - full) * rows, channels]);
    Tensor::cat(vec![head, tail], 1)
}

/// Any order of a sequence of one length: new position `i` holds old position `positions[i]`.
///
/// For orders that depend on the data (along the rows and columns of a slide, along a curve), which
/// [`ScanOrder`] cannot name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    positions: Vec<i32>,
    inverse: Vec<i32>,
}

impl Permutation {
    /// `None` unless every number below the length occurs once.
    pub fn new(positions: &[usize]) -> Option<Self> {
        let mut inverse = vec![None; positions.len()];
        for (new, &old) in positions.iter().enumerate() {
            let place = inverse.get_mut(old)?;
            if place.replace(i32::try_from(new).ok()?).is_some() {
                return None;
            }
        }
        let positions = positions.iter().map(|&old| i32::try_from(old).ok());
        Some(Self {
            positions: positions.collect::<Option<_>>()?,
            inverse: inverse.into_iter().collect::<Option<_>>()?,
        })
    }

    /// Brings `[batch, seq_len, channels]` into this order.
    pub fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        select(x, &self.positions)
    }

    /// The inverse of [`Permutation::apply`].
    pub fn undo(&self, y: Tensor<3>) -> Tensor<3> {
        select(y, &self.inverse)
    }
}

fn select(x: Tensor<3>, positions: &[i32]) -> Tensor<3> {
    let data = TensorData::new(positions.to_vec(), [positions.len()]);
    let indices: Tensor<1, Int> = Tensor::from_data(data, &x.device());
    x.select(1, indices)
}
