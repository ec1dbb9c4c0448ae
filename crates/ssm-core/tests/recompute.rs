//! Layers that are computed again in the backward pass, whole or cut along their sequence.

use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::Linear,
    tensor::{Device, Gradients, Tensor},
};
use ssm_core::{
    init::Init,
    mixers::{BiMambaConfig, BranchConfig, BranchedMamba, Mixer, SrMambaConfig},
    ops::{linear::linear, recompute::recompute_positions},
};

use crate::support::{Draw, assert_error, devices, tensor, values};

const D_MODEL: usize = 6;

/// Gradients of all parameters by path.
struct All<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    found: Vec<(String, Vec<f64>)>,
}

impl ModuleVisitor for All<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.grads).map(|grad| values(&grad)).unwrap_or_default();
        self.found.push((self.path.join("."), grad));
    }
}

/// Both mixers with two branches; `d_conv` 1 has no history.
fn mixers(device: &Device) -> Vec<(String, BranchedMamba)> {
    let mut mixers = Vec::new();
    for d_conv in [1, 4] {
        let branch = BranchConfig { d_state: 3, d_conv, ..BranchConfig::default() };
        let mut init = Init::new(d_conv as u64, device);
        let config = BiMambaConfig { branch: branch.clone() };
        mixers.push((format!("bi, d_conv {d_conv}"), config.init(D_MODEL, &mut init)));
        for (rate, masked) in [(1, false), (3, false), (3, true), (50, false)] {
            let config = SrMambaConfig { rate, masked, branch: branch.clone() };
            let name = format!("rate {rate}, masked {masked}, d_conv {d_conv}");
            mixers.push((name, config.init(D_MODEL, &mut init)));
        }
    }
    mixers
}

/// Output, and gradients of input and parameters.
fn step(
    mixer: &BranchedMamba,
    seq_len: usize,
    device: &Device,
    forward: impl Fn(&BranchedMamba, Tensor<3>) -> Tensor<3>,
) -> Vec<(String, Vec<f64>)> {
    let size = 2 * seq_len * D_MODEL;
    let x = tensor(&Draw::new(1).uniform(size, -1.0, 1.0), [2, seq_len, D_MODEL], device);
    let x = x.require_grad();
    let y = forward(mixer, x.clone());
    let [_, _, width] = y.dims();
    let weight = Draw::new(2).uniform(2 * seq_len * width, -1.0, 1.0);
    let weight: Tensor<3> = tensor(&weight, [2, seq_len, width], device);
    let mut found = vec![("y".to_owned(), values(&y))];
    let grads = (y * weight).sum().backward();
    found.push(("x".to_owned(), values(&x.grad(&grads).expect("a gradient"))));
    let mut all = All { path: Vec::new(), grads: &grads, found };
    mixer.visit(&mut all);
    all.found
}

#[test]
fn segments_have_the_outputs_and_gradients_of_the_whole() {
    for (name, device) in devices() {
        let plain = device.clone();
        let device = device.autodiff();
        for (what, mixer) in mixers(&device) {
            // Segments that divide the length and do not, of the history's length, and a whole one.
            for (seq_len, segment_len) in [(11, 4), (12, 4), (13, 4), (10, 3), (2, 3), (9, 64)] {
                let whole = step(&mixer, seq_len, &device, BranchedMamba::merged);
                let cut = step(&mixer, seq_len, &device, |mixer, x| {
                    mixer.merged_in_segments(x, segment_len)
                });
                for ((path, cut), (_, whole)) in cut.iter().zip(&whole) {
                    let what = format!("{path}: {what}, {seq_len} by {segment_len} on {name}");
                    assert_eq!(cut.len(), whole.len(), "{what}");
                    assert_error(&what, cut, whole, 3e-6);
                }
                // Without autodiff there is only the output.
                let x = Draw::new(1).uniform(2 * seq_len * D_MODEL, -1.0, 1.0);
                let x = tensor(&x, [2, seq_len, D_MODEL], &plain);
                let y = values(&mixer.valid().merged_in_segments(x, segment_len));
                assert_error(&what, &y, &whole[0].1, 3e-6);
            }
        }
    }
}

/// Long enough for what a mixer computes again in any case.
#[test]
fn long_sequences_have_the_gradients_of_their_segments() {
    let (_, device) = devices().swap_remove(0);
    let device = device.autodiff();
    let branch = BranchConfig { d_state: 3, ..BranchConfig::default() };
    let config = SrMambaConfig { rate: 7, masked: false, branch };
    let mixer = config.init(D_MODEL, &mut Init::new(4, &device));
    let whole = step(&mixer, 1030, &device, BranchedMamba::merged);
    let cut = step(&mixer, 1030, &device, |mixer, x| mixer.merged_in_segments(x, 300));
    for ((path, cut), (_, whole)) in cut.iter().zip(&whole) {
        assert_error(path, cut, whole, 3e-6);
    }
}

#[test]
fn positions_have_the_outputs_and_gradients_of_the_whole() {
    let gate = |layer: &Linear, [x, z]: [Tensor<3>; 2]| linear(layer, x * z.tanh());
    for (name, device) in devices() {
        let plain = device.clone();
        let device = device.autodiff();
        let layer = Init::new(3, &device).linear(4, 3, true);
        let draw = |seed: u64, width: usize| Draw::new(seed).uniform(2 * 11 * width, -1.0, 1.0);
        let input = |seed: u64| tensor::<3>(&draw(seed, 4), [2, 11, 4], &device).require_grad();
        let weight: Tensor<3> = tensor(&draw(7, 3), [2, 11, 3], &device);
        let step = |forward: &dyn Fn([Tensor<3>; 2]) -> Tensor<3>| {
            let inputs = [input(1), input(2)];
            let y = forward(inputs.clone());
            let mut found = vec![("y".to_owned(), values(&y))];
            let grads = (y * weight.clone()).sum().backward();
            for (name, input) in ["x", "z"].into_iter().zip(inputs) {
                found.push((name.to_owned(), values(&input.grad(&grads).expect("a gradient"))));
            }
            let mut all = All { path: Vec::new(), grads: &grads, found };
            layer.visit(&mut all);
            all.found
        };
        let whole = step(&|inputs| gate(&layer, inputs));
        assert_eq!(whole.len(), 5);
        for len in [1, 3, 11, 64] {
            let cut = step(&|inputs| recompute_positions(&layer, inputs, len, gate));
            for ((path, cut), (_, whole)) in cut.iter().zip(&whole) {
                assert_error(&format!("{path}: by {len} on {name}"), cut, whole, 3e-6);
            }
        }
        let inputs = [1, 2].map(|seed| tensor::<3>(&draw(seed, 4), [2, 11, 4], &plain));
        let y = recompute_positions(&layer.valid(), inputs, 3, gate);
        assert_error("without autodiff", &values(&y), &whole[0].1, 3e-6);
    }
}

#[test]
fn mixers_that_are_not_cut_are_run_whole() {
    let (_, device) = devices().swap_remove(0);
    let mixer = ssm_core::mixers::MambaConfig::default().init(D_MODEL, &mut Init::new(1, &device));
    let x = tensor(&Draw::new(1).uniform(5 * D_MODEL, -1.0, 1.0), [1, 5, D_MODEL], &device);
    assert_eq!(values(&mixer.forward_in_segments(x.clone())), values(&mixer.forward(x)));
}

#[test]
#[should_panic(expected = "segments of 2 steps, expected at least 3")]
fn a_segment_is_not_shorter_than_its_history() {
    let (_, device) = devices().swap_remove(0);
    let mixer = SrMambaConfig::default().init(D_MODEL, &mut Init::new(1, &device));
    mixer.merged_in_segments(Tensor::zeros([1, 5, D_MODEL], &device), 2);
}
