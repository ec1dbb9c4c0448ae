//! The properties that a scan must have.

use burn::tensor::{Device, Tensor};
use ssm_core::ops::selective_scan::{ScanArgs, ScanOutput, reference, selective_scan};

use super::{ALL, Case, MAMBA, Options, dims};
use crate::support::{View, any_device, assert_error, devices, panic_of, tensor, values};

#[test]
fn scan_reads_views_that_are_not_contiguous() {
    let case = Case::new(dims(2, 37, 10, 4, 2), ALL);
    for (name, device) in devices() {
        let plain = case.run(&device, selective_scan);
        let device = device.autodiff();
        let args = case.constants(&device);
        let view = |tensor: &Tensor<3>| View::new(tensor);
        let (u, delta, a) = (view(&args.u), view(&args.delta), View::new(&args.a));
        let (b, c) = (view(&args.b), view(&args.c));
        let z = view(args.z.as_ref().expect("the case has a gate"));
        let initial = view(args.initial_state.as_ref().expect("the case has a state"));
        let out = selective_scan(ScanArgs {
            u: u.tensor(),
            delta: delta.tensor(),
            a: a.tensor(),
            b: b.tensor(),
            c: c.tensor(),
            z: Some(z.tensor()),
            initial_state: Some(initial.tensor()),
            ..args
        });
        assert_eq!(values(&out.y), plain.y, "{name}");
        assert_eq!(values(&out.final_state), plain.final_state, "{name}");
        // The cotangents are views as well.
        let turned = |values: &[f64], shape| view(&tensor(values, shape, &device)).tensor();
        let loss = (out.y * turned(&case.grad_y, [2, 37, 10])).sum()
            + (out.final_state * turned(&case.grad_final, [2, 10, 4])).sum();
        let grads = loss.backward();
        for (input, got, expected) in [
            ("u", u.grad(&grads), &plain.grads.u),
            ("delta", delta.grad(&grads), &plain.grads.delta),
            ("a", a.grad(&grads), &plain.grads.a),
            ("b", b.grad(&grads), &plain.grads.b),
            ("c", c.grad(&grads), &plain.grads.c),
            ("z", z.grad(&grads), &plain.grads.z),
            ("initial_state", initial.grad(&grads), &plain.grads.initial_state),
        ] {
            assert_eq!(&got, expected, "gradient of {input} on {name}");
        }
    }
}

#[test]
fn scan_is_bit_equal_for_any_number_of_threads() {
    let case = Case::new(dims(3, 200, 150, 16, 1), MAMBA);
    for (name, device) in devices() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| case.run(&device, selective_scan))
        };
        let (one, two, five) = (run(1), run(2), run(5));
        for ((tensor, a), ((_, b), (_, c))) in
            one.named().into_iter().zip(two.named().into_iter().zip(five.named()))
        {
            assert!(a == b && a == c, "{tensor} differs between thread counts on {name}");
        }
    }
}

#[test]
fn scan_is_causal() {
    let case = Case::new(dims(1, 70, 9, 4, 1), MAMBA);
    let mut changed = case.clone();
    let t = 41;
    for channel in 0..9 {
        changed.u[t * 9 + channel] += 1.0;
        changed.delta[t * 9 + channel] += 1.0;
    }
    for (name, device) in devices() {
        let a = values(&selective_scan(case.args(&device)).y);
        let b = values(&selective_scan(changed.args(&device)).y);
        assert_eq!(a[..t * 9], b[..t * 9], "{name}");
        assert_ne!(a[t * 9..], b[t * 9..], "{name}");
    }
}

#[test]
fn a_split_sequence_with_carried_state_equals_the_whole() {
    let case = Case::new(dims(2, 75, 6, 4, 1), MAMBA);
    for (name, device) in devices() {
        let args = case.args(&device);
        let whole = selective_scan(args.clone());
        for split in [1, 31, 32, 33, 74] {
            let part = |from: usize, len: usize, initial: Option<Tensor<3>>| ScanArgs {
                u: args.u.clone().narrow(1, from, len),
                delta: args.delta.clone().narrow(1, from, len),
                b: args.b.clone().narrow(1, from, len),
                c: args.c.clone().narrow(1, from, len),
                z: args.z.clone().map(|z| z.narrow(1, from, len)),
                initial_state: initial,
                ..args.clone()
            };
            let head = selective_scan(part(0, split, None));
            let tail = selective_scan(part(split, 75 - split, Some(head.final_state)));
            let y = values(&Tensor::cat(vec![head.y, tail.y], 1));
            let what = format!("split at {split} on {name}");
            assert_error(&what, &y, &values(&whole.y), 1e-6);
            assert_error(&what, &values(&tail.final_state), &values(&whole.final_state), 1e-6);
        }
    }
}

#[test]
fn packed_sequences_equal_separate_ones() {
    // Lengths down to one step, in one row of 40 steps.
    let lengths = [1, 7, 1, 1, 30];
    let mut case = Case::new(dims(1, 40, 6, 3, 1), Options { initial: false, ..ALL });
    case.resets.fill(0.0);
    let starts: Vec<usize> = lengths
        .iter()
        .scan(0, |end, len| {
            let start = *end;
            *end += len;
            Some(start)
        })
        .collect();
    for start in &starts {
        case.resets[*start] = 1.0;
    }
    // The final state of the row is that of the last sequence only.
    for (name, device) in devices() {
        let packed = case.run(&device, selective_scan);
        for (start, len) in starts.iter().zip(lengths) {
            let cut = |v: &[f64], width: usize| v[start * width..][..len * width].to_vec();
            let mut one = case.clone();
            one.dims.seq_len = len;
            one.options.resets = false;
            one.u = cut(&case.u, 6);
            one.delta = cut(&case.delta, 6);
            one.b = cut(&case.b, 3);
            one.c = cut(&case.c, 3);
            one.z = cut(&case.z, 6);
            one.grad_y = cut(&case.grad_y, 6);
            if start + len < 40 {
                one.grad_final.fill(0.0);
            }
            let alone = one.run(&device, selective_scan);
            let what = format!("sequence at {start} on {name}");
            assert_error(&what, &cut(&packed.y, 6), &alone.y, 1e-6);
            assert_error(&what, &cut(&packed.grads.u, 6), &alone.grads.u, 2e-6);
            assert_error(&what, &cut(&packed.grads.delta, 6), &alone.grads.delta, 2e-6);
            assert_error(&what, &cut(&packed.grads.b, 3), &alone.grads.b, 2e-6);
            assert_error(&what, &cut(&packed.grads.z, 6), &alone.grads.z, 2e-6);
        }
    }
}

#[test]
fn scan_is_linear_in_u_and_a_vanishing_step_leaves_the_skip() {
    let case = Case::new(dims(2, 50, 7, 4, 1), Options { z: false, ..MAMBA });
    for (name, device) in devices() {
        let args = case.args(&device);
        let y = values(&selective_scan(args.clone()).y);
        let doubled = ScanArgs { u: args.u.clone() * 2.0, ..args.clone() };
        let twice: Vec<f64> = y.iter().map(|v| 2.0 * v).collect();
        assert_error(name, &values(&selective_scan(doubled).y), &twice, 1e-6);

        let still = ScanArgs { delta: args.delta.clone() * 0.0 - 80.0, ..args.clone() };
        let d = args.d.clone().expect("the case has a skip");
        let skip = values(&(args.u * d.unsqueeze()));
        assert_error(name, &values(&selective_scan(still).y), &skip, 1e-6);
    }
}

#[test]
fn a_nan_in_the_input_reaches_the_output() {
    let mut case = Case::new(dims(1, 40, 5, 3, 1), MAMBA);
    case.delta[3 * 5 + 2] = f64::NAN;
    for (name, device) in devices() {
        let y = values(&selective_scan(case.args(&device)).y);
        assert!(y[3 * 5 + 2].is_nan(), "{name}");
        assert!(y[39 * 5 + 2].is_nan(), "{name}: the state keeps it");
        assert!(y[39 * 5 + 1].is_finite(), "{name}: other channels do not see it");
    }
}

#[test]
fn nothing_crosses_a_reset() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut case = Case::new(dims(1, 40, 5, 3, 1), ALL);
        case.resets.fill(0.0);
        (case.resets[0], case.resets[20]) = (1.0, 1.0);
        let mut broken = case.clone();
        broken.initial.fill(bad);
        broken.u[19 * 5..][..5].fill(bad);
        for (name, device) in devices() {
            for scan in [selective_scan, reference::selective_scan as fn(ScanArgs) -> ScanOutput] {
                let (whole, got) = (scan(case.args(&device)), scan(broken.args(&device)));
                let (y, expected) = (values(&got.y), values(&whole.y));
                for seen in [0..19 * 5, 20 * 5..40 * 5] {
                    assert_eq!(y[seen.clone()], expected[seen], "{bad} on {name}");
                }
                let states = [values(&got.final_state), values(&whole.final_state)];
                assert_eq!(states[0], states[1], "{bad} on {name}");
            }
        }
    }
}

#[test]
fn a_wrong_shape_names_the_argument_and_the_axis() {
    let device = any_device();
    type Change = fn(&mut ScanArgs, &Device);
    let changes: [(Change, &str); 16] = [
        (|a, d| a.u = Tensor::zeros([0, 5, 4], d), "`batch` is 0, expected at least 1"),
        (|a, d| a.u = Tensor::zeros([2, 0, 4], d), "`seq_len` is 0, expected at least 1"),
        (|a, d| a.u = Tensor::zeros([2, 5, 0], d), "`d_inner` is 0, expected at least 1"),
        (|a, d| a.a = Tensor::zeros([4, 0], d), "`d_state` is 0, expected at least 1"),
        (
            |a, d| a.delta = Tensor::zeros([2, 6, 4], d),
            "axis 1 of `delta` is 6, expected seq_len = 5",
        ),
        (|a, d| a.a = Tensor::zeros([3, 2], d), "axis 0 of `a` is 3, expected d_inner = 4"),
        (
            |a, d| a.b = Tensor::zeros([2, 5, 3], d),
            "axis 2 of `b` is 3, expected n_groups * d_state with d_state = 2 and n_groups a divisor \
             of d_inner = 4",
        ),
        (
            |a, d| a.b = Tensor::zeros([2, 5, 6], d),
            "axis 2 of `b` is 6, expected n_groups * d_state with d_state = 2 and n_groups a divisor \
             of d_inner = 4",
        ),
        (|a, d| a.b = Tensor::zeros([3, 5, 2], d), "axis 0 of `b` is 3, expected batch = 2"),
        (
            |a, d| a.c = Tensor::zeros([2, 5, 4], d),
            "axis 2 of `c` is 4, expected n_groups * d_state = 2",
        ),
        (|a, d| a.d = Some(Tensor::zeros([5], d)), "axis 0 of `d` is 5, expected d_inner = 4"),
        (
            |a, d| a.z = Some(Tensor::zeros([2, 4, 4], d)),
            "axis 1 of `z` is 4, expected seq_len = 5",
        ),
        (
            |a, d| a.delta_bias = Some(Tensor::zeros([1], d)),
            "axis 0 of `delta_bias` is 1, expected d_inner = 4",
        ),
        (
            |a, d| a.initial_state = Some(Tensor::zeros([2, 4, 3], d)),
            "axis 2 of `initial_state` is 3, expected d_state = 2",
        ),
        (
            |a, d| a.initial_state = Some(Tensor::zeros([1, 4, 2], d)),
            "axis 0 of `initial_state` is 1, expected batch = 2",
        ),
        (
            |a, d| a.resets = Some(Tensor::<2>::zeros([2, 4], d).bool()),
            "axis 1 of `resets` is 4, expected seq_len = 5",
        ),
    ];
    for (change, expected) in changes {
        let mut args = Case::new(dims(2, 5, 4, 2, 1), ALL).args(&device);
        change(&mut args, &device);
        let expected = format!("selective_scan: {expected}");
        assert_eq!(panic_of(|| selective_scan(args.clone())), expected);
        assert_eq!(panic_of(|| reference::selective_scan(args)), expected);
    }
}
