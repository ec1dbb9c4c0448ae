//! The beginning of a session: a new run, or one that goes on where its checkpoint says.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Bool, Int, Tensor},
};

use super::{TrainOptions, Trainer};
use crate::{
    checkpoint::{Checkpoint, Checkpoints},
    config::Config,
    device,
    error::Error,
    gradients::is_host,
    logging::MetricsLog,
    optim,
    plan::Plan,
    position::Position,
    progress::Progress,
    report, resume,
    run_dir::{self, RunDir, RunInfo, Session},
    task::{Task, TaskConfig},
};

impl<'a, T: Task> Trainer<'a, T> {
    /// At the beginning of the run, or where its newest intact checkpoint says.
    pub(super) fn start(
        config: &'a Config<T::Config>,
        options: &TrainOptions,
    ) -> Result<(Self, RunDir, T::Model), Error> {
        let path = config.run.path();
        RunDir::check(&path, options.resume)?;
        // What goes on is ours before it is read; what is new gets a directory once there is data.
        let held = options.resume.then(|| RunDir::open(&path, true)).transpose()?;
        let checkpoints = Checkpoints::of_run(&path);
        let resumed =
            if options.resume { Resumed::load(&path, &checkpoints, config)? } else { None };

        let backend = device::resolve(&config.device.backend, config.device.index)?;
        let device = device::open(backend, config.device.index)?.autodiff();
        let settings = config.settings(options.data_dirs.clone());
        let (task, mut model) =
            T::new(&config.task, &config.data, &config.model, &settings, &device)?;
        model = model.map(&mut Settle { next_id: 1 });
        let plan = Plan::of(config, task.batches_per_epoch())?;
        let mut optimizer = optim::build(&config.optim, &model, &device);
        let mut position = Position::start(config.run.seed);
        let mut info = RunInfo {
            seed: config.run.seed,
            parameters: model.num_params(),
            data: task.describe(),
            data_hashes: task.data_hashes(),
            artifacts: task.artifacts(),
            decayed_parameters: optim::decayed_parameters(&model),
            sessions: Vec::new(),
        };
        let run = match held {
            Some(run) => run,
            None => RunDir::open(&path, false)?,
        };

        if let Some(Resumed { checkpoint, config_text, origin }) = resumed {
            resume::compare_data(&path, &origin.data_hashes, &info.data_hashes)?;
            model = checkpoint.model(model)?;
            optimizer = checkpoint.optimizer(optimizer)?;
            position = continued(checkpoint.position(), &plan, &checkpoints)?;
            // The process before may have ended between the two.
            checkpoints.prune(config.checkpoint.keep, &position)?;
            let done = position.step;
            if let Some(change) = resume::changed_rates(&path, &config_text, config, &plan, done)? {
                tracing::warn!("{change}");
            }
            info.sessions = origin.sessions;
        }
        let session = Session::here(position.step, backend, config.device.index);
        let changes = info.sessions.last().map(|last| resume::changed_route(last, &session));
        for change in changes.into_iter().flatten() {
            tracing::warn!("{change}");
        }
        info.sessions.push(session);
        run.describe(&config.to_toml(), &info)?;
        let log = MetricsLog::open(&run.metrics(), position.metrics, config.log.tensorboard)?;
        tracing::info!("data: {}", info.data);
        tracing::info!("model: {} parameters on `{backend}`", info.parameters);
        tracing::info!("run: `{}`, step {} of {}", path.display(), position.step, plan.total_steps);
        let mut progress =
            Progress::new(&config.run.name, plan.total_steps, position.step, &options.show);
        if let Some(best) = position.best {
            progress.best(task.selection().metric, best.value);
        }
        let trainer = Self {
            config,
            on_host: is_host(&device),
            device,
            progress,
            task,
            plan,
            optimizer,
            checkpoints,
            log,
            position,
            started: Instant::now(),
            pace: (Duration::ZERO, 0.0),
        };
        if !trainer.is_over() {
            run.remove_results()?;
        }
        Ok((trainer, run, model))
    }
}

/// What a run directory holds of the run that goes on.
struct Resumed {
    checkpoint: Checkpoint,
    /// The configuration that it was started with.
    config_text: String,
    origin: RunInfo,
}

impl Resumed {
    /// `None` if nothing was saved yet.
    fn load<C: TaskConfig>(
        path: &Path,
        checkpoints: &Checkpoints,
        config: &Config<C>,
    ) -> Result<Option<Self>, Error> {
        let Some(checkpoint) = checkpoints.load_newest()? else {
            tracing::warn!("no checkpoint to resume from yet; starting from the beginning");
            return Ok(None);
        };
        let config_text = run_dir::config_text(path)?;
        let differences = resume::compare(path, &config_text, &config.to_toml())?;
        if !differences.is_empty() {
            let table = report::text_table(&resume::table(&differences));
            let text =
                format!("the configuration is not the one the run was started with\n\n{table}");
            if resume::is_notable(&differences) {
                tracing::warn!("{text}");
            } else {
                tracing::info!("{text}");
            }
        }
        if let Some(error) = resume::refusal(path, &differences) {
            return Err(error);
        }
        Ok(Some(Self { checkpoint, config_text, origin: run_dir::info(path)? }))
    }
}

/// The position to go on from, and `checkpoints` in accordance with it.
fn continued(saved: &Position, plan: &Plan, checkpoints: &Checkpoints) -> Result<Position, Error> {
    let mut position = saved.clone();
    let step = position.step;
    if !plan.ends(step) && position.take_back_end() {
        tracing::info!(
            "the run ended at step {step}; what was logged only because of that is undone"
        );
    }
    if let Some(best) = position.best.filter(|best| best.step != step)
        && let Err(error) = checkpoints.load(best.step)
    {
        if matches!(error, Error::Io { .. }) {
            return Err(error);
        }
        tracing::warn!("the best checkpoint is lost ({error}); searching for the best anew");
        position.forget_best();
    }
    checkpoints.set_aside_after(step)?;
    checkpoints.point(&position)?;
    Ok(position)
}

/// Gives every parameter its value and its identity.
///
/// Burn draws initial values when they are first used, which must be now, not after the generator was
/// seeded for a step. And it numbers parameters at random; counted, equal runs have equal files.
struct Settle {
    next_id: u64,
}

impl Settle {
    fn id(&mut self) -> ParamId {
        self.next_id += 1;
        ParamId::from(self.next_id - 1)
    }
}

impl ModuleMapper for Settle {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (_, value, mapper) = param.consume();
        Param::from_mapped_value(self.id(), value, mapper)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let (_, value, mapper) = param.consume();
        Param::from_mapped_value(self.id(), value, mapper)
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        let (_, value, mapper) = param.consume();
        Param::from_mapped_value(self.id(), value, mapper)
    }
}
