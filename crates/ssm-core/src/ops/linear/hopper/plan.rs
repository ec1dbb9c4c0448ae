//! How a product is cut into tiles, by what it will take.
//!
//! The times were measured on an H100; only their ratios matter. A plan depends on sizes and on the
//! number of multiprocessors, never on the clock, so that a program adds in the same order every time.

use super::program::{Inner, TILE_K, TILE_M, Tile};

/// Columns of a tile, and what a column of one takes relative to the widest: narrow tiles read the
/// operands more often.
const WIDTHS: [(usize, f64); 4] = [(256, 1.0), (192, 1.02), (128, 1.13), (64, 1.4)];

/// Microseconds that all multiprocessors take for one piece of 64 terms of a tile, by its columns.
const PIECE: f64 = 0.003;

/// Microseconds from the last piece of a tile to the first of the next, by its columns.
const WRITE: f64 = 0.004;

/// Bytes that a kernel moves in a microsecond.
const BYTES: f64 = 2.3e6;

/// Microseconds that one more kernel takes.
const LAUNCH: f64 = 3.0;

/// Most parts that a sum is cut into.
const MAX_PARTS: usize = 32;

/// Shortest part of a sum, in pieces: shorter ones only fill and empty the ring.
const MIN_PIECES: usize = 4;

/// Rows of tiles that cubes walk together: what they read of the left operand stays in the cache.
const BAND: usize = 16;

/// A product, `[m, k]` by `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) lhs: Inner,
    pub(super) rhs: Inner,
    /// Whether the result is f32.
    pub(super) wide: bool,
}

/// How it is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) tile: Tile,
    /// Tiles along the rows and the columns.
    pub(super) tiles_m: usize,
    pub(super) tiles_n: usize,
    /// Pieces of a sum, and of a part of it.
    pub(super) pieces: usize,
    pub(super) pieces_part: usize,
    /// Parts of a sum. If there are several, they are written in f32 next to each other.
    pub(super) parts: usize,
    /// Cubes.
    pub(super) cubes: usize,
    /// Rows of tiles that are walked together.
    pub(super) band: usize,
}

impl Plan {
    /// The fastest plan on this many multiprocessors.
    pub(super) fn new(problem: Problem, processors: usize) -> Self {
        let pieces = problem.k.div_ceil(TILE_K);
        let most = (pieces / MIN_PIECES).clamp(1, MAX_PARTS);
        let mut best = (f64::INFINITY, Self::with(problem, processors, WIDTHS[0].0, 1));
        for (width, factor) in WIDTHS {
            for parts in 1..=most {
                let plan = Self::with(problem, processors, width, parts);
                let time = plan.time(problem, processors, factor);
                if time < best.0 {
                    best = (time, plan);
                }
            }
        }
        best.1
    }

    fn with(problem: Problem, processors: usize, width: usize, parts: usize) -> Self {
        let Problem { m, n, k, lhs, rhs, wide } = problem;
        let pieces = k.div_ceil(TILE_K);
        let pieces_part = pieces.div_ceil(parts);
        // As many as there are pieces for.
        let parts = pieces.div_ceil(pieces_part);
        let tile = Tile { n: width, lhs, rhs, wide: wide || parts > 1 };
        let (tiles_m, tiles_n) = (m.div_ceil(TILE_M), n.div_ceil(width));
        let cubes = (tiles_m * tiles_n * parts).min(processors);
        let band = BAND.min(tiles_m);
        Self { tile, tiles_m, tiles_n, pieces, pieces_part, parts, cubes, band }
    }

    /// Tiles of all parts.
    pub(super) fn tiles(&self) -> usize {
        self.tiles_m * self.tiles_n * self.parts
    }

    /// Microseconds, about.
    fn time(&self, problem: Problem, processors: usize, factor: f64) -> f64 {
        let width = self.tile.n as f64;
        let tile = width * (PIECE * factor * self.pieces_part as f64 + WRITE);
        let rounds = self.tiles() as f64 / processors as f64;
        // What is left for the last round finds more of the cache and of the power budget.
        let rest = rounds.fract();
        let rounds = rounds.floor() + if rest > 0.0 { 0.6 + 0.4 * rest } else { 0.0 };
        let mut time = rounds * tile;
        if self.parts > 1 {
            let written = if problem.wide { 4 } else { 2 };
            let bytes = problem.m * problem.n * (4 * self.parts + written);
            time += LAUNCH + bytes as f64 / BYTES;
        }
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(m: usize, n: usize, k: usize) -> Plan {
        let problem = Problem { m, n, k, lhs: Inner::Kept, rhs: Inner::Kept, wide: true };
        Plan::new(problem, 132)
    }

    #[test]
    fn every_term_is_in_one_part_and_no_part_is_empty() {
        for m in [1, 48, 129, 768, 50_280] {
            for n in [8, 80, 768, 1000] {
                for k in [1, 64, 65, 1000, 16_384, 1 << 20] {
                    let plan = plan(m, n, k);
                    assert_eq!(plan.pieces, k.div_ceil(TILE_K));
                    assert!(plan.parts * plan.pieces_part >= plan.pieces, "{plan:?}");
                    assert!((plan.parts - 1) * plan.pieces_part < plan.pieces, "{plan:?}");
                    assert!(plan.parts == 1 || plan.tile.wide, "{plan:?}");
                    assert!(plan.tiles_m * TILE_M >= m, "{plan:?}");
                    assert!(plan.tiles_n * plan.tile.n >= n, "{plan:?}");
                    assert!((1..=132).contains(&plan.cubes), "{plan:?}");
                    assert!((1..=plan.tiles_m).contains(&plan.band), "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn long_sums_of_small_results_are_cut() {
        // The gradients of the weights of Mamba's projections, 16,384 rows.
        assert_eq!(plan(1536, 80, 16_384).parts, 11);
        assert!(plan(48, 1536, 16_384).parts > 10);
        assert_eq!(plan(50_280, 768, 16_384).parts, 1);
        assert_eq!(plan(16_384, 768, 1536).parts, 1);
    }

    #[test]
    fn narrow_results_have_narrow_tiles() {
        assert_eq!(plan(16_384, 48, 1536).tile.n, 64);
        assert_eq!(plan(16_384, 80, 1536).tile.n, 128);
        assert_eq!(plan(16_384, 3072, 768).tile.n, 256);
    }
}
