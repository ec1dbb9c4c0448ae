//! A square of the result for each cube, smaller squares of it for its units.

#![allow(
    clippy::manual_div_ceil,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: what is not of the language cannot be called"
)]

use cubecl::{ir::ElemType, prelude::*};

/// Rows and columns next to each other that a unit computes, and the size of vectors.
pub(super) const OWN: usize = 4;

/// Units along a side of the square of a cube.
const SIDE: usize = 8;

/// Units that share the terms of a part of the sum.
pub(super) const UNITS: usize = SIDE * SIDE;

/// Terms that a group of units holds in shared memory, times the squares along a side of a unit.
const TERMS: usize = 32;

/// Vectors of an operand that a unit loads at a time.
const LOADS: usize = TERMS * SIDE / UNITS;

/// How an operand lies in memory: its lines, which are the rows of the left operand and the columns of the
/// right one, and elements from one matrix, line and term to the next.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Layout {
    pub(super) lines: usize,
    pub(super) matrix: usize,
    pub(super) line: usize,
    pub(super) term: usize,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Squares of four by four along a side of what a unit computes, 1 or 2.
    pub(super) own: usize,
    /// Groups of units, which take the parts of the sum in turn.
    pub(super) groups: usize,
    /// Whether terms of the left and of the right operand are next to each other in memory.
    pub(super) by_terms: [bool; 2],
}

impl Form {
    /// Rows and columns of the result that a cube computes.
    pub(super) const fn tile(self) -> usize {
        self.own * SIDE * OWN
    }

    /// Terms that a group of units holds in shared memory.
    pub(super) const fn terms(self) -> usize {
        TERMS / self.own
    }

    /// Vectors from one term to the next in shared memory: one more than there are, so that units that
    /// write different terms meet different banks.
    const fn pitch(self) -> usize {
        self.own * SIDE + 1
    }

    /// Vectors of an operand that a group of units holds in shared memory.
    pub(super) const fn staged(self) -> usize {
        self.terms() * self.pitch()
    }
}

/// Where load `i` of a unit is from: four lines from the first one on, and a term. Neighbouring units read
/// neighbouring memory.
#[cube]
fn place(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] k: Form,
    #[comptime] by_terms: bool,
) -> (usize, usize) {
    if comptime!(by_terms) {
        (
            unit / comptime!(k.terms()) + comptime!(i * UNITS / k.terms()),
            unit % comptime!(k.terms()),
        )
    } else {
        let quads = comptime!(k.own * SIDE);
        (unit % quads, unit / quads + comptime!(i * UNITS / quads))
    }
}

/// Reads what a unit puts into shared memory next; zeros behind the last line and term.
#[cube]
fn load<E: Float, V: Size>(
    from: &Tensor<E>,
    next: &mut Array<Vector<f32, V>>,
    layout: Layout,
    terms: usize,
    first_line: usize,
    first_term: usize,
    #[comptime] k: Form,
    #[comptime] by_terms: bool,
) {
    let first = CUBE_POS_Z as usize * layout.matrix;
    let unit = UNIT_POS as usize % UNITS;
    #[unroll]
    for i in 0..LOADS {
        let (quad, term) = place(unit, i, k, by_terms);
        let term = first_term + term;
        let mut vector = Vector::<f32, V>::empty();
        #[unroll]
        for s in 0..OWN {
            let line = first_line + quad * OWN + s;
            let mut value = 0.0f32;
            if line < layout.lines && term < terms {
                value = f32::cast_from(from[first + line * layout.line + term * layout.term]);
            }
            vector.insert(s, value);
        }
        next[i] = vector;
    }
}

/// `out[m, n] = lhs[m, terms] * rhs[terms, n]` for every matrix of a batch, `out` in row-major order.
#[cube(launch_unchecked)]
pub(super) fn product<E: Float, O: Float, V: Size>(
    lhs: &Tensor<E>,
    rhs: &Tensor<E>,
    out: &mut Tensor<O>,
    terms: usize,
    of_lhs: Layout,
    of_rhs: Layout,
    #[comptime] k: Form,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    let (m, n) = (of_lhs.lines, of_rhs.lines);
    let unit = UNIT_POS as usize % UNITS;
    let group = UNIT_POS as usize / UNITS;
    let first_row = CUBE_POS_Y as usize * comptime!(k.tile());
    let first_column = CUBE_POS_X as usize * comptime!(k.tile());
    let (own_row, own_column) = (unit / SIDE, unit % SIDE);
    let mut left = Shared::<[Vector<f32, V>]>::new_slice(comptime!(k.groups * k.staged()));
    let mut right = Shared::<[Vector<f32, V>]>::new_slice(comptime!(k.groups * k.staged()));
    let staged = group * comptime!(k.staged());
    let mut next_left = Array::<Vector<f32, V>>::new(LOADS);
    let mut next_right = Array::<Vector<f32, V>>::new(LOADS);
    let mut sums = Array::<Vector<f32, V>>::new(comptime!(k.own * k.own * OWN));
    #[unroll]
    for i in 0..comptime!(k.own * k.own * OWN) {
        sums[i] = Vector::<f32, V>::new(0.0f32);
    }
    let (left_by_terms, right_by_terms) = comptime!((k.by_terms[0], k.by_terms[1]));
    let part = comptime!(k.terms());
    let mut first = group * part;
    load::<E, V>(lhs, &mut next_left, of_lhs, terms, first_row, first, k, left_by_terms);
    load::<E, V>(rhs, &mut next_right, of_rhs, terms, first_column, first, k, right_by_terms);
    // The same for all units, as all of them meet.
    let rounds = (terms + comptime!(k.groups * k.terms()) - 1) / comptime!(k.groups * k.terms());
    for _ in 0..rounds {
        #[unroll]
        for i in 0..LOADS {
            let (quad, term) = place(unit, i, k, left_by_terms);
            left[staged + term * comptime!(k.pitch()) + quad] = next_left[i];
            let (quad, term) = place(unit, i, k, right_by_terms);
            right[staged + term * comptime!(k.pitch()) + quad] = next_right[i];
        }
        sync_cube();
        // Under way while this part is added.
        first += comptime!(k.groups * k.terms());
        load::<E, V>(lhs, &mut next_left, of_lhs, terms, first_row, first, k, left_by_terms);
        load::<E, V>(rhs, &mut next_right, of_rhs, terms, first_column, first, k, right_by_terms);
        #[unroll]
        for term in 0..comptime!(k.terms()) {
            let at = staged + comptime!(term * k.pitch());
            #[unroll]
            for i in 0..k.own {
                let a = left[at + own_row + comptime!(i * SIDE)];
                #[unroll]
                for j in 0..k.own {
                    let b = right[at + own_column + comptime!(j * SIDE)];
                    #[unroll]
                    for s in 0..OWN {
                        let sum = comptime!((i * k.own + j) * OWN + s);
                        sums[sum] = b * Vector::<f32, V>::new(a.extract(s)) + sums[sum];
                    }
                }
            }
        }
        sync_cube();
    }
    // Rows of the squares one after the other, the sums of all groups added in their order.
    #[unroll]
    for i in 0..k.own {
        #[unroll]
        for j in 0..k.own {
            #[unroll]
            for s in 0..OWN {
                let row = first_row + (own_row + comptime!(i * SIDE)) * OWN + s;
                let column = first_column + (own_column + comptime!(j * SIDE)) * OWN;
                let mut sum = sums[comptime!((i * k.own + j) * OWN + s)];
                if comptime!(k.groups > 1) {
                    left[staged + unit] = sum;
                    sync_cube();
                    sum = left[unit];
                    #[unroll]
                    for other in 1..k.groups {
                        sum += left[comptime!(other * k.staged()) + unit];
                    }
                    sync_cube();
                }
                if group == comptime!(s % k.groups) && row < m {
                    let at = (CUBE_POS_Z as usize * m + row) * n;
                    #[unroll]
                    for t in 0..OWN {
                        if column + t < n {
                            out[at + column + t] = O::cast_from(sum.extract(t));
                        }
                    }
                }
            }
        }
    }
}
