//! Tests of the crate from outside, in one binary.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod configs;
mod lm;
mod lm_decoder;
mod lm_weights;
mod mil;
mod models;
mod predictions;
mod published;
mod support;
mod task;
