//! A run around weights that were trained elsewhere.

use std::collections::BTreeMap;

use burn::{module::Module, tensor::Device};

use crate::{
    config::Config,
    error::Error,
    optim,
    position::Position,
    run_dir::{RunDir, RunInfo, Session},
    task::TaskConfig,
};

/// Makes the run directory of `config` with `model` as its only checkpoint, at step 0.
///
/// `origin` says where the weights come from, and `artifacts` is what the task would have kept; the
/// configuration describes the model, and is not read for data. `commit` is the one that the program
/// was built from.
///
/// # Errors
/// [`Error::RunExists`] where a run already is, and [`Error::Save`].
pub fn adopt<C: TaskConfig, M: Module>(
    config: &Config<C>,
    model: &M,
    origin: String,
    artifacts: serde_json::Value,
    device: &Device,
    commit: Option<String>,
) -> Result<(), Error> {
    let path = config.run.path();
    RunDir::check(&path, false)?;
    let run = RunDir::open(&path, false)?;
    let info = RunInfo {
        seed: config.run.seed,
        parameters: model.num_params(),
        data: origin,
        data_hashes: BTreeMap::new(),
        artifacts,
        decayed_parameters: optim::decayed_parameters(model),
        sessions: vec![Session {
            build_commit: commit,
            ..Session::here(0, &config.device.backend, config.device.index)
        }],
    };
    run.describe(&config.to_toml(), &info)?;
    let optimizer = optim::build(&config.optim, model, device);
    run.checkpoints().save(model, &optimizer, &Position::start(config.run.seed))
}
