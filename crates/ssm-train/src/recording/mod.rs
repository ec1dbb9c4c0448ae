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

use self::cube::{Kept, Launches, Places, Rows};
use crate::task::{Input, Loss};
use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};

/// Steps that take longer keep their device busy, and what they need of its memory is better not held.
const LONGEST: Duration = Duration::from_millis(30);

/// Steps before the record is made: in the first ones kernels are compiled and tuned.
const BEFORE: usize = 4;

/// Times that everything is computed before it is recorded, so that memory for all of it is at hand: none
/// can be allocated while a record is made.
const WARM_UPS: usize = 3;

/// Records that are made of a run, should its parameters move.
const RECORDS: usize = 3;

/// Mean loss and gradient of a micro-batch, outside of the graph of autodiff.
pub(crate) type Recorded = (Loss, GradientsParams);

/// Computes losses and gradients the way that is faster for a model.
pub(crate) struct Recorder<I> {
    state: State<I>,
    records: usize,
}

enum State<I> {
    /// Steps are looked at: when the last one began, and how long those before it took.
    Waiting(Option<Instant>, Vec<Duration>),
    Recorded(Box<Record<I>>),
    /// They are too long, or cannot be recorded.
    Off,
}

impl<I: Input> Recorder<I> {
    /// With `is_allowed` false nothing is ever recorded.
    pub(crate) fn new(is_allowed: bool) -> Self {
        let state = if is_allowed { State::Waiting(None, Vec::new()) } else { State::Off };
        Self { state, records: 0 }
    }

    /// Mean loss and gradient of the micro-batch `input`; `None` where they are to be computed as usual,
    /// by `loss` and a backward pass.
    pub(crate) fn differentiate<M: Module>(
        &mut self,
        device: &Device,
        model: &M,
        input: &I,
        loss: impl Fn(&M, I) -> Loss,
    ) -> Option<Recorded> {
        if let State::Waiting(begun, times) = &mut self.state {
            let now = Instant::now();
            times.extend(begun.replace(now).map(|begun| now - begun));
            // An evaluation may lie between two of them.
            let shortest = times.get(BEFORE - 2..).and_then(|times| times.iter().min().copied());
            if let Some(shortest) = shortest.filter(|_| times.len() >= BEFORE) {
                self.state = self.record(device, model, input, loss, shortest);
            }
        }
        let State::Recorded(record) = &self.state else { return None };
        let rows = Rows::of(input).filter(|rows| record.kept.fits(rows))?;
        if Places::of(model).as_ref() != Some(&record.places) {
            self.state =
                if self.records < RECORDS { State::Waiting(None, Vec::new()) } else { State::Off };
            return None;
        }
        record.replay(model, rows).or_else(|| {
            tracing::warn!("a recorded step cannot be replayed: steps are launched one by one");
            self.state = State::Off;
            None
        })
    }

    fn record<M: Module>(
        &mut self,
        device: &Device,
        model: &M,
        input: &I,
        loss: impl Fn(&M, I) -> Loss,
        shortest: Duration,
    ) -> State<I> {
        if shortest > LONGEST || !input.is_recordable() {
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
                State::Off
            }
        }
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
        Ok(Self { launches, kept, _input: input, mean, weight, grads, places })
    }

    /// Loss and gradient of an input that fits; both are overwritten by the next replay. `None` if the
    /// driver refuses.
    fn replay<M: Module>(&self, model: &M, rows: Rows) -> Option<Recorded> {
        self.kept.fill(rows);
        // SAFETY: input, loss and gradients are held here, parameters are where they were, and what lies
        // between them the server keeps for the graph. All of it is written by this thread, on the stream
        // of the graph.
        if !unsafe { self.launches.replay() } {
            return None;
        }
        let mut copy = Copied { from: &self.grads, to: GradientsParams::new() };
        model.visit(&mut copy);
        let loss = Loss { mean: self.mean.clone(), weight: self.weight };
        Some((loss, copy.to))
    }
}

/// Takes handles of all gradients.
struct Copied<'a> {
    from: &'a GradientsParams,
    to: GradientsParams,
}

impl ModuleVisitor for Copied<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.from.get::<D>(param.id) {
            self.to.register::<D>(param.id, grad);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        nn::{Linear, LinearConfig},
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

    fn network(device: &Device) -> Network {
        device.seed(3);
        Network {
            hidden: LinearConfig::new(3, 5).init(device),
            out: LinearConfig::new(5, 2).init(device),
        }
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
            let recorded = recorder.differentiate(&device, &network, &input, loss);
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
        let mut recorder = Recorder::new(true);
        for step in 0..8 {
            let input = pairs(step, 4, &device);
            let noisy = |network: &Network, mut input: Pairs| {
                input.x = input.x.clone() + input.x.random_like(Distribution::Default);
                loss(network, input)
            };
            assert!(recorder.differentiate(&device, &network, &input, noisy).is_none());
        }
        assert!(matches!(recorder.state, State::Off));
    }
}
