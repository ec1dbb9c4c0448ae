//! A step-based training engine on Burn: strict configuration, exact resume, atomic checkpoints.
//!
//! The engine knows steps, gradients, checkpoints and files; a [`task::Task`] knows data, a model, a
//! loss and a score. [`trainer::train`] brings them together:
//!
//! | module | what it answers |
//! |---|---|
//! | [`config`] | what was asked for, and what is wrong with it |
//! | [`device`], [`machine`], [`self_test`] | what computes, and whether it does it right |
//! | [`plan`], [`schedule`] | what happens at which step, as pure functions |
//! | [`trainer`] | the loop |
//! | [`mod@bench`], [`allocation`] | what it will cost |
//! | `collective`, [`world`] | how several devices train one model |
//! | [`progress`] | what is seen of it while it runs |
//! | [`folds`] | several runs that are reported together |
//! | [`adam`], [`moments`], [`optim`] | how gradients become updates |
//! | [`checkpoint`], [`position`] | how a run survives anything |
//! | [`run_dir`], [`logging`], [`result`] | what a run leaves behind |
//! | [`report`], [`overview`] | what it shows, alone and beside others |
//! | [`loading`] | how a finished run is used |
//! | [`adopt()`] | how weights of another program become a run |

pub mod adam;
mod adopt;
pub mod allocation;
mod atomic;
pub mod bench;
pub mod checkpoint;
mod collective;
pub mod conclusion;
pub mod config;
#[cfg(feature = "cube")]
mod cube;
pub mod device;
pub mod error;
pub mod folds;
mod gradients;
mod interrupt;
pub mod loading;
pub mod logging;
pub mod machine;
pub mod moments;
pub mod optim;
pub mod overview;
pub mod plan;
pub mod position;
pub mod progress;
#[cfg(feature = "cube")]
mod recording;
pub mod report;
pub mod result;
mod resume;
pub mod run_dir;
pub mod schedule;
pub mod self_test;
mod stored;
pub mod task;
mod tensorboard;
pub mod trainer;
pub mod world;

pub use self::{
    adopt::adopt,
    conclusion::Summary,
    config::Config,
    error::Error,
    folds::train_all,
    loading::{evaluate, load_model},
    task::Task,
    trainer::{TrainOptions, train},
    world::World,
};
