//! Finished runs: their model, and their scores once more.

use std::path::{Path, PathBuf};

use burn::{module::Module, tensor::Device};

use crate::{
    checkpoint::Checkpoints,
    config::{Config, DeviceSection},
    device,
    error::Error,
    resume, run_dir,
    task::{Metrics, Split, Task, TaskConfig},
};

/// The configuration of a run, its task, and its model.
pub type LoadedRun<T> = (Config<<T as Task>::Config>, T, <T as Task>::Model);

/// The configuration of a run, its task, and its model with the best weights, ready for inference.
///
/// `device` replaces `[device]` of the run. The run may still be going on: nothing is written.
///
/// # Errors
/// [`Error::Usage`] for a directory without a run, [`Error::Config`] for a run of another task,
/// [`Error::Checkpoint`] for a best checkpoint that is missing or damaged, [`Error::Data`] for other
/// data than the run was trained on, and those of [`Task::new`].
pub fn load_model<T: Task>(
    run_dir: &Path,
    device: Option<&DeviceSection>,
    data_dirs: Vec<PathBuf>,
) -> Result<LoadedRun<T>, Error> {
    let mut config = config_of::<T::Config>(run_dir)?;
    if let Some(device) = device {
        config.device = device.clone();
    }
    let origin = run_dir::info(run_dir)?;
    let checkpoint = Checkpoints::of_run(run_dir).load_best()?;
    let device = open(&config)?;
    let settings = config.settings(data_dirs);
    let (task, model) = T::new(&config.task, &config.data, &config.model, &settings, &device)?;
    // Other rows have other splits and another scaler: a score on them is not one of this run.
    // A run that was not trained here was trained on no known rows.
    let known = !origin.data_hashes.is_empty();
    if known
        && let Some((name, [old, new])) =
            resume::changed_data(&origin.data_hashes, &task.data_hashes())
    {
        let run = run_dir.display();
        return Err(Error::Data {
            path: PathBuf::from(name),
            message: format!("`{run}` was trained on the SHA-256 {old}, the file has {new}"),
            hint: Some("restore the file, or train a new run on the other one".into()),
        });
    }
    let model = checkpoint.model(model.valid())?;
    Ok((config, task, model))
}

/// Scores the best weights of a run once more; nothing is written.
///
/// What belongs to the end of a run only, such as baselines, is not made again.
///
/// # Errors
/// As [`load_model`], and those of the task.
pub fn evaluate<T: Task>(
    run_dir: &Path,
    device: Option<&DeviceSection>,
    data_dirs: Vec<PathBuf>,
    split: Split,
) -> Result<Metrics, Error> {
    let (_, task, model) = load_model::<T>(run_dir, device, data_dirs)?;
    task.evaluate(&model, split)
}

/// The configuration, the artifacts and the best model of a run, without reading its data.
///
/// `build` makes the model with any initial values from the configuration and the artifacts; the
/// values are replaced by those of the checkpoint.
///
/// # Errors
/// As [`load_model`], but for the data.
pub fn restore_model<C: TaskConfig, M: Module>(
    run_dir: &Path,
    device: Option<&DeviceSection>,
    build: impl FnOnce(&Config<C>, &serde_json::Value, &Device) -> Result<M, Error>,
) -> Result<(Config<C>, serde_json::Value, M), Error> {
    let mut config = config_of::<C>(run_dir)?;
    if let Some(device) = device {
        config.device = device.clone();
    }
    let origin = run_dir::info(run_dir)?;
    let checkpoint = Checkpoints::of_run(run_dir).load_best()?;
    let device = open(&config)?;
    let model = checkpoint.model(build(&config, &origin.artifacts, &device)?)?;
    Ok((config, origin.artifacts, model))
}

/// The device of a configuration, able to compute in its precision.
fn open<C: TaskConfig>(config: &Config<C>) -> Result<Device, Error> {
    device::open_for(&config.device.backend, config.device.index, config.train.precision)
}

/// The configuration that a run was started with.
pub(crate) fn config_of<C: TaskConfig>(run_dir: &Path) -> Result<Config<C>, Error> {
    let text = run_dir::config_text(run_dir)?;
    let origin = run_dir.join("config.toml").display().to_string();
    Config::<C>::parse(&text, &origin, &[])
}
