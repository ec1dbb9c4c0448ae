//! The matrix product of a Hopper chip as PTX: what runs behind the parameters of the kernel.
//!
//! One cube of 288 units stays on each multiprocessor and takes one tile of the result after the
//! other, 128 rows wide. Its last warp copies pieces of both operands into a ring in shared memory
//! with the chip's copy engine; two groups of four warps multiply what has arrived, 64 rows each, and
//! keep the sums in registers. The copies run ahead into the next tile while the groups write.
//!
//! An operand lies in memory with its summed axis inside or outside, and the matrix units read both,
//! so that the three products of a linear map need no transposed copies. The ends of matrices that
//! are no multiple of a tile are filled with zeros by the copy engine, and not written by it.

use std::fmt::{self, Write};

/// Rows of the result in a tile.
pub(super) const TILE_M: usize = 128;

/// Terms of the sums in a piece of an operand: a row of 128 bytes, the width of the swizzle.
pub(super) const TILE_K: usize = 64;

/// Units of a cube: two groups that multiply and a warp that copies.
pub(super) const UNITS: usize = 288;

/// Terms that one instruction adds.
const STEP: usize = 16;

/// Rows of the result that a group of four warps holds.
const GROUP_ROWS: usize = 64;

/// Rows of the result that a warp holds, and writes at a time.
pub(super) const WARP_ROWS: usize = 16;

/// Bytes of a row in shared memory.
const ROW: usize = 128;

/// Bytes after which the pattern of the swizzle repeats.
const ATOM: usize = 8 * ROW;

/// What the address of the shared memory is a multiple of, so that no more has to be known of it.
pub(super) const ALIGNMENT: usize = 128;

/// Bytes of a piece of 64 by 64.
const SQUARE: usize = 64 * ROW;

/// Shared memory for what a warp writes at a time.
const BUFFER: usize = WARP_ROWS * ROW;

/// Shared memory of a warp for what it writes: two buffers.
const STAGING: usize = 2 * BUFFER;

/// Shared memory besides the ring: what rounding up the address takes, the staging of eight warps, and
/// barriers.
const FIXED: usize = ATOM + 8 * STAGING + 256;

/// Shared memory of a multiprocessor that a cube can have.
const SHARED_MAX: usize = 227 * 1024;

/// The axis of an operand whose elements are next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Inner {
    /// The axis that the product sums over.
    Summed,
    /// The axis that the result keeps.
    Kept,
}

/// What a program is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Columns of the result in a tile: 64, 128, 192 or 256.
    pub(super) n: usize,
    /// Memory of the left operand, `[m, k]` or `[k, m]`.
    pub(super) lhs: Inner,
    /// Memory of the right operand, `[n, k]` or `[k, n]`.
    pub(super) rhs: Inner,
    /// Whether the result is written in f32 instead of bf16.
    pub(super) wide: bool,
}

impl Tile {
    fn lhs_bytes(self) -> usize {
        TILE_M * ROW
    }

    /// Bytes of a pair of pieces.
    fn stage_bytes(self) -> usize {
        self.lhs_bytes() + self.n * ROW
    }

    /// Pairs of pieces that fit into shared memory, eight at most.
    pub(super) fn stages(self) -> usize {
        ((SHARED_MAX - FIXED) / self.stage_bytes()).min(8)
    }

    /// Bytes of shared memory.
    pub(super) fn shared_bytes(self) -> usize {
        FIXED + self.stages() * self.stage_bytes()
    }

    /// Columns of the result that a warp writes at a time: 128 bytes.
    pub(super) fn write_columns(self) -> usize {
        if self.wide { ROW / 4 } else { ROW / 2 }
    }

    /// Rows and columns of the pieces that the copy engine takes of the left operand's memory.
    pub(super) fn lhs_box(self) -> [usize; 2] {
        match self.lhs {
            Inner::Summed => [TILE_M, TILE_K],
            Inner::Kept => [TILE_K, 64],
        }
    }

    /// The same for the right operand.
    pub(super) fn rhs_box(self) -> [usize; 2] {
        match self.rhs {
            Inner::Summed => [self.n, TILE_K],
            Inner::Kept => [TILE_K, 64],
        }
    }
}

/// Lines of PTX.
struct Lines {
    text: String,
    labels: usize,
}

impl Lines {
    fn add(&mut self, line: fmt::Arguments<'_>) {
        // Writing into a string does not fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// Waits until the phase of this parity of a barrier is over.
    fn wait(&mut self, barrier: &str, parity: &str) {
        let label = self.labels;
        self.labels += 1;
        self.add(format_args!(
            "WAIT{label}:\n\
             mbarrier.try_wait.parity.shared::cta.b64 p, [{barrier}], {parity};\n\
             @p bra DONE{label};\n\
             bra WAIT{label};\n\
             DONE{label}:"
        ));
    }
}

macro_rules! ptx {
    ($lines:expr, $($format:tt)*) => { $lines.add(format_args!($($format)*)) };
}

/// The body of the kernel.
///
/// Expects these registers: `shared` (b64, generic address of [`Tile::shared_bytes`]), and as b32 the
/// number of tiles along each axis of the result, `tiles_m` and `tiles_n`, the pieces of a sum,
/// `pieces`, of which the first `pieces_first` are in the first left operand, the pieces of each part
/// of a sum, `pieces_part`, the number of all tiles of all parts, `tiles`, and the rows of tiles that
/// are walked together, `band`. Parameters of the kernel `name`: tensor maps of the left operand, its
/// continuation, the right operand, and the result `[part, m, n]`.
pub(super) fn program(name: &str, tile: Tile) -> String {
    let mut lines = Lines { text: String::with_capacity(1 << 15), labels: 0 };
    setup(&mut lines, name, tile);
    copies(&mut lines, tile);
    products(&mut lines, tile);
    ptx!(lines, "END:");
    lines.text
}

fn setup(l: &mut Lines, name: &str, tile: Tile) {
    let stages = tile.stages();
    let staging = stages * tile.stage_bytes();
    let barriers = staging + 8 * STAGING;
    ptx!(l, ".reg .pred p, q, leader, more, yes;");
    ptx!(l, ".reg .b32 tid, lane, warp, base, full, empty, full_at, empty_at, last;");
    ptx!(l, ".reg .b32 stage, parity, work, grid, tile_m, tile_n, part, rest, size, rows, index;");
    ptx!(l, ".reg .b32 piece, piece_end, staging, buffer, at, to, x, y, t0, t1, t2, t3;");
    ptx!(l, ".reg .b64 wide, lhs, lhs_next, rhs, out, map, da, db, da_base, db_base;");
    for i in 0..tile.n / 2 {
        ptx!(l, ".reg .f32 d{i};");
    }
    for (register, parameter) in ["lhs", "lhs_next", "rhs", "out"].into_iter().zip(0..) {
        ptx!(l, "mov.b64 wide, {name}_param_{parameter};");
        ptx!(l, "cvta.param.u64 {register}, wide;");
    }
    ptx!(l, "cvta.to.shared.u64 wide, shared;");
    ptx!(l, "cvt.u32.u64 base, wide;");
    ptx!(l, "add.u32 base, base, {};", ATOM - 1);
    ptx!(l, "and.b32 base, base, {};", !(ATOM as u32 - 1));
    ptx!(l, "add.u32 full, base, {barriers};");
    ptx!(l, "add.u32 empty, full, {};", 8 * stages);
    ptx!(l, "mov.u32 tid, %%tid.x;");
    ptx!(l, "and.b32 lane, tid, 31;");
    ptx!(l, "shr.u32 warp, tid, 5;");
    ptx!(l, "mov.u32 work, %%ctaid.x;");
    ptx!(l, "mov.u32 grid, %%nctaid.x;");
    ptx!(l, "mov.u32 stage, 0;");
    ptx!(l, "setp.eq.u32 leader, lane, 0;");
    ptx!(l, "setp.eq.u32 yes, tid, tid;");
    ptx!(l, "setp.ne.u32 p, tid, 0;");
    ptx!(l, "@p bra READY;");
    for stage in 0..stages {
        // The copying unit fills a stage, eight warps release it.
        ptx!(l, "mbarrier.init.shared::cta.b64 [full + {}], 1;", 8 * stage);
        ptx!(l, "mbarrier.init.shared::cta.b64 [empty + {}], 8;", 8 * stage);
    }
    ptx!(l, "fence.mbarrier_init.release.cluster;");
    ptx!(l, "fence.proxy.async.shared::cta;");
    ptx!(l, "READY:");
    ptx!(l, "bar.sync 0;");
    ptx!(l, "setp.lt.u32 p, tid, 256;");
    ptx!(l, "@p bra PRODUCTS;");
}

/// Which tile `work` is: its position, and its part of the sum.
///
/// Cubes that run at the same time share operands in the cache: first all tiles of one part, of these
/// a band of rows, column by column.
fn locate(l: &mut Lines) {
    ptx!(l, "mul.lo.u32 size, tiles_m, tiles_n;");
    ptx!(l, "div.u32 part, work, size;");
    ptx!(l, "mul.lo.u32 t0, part, size;");
    ptx!(l, "sub.u32 rest, work, t0;");
    ptx!(l, "mul.lo.u32 size, band, tiles_n;");
    ptx!(l, "div.u32 index, rest, size;");
    ptx!(l, "mul.lo.u32 t0, index, size;");
    ptx!(l, "sub.u32 rest, rest, t0;");
    ptx!(l, "mul.lo.u32 index, index, band;");
    ptx!(l, "sub.u32 rows, tiles_m, index;");
    ptx!(l, "min.u32 rows, rows, band;");
    ptx!(l, "div.u32 tile_n, rest, rows;");
    ptx!(l, "mul.lo.u32 t0, tile_n, rows;");
    ptx!(l, "sub.u32 rest, rest, t0;");
    ptx!(l, "add.u32 tile_m, index, rest;");
    ptx!(l, "mul.lo.u32 piece, part, pieces_part;");
    ptx!(l, "add.u32 piece_end, piece, pieces_part;");
    ptx!(l, "min.u32 piece_end, piece_end, pieces;");
}

/// Goes to the next pair of the ring.
fn advance(l: &mut Lines, stages: usize) {
    ptx!(l, "add.u32 stage, stage, 1;");
    ptx!(l, "setp.eq.u32 p, stage, {stages};");
    ptx!(l, "selp.b32 stage, 0, stage, p;");
    ptx!(l, "selp.b32 t0, 1, 0, p;");
    ptx!(l, "xor.b32 parity, parity, t0;");
}

/// The barriers of the present pair.
fn barriers(l: &mut Lines) {
    ptx!(l, "shl.b32 t0, stage, 3;");
    ptx!(l, "add.u32 full_at, full, t0;");
    ptx!(l, "add.u32 empty_at, empty, t0;");
}

/// The unit that copies.
fn copies(l: &mut Lines, tile: Tile) {
    let copy = |l: &mut Lines, map: &str, x: &str, y: &str| {
        ptx!(
            l,
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes \
             [to], [{map}, {{{x}, {y}}}], [full_at];"
        );
    };
    ptx!(l, "setp.ne.u32 p, tid, 256;");
    ptx!(l, "@p bra END;");
    // A wait for the phase before the first ends at once.
    ptx!(l, "mov.u32 parity, 1;");
    ptx!(l, "COPY_TILE:");
    ptx!(l, "setp.ge.u32 p, work, tiles;");
    ptx!(l, "@p bra END;");
    locate(l);
    ptx!(l, "mul.lo.u32 tile_m, tile_m, {TILE_M};");
    ptx!(l, "mul.lo.u32 tile_n, tile_n, {};", tile.n);
    ptx!(l, "COPY_PIECE:");
    ptx!(l, "setp.ge.u32 p, piece, piece_end;");
    ptx!(l, "@p bra COPY_NEXT;");
    barriers(l);
    l.wait("empty_at", "parity");
    ptx!(l, "mbarrier.arrive.expect_tx.shared::cta.b64 _, [full_at], {};", tile.stage_bytes());
    ptx!(l, "mad.lo.u32 to, stage, {}, base;", tile.stage_bytes());
    ptx!(l, "mul.lo.u32 at, piece, {TILE_K};");
    ptx!(l, "setp.lt.u32 p, piece, pieces_first;");
    ptx!(l, "selp.b64 map, lhs, lhs_next, p;");
    ptx!(l, "selp.b32 t0, 0, pieces_first, p;");
    ptx!(l, "sub.u32 t0, piece, t0;");
    ptx!(l, "mul.lo.u32 t0, t0, {TILE_K};");
    match tile.lhs {
        Inner::Summed => copy(l, "map", "t0", "tile_m"),
        Inner::Kept => {
            copy(l, "map", "tile_m", "t0");
            ptx!(l, "add.u32 to, to, {SQUARE};");
            ptx!(l, "add.u32 x, tile_m, 64;");
            copy(l, "map", "x", "t0");
            ptx!(l, "sub.u32 to, to, {SQUARE};");
        }
    }
    ptx!(l, "add.u32 to, to, {};", tile.lhs_bytes());
    ptx!(l, "mov.u32 x, tile_n;");
    match tile.rhs {
        Inner::Summed => copy(l, "rhs", "at", "x"),
        Inner::Kept => {
            for square in 0..tile.n / 64 {
                if square > 0 {
                    ptx!(l, "add.u32 to, to, {SQUARE};");
                    ptx!(l, "add.u32 x, x, 64;");
                }
                copy(l, "rhs", "x", "at");
            }
        }
    }
    advance(l, tile.stages());
    ptx!(l, "add.u32 piece, piece, 1;");
    ptx!(l, "bra COPY_PIECE;");
    ptx!(l, "COPY_NEXT:");
    ptx!(l, "add.u32 work, work, grid;");
    ptx!(l, "bra COPY_TILE;");
}

/// A descriptor of an operand in shared memory without its address, and by how many units of 16 bytes
/// the address grows from one instruction to the next.
///
/// Swizzle of 128 bytes. Summed axis inside: atoms of 8 rows follow each other. Kept axis inside:
/// atoms of 8 terms follow each other, squares of 64 columns lie behind each other.
fn descriptor(inner: Inner) -> (u64, usize) {
    let swizzle = 1 << 62;
    let atoms = (ATOM as u64 >> 4) << 32;
    match inner {
        Inner::Summed => (swizzle | atoms | 1 << 16, (2 * STEP) >> 4),
        Inner::Kept => (swizzle | atoms | (SQUARE as u64 >> 4) << 16, (STEP * ROW) >> 4),
    }
}

/// Tells the copying unit that this warp has read the stage before the present one.
fn release(l: &mut Lines, predicate: &str) {
    ptx!(l, "@{predicate} mbarrier.arrive.shared::cta.b64 _, [last];");
}

/// The units that multiply, and write.
fn products(l: &mut Lines, tile: Tile) {
    let stages = tile.stages();
    let staging = stages * tile.stage_bytes();
    let (lhs, lhs_step) = descriptor(tile.lhs);
    let (rhs, rhs_step) = descriptor(tile.rhs);
    ptx!(l, "PRODUCTS:");
    ptx!(l, "mov.u32 parity, 0;");
    // Addresses inside of descriptors, 14 bits: this group's rows of the left operand, the right one.
    ptx!(l, "shr.u32 t0, warp, 2;");
    ptx!(l, "mad.lo.u32 t0, t0, {}, base;", GROUP_ROWS * ROW);
    ptx!(l, "bfe.u32 t0, t0, 4, 14;");
    ptx!(l, "cvt.u64.u32 da_base, t0;");
    ptx!(l, "or.b64 da_base, da_base, {lhs};");
    ptx!(l, "add.u32 t0, base, {};", tile.lhs_bytes());
    ptx!(l, "bfe.u32 t0, t0, 4, 14;");
    ptx!(l, "cvt.u64.u32 db_base, t0;");
    ptx!(l, "or.b64 db_base, db_base, {rhs};");
    // Buffers of this warp, in turn.
    ptx!(l, "add.u32 staging, base, {staging};");
    ptx!(l, "mad.lo.u32 staging, warp, {STAGING}, staging;");
    ptx!(l, "mov.u32 buffer, 0;");
    ptx!(l, "PRODUCT_TILE:");
    ptx!(l, "setp.ge.u32 p, work, tiles;");
    ptx!(l, "@p bra PRODUCT_END;");
    locate(l);
    ptx!(l, "setp.ne.u32 more, tid, tid;");
    ptx!(l, "PRODUCT_PIECE:");
    barriers(l);
    l.wait("full_at", "parity");
    ptx!(l, "mul.wide.u32 wide, stage, {};", tile.stage_bytes() >> 4);
    ptx!(l, "add.u64 da, da_base, wide;");
    ptx!(l, "add.u64 db, db_base, wide;");
    ptx!(l, "wgmma.fence.sync.aligned;");
    let sums: Vec<String> = (0..tile.n / 2).map(|i| format!("d{i}")).collect();
    let sums = sums.join(", ");
    let outside = |inner| usize::from(inner == Inner::Kept);
    for step in 0..TILE_K / STEP {
        if step > 0 {
            ptx!(l, "add.u64 da, da, {lhs_step};");
            ptx!(l, "add.u64 db, db, {rhs_step};");
        }
        ptx!(
            l,
            "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{sums}}}, da, db, {}, 1, 1, {}, {};",
            tile.n,
            if step == 0 { "more" } else { "yes" },
            outside(tile.lhs),
            outside(tile.rhs),
        );
    }
    ptx!(l, "wgmma.commit_group.sync.aligned;");
    // The pair before this one has been read when only this one's products are left.
    ptx!(l, "wgmma.wait_group.sync.aligned 1;");
    ptx!(l, "and.pred q, leader, more;");
    release(l, "q");
    ptx!(l, "mov.u32 last, empty_at;");
    ptx!(l, "setp.eq.u32 more, tid, tid;");
    advance(l, stages);
    ptx!(l, "add.u32 piece, piece, 1;");
    ptx!(l, "setp.lt.u32 p, piece, piece_end;");
    ptx!(l, "@p bra PRODUCT_PIECE;");
    ptx!(l, "wgmma.wait_group.sync.aligned 0;");
    release(l, "leader");
    writes(l, tile);
    ptx!(l, "add.u32 work, work, grid;");
    ptx!(l, "bra PRODUCT_TILE;");
    ptx!(l, "PRODUCT_END:");
    ptx!(l, "@leader cp.async.bulk.wait_group 0;");
}

/// Writes the sums: through shared memory, in the order that the copy engine reads, and by it.
///
/// A warp's sums are 16 rows; a unit has pairs of columns of two of them, eight rows apart.
fn writes(l: &mut Lines, tile: Tile) {
    ptx!(l, "mul.lo.u32 x, tile_n, {};", tile.n);
    ptx!(l, "mul.lo.u32 y, tile_m, {TILE_M};");
    ptx!(l, "mad.lo.u32 y, warp, {WARP_ROWS}, y;");
    for first in (0..tile.n).step_by(tile.write_columns()) {
        ptx!(l, "add.u32 to, staging, buffer;");
        ptx!(l, "@leader cp.async.bulk.wait_group.read 1;");
        ptx!(l, "bar.warp.sync 0xffffffff;");
        if tile.wide {
            stage_f32(l, first)
        } else {
            stage_bf16(l, first)
        }
        ptx!(l, "fence.proxy.async.shared::cta;");
        ptx!(l, "bar.warp.sync 0xffffffff;");
        ptx!(
            l,
            "@leader cp.async.bulk.tensor.3d.global.shared::cta.bulk_group \
             [out, {{x, y, part}}], [to];"
        );
        ptx!(l, "@leader cp.async.bulk.commit_group;");
        ptx!(l, "add.u32 x, x, {};", tile.write_columns());
        ptx!(l, "xor.b32 buffer, buffer, {BUFFER};");
    }
}

/// Puts 64 columns from `first` on into the staging, as bf16.
fn stage_bf16(l: &mut Lines, first: usize) {
    // Four matrices of 8 by 8 at a time; a unit names a row of one of them: rows 0-7 and 8-15 of 8
    // columns, then of the next 8.
    ptx!(l, "and.b32 t0, lane, 15;");
    ptx!(l, "mad.lo.u32 at, t0, {ROW}, to;");
    ptx!(l, "shr.u32 t1, lane, 4;");
    ptx!(l, "and.b32 t2, lane, 7;");
    for pair in 0..4 {
        let d = first / 2 + 8 * pair;
        for (to, i) in ["t0", "rest", "size", "index"].into_iter().zip((d..).step_by(2)) {
            ptx!(l, "cvt.rn.bf16x2.f32 {to}, d{}, d{i};", i + 1);
        }
        ptx!(l, "add.u32 t3, t1, {};", 2 * pair);
        ptx!(l, "xor.b32 t3, t3, t2;");
        ptx!(l, "mad.lo.u32 t3, t3, 16, at;");
        ptx!(l, "stmatrix.sync.aligned.m8n8.x4.shared.b16 [t3], {{t0, rest, size, index}};");
    }
}

/// Puts 32 columns from `first` on into the staging.
fn stage_f32(l: &mut Lines, first: usize) {
    ptx!(l, "shr.u32 t0, lane, 2;");
    ptx!(l, "mad.lo.u32 at, t0, {ROW}, to;");
    ptx!(l, "and.b32 t2, t0, 7;");
    // Inside of 16 bytes, and which 16 bytes of 8 columns.
    ptx!(l, "and.b32 t1, lane, 1;");
    ptx!(l, "mad.lo.u32 at, t1, 8, at;");
    ptx!(l, "shr.u32 t1, lane, 1;");
    ptx!(l, "and.b32 t1, t1, 1;");
    for eight in 0..4 {
        let d = first / 2 + 4 * eight;
        ptx!(l, "add.u32 t3, t1, {};", 2 * eight);
        ptx!(l, "xor.b32 t3, t3, t2;");
        ptx!(l, "mad.lo.u32 t3, t3, 16, at;");
        ptx!(l, "st.shared.v2.f32 [t3], {{d{}, d{}}};", d, d + 1);
        ptx!(l, "st.shared.v2.f32 [t3 + {}], {{d{}, d{}}};", 8 * ROW, d + 2, d + 3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_fits_into_shared_memory_and_defines_each_label_once() {
        for n in [64, 128, 192, 256] {
            for lhs in [Inner::Summed, Inner::Kept] {
                for rhs in [Inner::Summed, Inner::Kept] {
                    for wide in [false, true] {
                        let tile = Tile { n, lhs, rhs, wide };
                        assert!(tile.shared_bytes() <= SHARED_MAX, "{tile:?}");
                        assert!(tile.stages() >= 4, "{tile:?}");
                        let text = program("name", tile);
                        let is_label = |line: &&str| line.ends_with(':');
                        let mut labels: Vec<&str> = text.lines().filter(is_label).collect();
                        let defined = labels.len();
                        labels.sort_unstable();
                        labels.dedup();
                        assert_eq!(labels.len(), defined, "{tile:?}");
                        let jumps = text.lines().filter_map(|line| line.split_once("bra "));
                        for (_, target) in jumps {
                            let label = target.replace(';', ":");
                            assert!(labels.contains(&label.as_str()), "{tile:?}: {target}");
                        }
                    }
                }
            }
        }
    }
}
