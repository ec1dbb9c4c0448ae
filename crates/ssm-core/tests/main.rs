//! All tests of the crate in one binary: one suite, any device.

mod causal_conv1d;
mod cross_entropy;
mod decode;
mod golden;
mod layer_norm;
#[cfg(feature = "cube")]
mod limits;
mod linear;
mod long_scans;
mod mixer_laws;
mod order;
mod pointwise;
mod recompute;
mod rms_norm;
mod selective_scan;
mod self_test;
mod support;
