//! Products in f32 on the plain arithmetic units, each cube a square of the result.
//!
//! Of CubeK's kernels those for plain units give squares of up to 128 x 128 numbers to a cube: of the
//! products of a small model that leaves six cubes for the 132 processors of an H200, and each of them
//! takes fifty microseconds. Here squares are 32 or 64 numbers wide, groups of a cube's units take the
//! parts of the sum in turn, and the next part is read while one is added.
//! `experiments/2026-11-24-gpu-kernels` has the times of both.

mod cube;
mod kernel;

pub(super) use self::cube::{is_faster, product};
