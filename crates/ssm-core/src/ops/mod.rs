//! Operations: the recurrences and convolutions that mixers are made of.
//!
//! | op | paper | reference | cpu | gpu | backward |
//! |---|---|---|---|---|---|
//! | [`selective_scan`] | Gu & Dao 2023, arXiv:2312.00752, Alg. 2 | `reference.rs` | `simd` | `tiled`, `portable` | hand-written |
//! | [`causal_conv1d`] | same, figure 3 | `reference.rs` | `simd.rs` | `kernel.rs` | hand-written |
//! | [`cross_entropy`] | Hsu et al. 2024, arXiv:2410.10989 | `reference.rs` | `cpu.rs` | `kernel.rs` | in the forward pass |
//! | [`layer_norm`] | Ba et al. 2016, arXiv:1607.06450 | Burn's module | `cpu.rs` | `kernel.rs` | hand-written |
//! | [`linear`] | - | Burn's matmul | `cpu.rs` | CubeK's | hand-written |
//! | [`pointwise`] | GELU: arXiv:1606.08415 | Burn's own | `cpu.rs` | `kernel.rs` | hand-written |
//! | [`rms_norm`] | Zhang & Sennrich 2019, arXiv:1910.07467 | Burn's module | `cpu.rs` | `kernel.rs` | hand-written |
//! | [`decode`] | Gu & Dao 2023, arXiv:2312.00752, section 3.3.1 | the parallel form | `host.rs` | `kernel.rs` | none |
//! | [`recompute`] | Chen et al. 2016, arXiv:1604.06174 | the layer itself | - | - | runs the layer again |
//!
//! Each op with a kernel is written three times and proved pairwise: `host` (plain slices, f64),
//! `reference` (tensors, ordinary autodiff; for `pointwise` and the norms Burn's own) and the
//! kernel of a device. May import Burn; nothing of this crate.

mod autodiff;
pub mod causal_conv1d;
pub mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub mod decode;
mod disjoint;
#[cfg(feature = "cube")]
mod kernel;
pub mod layer_norm;
pub mod linear;
pub mod pointwise;
pub mod primitive;
pub mod recompute;
pub mod rms_norm;
pub mod selective_scan;
mod self_test;
mod simd;
mod threads;

#[cfg(feature = "cube")]
pub use cube::slow_paths;
pub use self_test::{Compared, Measured, SelfTest, self_test};
