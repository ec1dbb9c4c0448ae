//! The scan for devices with planes of 32 units and shared memory: states split over lanes, inputs in
//! tiles of some steps, and long sequences cut into segments that are scanned at the same time.

mod backward;
mod cube;
mod forward;
mod kernel;

pub(super) use cube::{Plan, backward, forward};
