//! Steps of a configuration, with their time and memory.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use burn::{module::Module, tensor::Device};

use super::{Limit, Measured, SAVING_BYTES};
#[cfg(feature = "cube")]
use crate::recording::Recorder;
use crate::{
    allocation,
    config::Config,
    device,
    error::Error,
    gradients::Accumulation,
    machine, optim,
    plan::{Plan, step_seed},
    task::{Task, Work},
};

/// Parts of a step, in their order. The first three are taken once a micro-batch, the others once a step.
pub(super) const PARTS: [&str; 5] = ["data", "forward", "backward", "norm", "optimizer"];

/// The same where loss and gradient are replayed as one.
const REPLAYED: [&str; 5] = ["data", "forward, backward", "backward", "norm", "optimizer"];

/// What is needed to do steps.
pub(super) struct Steps<'a, T: Task> {
    config: &'a Config<T::Config>,
    device: Device,
    task: T,
    model: T::Model,
    pub(super) plan: Plan,
}

/// What steps took.
#[derive(Clone)]
pub(super) struct Times {
    /// Of each step the time of each part.
    pub(super) laps: Vec<[Duration; 5]>,
    pub(super) names: [&'static str; 5],
    pub(super) parts: [Duration; 5],
    /// Samples of a step, on average.
    pub(super) samples: f64,
    pub(super) work: Option<Work>,
    /// Operations a second that the device reaches, where it is known.
    pub(super) peak_flops: Option<f64>,
    pub(super) parameters: usize,
    /// The most memory in use at a time.
    pub(super) peak: Option<u64>,
    /// What the device holds, if it has memory of its own.
    pub(super) on_device: Option<u64>,
}

impl<'a, T: Task> Steps<'a, T> {
    /// Reads the data and builds the model.
    pub(super) fn prepare(
        config: &'a Config<T::Config>,
        data_dirs: &[PathBuf],
    ) -> Result<Self, Error> {
        let (backend, index) = (&config.device.backend, config.device.index);
        let device = device::open_for(backend, index, config.train.precision)?.autodiff();
        let settings = config.settings(data_dirs.to_vec());
        let (task, model) = T::new(&config.task, &config.data, &config.model, &settings, &device)?;
        let plan = Plan::of(config, task.batches_per_epoch())?;
        Ok(Self { config, device, task, model, plan })
    }

    pub(super) fn parameters(&self) -> usize {
        self.model.num_params()
    }

    /// Does steps until a limit is reached.
    pub(super) fn measure(self, limit: Limit) -> Result<Times, Error> {
        let Self { config, device, task, mut model, plan } = self;
        let parameters = model.num_params();
        allocation::count();
        let mut optimizer = optim::build(&config.optim, &model, &device);
        let on_host = device::is_host(&device);
        let failed = |message: String| Error::Device {
            device: config.device.backend.clone(),
            message,
            hint: Some(
                "a smaller `train.batch_size` with `train.accumulate` needs less memory".into(),
            ),
        };
        let started = Instant::now();
        let mut laps: Vec<[Duration; 5]> = Vec::new();
        let mut samples = Vec::new();
        #[cfg(feature = "cube")]
        let mut recorder = Recorder::of(config, 1);
        // The lap that makes the record; those before it are launched one by one, those after it replayed.
        #[cfg_attr(not(feature = "cube"), expect(unused_mut, reason = "nothing is recorded"))]
        let mut recorded_at: Option<usize> = None;
        for step in 0..=limit.steps.min(plan.total_steps) {
            let mut lap = [Duration::ZERO; 5];
            let mut clock = Instant::now();
            let mut end = |part: usize, lap: &mut [Duration; 5]| {
                lap[part] += clock.elapsed();
                clock = Instant::now();
            };
            let seed = step_seed(config.run.seed, step);
            device.seed(seed);
            let batches = plan.micro_batches(step);
            let mut sum = Accumulation::new(batches.end - batches.start);
            for index in batches {
                let batch = task.batch(index)?;
                end(0, &mut lap);
                let input = task.input(batch, seed, &device);
                #[cfg(feature = "cube")]
                if let Some((loss, grads)) =
                    recorder.differentiate((&device, seed), &model, &input, |model, input| {
                        task.loss(model, input)
                    })
                {
                    end(1, &mut lap);
                    sum.set(&model, loss, grads);
                    recorded_at.get_or_insert(laps.len());
                    continue;
                }
                let loss = task.loss(&model, input);
                end(1, &mut lap);
                sum.add(&model, loss);
                end(2, &mut lap);
            }
            let gradient = sum.finish(&model, config.train.clip_norm, on_host);
            let gradient = gradient.map_err(|error| failed(error.to_string()))?;
            end(3, &mut lap);
            samples.push(gradient.weight);
            model = optim::step(&mut optimizer, config.optim.lr(), model, gradient.params);
            device.sync().map_err(|error| failed(error.to_string()))?;
            end(4, &mut lap);
            laps.push(lap);
            if step > 0 && started.elapsed() > limit.time {
                break;
            }
        }
        let of_interest = match recorded_at {
            Some(lap) if lap + 1 < laps.len() => lap + 1..laps.len(),
            Some(lap) => 1..lap,
            None => 1..laps.len(),
        };
        let is_replayed = recorded_at.is_some_and(|lap| lap < of_interest.start);
        let (laps, samples) = (laps[of_interest.clone()].to_vec(), &samples[of_interest]);
        let names = if is_replayed { REPLAYED } else { PARTS };
        let part = |part: usize| median(laps.iter().map(|lap| lap[part]).collect());
        let pools = device.memory_pool_usage();
        Ok(Times {
            names,
            parts: std::array::from_fn(part),
            samples: samples.iter().sum::<f64>() / samples.len().max(1) as f64,
            work: task.work(&model),
            peak_flops: device::peak_flops(&device, config.train.precision),
            parameters,
            peak: allocation::peak(),
            on_device: pools.map(|pools| pools.bytes_reserved),
            laps,
        })
    }
}

impl Times {
    /// Median time of a step.
    pub(super) fn step(&self) -> Duration {
        median(self.laps.iter().map(|lap| lap.iter().sum()).collect())
    }

    /// For people; the memory is that of the process up to now.
    pub(super) fn measured(&self) -> Measured {
        let total: Duration = self.laps.iter().flatten().sum();
        let step = total.div_f64(self.laps.len().max(1) as f64);
        let memory = self.memory(machine::peak(), self.parameters as u64);
        Measured { step: self.step(), memory, ..self.scaled(self.parts, step, 1.0) }
    }

    /// That of the device, or what steps take on the processor, or what saving takes there.
    pub(super) fn memory(&self, steps: Option<u64>, parameters: u64) -> Option<u64> {
        let saving = with_program(parameters * SAVING_BYTES);
        self.on_device.or_else(|| steps.map(|steps| steps.max(saving)))
    }

    /// The same of larger steps: of these parts, of this length, and of `ratio` times the samples.
    pub(super) fn scaled(&self, parts: [Duration; 5], step: Duration, ratio: f64) -> Measured {
        let samples_per_sec = self.samples * ratio / step.as_secs_f64();
        let throughput = self.work.map(|work| work.throughput(samples_per_sec, self.peak_flops));
        Measured {
            steps: self.laps.len() as u64,
            scaled_from: None,
            step,
            parts: std::array::from_fn(|part| (self.names[part], parts[part])),
            samples_per_sec,
            throughput,
            memory: self.on_device,
        }
    }
}

/// Bytes that the process takes with so many in use.
pub(super) fn with_program(in_use: u64) -> u64 {
    in_use + machine::mapped().unwrap_or_default()
}

/// Zero for no times at all.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
