//! What the engine computes with kernels of its own, on any device: whether this machine does it right.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData},
};

use crate::{config::Optim, device::is_host, gradients::Accumulation, optim, task::Loss};

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
    /// Computes on a device, with or without autodiff.
    pub run: fn(&Device) -> Vec<Compared>,
}

/// All of them. The bounds are those of f32, which sums of squares in any order and a root come close to.
pub const CHECKS: &[Check] = &[
    Check { op: "optimizer_step", shape: "35 parameters", bound: 1e-5, run: optimizer_step },
    #[cfg(feature = "cube")]
    Check { op: "replayed_step", shape: "5 parameters", bound: 1e-6, run: replay::replayed_step },
];

const LR: f64 = 1e-2;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;
/// Below the norm of the gradient.
const CLIP_NORM: f64 = 0.5;

/// Lengths of more small parameters than a launch takes, with and without a tail behind vectors.
fn small() -> Vec<usize> {
    (1..=34).map(|i| if i < 32 { 4 * i } else { i }).collect()
}

/// And of one that has launches of its own.
const LARGE: usize = 1 << 18;

#[derive(Module, Debug)]
struct Weights {
    rows: Vec<Param<Tensor<1>>>,
}

/// Values of every parameter, the same on every device. With [`loss`] each row has the same share in the norm
/// of the gradient.
fn values(lens: &[usize], seed: usize) -> Vec<Vec<f32>> {
    let value = |i: usize| (((i * 37 + seed * 11) % 101) as f32 - 50.0) / 64.0;
    let row = |(row, len): (usize, &usize)| {
        (0..*len).map(|i| value(i + row + 1) * (*len as f32).sqrt()).collect()
    };
    lens.iter().enumerate().map(row).collect()
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

/// What the gradient of [`loss`] is.
fn gradient(x: &[Vec<f32>]) -> Vec<f64> {
    let row = |row: &Vec<f32>| {
        let len = row.len() as f64;
        row.iter().map(move |x| f64::from(*x) / len).collect::<Vec<_>>()
    };
    x.iter().flat_map(row).collect()
}

/// For each row the mean of its products with `x`, and their sum. Means are reduced in one order on every
/// device, sums are not.
fn loss(weights: &Weights, x: &[Tensor<1>]) -> Loss {
    let means = weights.rows.iter().zip(x).map(|(row, x)| (row.val() * x.clone()).mean());
    Loss { mean: Tensor::cat(means.collect(), 0).mean().mul_scalar(x.len() as f64), weight: 1.0 }
}

fn weights(lens: &[usize], device: &Device) -> Weights {
    let rows = rows(&values(lens, 0), device).into_iter();
    Weights { rows: rows.map(|row| Param::from_tensor(row.require_grad())).collect() }
}

fn with_autodiff(device: &Device) -> Device {
    if device.is_autodiff() { device.clone() } else { device.clone().autodiff() }
}

/// Norm of a gradient, clipping, and two steps of Adam (arXiv:1412.6980, Alg. 1).
fn optimizer_step(device: &Device) -> Vec<Compared> {
    let device = with_autodiff(device);
    let lens = [small(), vec![LARGE]].concat();
    let mut model = weights(&lens, &device);
    let config = Optim::Adam { lr: LR, betas: BETAS, eps: EPS, weight_decay: 0.0 };
    let mut optimizer = optim::build(&config, &model, &device);
    let mut w = flat(&values(&lens, 0));
    let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
    let [mut norms, mut true_norms, mut clipped, mut true_clipped] = [(); 4].map(|()| Vec::new());
    for step in 1..=2 {
        let x = values(&lens, step as usize);
        let mut sum = Accumulation::new(1);
        sum.add(&model, loss(&model, &rows(&x, &device)));
        // A panic is what whoever runs a check reports.
        let found = sum
            .finish(&model, Some(CLIP_NORM), is_host(&device))
            .unwrap_or_else(|error| panic!("the device: {error}"));
        norms.push(found.norm);
        let of = |param: &Param<Tensor<1>>| found.params.get::<1>(param.id);
        clipped.extend(read(model.rows.iter().filter_map(of)));
        model = optim::step(&mut optimizer, LR, model, found.params);

        let gradient = gradient(&x);
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        true_norms.push(norm);
        for (i, g) in gradient.into_iter().enumerate() {
            let g = g * CLIP_NORM / (norm + 1e-6);
            true_clipped.push(g);
            m[i] = BETAS[0] * m[i] + (1.0 - BETAS[0]) * g;
            v[i] = BETAS[1] * v[i] + (1.0 - BETAS[1]) * g * g;
            let [m, v] = [m[i] / (1.0 - BETAS[0].powi(step)), v[i] / (1.0 - BETAS[1].powi(step))];
            w[i] -= LR * m / (v.sqrt() + EPS);
        }
    }
    let stepped = read(model.rows.iter().map(|row| row.val().inner()));
    let n_small = stepped.len() - LARGE;
    vec![
        ("norm", norms, true_norms),
        ("clipped gradient", clipped, true_clipped),
        ("small weights", stepped[..n_small].to_vec(), w[..n_small].to_vec()),
        ("large weight", stepped[n_small..].to_vec(), w[n_small..].to_vec()),
    ]
}

#[cfg(feature = "cube")]
mod replay {
    use burn::optim::GradientsParams;

    use super::*;
    use crate::{
        recording::Recorder,
        task::{Input, InputMapper},
    };

    #[derive(Clone)]
    struct Rows(Vec<Tensor<1>>);

    impl Input for Rows {
        fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
            Self(self.0.into_iter().map(|row| row.map_tensors(mapper)).collect())
        }
    }

    /// Losses and gradients of steps that are recorded and replayed. Where a device does not, they are those of
    /// launched steps and are named so.
    pub(super) fn replayed_step(device: &Device) -> Vec<Compared> {
        let device = with_autodiff(device);
        // Few, as only short steps are recorded.
        let lens = [4, 8, 33, 34, 100];
        let model = weights(&lens, &device);
        let mut recorder = Recorder::new(true);
        let [mut losses, mut true_losses, mut gradients, mut true_gradients] =
            [(); 4].map(|()| Vec::new());
        let mut n_replayed = 0;
        // The first ones are launched one by one.
        for step in 0..8 {
            let x = values(&lens, step);
            let input = Rows(rows(&x, &device));
            let of = |weights: &Weights, Rows(x): Rows| loss(weights, &x);
            let recorded = recorder.differentiate((&device, 0), &model, &input, of);
            n_replayed += usize::from(recorded.is_some());
            let (Loss { mean, .. }, grads) = recorded.unwrap_or_else(|| {
                let Loss { mean, weight } = of(&model, input);
                let value = Loss { mean: mean.clone().inner(), weight };
                (value, GradientsParams::from_grads(mean.backward(), &model))
            });
            losses.extend(read([mean]));
            let of_rows = values(&lens, 0).into_iter().zip(&x).map(|(w, x)| {
                let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                products.sum::<f64>() / x.len() as f64
            });
            true_losses.push(of_rows.sum());
            let get = |param: &Param<Tensor<1>>| grads.get::<1>(param.id);
            gradients.extend(read(model.rows.iter().filter_map(get)));
            true_gradients.extend(gradient(&x));
        }
        let names = match n_replayed {
            0 => ["launched loss", "launched gradient"],
            _ => ["replayed loss", "replayed gradient"],
        };
        vec![(names[0], losses, true_losses), (names[1], gradients, true_gradients)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also of the GPU that the variable `SSM_TEST_DEVICE` names.
    #[test]
    fn all_checks_pass() {
        let card = crate::device::test_device();
        let devices = [(crate::device::any_device(), false)].into_iter();
        for (device, is_card) in devices.chain(card.map(|card| (card, true))) {
            for check in CHECKS {
                for (name, got, truth) in (check.run)(&device) {
                    assert!(!is_card || !name.starts_with("launched"), "nothing was replayed");
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
