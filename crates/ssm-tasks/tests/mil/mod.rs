//! Multiple-instance learning from outside.

mod features;
mod scores;
mod task;
