//! Adam for one parameter tensor.
//!
//! The maths of `burn::optim::{Adam, AdamW}` with scalars kept in f64 and in one pass over memory
//! instead of about ten: at a million parameters the passes cost more than the maths on a CPU, and on a
//! GPU a launch for each of them costs more than both.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod kernel;

use burn::{
    optim::{LearningRate, Optimizer},
    tensor::{DType, Device, Tensor},
};

use crate::{device::is_host, moments::Moments};

/// Adam with bias correction, and weight decay of either kind.
///
/// `m = beta_1 m + (1 - beta_1) g`,  `v = beta_2 v + (1 - beta_2) g^2`
///
/// `w = w - lr / (1 - beta_1^t) * m / (sqrt(v / (1 - beta_2^t)) + eps)`
///
/// # Numerics
/// Elements are f32, factors f64 rounded once. A CPU and an accelerator may differ in the last bit.
///
/// # Source
/// Kingma & Ba 2014, arXiv:1412.6980, Alg. 1, in the operation order of `torch.optim.Adam`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the first and second moment per step, each in `[0, 1)`.
    pub betas: [f64; 2],
    /// Added to the root of the second moment, > 0.
    pub eps: f64,
    /// What shrinks the weights.
    pub decay: Decay,
    /// How a step reaches the memory of its device.
    pub route: Route,
}

/// How a step reaches the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// One pass over slices, for tensors in host memory.
    Slices,
    /// One kernel, for devices of CubeCL.
    #[cfg(feature = "cube")]
    Kernel,
    /// Operations on whole tensors, for any device; also taken for types other than f32.
    Tensors,
}

impl Route {
    /// The fastest one on a device.
    #[must_use]
    pub fn of(device: &Device) -> Self {
        if is_host(device) {
            return Self::Slices;
        }
        #[cfg(feature = "cube")]
        return Self::Kernel;
        #[cfg(not(feature = "cube"))]
        return Self::Tensors;
    }
}

/// What shrinks the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// `rate * w` is added to the gradient, as in `torch.optim.Adam`.
    L2(f64),
    /// `lr * rate * w` is taken off the weight, as in `torch.optim.AdamW` (arXiv:1711.05101).
    Decoupled(f64),
}

/// The scalars of one step.
#[derive(Clone, Copy, PartialEq)]
struct Factors {
    beta_1: f64,
    beta_2: f64,
    l2: f64,
    /// What decoupled decay leaves of a weight.
    keep: f64,
    /// `lr / (1 - beta_1^t)`.
    rate: f64,
    /// `1 / sqrt(1 - beta_2^t)`.
    correction: f64,
    eps: f64,
}

impl Adam {
    fn factors(&self, lr: f64, time: usize) -> Factors {
        let [beta_1, beta_2] = self.betas;
        // beyond i32 both corrections are 1 to the last bit
        let time = i32::try_from(time).unwrap_or(i32::MAX);
        let (l2, keep) = match self.decay {
            Decay::L2(rate) => (rate, 1.0),
            Decay::Decoupled(rate) => (0.0, 1.0 - lr * rate),
        };
        Factors {
            beta_1,
            beta_2,
            l2,
            keep,
            rate: lr / (1.0 - beta_1.powi(time)),
            correction: 1.0 / (1.0 - beta_2.powi(time)).sqrt(),
            eps: self.eps,
        }
    }
}

/// Runs `steps` of [`Adam`] on several parameters, which it gives back and does not read in between: small
/// ones share launches on devices of CubeCL.
pub fn together<T>(steps: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cube")]
    return cube::together(steps);
    #[cfg(not(feature = "cube"))]
    steps()
}

impl Optimizer for Adam {
    type State<const D: usize> = Moments<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let state = state.unwrap_or_else(|| Moments::new(0, grad.zeros_like(), grad.zeros_like()));
        let time = state.time + 1;
        let factors = self.factors(lr, time);
        let tensors = [tensor, state.moment_1, state.moment_2];
        let in_f32 = grad.dtype() == DType::F32 && tensors.iter().all(|t| t.dtype() == DType::F32);
        let [tensor, moment_1, moment_2] = match self.route {
            Route::Slices if in_f32 => factors.step_slices(tensors, grad),
            #[cfg(feature = "cube")]
            Route::Kernel if in_f32 => cube::step(&factors, tensors, grad),
            _ => factors.step_tensors(tensors, grad),
        };
        (tensor, Some(Moments::new(time, moment_1, moment_2)))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.to_device(device)
    }
}

impl Factors {
    fn step_tensors<const D: usize>(
        &self,
        [w, m, v]: [Tensor<D>; 3],
        grad: Tensor<D>,
    ) -> [Tensor<D>; 3] {
        let grad = if self.l2 == 0.0 { grad } else { grad + w.clone().mul_scalar(self.l2) };
        let m = m.mul_scalar(self.beta_1) + grad.clone().mul_scalar(1.0 - self.beta_1);
        let v = v.mul_scalar(self.beta_2) + grad.square().mul_scalar(1.0 - self.beta_2);
        let root = v.clone().sqrt().mul_scalar(self.correction).add_scalar(self.eps);
        let w = if self.keep == 1.0 { w } else { w.mul_scalar(self.keep) };
        [w - m.clone().div(root).mul_scalar(self.rate), m, v]
    }

    fn step_slices<const D: usize>(
        &self,
        tensors: [Tensor<D>; 3],
        grad: Tensor<D>,
    ) -> [Tensor<D>; 3] {
        let device = tensors[0].device();
        let grad = grad.into_data();
        let mut data = tensors.map(Tensor::into_data);
        {
            let [w, m, v] = &mut data;
            let slices = (
                w.as_mut_slice::<f32>(),
                m.as_mut_slice::<f32>(),
                v.as_mut_slice::<f32>(),
                grad.as_slice::<f32>(),
            );
            let (Ok(w), Ok(m), Ok(v), Ok(g)) = slices else {
                unreachable!("`step` checked that all four are f32");
            };
            self.step_elements(w, m, v, g);
        }
        data.map(|data| Tensor::from_data(data, (&device, DType::F32)))
    }

    /// One pass; the equal lengths are spelled out so that the loop vectorises.
    fn step_elements(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        let [beta_1, beta_2, l2, keep] =
            [self.beta_1, self.beta_2, self.l2, self.keep].map(|factor| factor as f32);
        let [fresh_1, fresh_2] = [self.beta_1, self.beta_2].map(|beta| (1.0 - beta) as f32);
        let [rate, correction, eps] =
            [self.rate, self.correction, self.eps].map(|factor| factor as f32);
        let n = g.len();
        let (w, m, v) = (&mut w[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = g[i] + l2 * w[i];
            m[i] = beta_1 * m[i] + fresh_1 * g;
            v[i] = beta_2 * v[i] + fresh_2 * (g * g);
            w[i] = keep * w[i] - rate * (m[i] / (v[i].sqrt() * correction + eps));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::{AdamConfig, AdamWConfig, DynOptimizer, decay::WeightDecayConfig};

    use super::*;

    const SIZE: usize = 37;

    fn weights() -> Vec<f64> {
        (0..SIZE).map(|i| f64::from((i as f32 * 0.7).sin())).collect()
    }

    fn gradient(step: usize) -> Vec<f64> {
        let scale = 10f32.powi(step as i32 % 5 - 3);
        (0..SIZE).map(|i| f64::from((i as f32 + step as f32 * 1.3).cos() * scale)).collect()
    }

    /// Devices with the routes that they have, a GPU if the variable `SSM_TEST_DEVICE` names one.
    fn routes() -> Vec<(Device, Route)> {
        let mut routes = Vec::new();
        if let Some(name) = crate::device::processor() {
            let host = crate::device::open(name, 0).unwrap();
            routes.extend([(host.clone(), Route::Slices), (host, Route::Tensors)]);
        }
        if let Some(device) = crate::device::test_device() {
            routes.extend([(device.clone(), Route::of(&device)), (device, Route::Tensors)]);
        }
        routes
    }

    fn tensor(values: &[f64], device: &Device) -> Tensor<1> {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Tensor::from_floats(values.as_slice(), device)
    }

    fn values(tensor: Tensor<1>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |worst, d| {
            assert!(d.is_finite());
            f64::max(worst, d)
        })
    }

    /// Kingma & Ba, Alg. 1, written down from the paper.
    fn by_hand(adam: &Adam, lr: f64, steps: usize) -> Vec<f64> {
        let mut w = weights();
        let (mut m, mut v) = (vec![0.0; SIZE], vec![0.0; SIZE]);
        let [b1, b2] = adam.betas;
        for t in 1..=steps {
            for (i, g) in gradient(t - 1).into_iter().enumerate() {
                let g = match adam.decay {
                    Decay::L2(rate) => g + rate * w[i],
                    Decay::Decoupled(rate) => {
                        w[i] -= lr * rate * w[i];
                        g
                    }
                };
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let m_hat = m[i] / (1.0 - b1.powi(t as i32));
                let v_hat = v[i] / (1.0 - b2.powi(t as i32));
                w[i] -= lr * m_hat / (v_hat.sqrt() + adam.eps);
            }
        }
        w
    }

    fn run(optimizer: &impl DynOptimizer, device: &Device, lr: f64, steps: usize) -> Vec<f64> {
        let (mut w, mut state) = (tensor(&weights(), device).into_bridge(), None);
        for step in 0..steps {
            let grad = tensor(&gradient(step), device).into_bridge();
            (w, state) = optimizer.step_dyn(1, lr, w, grad, state);
        }
        values(Tensor::from_bridge(w))
    }

    fn adam(decay: Decay, route: Route) -> Adam {
        Adam { betas: [0.9, 0.999], eps: 1e-8, decay, route }
    }

    #[test]
    fn all_routes_follow_the_paper() {
        for decay in [Decay::L2(0.0), Decay::L2(0.1), Decay::Decoupled(0.1)] {
            for (device, route) in routes() {
                let adam = adam(decay, route);
                let got = run(&adam, &device, 1e-2, 40);
                let error = largest_difference(&got, &by_hand(&adam, 1e-2, 40));
                assert!(error <= 2e-6, "{decay:?}, {route:?} on {device:?}: {error}");
            }
        }
    }

    /// A step works in place, which must not be seen in a copy of the weights, nor in a view.
    #[test]
    fn tensors_that_are_still_in_use_keep_their_values() {
        for (device, route) in routes() {
            let adam = adam(Decay::Decoupled(0.1), route);
            let [rows, columns] = [3, 5];
            let values_of = |scale: f64| -> Vec<f64> {
                (0..rows * columns).map(|i| scale * (i as f64 + 1.0)).collect()
            };
            let matrix = |scale| tensor(&values_of(scale), &device).reshape([columns, rows]);
            let (w, grad) = (matrix(1.0).transpose(), matrix(0.5).transpose());
            let (kept, kept_grad) = (w.clone(), grad.clone());
            let (stepped, state) = adam.step(1e-2, w, grad, None);
            let (again, _) = adam.step(1e-2, stepped.clone(), kept_grad.clone(), state);
            for (tensor, scale) in [(kept, 1.0), (kept_grad, 0.5)] {
                let got: Vec<f64> = tensor.transpose().into_data().iter::<f64>().collect();
                assert_eq!(got, values_of(scale), "{route:?} on {device:?}");
            }
            // A gradient of one sign moves each weight by `lr`, and decay shrinks it.
            for (before, after) in [(matrix(1.0).transpose(), stepped.clone()), (stepped, again)] {
                let expected = before.mul_scalar(1.0 - 1e-3) - 1e-2;
                let error: f32 = (after - expected).abs().max().into_scalar();
                assert!(error <= 2e-6, "{route:?} on {device:?}: {error}");
            }
        }
    }

    /// More small parameters than a launch takes, of lengths with and without vectors, with and without
    /// decay, of which one is large.
    #[test]
    fn parameters_stepped_together_are_as_if_stepped_alone() {
        // Two thirds of them have one decay, of which a launch takes 16.
        let alike = (1..=32).map(|i| 4 * i);
        let lens: Vec<usize> = [1, 3, 6, 1 << 18, 2].into_iter().chain(alike).collect();
        for (device, route) in routes() {
            let steps = || -> Vec<Vec<f64>> {
                let step = |(i, len): (usize, usize)| {
                    let decay = Decay::Decoupled(if i.is_multiple_of(3) { 0.1 } else { 0.0 });
                    let values: Vec<f64> = (0..len).map(|x| ((x + i + 1) as f64).sin()).collect();
                    let [w, grad] = [0.5, 0.1].map(|scale| tensor(&values, &device) * scale);
                    let (w, state) = adam(decay, route).step(1e-2, w, grad.clone(), None);
                    (w, grad, state, decay)
                };
                let first: Vec<_> =
                    together(|| lens.iter().copied().enumerate().map(step).collect());
                let second = first.into_iter().map(|(w, grad, state, decay)| {
                    adam(decay, route).step(1e-2, w, grad * 0.5, state).0
                });
                let second: Vec<_> = together(|| second.collect());
                second.into_iter().map(values).collect()
            };
            let by_hand = |i: usize, len: usize| -> Vec<f64> {
                let keep = if i.is_multiple_of(3) { 1.0 - 1e-3 } else { 1.0 };
                let weights = (0..len).map(|x| {
                    let value = f64::from(((x + i + 1) as f64).sin() as f32);
                    let g = 0.1 * value;
                    let w = keep * 0.5 * value - 1e-2 * g / (g.abs() + 1e-8);
                    let m = (0.9 * 0.1 * g + 0.1 * 0.5 * g) / (1.0 - 0.81);
                    let v = (0.999 * 0.001 * g * g + 0.001 * 0.25 * g * g) / (1.0 - 0.999 * 0.999);
                    keep * w - 1e-2 * m / (v.sqrt() + 1e-8)
                });
                weights.collect()
            };
            for ((i, len), got) in lens.iter().copied().enumerate().zip(steps()) {
                let error = largest_difference(&got, &by_hand(i, len));
                assert!(error <= 2e-6, "{len} elements, {route:?} on {device:?}: {error}");
            }
        }
    }

    /// Burn keeps beta and its complement in f32, so it may be further off, not closer.
    #[test]
    fn burn_agrees_with_the_paper_to_its_own_rounding() {
        let config = AdamConfig::new().with_epsilon(1e-8);
        let decayed = config.clone().with_weight_decay(Some(WeightDecayConfig::new(0.1)));
        let decoupled = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.1);
        let device = crate::device::any_device();
        let runs = [
            (run(&config.build(), &device, 1e-2, 40), Decay::L2(0.0)),
            (run(&decayed.build(), &device, 1e-2, 40), Decay::L2(0.1)),
            (run(&decoupled.build(), &device, 1e-2, 40), Decay::Decoupled(0.1)),
        ];
        for (burn, decay) in runs {
            let expected = by_hand(&adam(decay, Route::Slices), 1e-2, 40);
            let error = largest_difference(&burn, &expected);
            assert!(error <= 2e-5, "{decay:?}: {error}");
        }
    }
}
