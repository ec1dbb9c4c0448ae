//! The forward pass.

pub(super) mod kernel;
