//! The beginning of a session: a new run, or one that goes on where its checkpoint says.

use std::{
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use burn::module::Module;

use super::{TrainOptions, Trainer, replica::Replica};
use crate::{
    checkpoint::{Checkpoint, Checkpoints},
    collective::Collective,
    config::Config,
    device,
    error::Error,
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
        collective: Rc<dyn Collective>,
    ) -> Result<(Self, RunDir, T::Model), Error> {
        let path = config.run.path();
        RunDir::check(&path, options.resume)?;
        // What goes on is ours before it is read; what is new gets a directory once there is data.
        let held = options.resume.then(|| RunDir::open(&path, true)).transpose()?;
        let checkpoints = Checkpoints::of_run(&path);
        let resumed =
            if options.resume { Resumed::load(&path, &checkpoints, config)? } else { None };

        let backend = device::resolve(&config.device.backend, config.device.index)?;
        let (index, dirs) = (config.device.index, &options.data_dirs);
        let (mut replica, mut model) = Replica::<T>::build(config, dirs, index, collective)?;
        let plan = replica.plan;
        let mut position = Position::start(config.run.seed);
        let mut info = RunInfo {
            seed: config.run.seed,
            parameters: model.num_params(),
            data: replica.task.describe(),
            data_hashes: replica.task.data_hashes(),
            artifacts: replica.task.artifacts(),
            decayed_parameters: optim::decayed_parameters(&model),
            sessions: Vec::new(),
        };
        let run = match held {
            Some(run) => run,
            None => RunDir::open(&path, false)?,
        };

        let mut changes = Vec::new();
        if let Some(Resumed { checkpoint, config_text, differences, origin }) = resumed {
            resume::compare_data(&path, &origin.data_hashes, &info.data_hashes)?;
            model = checkpoint.model(model)?;
            replica.optimizer = checkpoint.optimizer(replica.optimizer)?;
            position = continued(checkpoint.position(), &plan, &checkpoints)?;
            // The process before may have ended between the two.
            checkpoints.prune(config.checkpoint.keep, &position)?;
            let done = position.step;
            if let Some(change) = resume::changed_rates(&path, &config_text, config, &plan, done)? {
                tracing::warn!("{change}");
            }
            info.sessions = origin.sessions;
            changes = resume::changes(&differences);
        }
        let (size, route) = (replica.collective.size(), replica.collective.route());
        let session = Session {
            changes,
            replicas: size,
            gradients: route.to_owned(),
            build_commit: options.commit.clone(),
            ..Session::here(position.step, backend, config.device.index)
        };
        if let Some(last) = info.sessions.last() {
            for change in resume::changed_route(last, &session) {
                tracing::warn!("{change}");
            }
            if let Some(change) = resume::changed_replicas(last, &session) {
                tracing::info!("{change}");
            }
        }
        if size > 1 {
            let start = Checkpoint::pack(&model, &replica.optimizer)?;
            replica.collective.broadcast(start)?;
        }
        info.sessions.push(session);
        run.describe(&config.to_toml(), &info)?;
        let log = MetricsLog::open(&run.metrics(), position.metrics, config.log.tensorboard)?;
        tracing::info!("data: {}", info.data);
        let precision = config.train.precision;
        let mixed = precision.activations().map(|_| format!(", {} products", precision.name()));
        let mixed = mixed.unwrap_or_default();
        tracing::info!("model: {} parameters on `{backend}`{mixed}", info.parameters);
        if !mixed.is_empty() && device::is_processor(backend) {
            tracing::warn!(
                "`{backend}` computes {} in f32 and rounds, slower than f32 alone",
                precision.name()
            );
        }
        if size > 1 {
            tracing::info!("replicas: {size}, gradients through {route}");
        }
        tracing::info!("run: `{}`, step {} of {}", path.display(), position.step, plan.total_steps);
        let mut progress =
            Progress::new(&config.run.name, plan.total_steps, position.step, &options.show);
        if let Some(best) = position.best {
            progress.best(replica.task.selection().metric, best.value);
        }
        let peak = device::peak_flops(&replica.device, precision);
        let peak = peak.map(|peak| peak * size as f64);
        let work = (replica.task.work(&model), peak);
        let trainer = Self {
            config,
            replica,
            progress,
            checkpoints,
            log,
            position,
            started: Instant::now(),
            pace: (Duration::ZERO, 0.0),
            work,
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
    /// The configuration that it went on with last.
    config_text: String,
    /// What the one to go on with differs from it in.
    differences: Vec<resume::Difference>,
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
        let mut config_text = run_dir::config_text(path)?;
        // A key that a newer version added had its default; one that is gone is said to differ.
        if let Ok(stored) = Config::<C>::parse(&config_text, "config.toml", &[]) {
            config_text = stored.to_toml();
        }
        let differences = resume::compare(path, &config_text, &config.to_toml())?;
        if !differences.is_empty() {
            let table = report::text_table(&resume::table(&differences));
            let text =
                format!("the configuration is not the one the run went on with last\n\n{table}");
            if resume::is_notable(&differences) {
                tracing::warn!("{text}");
            } else {
                tracing::info!("{text}");
            }
        }
        if let Some(error) = resume::refusal(path, &differences) {
            return Err(error);
        }
        let origin = run_dir::info(path)?;
        Ok(Some(Self { checkpoint, config_text, differences, origin }))
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
