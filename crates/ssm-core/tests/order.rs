//! Orders: the way there, the way back, and mixers between the two.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use ssm_core::{
    init::Init,
    mixers::{
        BiMambaConfig, BranchConfig, MambaConfig, Mixer, MixerConfig, MixerError, SrMambaConfig,
    },
    nn::{AttentionPoolConfig, ReorderedConfig},
    order::{Permutation, ScanOrder},
};

use crate::support::{Draw, assert_error, devices, tensor, values};

const D_MODEL: usize = 6;

/// Lengths around multiples of the rate, and shorter than it.
fn cases() -> Vec<(usize, usize)> {
    let mut cases = vec![(7, 1), (1, 1), (1, 5)];
    for rate in [2, 3, 5, 10] {
        for seq_len in [1, rate - 1, rate, rate + 1, 4 * rate, 4 * rate + 1, 5 * rate - 1] {
            cases.push((seq_len, rate));
        }
    }
    cases
}

fn orders(rate: usize) -> [ScanOrder; 4] {
    [
        ScanOrder::Raster,
        ScanOrder::Reversed,
        ScanOrder::Strided { rate, padded: true },
        ScanOrder::Strided { rate, padded: false },
    ]
}

fn input(seq_len: usize, device: &Device) -> Tensor<3> {
    let x = Draw::new(seq_len as u64).uniform(2 * seq_len * D_MODEL, 0.1, 1.0);
    tensor(&x, [2, seq_len, D_MODEL], device)
}

#[test]
fn every_order_puts_the_specified_position_at_each_place_and_comes_back() {
    for (_, device) in devices() {
        for (seq_len, rate) in cases() {
            for order in orders(rate) {
                let what = format!("{order:?} of {seq_len}");
                let x = input(seq_len, &device);
                let positions = order.positions(seq_len);
                let rows: Vec<Tensor<3>> = positions
                    .iter()
                    .map(|old| match old {
                        Some(old) => x.clone().narrow(1, *old, 1),
                        None => Tensor::zeros([2, 1, D_MODEL], &device),
                    })
                    .collect();
                let there = order.apply(x.clone());
                assert_eq!(values(&there), values(&Tensor::cat(rows, 1)), "{what}");
                assert_eq!(values(&order.undo(there, seq_len)), values(&x), "back from {what}");
                let mut seen: Vec<usize> = positions.into_iter().flatten().collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..seq_len).collect::<Vec<_>>(), "{what}");
            }
        }
    }
}

#[test]
fn a_stride_reads_the_columns_of_a_raster() {
    let order = |padded| ScanOrder::Strided { rate: 3, padded };
    let columns = |padded| order(padded).positions(8);
    assert_eq!(
        columns(true),
        [Some(0), Some(3), Some(6), Some(1), Some(4), Some(7), Some(2), Some(5), None]
    );
    assert_eq!(columns(false), [0, 3, 6, 1, 4, 7, 2, 5].map(Some));
    assert_eq!(order(true).positions(2), [Some(0), Some(1), None]);
}

#[test]
fn orders_carry_gradients_to_the_positions_they_came_from() {
    for (_, device) in devices() {
        let device = device.autodiff();
        for (seq_len, rate) in cases() {
            for order in orders(rate) {
                let x = input(seq_len, &device).require_grad();
                let weight = Draw::new(9).uniform(2 * seq_len * D_MODEL, -1.0, 1.0);
                let weight: Tensor<3> = tensor(&weight, [2, seq_len, D_MODEL], &device);
                let y = order.undo(order.apply(x.clone()) * 2.0, seq_len);
                let grads = (y * weight.clone()).sum().backward();
                let got = values(&x.grad(&grads).expect("a gradient"));
                assert_eq!(got, values(&(weight * 2.0)), "{order:?} of {seq_len}");
            }
        }
    }
}

#[test]
fn any_permutation_comes_back_and_others_are_refused() {
    for (_, device) in devices() {
        let order = Permutation::new(&[3, 0, 4, 1, 2]).expect("a permutation");
        let x = input(5, &device);
        let there = order.apply(x.clone());
        assert_eq!(values(&there.clone().narrow(1, 0, 1)), values(&x.clone().narrow(1, 3, 1)));
        assert_eq!(values(&order.undo(there)), values(&x));
    }
    assert_eq!(Permutation::new(&[0, 0]), None);
    assert_eq!(Permutation::new(&[0, 2]), None);
}

#[test]
fn any_order_composes_with_any_mixer() {
    for (_, device) in devices() {
        for mixer in MixerConfig::all() {
            for (seq_len, rate) in [(11, 3), (12, 3), (2, 3)] {
                for order in orders(rate) {
                    let config = ReorderedConfig { mixer: mixer.clone(), order: order.clone() };
                    let layer = config.init(D_MODEL, &mut Init::new(1, &device));
                    let x = input(seq_len, &device);
                    let by_hand = layer.mixer.forward(order.apply(x.clone()));
                    let by_hand = order.undo(by_hand, seq_len);
                    assert_eq!(values(&layer.forward(x)), values(&by_hand), "{config:?}");
                }
            }
        }
    }
}

fn sr_mamba(rate: usize, masked: bool) -> SrMambaConfig {
    SrMambaConfig { rate, masked, branch: BranchConfig { d_state: 3, ..BranchConfig::default() } }
}

/// The parameters of a Mamba by path.
#[derive(Default)]
struct Parameters {
    path: Vec<String>,
    found: BTreeMap<String, Vec<f64>>,
}

impl ModuleVisitor for Parameters {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.insert(self.path.join("."), values(&param.val()));
    }
}

impl ModuleMapper for Parameters {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    /// Both branches take the one of Mamba.
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let path = path.trim_start_matches("branch_b.").trim_start_matches("branch.");
        let values = &self.found[path];
        param.map(|old| tensor(values, old.dims(), &old.device()))
    }
}

#[test]
fn tied_branches_in_equal_order_double_what_goes_into_the_out_projection() {
    for (name, device) in devices() {
        let mamba = MambaConfig { d_state: 3, ..MambaConfig::default() };
        let mamba = mamba.init(D_MODEL, &mut Init::new(3, &device));
        let mut parameters = Parameters::default();
        mamba.visit(&mut parameters);
        // A rate of at least the length changes no order either, and its zeros come last.
        for rate in [1, 40] {
            for masked in [false, true] {
                let tied = sr_mamba(rate, masked).init(D_MODEL, &mut Init::new(4, &device));
                let tied = tied.map(&mut parameters);
                for seq_len in [1, 2, 9, 33] {
                    let x = input(seq_len, &device);
                    // The out-projection is linear: double before it is double after it.
                    let twice = values(&(mamba.forward(x.clone()) * 2.0));
                    let what = format!("rate {rate}, length {seq_len}, masked {masked} on {name}");
                    assert_error(&what, &values(&tied.forward(x)), &twice, 1e-6);
                }
            }
        }
    }
}

#[test]
fn branches_can_be_written_with_other_mixers() {
    // SR-Mamba and BiMamba with tied branches are Mamba plus Mamba in another order.
    for (name, device) in devices() {
        let mamba = MambaConfig { d_state: 3, ..MambaConfig::default() };
        let plain = mamba.init(D_MODEL, &mut Init::new(3, &device));
        let mut parameters = Parameters::default();
        plain.visit(&mut parameters);
        let bi = BiMambaConfig { branch: BranchConfig { d_state: 3, ..BranchConfig::default() } };
        let strided = |rate| ScanOrder::Strided { rate, padded: false };
        for (mixer, order) in [
            (bi.init(D_MODEL, &mut Init::new(4, &device)), ScanOrder::Reversed),
            (sr_mamba(3, true).init(D_MODEL, &mut Init::new(4, &device)), strided(3)),
            (sr_mamba(4, false).init(D_MODEL, &mut Init::new(4, &device)), strided(4)),
        ] {
            // At a length of 12 there is no padding.
            let mixer = mixer.map(&mut parameters);
            let x = input(12, &device);
            let other = order.undo(plain.forward(order.apply(x.clone())), 12);
            let sum = plain.forward(x.clone()) + other;
            assert_error(
                &format!("{order:?} on {name}"),
                &values(&mixer.forward(x)),
                &values(&sum),
                1e-6,
            );
        }
    }
}

#[test]
fn published_padding_is_seen_and_masked_padding_is_not() {
    for (_, device) in devices() {
        let run = |masked, seq_len| {
            let mixer = sr_mamba(5, masked).init(D_MODEL, &mut Init::new(4, &device));
            values(&mixer.forward(input(seq_len, &device)))
        };
        assert_eq!(run(true, 15), run(false, 15), "no padding at a multiple of the rate");
        assert_ne!(run(true, 16), run(false, 16));
    }
}

#[test]
fn a_mixer_that_sees_the_whole_has_no_step() {
    let (_, device) = devices().swap_remove(0);
    for (config, mixer) in [
        (MixerConfig::SrMamba(SrMambaConfig::default()), "sr_mamba"),
        (MixerConfig::BiMamba(BiMambaConfig::default()), "bi_mamba"),
    ] {
        let error = config.init(D_MODEL, &mut Init::new(1, &device)).init_state(1).unwrap_err();
        assert_eq!(error, MixerError::NotCausal { mixer });
        assert_eq!(
            error.to_string(),
            format!("mixer `{mixer}` is not causal, so it has no recurrent step")
        );
    }
    let error = SrMambaConfig { rate: 0, ..SrMambaConfig::default() }.validate(4).unwrap_err();
    assert_eq!(error.to_string(), "`rate` is 0, expected 1 to 1048576");
}

#[test]
fn attention_weights_are_a_distribution_and_ignore_the_order_of_instances() {
    for (name, device) in devices() {
        for gated in [false, true] {
            let config = AttentionPoolConfig { d_attention: 8, gated };
            let pool = config.init(D_MODEL, &mut Init::new(2, &device));
            let x = input(7, &device);
            let (pooled, weights) = pool.forward(x.clone());
            assert_eq!((pooled.dims(), weights.dims()), ([2, D_MODEL], [2, 7]));
            let weights = values(&weights);
            for bag in weights.chunks(7) {
                assert!(
                    (bag.iter().sum::<f64>() - 1.0).abs() < 1e-6 && bag.iter().all(|w| *w > 0.0)
                );
            }
            // By hand, from the weights.
            let instances = values(&x);
            let by_hand: Vec<f64> = (0..2 * D_MODEL)
                .map(|at| {
                    let (bag, channel) = (at / D_MODEL, at % D_MODEL);
                    let place = |i: usize| (bag * 7 + i) * D_MODEL + channel;
                    (0..7).map(|i| weights[bag * 7 + i] * instances[place(i)]).sum()
                })
                .collect();
            let what = format!("gated {gated} on {name}");
            assert_error(&what, &values(&pooled), &by_hand, 1e-6);
            let (reversed, _) = pool.forward(ScanOrder::Reversed.apply(x));
            assert_error(&what, &values(&reversed), &values(&pooled), 1e-6);
        }
    }
}
