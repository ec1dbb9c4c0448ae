//! The cost of steps that take too long to be done for an estimate: a part of the model does a part of
//! a step, and what that takes is scaled.
//!
//! Layers are equal, tokens and samples are treated alike: time and memory of activations grow in a
//! straight line with each of the three. One and two layers give the line's two points; everything
//! that is not a layer is in both.

use std::{path::PathBuf, time::Duration};

use super::{
    Limit, Measured, STATE_BYTES, Steps,
    steps::{Times, with_program},
};
use crate::{
    allocation,
    config::Config,
    error::Error,
    task::{Task, TaskConfig},
};

/// Tokens of the shortest sequence that is measured.
const N_TOKENS: usize = 128;

/// The largest model that is measured, in parameters: a step of that takes seconds.
const LARGEST: usize = 100_000_000;

/// A part of the steps of a configuration, and how much more the whole is.
struct Part<C: TaskConfig> {
    config: Config<C>,
    /// Layers of the whole.
    n_layers: usize,
    /// Tokens of a sequence, here and in the whole, where the task has a say in it.
    n_tokens: Option<[usize; 2]>,
}

impl<C: TaskConfig> Part<C> {
    /// With so many layers, tokens of a sequence and samples, or with all if there are not as many.
    fn of(whole: &Config<C>, n_layers: usize, n_tokens: usize, n_samples: usize) -> Self {
        let mut config = whole.clone();
        config.train.batch_size = whole.train.batch_size.min(n_samples);
        // The second micro-batch of a step needs memory for what the first one left.
        config.train.accumulate = whole.train.accumulate.min(2);
        let Config { task, data, model, .. } = &mut config;
        let sizes = C::reduce(task, data, model, n_layers, n_tokens);
        Self { config, n_layers: sizes.n_layers, n_tokens: sizes.n_tokens }
    }

    /// How many times a micro-batch of the whole is larger.
    fn ratio(&self, whole: &Config<C>) -> f64 {
        let tokens = self.n_tokens.map_or(1.0, |[here, whole]| whole as f64 / here as f64);
        tokens * whole.train.batch_size as f64 / self.config.train.batch_size as f64
    }

    fn describe(&self, whole: &Config<C>) -> String {
        let of = |here: usize, whole: usize, what: &str| match here == whole {
            true => None,
            false => Some(format!("{here} of {whole} {what}")),
        };
        let layers = (self.n_layers > 1).then(|| format!("1 and 2 of {} layers", self.n_layers));
        let tokens = self.n_tokens.and_then(|[here, whole]| of(here, whole, "tokens"));
        let (here, whole) = (&self.config.train, &whole.train);
        let samples = of(here.batch_size, whole.batch_size, "samples");
        let batches = of(here.accumulate, whole.accumulate, "micro-batches");
        [layers, tokens, samples, batches].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Measures the whole if its steps fit into the limit, else a part of it; or says why not even that.
pub(super) fn measure<T: Task>(
    config: &Config<T::Config>,
    data_dirs: &[PathBuf],
    limit: Limit,
    whole: Steps<'_, T>,
) -> Result<Result<Measured, String>, Error> {
    let smallest = Part::of(config, 1, N_TOKENS, 1);
    let steps = Steps::<T>::prepare(&smallest.config, data_dirs)?;
    let parameters = steps.parameters();
    if parameters > LARGEST {
        return Ok(Err(format!(
            "one layer alone has {parameters} parameters, and more than {LARGEST} take long on a \
             processor"
        )));
    }
    let probe = steps.measure(Limit { steps: 1, ..limit })?;
    let each = probe.step().div_f64(smallest.config.train.accumulate as f64);
    let micro_batches = smallest.ratio(config) * config.train.accumulate as f64;
    // In numbers that cannot overflow, as a duration can.
    let step = each.as_secs_f64() * smallest.n_layers as f64 * micro_batches;
    if step < limit.time.as_secs_f64() / 2.0 || smallest.describe(config).is_empty() {
        return Ok(Ok(whole.measure(limit)?.measured()));
    }
    // What was there beside the smallest part, and is not beside the others.
    let with = allocation::in_use();
    drop(whole);
    let gone = with.map_or(0, |with| with - allocation::in_use().unwrap_or_default().min(with));

    // As much of a micro-batch as there is time for, of a sequence first; at least twice the smallest.
    let room = limit.time.as_secs_f64() / 16.0 / each.as_secs_f64().max(1e-6);
    let n_tokens = (N_TOKENS as f64 * room.max(2.0)) as usize;
    let longer =
        smallest.n_tokens.map_or(1.0, |[here, all]| n_tokens.min(all) as f64 / here as f64);
    let n_samples = (room.max(2.0) / longer).max(1.0) as usize;
    let point = |n_layers: usize| -> Result<(Part<T::Config>, Times), Error> {
        let part = Part::of(config, n_layers, n_tokens, n_samples);
        let limit = Limit { time: limit.time / 3, ..limit };
        let times = Steps::<T>::prepare(&part.config, data_dirs)?.measure(limit)?;
        Ok((part, times))
    };
    let (part, one) = point(1)?;
    let two = if part.n_layers > 1 { point(2)?.1 } else { one.clone() };
    let sizes = Sizes {
        layers: part.n_layers as f64,
        micro_batch: part.ratio(config),
        smallest: smallest.ratio(config),
        micro_batches: config.train.accumulate as f64 / part.config.train.accumulate as f64,
    };
    let smallest = probe.peak.map(|peak| peak.saturating_sub(gone));
    let measured = scale(smallest, &one, &two, &sizes);
    Ok(Ok(Measured { scaled_from: Some(part.describe(config)), ..measured }))
}

/// How many times the whole is larger; of layers, how many it has.
struct Sizes {
    layers: f64,
    micro_batch: f64,
    /// As `micro_batch`, than that of the smallest part.
    smallest: f64,
    micro_batches: f64,
}

impl Sizes {
    /// Of a value that one and two layers have.
    fn of_layers(&self, one: f64, two: f64) -> f64 {
        one + (two - one).max(0.0) * (self.layers - 1.0)
    }
}

/// `smallest`: the most memory in use for the smallest part, of one layer.
fn scale(smallest: Option<u64>, one: &Times, two: &Times, sizes: &Sizes) -> Measured {
    let [p_1, p_2] = [one, two].map(|times| times.parameters as f64);
    let parameters = sizes.of_layers(p_1, p_2);
    let parts: [Duration; 5] = std::array::from_fn(|part| {
        let [one, two] = [one, two].map(|times| times.parts[part].as_secs_f64());
        let time = match part {
            0..3 => sizes.of_layers(one, two) * sizes.micro_batch * sizes.micro_batches,
            // What is done to every parameter.
            _ => two * parameters / p_2,
        };
        Duration::try_from_secs_f64(time).unwrap_or(Duration::MAX)
    });
    let step = parts.iter().fold(Duration::ZERO, |sum, part| sum.saturating_add(*part));
    let memory = || {
        let [smallest, one, two] = [smallest?, one.peak?, two.peak?].map(|peak| peak as f64);
        // A layer's weights, gradients and moments; what else it adds are activations.
        let state = STATE_BYTES as f64 * (p_2 - p_1);
        let layer = (two - one - state).max(0.0) * sizes.micro_batch;
        // Of one layer: what a micro-batch adds, for which the smallest one is another point.
        let share = 1.0 - sizes.micro_batch / sizes.smallest;
        let grown = if share > 0.0 { (one - smallest).max(0.0) / share } else { 0.0 };
        let rest = (one - grown).max(0.0) + grown * sizes.micro_batch;
        Some(with_program((rest + (state + layer) * (sizes.layers - 1.0)) as u64))
    };
    let ratio = sizes.micro_batch * sizes.micro_batches;
    let memory = two.memory(memory(), parameters as u64);
    Measured { memory, ..two.scaled(parts, step, ratio) }
}

#[cfg(test)]
mod tests {
    use super::{super::steps::PARTS, *};

    /// Steps of a model that takes a known time and memory for everything.
    fn times(layers: f64, samples: f64) -> Times {
        let parameters = 1e6 + 5e5 * layers;
        let millis = |time: f64| Duration::from_secs_f64(time / 1e3);
        let each =
            [1.0, 10.0 + 4.0 * layers, 20.0 + 8.0 * layers].map(|time| millis(time * samples));
        let parts = [each[0], each[1], each[2], millis(parameters / 1e6), millis(parameters / 1e5)];
        let memory = 16.0 * parameters + (3e6 + 2e6 * layers) * samples;
        Times {
            laps: vec![parts; 3],
            names: PARTS,
            parts,
            samples,
            work: None,
            peak_flops: None,
            parameters: parameters as usize,
            peak: Some(memory as u64),
            on_device: None,
        }
    }

    #[test]
    fn what_grows_in_straight_lines_is_found_exactly() {
        let (layers, samples) = (24.0, 8.0);
        let whole = times(layers, samples);
        let smallest = times(1.0, 0.5).peak;
        let sizes = Sizes { layers, micro_batch: 4.0, smallest: 16.0, micro_batches: 1.0 };
        let found = scale(smallest, &times(1.0, 2.0), &times(2.0, 2.0), &sizes);
        for (found, part) in found.parts.iter().zip(whole.parts) {
            assert!(found.1.abs_diff(part) < Duration::from_micros(1), "{found:?} {part:?}");
        }
        assert!(found.step.abs_diff(whole.step()) < Duration::from_micros(5));
        let rate = samples / whole.step().as_secs_f64();
        assert!((found.samples_per_sec - rate).abs() < 1e-3, "{}", found.samples_per_sec);
        // The program itself is not of one size.
        let near = |one: u64, other: u64| one.abs_diff(other) < other / 50;
        let memory = found.memory.unwrap();
        assert!(near(memory, with_program(whole.peak.unwrap())), "{memory}");

        // Three micro-batches a step take three times the time, but for what is done once a step.
        let sizes = Sizes { micro_batches: 3.0, ..sizes };
        let three = scale(smallest, &times(1.0, 2.0), &times(2.0, 2.0), &sizes);
        assert!(near(three.memory.unwrap(), memory));
        assert_eq!(three.parts[4], found.parts[4]);
        assert!(three.parts[1].1.abs_diff(3 * found.parts[1].1) < Duration::from_micros(1));
    }
}
