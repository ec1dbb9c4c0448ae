//! The training loop.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::ModuleOptimizer,
    tensor::{Device, ExecutionError, Tensor},
};

use crate::{
    checkpoint::Checkpoints,
    conclusion::{Summary, conclude},
    config::Config,
    device,
    error::Error,
    gradients::{Accumulation, Gradient, is_host},
    interrupt::Interrupt,
    logging::{EvaluationRow, MetricsLog, TrainRow},
    optim,
    plan::{Plan, step_seed},
    position::Position,
    progress::{Progress, StepNumbers},
    resume,
    run_dir::{self, RunDir, RunInfo, Session},
    task::{Split, Task},
};

/// What the command line adds to a configuration.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Go on with the run that the directory holds.
    pub resume: bool,
    /// No live progress.
    pub quiet: bool,
    /// Directories that data files are searched in, in order.
    pub data_dirs: Vec<PathBuf>,
}

/// Trains, then scores the best weights on the test split, which nothing else touches.
///
/// A run that was interrupted and resumed ends with the same bits as one that was not, on CPU
/// devices. A run that is already over is not trained further, only concluded if it was not.
///
/// # Errors
/// Everything of [`Error`]. After [`Error::Interrupted`] the run is saved up to the last step, after
/// any other error up to its last checkpoint.
pub fn train<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
) -> Result<Summary, Error> {
    let interrupt = Interrupt::listen().map_err(|source| Error::Io {
        path: PathBuf::from("signals"),
        action: "listen to".into(),
        source,
    })?;
    let run = RunDir::open(&config.run.path(), options.resume)?;
    let (mut trainer, mut model) = Trainer::<T>::start(config, options, &run)?;

    while !trainer.is_over() {
        let (gradient, busy) = trainer.differentiate(&model)?;
        model = trainer.update(model, gradient, busy)?;
        let done = trainer.position.step;

        let improved = trainer.plan.evaluates(done) && trainer.evaluate(&model)?;
        let signal = interrupt.signal();
        if improved || trainer.plan.saves(done) || trainer.is_over() || signal.is_some() {
            trainer.save(&model)?;
        }
        if let Some(signal) = signal {
            return Err(Error::Interrupted { signal, step: done });
        }
    }

    interrupt.end_at_once();
    let Trainer { task, position, progress, .. } = trainer;
    drop(progress);
    conclude(config, &run, &task, &model.valid(), &position)
}

/// Everything of a run in progress but the model, which the optimiser consumes at every step.
struct Trainer<'a, T: Task> {
    config: &'a Config<T::Config>,
    task: T,
    device: Device,
    on_host: bool,
    plan: Plan,
    optimizer: ModuleOptimizer,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: Progress,
    position: Position,
    started: Instant,
    /// Time in steps and samples of steps since the last line of the log, in this process.
    pace: (Duration, f64),
}

impl<'a, T: Task> Trainer<'a, T> {
    /// At the beginning of the run, or where its newest intact checkpoint says.
    fn start(
        config: &'a Config<T::Config>,
        options: &TrainOptions,
        run: &RunDir,
    ) -> Result<(Self, T::Model), Error> {
        let checkpoints = run.checkpoints();
        let checkpoint = if options.resume { checkpoints.load_newest()? } else { None };
        if checkpoint.is_some() {
            let old = run_dir::config_text(run.path())?;
            for change in resume::compare(run.path(), &old, &config.to_toml())? {
                tracing::warn!("resuming with a changed configuration: {change}");
            }
        } else if options.resume {
            tracing::warn!("no checkpoint to resume from yet; starting from the beginning");
        }

        let backend = device::resolve(&config.device.backend, config.device.index)?;
        let device = device::open(backend, config.device.index)?.autodiff();
        let settings = config.settings(options.data_dirs.clone());
        let (task, mut model) =
            T::new(&config.task, &config.data, &config.model, &settings, &device)?;
        // Burn draws initial values when they are first used, which must be now, not after the
        // generator was seeded for a step.
        model.visit(&mut DrawInitialValues);
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

        if let Some(checkpoint) = checkpoint {
            if let Some(old) = run_dir::info(run.path()) {
                resume::compare_data(run.path(), &old.data_hashes, &info.data_hashes)?;
                info.sessions = old.sessions;
            }
            model = checkpoint.model(model)?;
            optimizer = checkpoint.optimizer(optimizer)?;
            position = checkpoint.position().clone();
            position.forget_lost_best(&checkpoints.steps()?);
            checkpoints.point(&position)?;
        }
        info.sessions.push(Session::here(position.step, backend, config.device.index));
        run.describe(&config.to_toml(), &info)?;
        let log = MetricsLog::open(&run.metrics(), position.metrics)?;
        tracing::info!("data: {}", info.data);
        tracing::info!("model: {} parameters on `{backend}`", info.parameters);
        let (dir, step) = (run.path().display(), position.step);
        tracing::info!("run: `{dir}`, step {step} of {}", plan.total_steps);
        let mut progress = Progress::new(plan.total_steps, position.step, options.quiet);
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
        Ok((trainer, model))
    }

    /// Whether there is nothing left to train.
    fn is_over(&self) -> bool {
        self.position.step >= self.plan.total_steps
            || self.position.out_of_patience(self.config.train.patience)
    }

    /// Gradient of the next step. Random numbers are those of the step, whatever came before it.
    fn differentiate(&self, model: &T::Model) -> Result<(Gradient, Duration), Error> {
        let clock = Instant::now();
        let step = self.position.step;
        self.device.seed(step_seed(self.config.run.seed, step));
        let batches = self.plan.micro_batches(step);
        let mut sum = Accumulation::new(batches.end - batches.start);
        for index in batches {
            let batch = self.task.batch(index)?;
            sum.add(model, self.task.loss(model, batch));
        }
        let gradient = sum
            .finish(model, self.config.train.clip_norm, self.on_host)
            .map_err(|error| self.device_failed(&error))?;
        gradient.check_finite(model, step)?;
        Ok((gradient, clock.elapsed()))
    }

    /// Applies a gradient and logs the step.
    fn update(
        &mut self,
        model: T::Model,
        gradient: Gradient,
        busy: Duration,
    ) -> Result<T::Model, Error> {
        let clock = Instant::now();
        let step = self.position.step;
        let Plan { total_steps, steps_per_epoch, .. } = self.plan;
        let factor = self.config.schedule.factor(step, total_steps, steps_per_epoch);
        let lr = self.config.optim.lr() * factor;
        let Gradient { params, loss, norm, weight } = gradient;
        let model = self.optimizer.step(lr, model, params);

        let done = step + 1;
        self.position.step = done;
        self.position.next_micro_batch = self.plan.micro_batches(done).start;
        self.position.losses.add(loss, weight);
        self.pace.0 += busy + clock.elapsed();
        self.pace.1 += weight;
        self.progress.step(&StepNumbers { done, loss, lr });
        if self.plan.logs(done) {
            let (busy, samples) = std::mem::take(&mut self.pace);
            self.log.append(&TrainRow {
                step: done,
                epoch: self.plan.epoch(step),
                split: "train",
                loss: std::mem::take(&mut self.position.losses).mean(),
                lr,
                grad_norm: norm,
                samples_per_sec: samples / busy.as_secs_f64(),
                elapsed_secs: self.started.elapsed().as_secs_f64(),
            })?;
        }
        Ok(model)
    }

    /// Scores the model on the validation split and says whether it is the best so far.
    fn evaluate(&mut self, model: &T::Model) -> Result<bool, Error> {
        let metrics = self.task.evaluate(&model.valid(), Split::Valid)?;
        let selection = self.task.selection();
        let value = *metrics
            .get(selection.metric)
            .unwrap_or_else(|| panic!("the task evaluates no metric `{}`", selection.metric));
        let improved = self.position.observe(value, selection.goal);
        let (done, total) = (self.position.step, self.plan.total_steps);
        let epoch = self.plan.epoch(done - 1);
        self.log.append(&EvaluationRow {
            step: done,
            epoch,
            split: "valid",
            metrics: &metrics,
            elapsed_secs: self.started.elapsed().as_secs_f64(),
        })?;
        let mut line = format!("step {done}/{total}, epoch {}: validation", epoch + 1);
        for (name, value) in &metrics {
            line += &format!(" {name} {value:.4}");
        }
        if improved {
            self.progress.best(selection.metric, value);
            line += ", the best so far";
        }
        self.progress.line(line);
        Ok(improved)
    }

    fn save(&mut self, model: &T::Model) -> Result<(), Error> {
        // The log first: a checkpoint never knows of lines that a power cut could take away.
        self.position.metrics = self.log.sync()?;
        self.checkpoints.save(model, &self.optimizer, &self.position)?;
        self.checkpoints.prune(self.config.checkpoint.keep)
    }

    fn device_failed(&self, error: &ExecutionError) -> Error {
        Error::Device {
            device: self.config.device.backend.clone(),
            message: format!("failed at step {}: {error}", self.position.step),
            hint: Some(
                "a smaller `train.batch_size` with `train.accumulate` needs less memory".into(),
            ),
        }
    }
}

struct DrawInitialValues;

impl ModuleVisitor for DrawInitialValues {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}
