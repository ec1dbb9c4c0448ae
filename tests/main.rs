//! The built binary from end to end: train, resume, evaluate, predict, and what it says to mistakes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod language;
mod mistakes;
#[cfg(feature = "mpi")]
mod processes;
mod runs;
mod slides;
mod support;
mod terminal;
mod verbs;
