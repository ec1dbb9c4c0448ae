//! The training loop.

/// The value of an expression, computed inside of a span of this name: what a profile shows.
macro_rules! in_span {
    ($name:literal, $value:expr) => {
        tracing::trace_span!($name).in_scope(|| $value)
    };
}

mod ahead;
#[cfg(feature = "mpi")]
mod processes;
mod replica;
mod start;
mod threads;

use std::{
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use burn::module::Module;

use self::replica::Replica;
use crate::{
    checkpoint::Checkpoints,
    collective::{Alone, Collective, Order},
    conclusion::{Summary, conclude},
    config::Config,
    error::{Error, caught},
    gradients::Gradient,
    interrupt::Interrupt,
    logging::{EvaluationRow, MetricsLog, TrainRow},
    machine, optim,
    position::Position,
    progress::{Progress, Show, StepNumbers},
    task::{Split, Task, Throughput, Work},
    world::World,
};

/// What the command line adds to a configuration.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Go on with the run that the directory holds.
    pub resume: bool,
    /// What is seen of the run while it goes.
    pub show: Show,
    /// Directories that data files are searched in, in order.
    pub data_dirs: Vec<PathBuf>,
    /// The commit that the program was built from, for the record.
    pub commit: Option<String>,
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
    let size = config.device.replicas;
    threads::check_shares(config, size)?;
    if size == 1 {
        return lead::<T>(config, options, Rc::new(Alone));
    }
    threads::train::<T>(config, options, size)
}

/// As [`train`], together with the other processes of `world`; `None` for those that do not lead.
#[cfg_attr(not(feature = "mpi"), expect(unused_variables, reason = "there are no others"))]
pub(crate) fn train_in<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
    world: &World,
) -> Result<Option<Summary>, Error> {
    #[cfg(feature = "mpi")]
    if let Some((collective, local_rank)) = world.collective()? {
        return processes::train::<T>(config, options, collective, local_rank);
    }
    train::<T>(config, options).map(Some)
}

/// Takes part in the steps of a run that another replica leads.
fn follow<T: Task>(
    config: &Config<T::Config>,
    data_dirs: &[PathBuf],
    index: usize,
    collective: Rc<dyn Collective>,
) -> Result<(), Error> {
    let followed = caught("training", || {
        let (replica, model) = Replica::<T>::build(config, data_dirs, index, collective.clone())?;
        replica.follow(model)
    });
    if let Err(error) = &followed {
        collective.abort(&error.to_string());
    }
    // From here on nobody waits for this replica.
    let ended = followed?;
    caught("its end", || {
        drop(ended);
        Ok(())
    })
}

/// Trains as replica 0.
fn lead<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
    collective: Rc<dyn Collective>,
) -> Result<Summary, Error> {
    let led = lead_to_end::<T>(config, options, collective.clone());
    if let Err(error) = &led {
        // Between two steps the others were told already that it is over.
        collective.abort(&error.to_string());
    }
    led
}

fn lead_to_end<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
    collective: Rc<dyn Collective>,
) -> Result<Summary, Error> {
    let interrupt = Interrupt::listen()?;
    let (mut trainer, run, model) =
        caught("the start", || Trainer::<T>::start(config, options, collective))?;
    if trainer.is_over() {
        tracing::info!("nothing to train: {}", trainer.why_over());
    }
    let model = caught("training", || trainer.run(model, &interrupt)).map_err(|error| {
        // Should the directory be gone there is nothing to name.
        error.after(trainer.checkpoints.steps().unwrap_or_default().pop())
    })?;

    interrupt.end_at_once();
    // One that came while a run that was over already was opened.
    if let Some(signal) = interrupt.signal() {
        return Err(Error::Interrupted { signal, step: trainer.position.step });
    }
    let Trainer { replica: Replica { task, plan, .. }, position, progress, .. } = trainer;
    drop(progress);
    caught("the final evaluation", || {
        conclude(config, &run, &task, &model.valid(), &plan, &position)
    })
    .map_err(|error| error.after(Some(position.step)))
}

/// Everything of a run in progress but the model, which the optimiser consumes at every step.
struct Trainer<'a, T: Task> {
    config: &'a Config<T::Config>,
    replica: Replica<'a, T>,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: Progress,
    position: Position,
    started: Instant,
    /// Time in steps and samples of steps since the last line of the log, in this process.
    pace: (Duration, f64),
    /// What a sample takes, and how many operations a second all devices reach.
    work: (Option<Work>, Option<f64>),
}

impl<T: Task> Trainer<'_, T> {
    /// Trains to the end of the run.
    fn run(&mut self, mut model: T::Model, interrupt: &Interrupt) -> Result<T::Model, Error> {
        while !self.is_over() {
            self.order(Order::Step(self.position.step))?;
            let (gradient, busy) = self.differentiate(&model)?;
            let numbers;
            (model, numbers) = self.update(model, gradient, busy);
            let improved = self.record(&model, &numbers)?;

            let done = self.position.step;
            let signal = interrupt.signal().or_else(|| self.replica.collective.signal());
            if improved || self.replica.plan.saves(done) || self.is_over() || signal.is_some() {
                self.save(&model)?;
            }
            if signal.is_none() && self.is_over() && !self.replica.plan.ends(done) {
                let why = self.why_over();
                self.progress.line(format!("stopped at step {done}: {why}"));
            }
            if let Some(signal) = signal {
                self.order(Order::End)?;
                return Err(Error::Interrupted { signal, step: done });
            }
        }
        self.order(Order::End)?;
        Ok(model)
    }

    /// Tells the other replicas what to do.
    fn order(&self, order: Order) -> Result<(), Error> {
        self.replica.collective.broadcast(order.to_bytes()).map(drop)
    }

    /// Whether there is nothing left to train.
    fn is_over(&self) -> bool {
        self.replica.plan.ends(self.position.step)
            || self.position.out_of_patience(self.config.train.patience)
    }

    /// Of a run that is over.
    fn why_over(&self) -> String {
        let Position { step, evaluations_since_best, .. } = self.position;
        if self.replica.plan.ends(step) {
            return format!("all {} steps are done", self.replica.plan.total_steps);
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

    /// Gradient of the next step, and how long it took.
    fn differentiate(&self, model: &T::Model) -> Result<(Gradient, Duration), Error> {
        let clock = Instant::now();
        let gradient = self.replica.differentiate(model, self.position.step)?;
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
        let lr = self.replica.lr(step);
        let Gradient { params, loss, norm, weight, .. } = gradient;
        let model = in_span!("optimizer", {
            let model = optim::step(&mut self.replica.optimizer, lr, model, params);
            self.replica.settled(|| model)
        });

        let done = step + 1;
        self.position.step = done;
        self.position.next_micro_batch = self.replica.plan.micro_batches(done).start;
        self.position.losses.add(loss, weight);
        self.pace.0 += busy + clock.elapsed();
        self.pace.1 += weight;
        let numbers = StepNumbers { done, loss, lr, grad_norm: norm };
        let device = &self.replica.device;
        self.progress.step(&numbers, || {
            let pools = device.memory_pool_usage();
            pools.map(|pools| pools.bytes_reserved).or_else(machine::resident)
        });
        (model, numbers)
    }

    /// Logs and evaluates what is due after a step, and says whether the model is the best so far.
    fn record(&mut self, model: &T::Model, numbers: &StepNumbers) -> Result<bool, Error> {
        let done = numbers.done;
        let (logs, evaluates) = (self.replica.plan.logs(done), self.replica.plan.evaluates(done));
        if logs {
            self.log_step(numbers)?;
        }
        let mut improved = evaluates && self.evaluate(model)?;
        if self.replica.plan.ends(done) && !(logs && evaluates) {
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
        let samples_per_sec = samples / busy.as_secs_f64();
        let (work, peak) = self.work;
        let pace: Option<Throughput> = work.map(|work| work.throughput(samples_per_sec, peak));
        if let Some(pace) = &pace {
            self.progress.pace(pace);
        }
        self.log.append(&TrainRow {
            step: numbers.done,
            epoch: self.replica.plan.epoch(numbers.done - 1),
            split: "train",
            loss: std::mem::take(&mut self.position.losses).mean(),
            lr: numbers.lr,
            grad_norm: numbers.grad_norm,
            samples_per_sec,
            tokens_per_sec: pace.map(|pace| pace.tokens_per_sec),
            mfu: pace.and_then(|pace| pace.mfu),
            elapsed_secs: self.started.elapsed().as_secs_f64(),
        })
    }

    /// Scores the model on the validation split and says whether it is the best so far.
    fn evaluate(&mut self, model: &T::Model) -> Result<bool, Error> {
        let metrics =
            in_span!("evaluate", self.replica.task.evaluate(&model.valid(), Split::Valid))?;
        let selection = self.replica.task.selection();
        let value = *metrics
            .get(selection.metric)
            .unwrap_or_else(|| panic!("the task evaluates no metric `{}`", selection.metric));
        let improved = self.position.observe(value, selection.goal);
        let (done, total) = (self.position.step, self.replica.plan.total_steps);
        let epoch = self.replica.plan.epoch(done - 1);
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
        self.checkpoints.save(model, &self.replica.optimizer, &self.position)?;
        self.checkpoints.prune(self.config.checkpoint.keep, &self.position)
    }
}
