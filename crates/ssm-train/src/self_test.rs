//! What the engine computes with kernels of its own, on any device: whether this machine does it right.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData},
};

use crate::{config::Optim, device::is_host, gradients::Accumulation, optim, task::Loss};
#[cfg(feature = "cube")]
use crate::{
    recording::Recorder,
    task::{Input, InputMapper},
};

/// What a device computed and the truth, by name.
pub type Compared = (&'static str, Vec<f64>, Vec<f64>);

/// One of the checks.
pub struct Check {
    /// What is checked.
    pub op: &'static str,
    /// Its sizes.
    pub shape: &'static str,
    /// Largest error that passes: RMS of the difference over RMS of the truth.
    pub bound: f64,
    /// Computes on a device without autodiff.
    pub run: fn(&Device) -> Vec<Compared>,
}

/// All of them.
pub const CHECKS: &[Check] = &[
    Check { op: "optimizer_step", shape: "35 parameters", bound: 1e-5, run: optimizer_step },
    #[cfg(feature = "cube")]
    Check { op: "replayed_step", shape: "35 parameters", bound: 0.0, run: replayed_step },
];

const LR: f64 = 1e-2;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;
/// Below the norm of the gradient.
const CLIP_NORM: f64 = 0.5;

/// Lengths of parameters: more small ones than a launch takes, with and without a tail behind vectors, and one
/// that has launches of its own.
fn lens() -> impl Iterator<Item = usize> {
    (1..=34).map(|i| if i < 32 { 4 * i } else { i }).chain([1 << 18])
}

#[derive(Module, Debug)]
struct Weights {
    rows: Vec<Param<Tensor<1>>>,
}

/// Values of every parameter, the same on every device.
fn values(seed: usize) -> Vec<Vec<f32>> {
    let value = |i: usize| (((i * 37 + seed * 11) % 101) as f32 - 50.0) / 64.0;
    let rows = lens().enumerate();
    rows.map(|(row, len)| (0..len).map(|i| value(i + row + 1)).collect()).collect()
}

fn rows(values: &[Vec<f32>], device: &Device) -> Vec<Tensor<1>> {
    let row = |values: &Vec<f32>| {
        Tensor::from_data(TensorData::new(values.clone(), [values.len()]), device)
    };
    values.iter().map(row).collect()
}

fn read(tensors: impl IntoIterator<Item = Tensor<1>>) -> Vec<f64> {
    tensors.into_iter().flat_map(|row| row.into_data().iter::<f64>().collect::<Vec<_>>()).collect()
}

fn flat(values: &[Vec<f32>]) -> Vec<f64> {
    values.iter().flatten().map(|value| f64::from(*value)).collect()
}

/// Sum of the products of all weights with `x`, whose gradient is `x`.
fn loss(weights: &Weights, x: &[Tensor<1>]) -> Loss {
    let products = weights.rows.iter().zip(x).map(|(row, x)| (row.val() * x.clone()).sum());
    let mean = products.reduce(|sum, product| sum + product);
    Loss { mean: mean.expect("there are rows"), weight: 1.0 }
}

fn weights(device: &Device) -> Weights {
    let rows = rows(&values(0), device).into_iter();
    Weights { rows: rows.map(|row| Param::from_tensor(row.require_grad())).collect() }
}

/// Norm of a gradient, clipping, and two steps of Adam (arXiv:1412.6980, Alg. 1).
fn optimizer_step(device: &Device) -> Vec<Compared> {
    let device = device.clone().autodiff();
    let mut model = weights(&device);
    let config = Optim::Adam { lr: LR, betas: BETAS, eps: EPS, weight_decay: 0.0 };
    let mut optimizer = optim::build(&config, &model, &device);
    let mut w = flat(&values(0));
    let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
    let (mut norms, mut true_norms, mut clipped, mut true_clipped) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in 1..=2 {
        let x = values(step as usize);
        let mut sum = Accumulation::new(1);
        sum.add(&model, loss(&model, &rows(&x, &device)));
        let gradient = sum
            .finish(&model, Some(CLIP_NORM), is_host(&device))
            .unwrap_or_else(|error| panic!("the device: {error}"));
        norms.push(gradient.norm);
        let of = |param: &Param<Tensor<1>>| gradient.params.get::<1>(param.id);
        clipped.extend(read(model.rows.iter().filter_map(of)));
        model = optim::step(&mut optimizer, LR, model, gradient.params);

        let x = flat(&x);
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        true_norms.push(norm);
        for (i, x) in x.into_iter().enumerate() {
            let g = x * CLIP_NORM / (norm + 1e-6);
            true_clipped.push(g);
            m[i] = BETAS[0] * m[i] + (1.0 - BETAS[0]) * g;
            v[i] = BETAS[1] * v[i] + (1.0 - BETAS[1]) * g * g;
            let [m, v] = [m[i] / (1.0 - BETAS[0].powi(step)), v[i] / (1.0 - BETAS[1].powi(step))];
            w[i] -= LR * m / (v.sqrt() + EPS);
        }
    }
    let stepped = read(model.rows.iter().map(|row| row.val().inner()));
    vec![
        ("norm", norms, true_norms),
        ("clipped gradient", clipped, true_clipped),
        ("weight", stepped, w),
    ]
}

#[cfg(feature = "cube")]
#[derive(Clone)]
struct Rows(Vec<Tensor<1>>);

#[cfg(feature = "cube")]
impl Input for Rows {
    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        Self(self.0.into_iter().map(|row| row.map_tensors(mapper)).collect())
    }
}

/// Gradients of steps that are recorded and replayed where the device can, else launched one by one.
#[cfg(feature = "cube")]
fn replayed_step(device: &Device) -> Vec<Compared> {
    let device = device.clone().autodiff();
    let model = weights(&device);
    let mut recorder = Recorder::new(true);
    let (mut gradients, mut truth) = (Vec::new(), Vec::new());
    // The first ones are launched one by one.
    for step in 0..8 {
        let x = values(step);
        let input = Rows(rows(&x, &device));
        let of = |weights: &Weights, Rows(x): Rows| loss(weights, &x);
        let recorded = recorder.differentiate((&device, 0), &model, &input, of);
        let launched = || {
            burn::optim::GradientsParams::from_grads(
                of(&model, input.clone()).mean.backward(),
                &model,
            )
        };
        let grads = recorded.map_or_else(launched, |(_, grads)| grads);
        let get = |param: &Param<Tensor<1>>| grads.get::<1>(param.id);
        gradients.extend(read(model.rows.iter().filter_map(get)));
        truth.extend(flat(&x));
    }
    vec![("gradient", gradients, truth)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also of the GPU that the variable `SSM_TEST_DEVICE` names.
    #[test]
    fn all_checks_pass() {
        let devices = [Some(crate::device::any_device()), crate::device::test_device()];
        for device in devices.into_iter().flatten() {
            for check in CHECKS {
                for (name, got, truth) in (check.run)(&device) {
                    assert_eq!(got.len(), truth.len(), "{}: {name}", check.op);
                    let norm = |values: &mut dyn Iterator<Item = f64>| {
                        values.map(|value| value * value).sum::<f64>().sqrt()
                    };
                    let gap = norm(&mut got.iter().zip(&truth).map(|(got, truth)| got - truth));
                    let error = gap / norm(&mut truth.iter().copied());
                    assert!(error <= check.bound, "{}, {name}: {error} on {device:?}", check.op);
                }
            }
        }
    }
}
