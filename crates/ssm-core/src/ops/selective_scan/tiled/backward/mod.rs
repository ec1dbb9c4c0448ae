//! The backward pass.

pub(super) mod kernel;
