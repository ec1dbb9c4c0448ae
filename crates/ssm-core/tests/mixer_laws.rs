//! Every law on every registered mixer: a new mixer is tested by being registered.
//!
//! Laws of the recurrent form hold for mixers that have one; a mixer without must show that it reads
//! later steps.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use serde::{Deserialize, Serialize};
use ssm_core::{
    init::Init,
    mixers::{AnyMixer, MambaConfig, Mixer, MixerConfig, MixerError},
    nn::{Backbone, BackboneConfig, BidirectionalConfig, Merge, MlpConfig},
};

use crate::support::{Draw, assert_error, devices, half_devices, tensor, values};

const D_MODEL: usize = 12;

/// Configurations at the edges of their ranges, besides the default of every mixer.
const EDGES: [&str; 4] = [
    "mamba = { d_conv = 1 }",
    "mamba = { d_state = 1, expand = 1, dt_rank = 1 }",
    "mamba = { d_conv = 2, dt_rank = 24, bias = true, conv_bias = false }",
    "mamba = { d_state = 33, d_conv = 7, expand = 3 }",
];

fn law_configs() -> Vec<MixerConfig> {
    let edge = |text: &&str| toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    MixerConfig::all().into_iter().chain(EDGES.iter().map(edge)).collect()
}

/// Runs `law` for every configuration on every device, each with the device's name for messages.
fn for_all(law: impl Fn(&str, &MixerConfig, &Device)) {
    for config in law_configs() {
        for (name, device) in devices() {
            law(&format!("{config:?} on {name}"), &config, &device);
        }
    }
}

/// As [`for_all`], for mixers with a recurrent form.
fn for_all_causal(law: impl Fn(&str, &MixerConfig, &Device)) {
    for_all(|what, config, device| {
        if is_causal(config, device) {
            law(what, config, device);
        }
    });
}

fn is_causal(config: &MixerConfig, device: &Device) -> bool {
    match mixer(config, device).init_state(1) {
        Ok(_) => true,
        Err(MixerError::NotCausal { .. }) => false,
        Err(error) => panic!("{config:?}: {error}"),
    }
}

fn input(batch: usize, seq_len: usize, seed: u64, device: &Device) -> Tensor<3> {
    let x = Draw::new(seed).uniform(batch * seq_len * D_MODEL, -1.0, 1.0);
    tensor(&x, [batch, seq_len, D_MODEL], device)
}

fn mixer(config: &MixerConfig, device: &Device) -> AnyMixer {
    config.init(D_MODEL, &mut Init::new(7, device))
}

/// Parameters, or their gradients, by path.
struct Collect<'a> {
    path: Vec<String>,
    grads: Option<&'a burn::tensor::Gradients>,
    found: Vec<(String, Vec<f64>)>,
}

impl<'a> Collect<'a> {
    fn of<M: Module>(
        module: &M,
        grads: Option<&'a burn::tensor::Gradients>,
    ) -> Vec<(String, Vec<f64>)> {
        let mut collect = Self { path: Vec::new(), grads, found: Vec::new() };
        module.visit(&mut collect);
        collect.found
    }
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let got = match self.grads {
            Some(grads) => param.val().grad(grads).map_or_else(Vec::new, |grad| values(&grad)),
            None => values(&param.val()),
        };
        self.found.push((self.path.join("."), got));
    }
}

#[test]
fn a_mixer_is_causal_if_and_only_if_it_has_a_state() {
    for_all(|what, config, device| {
        let causal = is_causal(config, device);
        let mixer = mixer(config, device);
        let x = input(2, 50, 1, device);
        let t = 33;
        let bump = Tensor::ones([2, 1, D_MODEL], device);
        let changed = x.clone().slice_assign([0..2, t..t + 1, 0..D_MODEL], bump);
        let (a, b) = (mixer.forward(x), mixer.forward(changed));
        let head = |y: &Tensor<3>| values(&y.clone().narrow(1, 0, t));
        let here = |y: &Tensor<3>| values(&y.clone().narrow(1, t, 1));
        assert_eq!(head(&a) == head(&b), causal, "{what}");
        assert_ne!(here(&a), here(&b), "{what}");
    });
}

#[test]
fn valid_configurations_count_their_parameters() {
    for config in law_configs() {
        config.validate(D_MODEL).unwrap_or_else(|error| panic!("{config:?}: {error}"));
        let mixer = mixer(&config, &devices()[0].1);
        assert_eq!(config.n_params(D_MODEL), mixer.num_params(), "{config:?}");
    }
}

#[test]
fn forward_equals_unrolled_steps_with_state_and_gradients() {
    for_all_causal(|what, config, device| {
        let device = device.clone().autodiff();
        // From a state that is not zero; whatever follows the states shows whether they are equal.
        let run = |stepwise: bool| {
            let mixer = mixer(config, &device);
            let mut state = mixer.init_state(2).expect("a causal mixer");
            mixer.prefill(input(2, 5, 4, &device), None, &mut state);
            let x = input(2, 19, 2, &device).require_grad();
            let y: Tensor<3> = if stepwise {
                let step = |t| {
                    let x_t = x.clone().narrow(1, t, 1).squeeze_dim(1);
                    mixer.step(x_t, &mut state).unsqueeze_dim(1)
                };
                Tensor::cat((0..19).map(step).collect(), 1)
            } else {
                mixer.prefill(x.clone(), None, &mut state)
            };
            let next = mixer.prefill(input(2, 3, 5, &device), None, &mut state);
            let loss = (y.clone() * input(2, 19, 3, &device)).sum() + next.clone().sum();
            let grads = loss.backward();
            let grad_x = values(&x.grad(&grads).expect("a gradient of the input"));
            (values(&y), values(&next), grad_x, Collect::of(&mixer, Some(&grads)))
        };
        let (y, next, grad_x, params) = run(false);
        let (step_y, step_next, step_grad_x, step_params) = run(true);
        assert_error(&format!("outputs of {what}"), &step_y, &y, 1e-5);
        assert_error(&format!("state of {what}"), &step_next, &next, 1e-5);
        assert_error(&format!("input gradient of {what}"), &step_grad_x, &grad_x, 1e-5);
        for ((path, step), (_, whole)) in step_params.into_iter().zip(params) {
            assert_error(&format!("gradient of {path} in {what}"), &step, &whole, 2e-5);
        }
    });
}

#[test]
fn a_split_sequence_equals_the_whole() {
    for_all_causal(|what, config, device| {
        let mixer = mixer(config, device);
        let x = input(2, 40, 6, device);
        let whole = values(&mixer.forward(x.clone()));
        for split in [1, 2, 3, 32, 39] {
            let mut state = mixer.init_state(2).expect("a causal mixer");
            let head = mixer.prefill(x.clone().narrow(1, 0, split), None, &mut state);
            let tail = mixer.prefill(x.clone().narrow(1, split, 40 - split), None, &mut state);
            let y = values(&Tensor::cat(vec![head, tail], 1));
            assert_error(&format!("split at {split} of {what}"), &y, &whole, 1e-5);
        }
    });
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for_all_causal(|what, config, device| {
        let mixer = mixer(config, device);
        let x = input(1, 20, 7, device);
        let starts = [0, 1, 2, 9];
        let resets: Vec<bool> = (0..20).map(|t| starts.contains(&t)).collect();
        let resets = Tensor::from_data(TensorData::new(resets, [1, 20]), device);
        let mut state = mixer.init_state(1).expect("a causal mixer");
        let packed = mixer.prefill(x.clone(), Some(resets), &mut state);
        for (start, end) in [(0, 1), (1, 2), (2, 9), (9, 20)] {
            let alone = mixer.forward(x.clone().narrow(1, start, end - start));
            let part = packed.clone().narrow(1, start, end - start);
            assert_error(what, &values(&part), &values(&alone), 1e-5);
        }
    });
}

#[test]
fn rows_of_a_batch_are_independent() {
    for_all(|what, config, device| {
        let mixer = mixer(config, device);
        let x = input(3, 17, 8, device);
        let together = mixer.forward(x.clone());
        for i in 0..3 {
            let alone = values(&mixer.forward(x.clone().narrow(0, i, 1)));
            let row = values(&together.clone().narrow(0, i, 1));
            assert_error(&format!("row {i} of {what}"), &row, &alone, 1e-5);
        }
    });
}

#[test]
fn every_parameter_has_a_finite_gradient_that_is_not_zero() {
    for_all(|what, config, device| {
        let device = device.clone().autodiff();
        let mixer = mixer(config, &device);
        let y = mixer.forward(input(2, 24, 9, &device));
        let grads = (y * input(2, 24, 10, &device)).sum().backward();
        let found = Collect::of(&mixer, Some(&grads));
        assert!(!found.is_empty(), "{what} has no parameters");
        for (path, grad) in found {
            assert!(!grad.is_empty(), "{path} of {what} has no gradient");
            assert!(grad.iter().all(|g| g.is_finite()), "{path} of {what} is not finite");
            assert!(grad.iter().any(|g| *g != 0.0), "{path} of {what} is zero everywhere");
        }
    });
}

/// Moves one element of the parameter at `path`.
struct Nudge<'a> {
    path: Vec<String>,
    target: &'a str,
    index: usize,
    by: f32,
}

impl ModuleMapper for Nudge<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.path.join(".") != self.target {
            return param;
        }
        param.map(|tensor| {
            let (shape, device) = (tensor.dims(), tensor.device());
            let mut data = tensor.into_data().try_into_vec::<f32>().expect("f32 data");
            data[self.index] += self.by;
            Tensor::from_data(TensorData::new(data, shape), &device)
        })
    }
}

#[test]
fn parameter_gradients_match_finite_differences() {
    for config in law_configs() {
        let (name, device) = devices().swap_remove(0);
        let inner = mixer(&config, &device);
        let tracked = device.clone().autodiff();
        let trained = mixer(&config, &tracked);
        let loss = (trained.forward(input(1, 9, 11, &tracked)) * input(1, 9, 12, &tracked)).sum();
        let grads = loss.backward();
        let objective = |mixer: &AnyMixer| {
            let y = mixer.forward(input(1, 9, 11, &device)) * input(1, 9, 12, &device);
            values(&y).iter().sum::<f64>()
        };
        for (path, grad) in Collect::of(&trained, Some(&grads)) {
            for index in [0, grad.len() / 2, grad.len() - 1] {
                let at = |by: f32| {
                    let path_now = Vec::new();
                    let mut nudge = Nudge { path: path_now, target: &path, index, by };
                    objective(&inner.clone().map(&mut nudge))
                };
                // burn-signal's numbers: eps 1e-3, absolute 3e-3.
                let numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
                let error = (numeric - grad[index]).abs();
                assert!(
                    error <= 3e-3,
                    "{path}[{index}] of {config:?} on {name}: {} and {numeric}",
                    grad[index]
                );
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    mixer: MixerConfig,
}

#[test]
fn configurations_survive_toml() {
    for mixer in law_configs() {
        let text = toml::to_string(&Section { mixer: mixer.clone() }).expect("serialises");
        let back: Section = toml::from_str(&text).expect("its own output parses");
        assert_eq!(back.mixer, mixer, "{text}");
    }
}

#[test]
fn weights_survive_a_record() {
    for_all(|what, config, device| {
        let saved = mixer(config, device);
        let other = config.init(D_MODEL, &mut Init::new(99, device));
        let x = input(2, 11, 13, device);
        let truth = values(&saved.forward(x.clone()));
        assert_ne!(values(&other.forward(x.clone())), truth, "{what}");
        let restored = other.load_record(saved.into_record());
        assert_eq!(values(&restored.forward(x)), truth, "{what}");
    });
}

#[test]
fn outputs_stay_finite_on_a_long_sequence() {
    for config in law_configs() {
        let device = &devices()[0].1;
        let y = mixer(&config, device).forward(input(1, 16_384, 14, device));
        assert!(values(&y).iter().all(|v| v.is_finite()), "{config:?}");
    }
}

#[test]
fn initial_values_do_not_depend_on_the_device() {
    for config in law_configs() {
        let all: Vec<_> =
            devices().iter().map(|(_, d)| Collect::of(&mixer(&config, d), None)).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{config:?}");
    }
}

#[test]
fn mamba_has_the_parameters_of_the_published_model() {
    let device = &devices()[0].1;
    let mamba = MambaConfig::default().init(768, &mut Init::new(0, device));
    let count = |part: &str| -> usize {
        let found = Collect::of(&mamba, None);
        found.iter().filter(|(path, _)| path.starts_with(part)).map(|(_, v)| v.len()).sum()
    };
    // state-spaces/mamba-130m: d_inner 1536, dt_rank 48, d_state 16, d_conv 4.
    assert_eq!(count("in_proj"), 768 * 3072);
    assert_eq!(count("conv1d"), 1536 * 4 + 1536);
    assert_eq!(count("x_proj"), 1536 * 80);
    assert_eq!(count("dt_proj"), 48 * 1536 + 1536);
    assert_eq!(count("a_log"), 1536 * 16);
    assert_eq!(count("d"), 1536 + 48 * 1536 + 1536);
    assert_eq!(count("out_proj"), 1536 * 768);
}

#[test]
fn swapping_directions_and_reversing_the_sequence_changes_nothing() {
    for_all(|what, config, device| {
        for merge in [Merge::Sum, Merge::Mean] {
            let both = BidirectionalConfig { mixer: config.clone(), merge }
                .init(D_MODEL, &mut Init::new(5, device));
            let mut swapped = both.clone();
            std::mem::swap(&mut swapped.forward, &mut swapped.backward);
            let x = input(2, 13, 15, device);
            let y = values(&both.forward(x.clone()));
            let turned = values(&swapped.forward(x.flip([1])).flip([1]));
            assert_error(&format!("{merge:?} of {what}"), &turned, &y, 1e-6);
        }
    });
}

#[test]
fn a_backbone_steps_as_it_runs_forward() {
    for_all_causal(|what, config, device| {
        for mlp in [None, Some(MlpConfig { d_hidden: 10, gated: true })] {
            let config =
                BackboneConfig { d_model: D_MODEL, n_layer: 2, mixer: config.clone(), mlp };
            let backbone: Backbone = config.init(&mut Init::new(3, device));
            let x = input(2, 9, 16, device);
            let whole = values(&backbone.forward(x.clone()));
            let mut state = backbone.init_state(2).expect("causal mixers");
            let steps = (0..9)
                .map(|t| {
                    let x_t = x.clone().narrow(1, t, 1).squeeze_dim(1);
                    backbone.step(x_t, &mut state).unsqueeze_dim(1)
                })
                .collect();
            let steps = values(&Tensor::<3>::cat(steps, 1));
            assert_error(what, &steps, &whole, 1e-5);
        }
    });
}

/// Casts every parameter.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(self.0).detach().require_grad())
    }
}

#[test]
fn half_precision_runs_forward_backward_and_step_by_step() {
    for config in law_configs() {
        for (name, device) in half_devices() {
            let device = device.autodiff();
            // Outputs, outputs step by step where there are steps, and gradients, all in `dtype`.
            let run = |dtype: FloatDType| {
                let mixer = mixer(&config, &device).map(&mut Cast(dtype));
                let x = input(2, 9, 17, &device).cast(dtype);
                let y = mixer.forward(x.clone());
                assert_eq!(FloatDType::from(y.dtype()), dtype, "{config:?} on {name}");
                let steps = mixer.init_state(2).ok().map(|mut state| {
                    let head = mixer.prefill(x.clone().narrow(1, 0, 4), None, &mut state);
                    let step = |t| {
                        let x_t = x.clone().narrow(1, t, 1).squeeze_dim(1);
                        mixer.step(x_t, &mut state).unsqueeze_dim(1)
                    };
                    let tail: Vec<Tensor<3>> = (4..9).map(step).collect();
                    values(&Tensor::cat([vec![head], tail].concat(), 1))
                });
                let loss = y.clone().cast(FloatDType::F32) * input(2, 9, 18, &device);
                let grads = loss.sum().backward();
                (values(&y), steps, Collect::of(&mixer, Some(&grads)))
            };
            let (truth, _, truth_grads) = run(FloatDType::F32);
            let (y, steps, grads) = run(FloatDType::BF16);
            let what = format!("{config:?} on {name}");
            // Eight bits of mantissa, rounded after each of a handful of layers.
            assert_error(&format!("outputs of {what}"), &y, &truth, 2e-2);
            if let Some(steps) = steps {
                assert_error(&format!("steps of {what}"), &steps, &y, 2e-2);
            }
            for ((path, grad), (_, truth)) in grads.into_iter().zip(truth_grads) {
                assert_error(&format!("gradient of {path} in {what}"), &grad, &truth, 5e-2);
            }
        }
    }
}

/// Parameters and stream in f32, everything between them in bf16: outputs and gradients are those of f32
/// but for rounding, and the gradients are in f32.
#[test]
fn a_backbone_in_mixed_precision_keeps_its_parameters_and_gradients_in_f32() {
    for config in law_configs() {
        for (name, device) in half_devices() {
            let device = device.autodiff();
            for (mlp, recompute) in
                [(None, false), (Some(MlpConfig { d_hidden: 10, gated: true }), true)]
            {
                let config =
                    BackboneConfig { d_model: D_MODEL, n_layer: 2, mixer: config.clone(), mlp };
                let run = |dtype: Option<FloatDType>| {
                    let mut backbone = config.init(&mut Init::new(3, &device));
                    if let Some(dtype) = dtype {
                        backbone.compute_in(dtype);
                    }
                    if recompute {
                        backbone.recompute_layers();
                    }
                    let x = input(2, 9, 17, &device).require_grad();
                    let y = backbone.forward(x.clone());
                    assert_eq!(FloatDType::from(y.dtype()), dtype.unwrap_or(FloatDType::F32));
                    let steps = backbone.init_state(2).ok().map(|mut state| {
                        let head = backbone.prefill(x.clone().narrow(1, 0, 4), None, &mut state);
                        let tail = (4..9).map(|t| {
                            let x_t = x.clone().narrow(1, t, 1).squeeze_dim(1);
                            backbone.step(x_t, &mut state).unsqueeze_dim(1)
                        });
                        values(&Tensor::<3>::cat([head].into_iter().chain(tail).collect(), 1))
                    });
                    let loss = y.clone().cast(FloatDType::F32) * input(2, 9, 18, &device);
                    let grads = loss.sum().backward();
                    let grad_x = x.grad(&grads).expect("a gradient of the input");
                    assert_eq!(FloatDType::from(grad_x.dtype()), FloatDType::F32);
                    backbone.visit(&mut AllF32(&grads));
                    (values(&y), steps, values(&grad_x), Collect::of(&backbone, Some(&grads)))
                };
                let (truth, _, truth_x, truth_grads) = run(None);
                let (y, steps, grad_x, grads) = run(Some(FloatDType::BF16));
                let what = format!("{config:?} on {name}");
                // Eight bits of mantissa, rounded after each of two handfuls of layers.
                assert_error(&format!("outputs of {what}"), &y, &truth, 2e-2);
                if let Some(steps) = steps {
                    assert_error(&format!("steps of {what}"), &steps, &y, 2e-2);
                }
                assert_error(&format!("input gradient of {what}"), &grad_x, &truth_x, 2e-2);
                for ((path, grad), (_, truth)) in grads.into_iter().zip(truth_grads) {
                    // Through twice as many roundings as in the mixer alone, and some are next to zero.
                    assert_error(&format!("gradient of {path} in {what}"), &grad, &truth, 1e-1);
                }
            }
        }
    }
}

/// Fails for a parameter or a gradient in another type.
struct AllF32<'a>(&'a burn::tensor::Gradients);

impl ModuleVisitor for AllF32<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.0).expect("a gradient");
        for dtype in [param.val().dtype(), grad.dtype()] {
            assert_eq!(FloatDType::from(dtype), FloatDType::F32);
        }
    }
}

#[test]
fn a_configuration_out_of_range_names_the_field() {
    for (text, expected) in [
        ("d_state = 0", "`d_state` is 0, expected 1 to 4096"),
        ("d_conv = 65", "`d_conv` is 65, expected 1 to 64"),
        ("expand = 0", "`expand` is 0, expected 1 to 64"),
        ("dt_rank = 0", "`dt_rank` is 0, expected 1 to 24"),
        ("dt_rank = 1152921504606846976", "`dt_rank` is 1152921504606846976, expected 1 to 24"),
        ("dt_min = nan", "`dt_min` is NaN, expected a number above 0"),
        ("dt_max = inf", "`dt_max` is inf, expected a number above `dt_min` = 0.001, at most 1000"),
        ("dt_init_floor = inf", "`dt_init_floor` is inf, expected a number above 0, at most 1000"),
    ] {
        let config: MambaConfig = toml::from_str(text).expect("a configuration");
        let error = config.validate(D_MODEL).expect_err(text);
        assert_eq!(error.to_string(), expected);
    }
}
