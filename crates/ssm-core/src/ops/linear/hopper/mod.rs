//! Products of bf16 matrices on Hopper chips (compute capability 9.0) at the rate of the vendor's
//! library: a kernel for the chip's own matrix and copy units.
//!
//! The library itself cannot run between CubeCL's kernels: CubeCL gives nobody its streams, so nothing
//! would order its work after what writes the operands and before what reads the result. The kernel
//! is therefore one of CubeCL's, launched, ordered and cached like the others. Its body is PTX, as
//! neither CubeCL nor CUDA C++ has these units in its language; a kernel that is CUDA C++ as a whole
//! would get no more than 48 KB of shared memory from CubeCL, and this one takes 225.
//! `experiments/2026-11-27-hopper-products` has its times.

mod cube;
mod kernel;
mod plan;
mod program;

pub(super) use cube::{product, sum_of_products};
