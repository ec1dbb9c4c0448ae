//! Multiple-instance learning from outside.

mod configs;
mod features;
mod scores;
mod task;
