//! What every replica of a run holds, and the part of a step that it takes.

use std::{cell::RefCell, path::PathBuf, rc::Rc};

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    optim::ModuleOptimizer,
    tensor::{Bool, Device, ExecutionError, Int, Tensor},
};

use super::ahead::Ahead;
#[cfg(feature = "cube")]
use crate::recording::{Recorded, Recorder};
use crate::{
    checkpoint::Checkpoint,
    collective::{Collective, Order, share},
    config::Config,
    device,
    error::Error,
    gradients::{Accumulation, Gradient},
    optim,
    plan::{Plan, micro_batch_seed},
    task::{Task, TaskConfig},
};

/// Data, device and optimiser of a replica, and its way to the others.
pub(super) struct Replica<'a, T: Task> {
    pub(super) config: &'a Config<T::Config>,
    pub(super) task: T,
    pub(super) device: Device,
    pub(super) plan: Plan,
    pub(super) optimizer: ModuleOptimizer,
    pub(super) collective: Rc<dyn Collective>,
    /// Where the task reads while it trains.
    ahead: Option<RefCell<Ahead<T::Batch>>>,
    #[cfg(feature = "cube")]
    recorder: RefCell<Recorder<T::Input>>,
    on_host: bool,
    /// Whether a replica must not be disturbed by others while it computes a loss.
    in_turns: bool,
}

impl<'a, T: Task> Replica<'a, T> {
    /// Reads the data and builds the model with fresh parameters.
    pub(super) fn build(
        config: &'a Config<T::Config>,
        data_dirs: &[PathBuf],
        index: usize,
        collective: Rc<dyn Collective>,
    ) -> Result<(Self, T::Model), Error> {
        let turn = collective.turn();
        let device =
            device::open_for(&config.device.backend, index, config.train.precision)?.autodiff();
        let settings = config.settings(data_dirs.to_vec());
        let (task, model) = T::new(&config.task, &config.data, &config.model, &settings, &device)?;
        let model = model.map(&mut Settle { next_id: 1 });
        let plan = Plan::of(config, task.batches_per_epoch())?;
        let optimizer = optim::build(&config.optim, &model, &device);
        let on_host = device::is_host(&device);
        drop(turn);
        let in_turns = T::Config::draws_numbers(&config.model);
        let ahead = task.reader().map(Ahead::start).transpose()?.map(RefCell::new);
        #[cfg(feature = "cube")]
        let recorder = RefCell::new(Recorder::of(config, collective.size()));
        let replica = Self {
            config,
            task,
            device,
            plan,
            optimizer,
            collective,
            ahead,
            #[cfg(feature = "cube")]
            recorder,
            on_host,
            in_turns,
        };
        Ok((replica, model))
    }

    /// Gradient of a step over all replicas. Random numbers are those of the micro-batch, whatever
    /// came before it and whoever computes it.
    pub(super) fn differentiate(&self, model: &T::Model, step: u64) -> Result<Gradient, Error> {
        let batches = self.plan.micro_batches(step);
        let collective = self.collective.as_ref();
        let device_failed = |error: &ExecutionError| self.device_failed(error, step);
        let mut sum = Accumulation::new(batches.end - batches.start);
        for index in share(&batches, collective.rank(), collective.size()) {
            let batch = in_span!("data", self.batch(index, step))?;
            let turn = if self.in_turns { collective.turn() } else { None };
            let seed = micro_batch_seed(self.config.run.seed, step, index - batches.start);
            self.device.seed(seed);
            let input =
                in_span!("upload", self.settled(|| self.task.input(batch, seed, &self.device)));
            #[cfg(feature = "cube")]
            if let Some((loss, grads)) = in_span!("recorded", self.recorded(model, &input, seed)) {
                sum.set(model, loss, grads);
                continue;
            }
            let loss = in_span!("forward", self.settled(|| self.task.loss(model, input)));
            // All random numbers are drawn.
            drop(turn);
            in_span!("backward", self.settled(|| sum.add(model, loss)));
        }
        let clip_norm = self.config.train.clip_norm;
        let gradient = if collective.is_on_devices() {
            let begin = || sum.sum_on_devices(model, collective);
            let rows = in_span!("collective", self.settled(begin))?;
            let _span = tracing::trace_span!("norm").entered();
            sum.finish_on_devices(rows, model, clip_norm, collective, device_failed)?
        } else {
            if collective.size() > 1 {
                let _span = tracing::trace_span!("collective").entered();
                let numbers = sum.numbers().map_err(|error| device_failed(&error))?;
                sum.share(model, numbers, collective)?;
            }
            in_span!("norm", sum.finish(model, clip_norm, self.on_host))
                .map_err(|error| device_failed(&error))?
        };
        gradient.check_finite(model, step, |mine| self.samples(step, mine, gradient.loss))?;
        Ok(gradient)
    }

    /// Loss and gradient of a micro-batch, where they are replayed.
    #[cfg(feature = "cube")]
    fn recorded(&self, model: &T::Model, input: &T::Input, seed: u64) -> Option<Recorded> {
        let loss = |model: &T::Model, input| self.task.loss(model, input);
        let mut recorder = self.recorder.borrow_mut();
        self.settled(|| recorder.differentiate((&self.device, seed), model, input, loss))
    }

    /// Names of the samples that are to blame for a step: those of the micro-batches whose loss is not
    /// finite, or of all where `loss`, the mean, is. `mine` says it of those that were computed here.
    fn samples(&self, step: u64, mine: &[bool], loss: f64) -> Vec<String> {
        let batches = self.plan.micro_batches(step);
        let indices: Vec<u64> =
            share(&batches, self.collective.rank(), self.collective.size()).collect();
        let is_to_blame = |index: &u64| match indices.iter().position(|own| own == index) {
            _ if loss.is_finite() => true,
            Some(place) => mine.get(place).is_none_or(|not_finite| *not_finite),
            // Another replica knows.
            None => !mine.contains(&true),
        };
        batches.filter(is_to_blame).flat_map(|index| self.task.samples(index)).collect()
    }

    /// A micro-batch of a step. The next one is read from now on, if the task reads.
    fn batch(&self, index: u64, step: u64) -> Result<T::Batch, Error> {
        let Some(ahead) = &self.ahead else { return self.task.batch(index) };
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let steps = (step..=step + 1).filter(|step| !self.plan.ends(*step));
        let mine = steps.flat_map(|step| share(&self.plan.micro_batches(step), rank, size));
        let next = mine.into_iter().find(|later| *later > index);
        ahead.borrow_mut().take(index, next)
    }

    /// What `compute` returns. Where a profile is written, the device is waited for, so that a span is
    /// as long as what is done in it and not as the time to hand it over.
    pub(super) fn settled<R>(&self, compute: impl FnOnce() -> R) -> R {
        let computed = compute();
        if !self.on_host && tracing::span_enabled!(tracing::Level::TRACE) {
            // A failure shows where the loss is read.
            let _ = self.device.sync();
        }
        computed
    }

    /// Learning rate of a step.
    pub(super) fn lr(&self, step: u64) -> f64 {
        let Plan { total_steps, steps_per_epoch, .. } = self.plan;
        let factor = self.config.schedule.factor(step, total_steps, steps_per_epoch);
        self.config.optim.lr() * factor
    }

    fn device_failed(&self, error: &ExecutionError, step: u64) -> Error {
        Error::Device {
            device: self.config.device.backend.clone(),
            message: format!("failed at step {step}: {error}"),
            hint: Some(
                "continue with `--resume`; if memory ran out, `device.record_steps=false` or a new run \
                 with a smaller `train.batch_size` and more `train.accumulate` needs less"
                    .into(),
            ),
        }
    }

    /// Does what replica 0 says, until it says that it is over; what is left is the caller's to drop.
    pub(super) fn follow(mut self, mut model: T::Model) -> Result<(Self, T::Model), Error> {
        let start = Checkpoint::unpack(&self.collective.broadcast(Vec::new())?)?;
        model = start.model(model)?;
        self.optimizer = start.optimizer(self.optimizer)?;
        drop(start);
        while let Order::Step(step) = Order::of(&self.collective.broadcast(Vec::new())?) {
            let gradient = self.differentiate(&model, step)?;
            let lr = self.lr(step);
            model = optim::step(&mut self.optimizer, lr, model, gradient.params);
        }
        Ok((self, model))
    }
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
