//! The training loop.

mod start;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use burn::{
    module::Module,
    optim::ModuleOptimizer,
    tensor::{Device, ExecutionError},
};

use crate::{
    checkpoint::Checkpoints,
    conclusion::{Summary, conclude},
    config::Config,
    error::Error,
    gradients::{Accumulation, Gradient},
    interrupt::Interrupt,
    logging::{EvaluationRow, MetricsLog, TrainRow},
    machine,
    plan::{Plan, step_seed},
    position::Position,
    progress::{Progress, Show, StepNumbers},
    task::{Split, Task},
};

/// The value of an expression, computed inside of a span of this name: what a profile shows.
macro_rules! in_span {
    ($name:literal, $value:expr) => {
        tracing::trace_span!($name).in_scope(|| $value)
    };
}

/// What the command line adds to a configuration.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Go on with the run that the directory holds.
    pub resume: bool,
    /// What is seen of the run while it goes.
    pub show: Show,
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
/// any other error up to its last checkpoint. Before the data is read no directory is created.
pub fn train<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
) -> Result<Summary, Error> {
    let interrupt = Interrupt::listen().map_err(|source| Error::Io {
        path: PathBuf::from("signals"),
        action: "listen to".into(),
        source,
    })?;
    let (mut trainer, run, model) = Trainer::<T>::start(config, options)?;
    if trainer.is_over() {
        tracing::info!("nothing to train: {}", trainer.why_over());
    }
    let model = trainer.run(model, &interrupt).map_err(|error| {
        // Should the directory be gone there is nothing to name.
        error.after(trainer.checkpoints.steps().unwrap_or_default().pop())
    })?;

    interrupt.end_at_once();
    // One that came while a run that was over already was opened.
    if let Some(signal) = interrupt.signal() {
        return Err(Error::Interrupted { signal, step: trainer.position.step });
    }
    let Trainer { task, plan, position, progress, .. } = trainer;
    drop(progress);
    conclude(config, &run, &task, &model.valid(), &plan, &position)
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

impl<T: Task> Trainer<'_, T> {
    /// Trains to the end of the run.
    fn run(&mut self, mut model: T::Model, interrupt: &Interrupt) -> Result<T::Model, Error> {
        while !self.is_over() {
            let (gradient, busy) = self.differentiate(&model)?;
            let numbers;
            (model, numbers) = self.update(model, gradient, busy);
            let improved = self.record(&model, &numbers)?;

            let done = self.position.step;
            let signal = interrupt.signal();
            if improved || self.plan.saves(done) || self.is_over() || signal.is_some() {
                self.save(&model)?;
            }
            if signal.is_none() && self.is_over() && !self.plan.ends(done) {
                let why = self.why_over();
                self.progress.line(format!("stopped at step {done}: {why}"));
            }
            if let Some(signal) = signal {
                return Err(Error::Interrupted { signal, step: done });
            }
        }
        Ok(model)
    }

    /// Whether there is nothing left to train.
    fn is_over(&self) -> bool {
        self.plan.ends(self.position.step)
            || self.position.out_of_patience(self.config.train.patience)
    }

    /// Of a run that is over.
    fn why_over(&self) -> String {
        let Position { step, evaluations_since_best, .. } = self.position;
        if self.plan.ends(step) {
            return format!("all {} steps are done", self.plan.total_steps);
        }
        let best = self.position.best.map(|best| format!(" since step {}", best.step));
        let patience = self.config.train.patience.unwrap_or(evaluations_since_best);
        let plural = if evaluations_since_best == 1 { "" } else { "s" };
        format!(
            "no improvement in {evaluations_since_best} evaluation{plural}{}, `train.patience` is \
             {patience}",
            best.unwrap_or_default()
        )
    }

    /// Gradient of the next step. Random numbers are those of the step, whatever came before it.
    fn differentiate(&self, model: &T::Model) -> Result<(Gradient, Duration), Error> {
        let clock = Instant::now();
        let step = self.position.step;
        self.device.seed(step_seed(self.config.run.seed, step));
        let batches = self.plan.micro_batches(step);
        let mut sum = Accumulation::new(batches.end - batches.start);
        for index in batches {
            let batch = in_span!("data", self.task.batch(index))?;
            let loss = in_span!("forward", self.task.loss(model, batch));
            in_span!("backward", sum.add(model, loss));
        }
        let clip_norm = self.config.train.clip_norm;
        let gradient = in_span!("norm", sum.finish(model, clip_norm, self.on_host))
            .map_err(|error| self.device_failed(&error))?;
        gradient.check_finite(model, step)?;
        Ok((gradient, clock.elapsed()))
    }

    /// Applies a gradient.
    fn update(
        &mut self,
        model: T::Model,
        gradient: Gradient,
        busy: Duration,
    ) -> (T::Model, StepNumbers) {
        let clock = Instant::now();
        let step = self.position.step;
        let Plan { total_steps, steps_per_epoch, .. } = self.plan;
        let factor = self.config.schedule.factor(step, total_steps, steps_per_epoch);
        let lr = self.config.optim.lr() * factor;
        let Gradient { params, loss, norm, weight } = gradient;
        let model = in_span!("optimizer", self.optimizer.step(lr, model, params));

        let done = step + 1;
        self.position.step = done;
        self.position.next_micro_batch = self.plan.micro_batches(done).start;
        self.position.losses.add(loss, weight);
        self.pace.0 += busy + clock.elapsed();
        self.pace.1 += weight;
        let numbers = StepNumbers { done, loss, lr, grad_norm: norm };
        let device = &self.device;
        self.progress.step(&numbers, || {
            let pools = device.memory_pool_usage();
            pools.map(|pools| pools.bytes_reserved).or_else(machine::resident)
        });
        (model, numbers)
    }

    /// Logs and evaluates what is due after a step, and says whether the model is the best so far.
    fn record(&mut self, model: &T::Model, numbers: &StepNumbers) -> Result<bool, Error> {
        let done = numbers.done;
        let (logs, evaluates) = (self.plan.logs(done), self.plan.evaluates(done));
        if logs {
            self.log_step(numbers)?;
        }
        let mut improved = evaluates && self.evaluate(model)?;
        if self.plan.ends(done) && !(logs && evaluates) {
            // The rest comes after what a longer run does here too, which goes on from this mark.
            self.position.mark_end(self.log.end());
            if !logs {
                self.log_step(numbers)?;
            }
            improved |= !evaluates && self.evaluate(model)?;
        }
        Ok(improved)
    }

    fn log_step(&mut self, numbers: &StepNumbers) -> Result<(), Error> {
        let (busy, samples) = std::mem::take(&mut self.pace);
        self.log.append(&TrainRow {
            step: numbers.done,
            epoch: self.plan.epoch(numbers.done - 1),
            split: "train",
            loss: std::mem::take(&mut self.position.losses).mean(),
            lr: numbers.lr,
            grad_norm: numbers.grad_norm,
            samples_per_sec: samples / busy.as_secs_f64(),
            elapsed_secs: self.started.elapsed().as_secs_f64(),
        })
    }

    /// Scores the model on the validation split and says whether it is the best so far.
    fn evaluate(&mut self, model: &T::Model) -> Result<bool, Error> {
        let metrics = in_span!("evaluate", self.task.evaluate(&model.valid(), Split::Valid))?;
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
        let _span = tracing::trace_span!("save").entered();
        // The log first: a checkpoint never knows of lines that a power cut could take away.
        self.position.metrics = self.log.sync()?;
        self.checkpoints.save(model, &self.optimizer, &self.position)?;
        self.checkpoints.prune(self.config.checkpoint.keep, &self.position)
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
