//! Laws of the forecasters.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Distribution, Tensor, TensorData},
};
use ssm_core::init::Init;
use ssm_tasks::forecasting::{
    model::{Forecaster, ForecasterConfig},
    window::Input,
};

use crate::support::{device, dlinear, s_mamba};

const LOOKBACK_LEN: usize = 24;
const PRED_LEN: usize = 6;

fn init(config: &ForecasterConfig, device: &Device) -> Forecaster {
    config.init(LOOKBACK_LEN, PRED_LEN, &mut Init::new(7, device))
}

/// Waves with noise, `[batch, n_tokens, LOOKBACK_LEN]`, from `seed`.
fn series(batch: usize, n_tokens: usize, seed: usize, device: &Device) -> Tensor<3> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    let values: Vec<f32> = (0..batch * n_tokens * LOOKBACK_LEN).map(value).collect();
    Tensor::from_data(TensorData::new(values, [batch, n_tokens, LOOKBACK_LEN]), device)
}

fn forecast(model: &Forecaster, x: Tensor<3>, marks: Option<Tensor<3>>) -> Vec<f32> {
    model.forward(Input { x, marks }).into_data_as::<f32>().try_into_vec().unwrap()
}

/// Root mean square of the difference over that of `expected`; NaN compares as too large.
fn assert_close(got: &[f32], expected: &[f32], bound: f64) {
    assert_eq!(got.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut got.iter().zip(expected).map(|(g, e)| f64::from(g - e)));
    let error = difference / square(&mut expected.iter().map(|e| f64::from(*e)));
    assert!(error <= bound, "relative error {error:e}, allowed {bound:e}");
}

#[test]
fn s_mamba_for_etth1_has_the_published_number_of_parameters() {
    let config: ForecasterConfig = toml::from_str(
        "[s_mamba]\nd_model = 256\nd_ff = 256\n[s_mamba.mixer.mamba]\nd_state = 2\nd_conv = 2\n\
         expand = 1",
    )
    .unwrap();
    let device = device();
    let model = config.init(96, 96, &mut Init::new(0, &device));
    assert_eq!(model.num_params(), 1_145_696);
    assert_eq!(config.n_params(96, 96), 1_145_696);
    for config in [dlinear(), s_mamba(""), s_mamba("merge = \"mean\"")] {
        let model = init(&config, &device);
        assert_eq!(config.n_params(LOOKBACK_LEN, PRED_LEN), model.num_params());
    }
}

#[test]
fn calendar_tokens_are_read_and_not_predicted() {
    let device = device();
    let model = init(&s_mamba(""), &device);
    let x = series(2, 3, 1, &device);
    let marks = |seed| Some(series(2, 4, seed, &device));
    let first = forecast(&model, x.clone(), marks(2));
    assert_eq!(first.len(), 2 * 3 * PRED_LEN);
    assert_ne!(first, forecast(&model, x.clone(), marks(3)));
    assert_ne!(first, forecast(&model, x, None));
}

#[test]
fn instance_normalisation_makes_forecasts_follow_shift_and_scale() {
    let device = device();
    let x = series(2, 3, 1, &device);
    // Large scales, so that the 1e-5 that is added to the variance does not count.
    let follows = |config: &ForecasterConfig| -> (Vec<f32>, Vec<f32>) {
        let model = init(config, &device);
        let x = x.clone() * 10.0;
        let plain = model.forward(Input { x: x.clone(), marks: None });
        let expected = plain * 3.0 + 100.0;
        let got = forecast(&model, x * 3.0 + 100.0, None);
        (got, expected.into_data_as::<f32>().try_into_vec().unwrap())
    };
    let (got, expected) = follows(&s_mamba("use_norm = true"));
    assert_close(&got, &expected, 1e-5);
    let (got, expected) = follows(&s_mamba("use_norm = false"));
    assert!(got.iter().zip(&expected).any(|(g, e)| (g - e).abs() > 1.0));
}

#[test]
fn samples_of_a_batch_do_not_mix() {
    let device = device();
    for config in [s_mamba(""), dlinear()] {
        let model = init(&config, &device);
        let x = series(3, 2, 1, &device);
        let whole = forecast(&model, x.clone(), None);
        let alone = forecast(&model, x.narrow(0, 1, 1), None);
        assert_close(&alone, &whole[2 * PRED_LEN..4 * PRED_LEN], 1e-6);
    }
}

#[test]
fn dlinear_is_the_moving_average_and_the_rest() {
    let device = device();
    let model = init(&toml::from_str("[dlinear]\nkernel_len = 5").unwrap(), &device);
    let mut weights = Collected::default();
    model.visit(&mut weights);
    let [seasonal, seasonal_bias, trend, trend_bias] = &weights.values[..] else {
        panic!("{} parameters", weights.values.len())
    };
    let x = series(1, 1, 3, &device);
    let values: Vec<f32> = x.clone().into_data_as::<f32>().try_into_vec().unwrap();
    let at = |row: i64| f64::from(values[row.clamp(0, LOOKBACK_LEN as i64 - 1) as usize]);
    let expected: Vec<f32> = (0..PRED_LEN)
        .map(|step| {
            let rows = (0..LOOKBACK_LEN).map(|row| {
                let mean = (-2..=2).map(|k| at(row as i64 + k)).sum::<f64>() / 5.0;
                let weight = |w: &[f32]| f64::from(w[row * PRED_LEN + step]);
                weight(seasonal) * (at(row as i64) - mean) + weight(trend) * mean
            });
            let biases = f64::from(seasonal_bias[step]) + f64::from(trend_bias[step]);
            (rows.sum::<f64>() + biases) as f32
        })
        .collect();
    assert_close(&forecast(&model, x, None), &expected, 1e-6);
}

#[test]
fn every_parameter_gets_a_gradient() {
    let device = device().autodiff();
    for config in [s_mamba("dropout = 0.0"), dlinear()] {
        let model = init(&config, &device);
        let input = Input { x: series(2, 3, 1, &device), marks: Some(series(2, 4, 2, &device)) };
        let y = model.forward(input);
        let cotangent = y.random_like(Distribution::Normal(0.0, 1.0));
        let mut gradients = Gradients { grads: (y * cotangent).sum().backward(), n: 0 };
        model.visit(&mut gradients);
        assert!(gradients.n > 3);
    }
}

#[test]
fn dropout_acts_in_training_only() {
    let config = s_mamba("dropout = 0.5");
    let training = device().autodiff();
    let model = init(&config, &training);
    let x = series(2, 3, 1, &training);
    let first = forecast(&model, x.clone(), None);
    assert_ne!(first, forecast(&model, x, None));
    let (model, x) = (model.valid(), series(2, 3, 1, &device()));
    assert_eq!(forecast(&model, x.clone(), None), forecast(&model, x, None));
}

/// Values of every parameter, in the order of the module.
#[derive(Default)]
struct Collected {
    values: Vec<Vec<f32>>,
}

impl ModuleVisitor for Collected {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.values.push(param.val().into_data_as::<f32>().try_into_vec().unwrap());
    }
}

/// Checks that each parameter has a finite gradient that is not all zero.
struct Gradients {
    grads: burn::tensor::Gradients,
    n: usize,
}

impl ModuleVisitor for Gradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(&self.grads).unwrap_or_else(|| {
            panic!("parameter {} of shape {:?} has no gradient", self.n, param.val().dims())
        });
        let values: Vec<f32> = gradient.into_data_as::<f32>().try_into_vec().unwrap();
        assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0));
        self.n += 1;
    }
}
