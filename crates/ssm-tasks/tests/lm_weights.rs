//! Weights of Hugging Face and state-spaces/mamba, against numbers that `fixtures/lm/make_golden.py`
//! recorded of the package `transformers`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::Module,
    tensor::{Int, Tensor, TensorData, activation::log_softmax},
};
use ssm_core::init::Init;
use ssm_tasks::{
    lm::{
        model::{MambaLm, MambaLmConfig},
        weights::{Format, Imported, Layout, export, import, load, tensors_of},
    },
    mil::features::{Array, safetensors_tensors},
};

use crate::support;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm").join(name)
}

fn golden() -> (Vec<i32>, f64) {
    let golden: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("golden.json")).unwrap()).unwrap();
    let rows: Vec<Vec<i32>> = serde_json::from_value(golden["tokens"].clone()).unwrap();
    (rows.concat(), golden["loss"].as_f64().unwrap())
}

fn largest_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
    errors.fold(0.0, |largest, error| if error > largest { error } else { largest })
}

/// Gradients of the mean loss of the next token, as weights under the names of a layout.
fn gradients(model: &MambaLm, tokens: &[i32], layout: Layout) -> (f64, Vec<(String, Array)>) {
    let device = model.device();
    let tokens = TensorData::new(tokens.to_vec(), [2, 11]);
    let tokens = Tensor::<2, Int>::from_data(tokens, &device);
    let targets = tokens.clone().narrow(1, 1, 10).unsqueeze_dim::<3>(2);
    let logits = model.forward(tokens).narrow(1, 0, 10);
    let loss = -log_softmax(logits, 2).gather(2, targets).mean();
    let value: Vec<f32> = loss.clone().into_data().try_into_vec_as().unwrap();
    let grads = loss.backward();
    // The gradients take the places of the weights, and are named as these are.
    let in_place = model.clone().map(&mut InPlace(&grads));
    (f64::from(value[0]), tensors_of(&in_place, layout).into_iter().collect())
}

struct InPlace<'a>(&'a burn::tensor::Gradients);

impl burn::module::ModuleMapper for InPlace<'_> {
    fn map_float<const D: usize>(
        &mut self,
        param: burn::module::Param<Tensor<D>>,
    ) -> burn::module::Param<Tensor<D>> {
        let gradient = param.val().grad(self.0).expect("every parameter has a gradient");
        param.map(|_| Tensor::from_inner(gradient))
    }
}

#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    let (tokens, loss) = golden();
    let expected = &safetensors_tensors(&fixture("logits.safetensors")).unwrap()["logits"];
    let expected_gradients = safetensors_tensors(&fixture("gradients.safetensors")).unwrap();
    for name in ["hf", "state_spaces"] {
        let device = support::device();
        let Imported { model, artifacts, .. } = import(&fixture(name), None, &device).unwrap();
        assert_eq!(artifacts.n_vocab, 24);
        let input = TensorData::new(tokens.clone(), [2, 11]);
        let logits = model.forward(Tensor::from_data(input, &device));
        let logits: Vec<f32> = logits.into_data().try_into_vec_as().unwrap();
        let spread =
            expected.values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        assert!(spread > 1.0, "a model that says nothing proves nothing: {spread}");
        let error = largest_error(&logits, &expected.values);
        assert!(error <= 1e-4, "{name}: logits differ by {error}");

        let trained = import(&fixture(name), None, &device.autodiff()).unwrap().model.train();
        let (got, gradients) = gradients(&trained, &tokens, Layout::HuggingFace);
        assert!((got - loss).abs() <= 1e-4, "{name}: {got} is not {loss}");
        assert_eq!(gradients.len(), expected_gradients.len());
        for (key, gradient) in gradients {
            let expected = &expected_gradients[&key];
            assert_eq!(gradient.shape, expected.shape, "{key}");
            let error = largest_error(&gradient.values, &expected.values);
            assert!(error <= 1e-4, "{name}: the gradient of `{key}` differs by {error}");
        }
    }
}

#[test]
fn weights_come_back_bit_for_bit_in_every_layout_and_format() {
    let device = support::device();
    let Imported { model, config, artifacts, .. } = import(&fixture("hf"), None, &device).unwrap();
    let original = safetensors_tensors(&fixture("hf/model.safetensors")).unwrap();
    assert_eq!(tensors_of(&model, Layout::HuggingFace), original);
    for layout in [Layout::HuggingFace, Layout::StateSpaces] {
        for format in [Format::Safetensors, Format::Torch] {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in export(&model, &config, &artifacts, layout, format).unwrap() {
                let mut file = fs::File::create(dir.path().join(name)).unwrap();
                std::io::Write::write_all(&mut file, &bytes).unwrap();
            }
            let again = import(dir.path(), None, &device).unwrap();
            assert_eq!((again.layout, &again.config), (layout, &config));
            assert_eq!(tensors_of(&again.model, Layout::HuggingFace), original);
        }
    }
}

#[test]
fn the_scale_of_logits_is_exported_in_the_last_norm() {
    let device = support::device();
    let Imported { config, artifacts, .. } = import(&fixture("hf"), None, &device).unwrap();
    let config = MambaLmConfig { logit_scale: 0.25, ..config };
    let model = config.init(artifacts.n_vocab, &mut Init::new(7, &device));
    let dir = tempfile::tempdir().unwrap();
    let (layout, format) = (Layout::HuggingFace, Format::Safetensors);
    for (name, bytes) in export(&model, &config, &artifacts, layout, format).unwrap() {
        let mut file = fs::File::create(dir.path().join(name)).unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
    }
    let again = import(dir.path(), None, &device).unwrap();
    assert_eq!(again.config.logit_scale, 1.0);
    let logits = |model: &MambaLm| {
        let tokens = TensorData::new(vec![3_i32, 1, 4, 1, 5], [1, 5]);
        model.forward(Tensor::<2, Int>::from_data(tokens, &device)).into_data()
    };
    assert_eq!(logits(&again.model), logits(&model));
}

#[test]
fn every_key_that_does_not_fit_is_listed() {
    let device = support::device();
    let model = || import(&fixture("hf"), None, &device).unwrap().model;
    let layout = Layout::HuggingFace;
    let mut tensors = tensors_of(&model(), layout);
    tensors.remove("backbone.norm_f.weight");
    let a_log = tensors.remove("backbone.layers.1.mixer.A_log").unwrap();
    tensors.insert("backbone.layers.2.mixer.A_log".to_owned(), a_log);
    tensors.insert("extra".to_owned(), Array::default());
    let d = tensors.get_mut("backbone.layers.0.mixer.D").unwrap();
    *d = Array { shape: vec![1], values: vec![0.0] };
    assert_eq!(
        load(model(), tensors, layout).unwrap_err(),
        "missing `backbone.layers.1.mixer.A_log`, `backbone.norm_f.weight`; unexpected \
         `backbone.layers.2.mixer.A_log`, `extra`; `backbone.layers.0.mixer.D` is [1], not [32]"
    );
    let mut tensors = tensors_of(&model(), Layout::StateSpaces);
    tensors.get_mut("lm_head.weight").unwrap().values[3] += 1.0;
    assert_eq!(
        load(model(), tensors, Layout::StateSpaces).unwrap_err(),
        "`lm_head.weight` is not the embedding: an untied head is not supported"
    );
}
