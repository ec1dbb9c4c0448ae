//! Initial values, drawn on the host from a seed, so that every backend starts from equal weights.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{Device, Tensor, TensorData},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Draws the initial values of a model, in the order in which its parts are built.
pub struct Init {
    rng: ChaCha8Rng,
    device: Device,
}

impl Init {
    /// Equal seeds draw equal values, whatever the device.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), device: device.clone() }
    }

    /// The device on which tensors are made.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Uniform in `[0, 1)` with the 53 bits of an f64.
    fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A tensor whose elements are drawn one after the other.
    fn draw<const D: usize>(
        &mut self,
        shape: [usize; D],
        mut element: impl FnMut(&mut Self) -> f64,
    ) -> Tensor<D> {
        let len: usize = shape.iter().product();
        let values: Vec<f32> = (0..len).map(|_| element(self) as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// Uniform in `[low, high)`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], low: f64, high: f64) -> Tensor<D> {
        self.draw(shape, |init| low + (high - low) * init.unit())
    }

    /// Normal, by Box and Muller's transform.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], mean: f64, std: f64) -> Tensor<D> {
        self.draw(shape, |init| {
            let radius = (-2.0 * (1.0 - init.unit()).ln()).sqrt();
            mean + std * radius * (std::f64::consts::TAU * init.unit()).cos()
        })
    }

    /// A linear layer with the default initialisation of `torch.nn.Linear`: weights and bias uniform
    /// in `+-1/sqrt(d_in)`.
    pub fn linear(&mut self, d_in: usize, d_out: usize, bias: bool) -> Linear {
        let bound = (d_in as f64).powf(-0.5);
        let weight = self.uniform([d_in, d_out], -bound, bound);
        let bias = bias.then(|| Param::from_tensor(self.uniform([d_out], -bound, bound)));
        Linear { weight: Param::from_tensor(weight), bias }
    }
}

/// `ln(1..=d_state)` for every channel, so that `a = -exp(a_log) = -(1..=d_state)`.
///
/// S4D-Real, Gu et al. 2022, arXiv:2206.11893. Shape `[d_inner, d_state]`.
pub fn a_log_s4d_real(d_inner: usize, d_state: usize, device: &Device) -> Tensor<2> {
    let row: Vec<f32> = (1..=d_state).map(|n| (n as f64).ln() as f32).collect();
    let row: Tensor<2> = Tensor::from_data(TensorData::new(row, [1, d_state]), device);
    row.repeat_dim(0, d_inner)
}

/// The bias whose softplus is a log-uniform draw in `[dt_min, dt_max]`, at least `floor`.
///
/// The inverse of softplus is `dt + ln(1 - e^-dt)`. Shape `[d_inner]`.
/// Source: `Mamba.__init__`, state-spaces/mamba@e9594ce.
pub fn dt_bias(init: &mut Init, d_inner: usize, dt_min: f64, dt_max: f64, floor: f64) -> Tensor<1> {
    let (low, high) = (dt_min.ln(), dt_max.ln());
    init.draw([d_inner], |init| {
        let dt = (low + (high - low) * init.unit()).exp().max(floor);
        dt + (-(-dt).exp_m1()).ln()
    })
}

#[cfg(feature = "flex")]
#[cfg(test)]
mod tests {
    use super::*;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32 data")
    }

    #[test]
    fn equal_seeds_draw_equal_values() {
        let device = Device::flex();
        let draw = |seed| values(Init::new(seed, &device).uniform([4, 4], -1.0, 1.0));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn softplus_of_the_dt_bias_lies_in_its_range() {
        let device = Device::flex();
        let bias = values(dt_bias(&mut Init::new(0, &device), 2000, 1e-3, 0.1, 1e-4));
        let dt: Vec<f64> = bias.iter().map(|b| f64::from(*b).exp().ln_1p()).collect();
        assert!(dt.iter().all(|dt| (0.999e-3..0.1001).contains(dt)));
        let mean_log = dt.iter().map(|dt| dt.ln()).sum::<f64>() / 2000.0;
        assert!((mean_log - (1e-3_f64.ln() + 0.1_f64.ln()) / 2.0).abs() < 0.1);
    }

    #[test]
    fn normal_draws_have_their_moments() {
        let device = Device::flex();
        let x = values(Init::new(1, &device).normal([20_000], 2.0, 0.5));
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!((mean - 2.0).abs() < 0.02 && (var.sqrt() - 0.5).abs() < 0.02);
    }
}
