//! The scan for devices of which nothing is known: at most seven tensors, f32, no exchange between units.

mod cube;
mod kernel;

pub(super) use cube::{backward, forward};
