//! The gradient of a micro-batch as one launch.
//!
//! A step of a small model is hundreds of launches of a few microseconds each, and the host needs longer
//! to order them than the device to do them. Where the driver can, those of loss and gradient are recorded
//! once; from then on a step writes its micro-batch into the memory that the record reads, and replays it.
//! The kernels are the same, so the numbers are too. What a record reads and writes stays where it is:
//! parameters do, as the optimiser steps them in place, which is looked at before every replay.

mod cube;
mod kernel;

use std::time::{Duration, Instant};

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};

use self::cube::{Kept, Launches, Places, Rows};
use crate::{
    config::Config,
    task::{Input, Loss, TaskConfig},
};

/// Steps that take longer keep their device busy, and what they need of its memory is better not held: on an
/// H200 language models gained 50 % at 36 ms a step and 9 % at 52, but 3 % at 57 and at 82, where a gigabyte and
/// six were held for it (experiments/2026-11-27-gpu-recipe).
const LONGEST: Duration = Duration::from_millis(55);

/// Steps before the record is made.
const BEFORE: usize = 4;

/// Of these the first, in which kernels are compiled and tuned.
const COMPILING: usize = 2;

/// Steps after which it is clear that they are long, and that none of them waited for others.
const PATIENCE: usize = 32;

/// Times that everything is computed before it is recorded, so that memory for all of it is at hand: none
/// can be allocated while a record is made.
const WARM_UPS: usize = 3;

/// Records that are made of a run, should its parameters move or its batches change.
const RECORDS: usize = 3;

/// Batches of other sizes in a row after which a record is of no use.
const MISSES: u32 = 16;

/// Replays between two backward passes of nothing.
const SWEEP: u64 = 64;

/// Mean loss and gradient of a micro-batch, outside of the graph of autodiff.
pub(crate) type Recorded = (Loss, GradientsParams);

/// Computes losses and gradients the way that is faster for a model.
pub(crate) struct Recorder<I> {
    state: State<I>,
    records: usize,
}

enum State<I> {
    Waiting(Waiting),
    Recorded(Box<Record<I>>),
    /// Steps are too long, or cannot be recorded.
    Off,
}

/// What is known of steps that are launched one by one.
struct Waiting {
    /// When the last one began.
    begun: Option<Instant>,
    /// How many have ended, and how long the shortest took, but for those that compile.
    steps: usize,
    shortest: Duration,
    /// Of the last input.
    shapes: Vec<Vec<usize>>,
}

impl Waiting {
    fn new() -> Self {
        Self { begun: None, steps: 0, shortest: Duration::MAX, shapes: Vec::new() }
    }

    /// The time of a step once it is known, before one whose batch is like that of the last.
    fn look(&mut self, rows: &Rows) -> Option<Duration> {
        let now = Instant::now();
        if let Some(begun) = self.begun.replace(now) {
            self.steps += 1;
            // An evaluation may lie between two of them.
            if self.steps > COMPILING {
                self.shortest = self.shortest.min(now - begun);
            }
        }
        let shapes = rows.shapes();
        let is_alike = self.shapes == shapes;
        self.shapes = shapes;
        let is_known = self.shortest <= LONGEST || self.steps >= PATIENCE;
        (is_alike && is_known && self.steps >= BEFORE).then_some(self.shortest)
    }
}

impl<I: Input> Recorder<I> {
    /// Of a run of so many replicas. A record holds the gradient of one micro-batch, and needs the driver for
    /// itself while it is made.
    pub(crate) fn of<C: TaskConfig>(config: &Config<C>, replicas: usize) -> Self {
        let is_alone = replicas == 1 && config.train.accumulate == 1;
        Self::new(is_alone && config.device.record_steps)
    }

    /// With `is_allowed` false nothing is ever recorded.
    pub(crate) fn new(is_allowed: bool) -> Self {
        let state = if is_allowed { State::Waiting(Waiting::new()) } else { State::Off };
        Self { state, records: 0 }
    }

    /// Mean loss and gradient of the micro-batch `input`; `None` where they are to be computed as usual,
    /// by `loss` and a backward pass, with the generator of the device as `seed` leaves it.
    pub(crate) fn differentiate<M: Module>(
        &mut self,
        (device, seed): (&Device, u64),
        model: &M,
        input: &I,
        loss: impl Fn(&M, I) -> Loss,
    ) -> Option<Recorded> {
        if matches!(self.state, State::Off) || !input.is_recordable() {
            return None;
        }
        let Some(rows) = Rows::of(input) else {
            self.state = State::Off;
            return None;
        };
        if let State::Waiting(waiting) = &mut self.state {
            let shortest = waiting.look(&rows)?;
            self.state = self.record((device, seed), model, input, loss, shortest);
        }
        let State::Recorded(record) = &mut self.state else { return None };
        if !record.is_of(&rows) {
            if record.misses >= MISSES {
                self.give_up("batches have other sizes");
            }
            return None;
        }
        if Places::of(model).as_ref() != Some(&record.places) {
            self.give_up("parameters are elsewhere");
            return None;
        }
        let replayed = record.replay(device, model, rows);
        if replayed.is_none() {
            tracing::warn!("a recorded step cannot be replayed: steps are launched one by one");
            self.state = State::Off;
        }
        replayed
    }

    fn record<M: Module>(
        &mut self,
        (device, seed): (&Device, u64),
        model: &M,
        input: &I,
        loss: impl Fn(&M, I) -> Loss,
        shortest: Duration,
    ) -> State<I> {
        if shortest > LONGEST {
            tracing::debug!("steps of {shortest:?} keep the device busy: they are not recorded");
            return State::Off;
        }
        self.records += 1;
        match Record::of(device, model, input, loss) {
            Ok(record) => {
                tracing::info!("the launches of a step are recorded and replayed from here on");
                State::Recorded(Box::new(record))
            }
            Err(reason) => {
                tracing::info!(
                    "steps are launched one by one, as they cannot be recorded: {reason}"
                );
                // Whatever was drawn in the attempt is drawn once more.
                device.seed(seed);
                State::Off
            }
        }
    }

    /// Drops a record that is of no use any more.
    fn give_up(&mut self, reason: &str) {
        let is_last = self.records >= RECORDS;
        let then =
            if is_last { "steps are launched one by one" } else { "another one will be made" };
        tracing::info!("the record of a step is dropped, as {reason}; {then}");
        self.state = if is_last { State::Off } else { State::Waiting(Waiting::new()) };
    }
}

/// A recorded step, and what it reads and leaves.
struct Record<I> {
    launches: Launches,
    kept: Kept,
    /// Made of `kept`; held, as a replay reads it.
    _input: I,
    /// Overwritten by every replay, `[1]`.
    mean: Tensor<1>,
    weight: f64,
    /// Overwritten by every replay.
    grads: GradientsParams,
    /// Where the parameters were.
    places: Places,
    /// Batches of other sizes since the last replay.
    misses: u32,
    replays: u64,
}

impl<I: Input> Record<I> {
    fn of<M: Module>(
        device: &Device,
        model: &M,
        input: &I,
        loss: impl Fn(&M, I) -> Loss,
    ) -> Result<Self, String> {
        let rows = Rows::of(input).ok_or("the input is not of words on the device")?;
        let places = Places::of(model).ok_or("the parameters are on another device")?;
        let kept = Kept::like(&rows);
        let input = kept.input(input.clone());
        kept.fill(rows);
        let compute = || {
            let Loss { mean, weight } = loss(model, input.clone());
            let value = mean.clone().inner();
            (value, weight, GradientsParams::from_grads(mean.backward(), model))
        };
        let warm_up = |_| {
            let (mean, ..) = compute();
            mean.try_into_data().map(|data| data.iter::<f64>().map(f64::to_bits).next())
        };
        let rehearse = || {
            let losses: Result<Vec<_>, _> = (0..WARM_UPS).map(warm_up).collect();
            let losses = losses.map_err(|error| error.to_string())?;
            // It draws numbers of a generator of the host, say.
            let differs = losses.iter().any(|loss| *loss != losses[0]);
            if differs {
                Err("the loss of one input differs from time to time".to_owned())
            } else {
                Ok(())
            }
        };
        let (launches, (mean, weight, grads)) = Launches::record(device, rehearse, compute)?;
        Ok(Self {
            launches,
            kept,
            _input: input,
            mean,
            weight,
            grads,
            places,
            misses: 0,
            replays: 0,
        })
    }

    /// Whether this input has the sizes of the recorded one.
    fn is_of(&mut self, rows: &Rows) -> bool {
        let fits = self.kept.fits(rows);
        self.misses = if fits { 0 } else { self.misses + 1 };
        fits
    }

    /// Loss and gradient of an input that fits; both are overwritten by the next replay. `None` if the
    /// driver refuses.
    fn replay<M: Module>(&mut self, device: &Device, model: &M, rows: Rows) -> Option<Recorded> {
        self.kept.fill(rows);
        // SAFETY: input, loss and gradients are held here, parameters are where they were, and what lies
        // between them the server keeps for the graph. All of it is written by this thread, on the stream
        // of the graph, and of the step before nobody reads loss or gradient any more: it has ended.
        if !unsafe { self.launches.replay() } {
            return None;
        }
        self.replays += 1;
        if self.replays.is_multiple_of(SWEEP) {
            // Burn remembers every parameter of every step until something is differentiated.
            let nothing = Tensor::<1>::zeros([1], device).require_grad();
            let _ = (nothing * 1.0).backward();
        }
        let mut handles = Handles { of: &self.grads, params: GradientsParams::new() };
        model.visit(&mut handles);
        let loss = Loss { mean: self.mean.clone(), weight: self.weight };
        Some((loss, handles.params))
    }
}

/// Takes handles of all gradients.
struct Handles<'a> {
    of: &'a GradientsParams,
    params: GradientsParams,
}

impl ModuleVisitor for Handles<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.of.get::<D>(param.id) {
            self.params.register::<D>(param.id, grad);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        nn::Linear,
        tensor::{Distribution, TensorData, activation::tanh},
    };

    use super::*;
    use crate::{config::Optim, optim, task::InputMapper};

    #[derive(Module, Debug)]
    struct Network {
        hidden: Linear,
        out: Linear,
    }

    #[derive(Clone)]
    struct Pairs {
        x: Tensor<2>,
        y: Tensor<2>,
    }

    impl Input for Pairs {
        fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
            Self { x: self.x.map_tensors(mapper), y: self.y.map_tensors(mapper) }
        }
    }

    /// Not drawn: other tests use the generator of the device too.
    fn network(device: &Device) -> Network {
        let layer = |d_in: usize, d_out: usize| {
            let values = |len: usize| (0..len).map(|i| (i as f32 * 1.3).cos()).collect::<Vec<_>>();
            let weight = TensorData::new(values(d_in * d_out), [d_in, d_out]);
            let bias = TensorData::new(values(d_out), [d_out]);
            Linear {
                weight: Param::from_tensor(Tensor::from_data(weight, device)),
                bias: Some(Param::from_tensor(Tensor::from_data(bias, device))),
            }
        };
        Network { hidden: layer(3, 5), out: layer(5, 2) }
    }

    fn pairs(step: usize, n: usize, device: &Device) -> Pairs {
        let values = |width: usize, scale: f32| {
            let values = (0..n * width).map(|i| ((i + 7 * step) as f32 * scale).sin()).collect();
            Tensor::from_data(TensorData::new(values, [n, width]), device)
        };
        Pairs { x: values(3, 0.7), y: values(2, 0.3) }
    }

    fn loss(network: &Network, Pairs { x, y }: Pairs) -> Loss {
        let predicted = network.out.forward(tanh(network.hidden.forward(x)));
        let [n, _] = y.dims();
        Loss { mean: (predicted - y).square().mean(), weight: n as f64 }
    }

    /// Losses of a run, its last weights, and which of its steps were replayed. A batch has as many
    /// samples as `size` says of its step.
    fn run(
        device: &Device,
        is_allowed: bool,
        size: impl Fn(usize) -> usize,
        change: impl Fn(usize, Network) -> Network,
    ) -> (Vec<f32>, Vec<f32>, Vec<bool>) {
        let device = device.clone().autodiff();
        let mut network = network(&device);
        let config = Optim::Adam { lr: 1e-2, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let mut optimizer = optim::build(&config, &network, &device);
        let mut recorder = Recorder::new(is_allowed);
        let (mut losses, mut replayed) = (Vec::new(), Vec::new());
        for step in 0..12 {
            network = change(step, network);
            let input = pairs(step, size(step), &device);
            let recorded = recorder.differentiate((&device, 0), &network, &input, loss);
            replayed.push(recorded.is_some());
            let (Loss { mean, weight }, grads) = recorded.unwrap_or_else(|| {
                let Loss { mean, weight } = loss(&network, input);
                let value = Loss { mean: mean.clone().inner(), weight };
                (value, GradientsParams::from_grads(mean.backward(), &network))
            });
            assert_eq!(weight, size(step) as f64);
            losses.push(mean.into_scalar::<f32>());
            network = optim::step(&mut optimizer, 1e-2, network, grads);
        }
        let weights = network.hidden.weight.val().into_data().try_into_vec().unwrap();
        (losses, weights, replayed)
    }

    /// Needs the GPU that the variable `SSM_TEST_DEVICE` names, as the other tests here; passes without.
    #[test]
    fn a_replayed_step_has_the_numbers_of_a_launched_one() {
        let Some(device) = crate::device::test_device() else { return };
        let launched = run(&device, false, |_| 4, |_, network| network);
        let replayed = run(&device, true, |_| 4, |_, network| network);
        assert_eq!(launched.2, [false; 12]);
        assert_eq!(replayed.2, [[false; BEFORE].as_slice(), &[true; 12 - BEFORE]].concat());
        assert_eq!(launched.0, replayed.0);
        assert_eq!(launched.1, replayed.1);
        let fresh = network(&device).hidden.weight.val().into_data();
        assert_ne!(launched.1, fresh.try_into_vec::<f32>().unwrap());
    }

    #[test]
    fn a_batch_of_another_size_is_launched() {
        let Some(device) = crate::device::test_device() else { return };
        let size = |step| if step % 3 == 2 { 3 } else { 4 };
        let launched = run(&device, false, size, |_, network| network);
        let replayed = run(&device, true, size, |_, network| network);
        let expected: Vec<bool> = (0..12).map(|step| step >= BEFORE && size(step) == 4).collect();
        assert_eq!(replayed.2, expected);
        assert_eq!((launched.0, launched.1), (replayed.0, replayed.1));
    }

    #[test]
    fn parameters_that_moved_are_recorded_anew() {
        let Some(device) = crate::device::test_device() else { return };
        let change = |step, mut network: Network| {
            if step == 6 {
                // What is in use is not overwritten, so the product is elsewhere.
                let kept = network.hidden.weight.val().inner();
                let moved = |w: Tensor<2>| Tensor::from_inner(w.inner() * 1.0).require_grad();
                network.hidden.weight = network.hidden.weight.map(moved);
                drop(kept);
            }
            network
        };
        let launched = run(&device, false, |_| 4, change);
        let replayed = run(&device, true, |_| 4, change);
        let expected =
            [false, false, false, false, true, true, false, false, false, false, false, true];
        assert_eq!(replayed.2, expected);
        assert_eq!((launched.0, launched.1), (replayed.0, replayed.1));
    }

    #[test]
    fn a_loss_that_draws_numbers_of_the_host_is_not_recorded() {
        let Some(device) = crate::device::test_device() else { return };
        let device = device.autodiff();
        let network = network(&device);
        let noisy = |network: &Network, mut input: Pairs| {
            input.x = input.x.clone() + input.x.random_like(Distribution::Default);
            loss(network, input)
        };
        let run = |is_allowed: bool| {
            let mut recorder = Recorder::new(is_allowed);
            let losses = (0..8).map(|step| {
                let input = pairs(step, 4, &device);
                device.seed(step as u64);
                let at = (&device, step as u64);
                assert!(recorder.differentiate(at, &network, &input, noisy).is_none());
                noisy(&network, input).mean.into_scalar::<f32>()
            });
            let losses: Vec<f32> = losses.collect();
            assert!(matches!(recorder.state, State::Off));
            losses
        };
        // The attempt to record leaves no trace.
        assert_eq!(run(true), run(false));
    }

    /// Burn would remember each of them until something is differentiated: 5 MB in a thousand steps here.
    #[test]
    fn parameters_of_replayed_steps_are_forgotten() {
        const ALONE: &str = "SSM_TEST_ALONE";
        let Some(device) = crate::device::test_device() else { return };
        if std::env::var_os(ALONE).is_none() {
            // In a process of its own: what others allocate is none of its business.
            let name = "recording::tests::parameters_of_replayed_steps_are_forgotten";
            let program = std::env::current_exe().unwrap();
            let ended = std::process::Command::new(program)
                .args(["--exact", name])
                .env(ALONE, "1")
                .output()
                .unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
            return;
        }
        let device = device.autodiff();
        let mut network = network(&device);
        let config = Optim::Adam { lr: 1e-2, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let mut optimizer = optim::build(&config, &network, &device);
        let mut recorder = Recorder::new(true);
        let input = pairs(0, 4, &device);
        let mut resident = Vec::new();
        for step in 0..3000 {
            let recorded = recorder.differentiate((&device, 0), &network, &input, loss);
            let launched = || loss(&network, input.clone()).mean.backward();
            let grads = match recorded {
                Some((_, grads)) => grads,
                None => GradientsParams::from_grads(launched(), &network),
            };
            network = optim::step(&mut optimizer, 1e-2, network, grads);
            if step % 1000 == 999 {
                device.sync().unwrap();
                resident.extend(crate::machine::resident());
            }
        }
        if let [_, before, after] = resident[..] {
            assert!(after < before + (2 << 20), "{resident:?}");
        }
    }

    /// An input that says of itself whether it can be recorded.
    #[derive(Clone)]
    struct Marked(Pairs, bool);

    impl Input for Marked {
        fn is_recordable(&self) -> bool {
            self.1
        }

        fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
            Self(self.0.map_tensors(mapper), self.1)
        }
    }

    #[test]
    fn what_cannot_be_recorded_is_not_replayed_either() {
        let Some(device) = crate::device::test_device() else { return };
        let device = device.autodiff();
        let network = network(&device);
        let mut recorder = Recorder::new(true);
        let mut is_replayed = |step: usize, is_recordable: bool| {
            let input = Marked(pairs(step, 4, &device), is_recordable);
            let loss = |network: &Network, Marked(pairs, _): Marked| loss(network, pairs);
            recorder.differentiate((&device, 0), &network, &input, loss).is_some()
        };
        let replayed: Vec<bool> = (0..8).map(|step| is_replayed(step, step != 6)).collect();
        assert_eq!(replayed, [false, false, false, false, true, true, false, true]);
    }

    #[test]
    fn a_size_that_does_not_come_again_is_not_recorded_for_good() {
        let Some(device) = crate::device::test_device() else { return };
        let device = device.autodiff();
        let network = network(&device);
        let mut recorder = Recorder::new(true);
        let mut replays = |steps: std::ops::Range<usize>, size: fn(usize) -> usize| {
            let replayed = steps.filter(|step| {
                let input = pairs(*step, size(*step), &device);
                recorder.differentiate((&device, 0), &network, &input, loss).is_some()
            });
            replayed.count()
        };
        // The fifth batch is smaller than all others: the record is made of the seventh.
        assert_eq!(replays(0..10, |step| if step == 4 { 2 } else { 4 }), 4);
        // From now on batches are larger.
        let misses = MISSES as usize;
        assert_eq!(replays(10..10 + misses, |_| 5), 0);
        assert_eq!(replays(10 + misses..20 + misses, |_| 5), 10 - BEFORE);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_seen_in_a_replay() {
        let Some(device) = crate::device::test_device() else { return };
        let device = device.autodiff();
        let network = network(&device);
        let mut recorder = Recorder::new(true);
        for step in 0..8 {
            let mut input = pairs(step, 4, &device);
            if step == 6 {
                input.x = input.x * f32::NAN;
            }
            let recorded = recorder.differentiate((&device, 0), &network, &input, loss);
            assert_eq!(recorded.is_some(), step >= BEFORE);
            let Some((Loss { mean, .. }, grads)) = recorded else { continue };
            let grad = grads.get::<2>(network.out.weight.id).unwrap().sum().into_scalar::<f32>();
            let values = [mean.into_scalar::<f32>(), grad];
            assert_eq!(values.map(f32::is_nan), [step == 6; 2], "step {step}");
        }
    }
}
