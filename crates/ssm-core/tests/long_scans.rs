//! Scans that are cut into segments, whose states have to be carried across many of them.

use burn::tensor::{FloatDType, Tensor};
use ssm_core::ops::selective_scan::{ScanArgs, ScanOutput, host::ScanDims, selective_scan};

use crate::{
    selective_scan::{ALL, Case, Options, Results, dims},
    support::{assert_error, devices, half_devices, tensor, values},
};

/// A case whose states fade over about `memory` steps, with a reset every `every` steps: there are
/// segments with and without one, and gradients reach through several.
fn case(dims: ScanDims, options: Options, memory: f64, every: usize) -> Case {
    let mut case = Case::new(dims, options);
    // Step sizes are 0.4 in the mean, rates of decay 1.
    case.a.iter_mut().for_each(|a| *a *= 2.5 / memory);
    for (step, reset) in case.resets.iter_mut().enumerate() {
        *reset = f64::from(u8::from(step % every == every / 2));
    }
    case
}

fn check(what: &str, got: &Results, truth: &Results, bound: f64) {
    for ((tensor, truth), (_, got)) in truth.named().into_iter().zip(got.named()) {
        assert_error(&format!("{tensor} of {what}"), got, truth, bound);
    }
}

/// Steps that a device takes in some seconds: a million on processors and graphics cards.
fn most_steps(device: &str) -> usize {
    // What plays a graphics card runs a channel's steps one by one.
    if device == "webgpu" { 1 << 13 } else { 1 << 20 }
}

/// A kernel's exponentials are right to 2^-22, and a state goes through hundreds of them.
const BOUND: f64 = 5e-5;

#[test]
fn segments_carry_states_and_gradients() {
    // One lane a channel, two, four and eight; groups; odd lengths and widths.
    agree(&[
        (dims(1, 2049, 12, 3, 3), true),
        (dims(1, 1500, 6, 16, 2), true),
        (dims(2, 1500, 5, 8, 1), false),
        (dims(2, 1023, 5, 64, 1), true),
    ]);
}

/// Sixteen lanes a channel, in cubes that may have fewer planes than others; and states that are too many for
/// the tiled kernels.
#[test]
fn segments_carry_states_of_hundreds_of_numbers() {
    agree(&[(dims(1, 700, 4, 128, 2), true), (dims(1, 600, 3, 200, 1), false)]);
}

fn agree(cases: &[(ScanDims, bool)]) {
    for (dims, resets) in cases.iter().copied() {
        let case = case(dims, Options { resets, ..ALL }, 300.0, 617);
        let truth = case.truth();
        for (name, device) in devices() {
            let what = format!("{dims:?}, resets {resets} on {name}");
            check(&what, &case.run(&device, selective_scan), &truth, BOUND);
        }
    }
}

/// As [`selective_scan`], with what mixers give it in half precision: all but the step sizes.
fn in_half(args: ScanArgs) -> ScanOutput {
    let half = |x: Tensor<3>| x.cast(FloatDType::BF16);
    let out = selective_scan(ScanArgs {
        u: half(args.u),
        b: half(args.b),
        c: half(args.c),
        z: args.z.map(half),
        ..args
    });
    ScanOutput { y: out.y.cast(FloatDType::F32), ..out }
}

#[test]
fn segments_carry_states_of_half_precision_inputs() {
    for (name, device) in half_devices() {
        for dims in [dims(1, 1500, 6, 16, 2), dims(2, 1023, 5, 64, 1)] {
            let mut case = case(dims, ALL, 300.0, 617);
            // Inputs are numbers of bf16, so that all that is rounded is results.
            for field in [&mut case.u, &mut case.b, &mut case.c, &mut case.z, &mut case.grad_y] {
                *field = values(&tensor(field, [field.len()], &device).cast(FloatDType::BF16));
            }
            let what = format!("{dims:?} in bf16 on {name}");
            // A rounding to bf16 is 1.7e-3.
            check(&what, &case.run(&device, in_half), &case.truth(), 4e-3);
        }
    }
}

#[test]
fn a_million_steps_agree_with_the_host() {
    for (name, device) in devices() {
        let steps = most_steps(name);
        let dims = dims(1, steps, 2, 4, 1);
        let case = case(dims, ALL, 2000.0, steps / 3);
        let what = format!("{steps} steps on {name}");
        check(&what, &case.run(&device, selective_scan), &case.truth(), 2.0 * BOUND);
    }
}
