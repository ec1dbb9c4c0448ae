//! The built binary from end to end: train, resume, evaluate, predict, and what it says to mistakes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod devices;
#[cfg(feature = "flex")]
mod language;
#[cfg(feature = "flex")]
mod mistakes;
#[cfg(feature = "mpi")]
mod processes;
#[cfg(feature = "flex")]
mod runs;
#[cfg(feature = "flex")]
mod slides;
#[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "for tests on the processor"))]
mod support;
#[cfg(feature = "flex")]
mod terminal;
#[cfg(feature = "flex")]
mod verbs;
