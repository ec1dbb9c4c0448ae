//! The triangle for the small operations: host f64 against finite differences, Burn's own functions and
//! our kernels against host, with gradients.

use burn::tensor::{Device, FloatDType, Tensor, activation};
use ssm_core::{
    nn,
    ops::pointwise::{dropped, gelu, host, masked, neg_exp, reverse},
};

use crate::support::{
    Draw, any_device, assert_error, devices, dot, finite_difference, half_devices, relative_rms,
    tensor, values,
};

const SHAPE: [usize; 3] = [3, 13, 7];

/// An input in `+-scale`, with a random cotangent.
fn case(scale: f64) -> (Vec<f64>, Vec<f64>) {
    let mut draw = Draw::new(5);
    (draw.uniform(273, -scale, scale), draw.uniform(273, -1.0, 1.0))
}

/// Output and gradient of the input through Burn's autodiff, computed in `dtype`.
fn run(
    (x, grad_y): &(Vec<f64>, Vec<f64>),
    dtype: FloatDType,
    device: &Device,
    op: impl Fn(Tensor<3>) -> Tensor<3>,
) -> (Vec<f64>, Vec<f64>) {
    let device = device.clone().autodiff();
    let x = tensor(x, SHAPE, &device).cast(dtype).require_grad();
    let y = op(x.clone());
    assert_eq!(FloatDType::from(y.dtype()), dtype);
    let y = y.cast(FloatDType::F32);
    let grads = (y.clone() * tensor(grad_y, SHAPE, &device)).sum().backward();
    (values(&y), values(&x.grad(&grads).expect("a gradient of the input")))
}

#[test]
fn the_error_function_has_its_tabulated_values() {
    // Abramowitz & Stegun, table 7.1, and the limits.
    for (x, expected) in [
        (0.0, 0.0),
        (0.5, 0.520_499_877_8),
        (1.0, 0.842_700_792_9),
        (2.0, 0.995_322_265_0),
        (5.5, 1.0),
        (7.0, 1.0),
        (f64::INFINITY, 1.0),
    ] {
        assert!((host::erf(x) - expected).abs() < 1e-10, "{x}");
        assert!((host::erf(-x) + expected).abs() < 1e-10, "-{x}");
    }
    assert!(host::erf(f64::NAN).is_nan());
}

#[test]
fn host_gradients_match_finite_differences() {
    let (x, grad_y) = case(6.0);
    let numeric = finite_difference(&x, 1e-6, |x| dot(&host::gelu(x), &grad_y));
    assert_error("gelu", &host::gelu_backward(&x, &grad_y), &numeric, 1e-7);
    let numeric = finite_difference(&x, 1e-6, |x| dot(&host::neg_exp(x), &grad_y));
    let exact = host::masked(&host::neg_exp(&x), &grad_y, 1.0);
    assert_error("neg_exp", &exact, &numeric, 1e-7);
}

#[test]
fn reference_and_kernels_agree_with_the_host() {
    for (name, device) in devices() {
        for scale in [1.0, 8.0] {
            let case = case(scale);
            let (y, grad) = (host::gelu(&case.0), host::gelu_backward(&case.0, &case.1));
            let (reference_y, reference) = run(&case, FloatDType::F32, &device, activation::gelu);
            let (kernel_y, kernel) = run(&case, FloatDType::F32, &device, gelu);
            let what = format!("gelu in +-{scale} on {name}");
            assert_error(&format!("reference y, {what}"), &reference_y, &y, 5e-7);
            // The floor is the documented error of `erf`.
            let bound = 2.0 * relative_rms(&reference_y, &y) + 3e-7;
            assert_error(&format!("kernel y, {what}"), &kernel_y, &y, bound);
            if name != "flex" {
                // Elsewhere Burn differentiates the tanh form, which is 3e-4 off; ours must not be.
                assert_error(&format!("kernel gradient, {what}"), &kernel, &grad, 5e-7);
                continue;
            }
            assert_error(&format!("reference gradient, {what}"), &reference, &grad, 5e-7);
            let bound = 3.0 * relative_rms(&reference, &grad) + 3e-7;
            assert_error(&format!("kernel gradient, {what}"), &kernel, &grad, bound);
        }
        let case = case(1.0);
        let truth = (host::reverse(&case.0, SHAPE), host::reverse(&case.1, SHAPE));
        assert_eq!(run(&case, FloatDType::F32, &device, |x| x.flip([1])), truth, "{name}");
        assert_eq!(run(&case, FloatDType::F32, &device, reverse), truth, "{name}");
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    let case = case(4.0);
    let (y, grad) = (host::gelu(&case.0), host::gelu_backward(&case.0, &case.1));
    for (name, device) in half_devices() {
        let (half_y, half_grad) = run(&case, FloatDType::BF16, &device, gelu);
        assert_error(&format!("gelu on {name}"), &half_y, &y, 6e-3);
        assert_error(&format!("gradient of gelu on {name}"), &half_grad, &grad, 6e-3);
        let (turned, _) = run(&case, FloatDType::BF16, &device, reverse);
        assert_error(&format!("reverse on {name}"), &turned, &host::reverse(&case.0, SHAPE), 6e-3);
    }
}

#[test]
fn decay_rates_and_masks_agree_with_the_host() {
    let case = case(3.0);
    let (x, grad_y) = &case;
    let rates = host::neg_exp(x);
    let rates_grad = host::masked(&rates, grad_y, 1.0);
    let mask: Vec<f64> = (0..x.len()).map(|i| f64::from(u8::from(i % 3 > 0))).collect();
    let kept = [x, grad_y].map(|values| host::masked(values, &mask, 1.5));
    for (name, device) in devices() {
        let dtypes = match half_devices().iter().any(|(half, _)| *half == name) {
            true => vec![(FloatDType::F32, 3e-7), (FloatDType::BF16, 6e-3)],
            false => vec![(FloatDType::F32, 3e-7)],
        };
        for (dtype, bound) in dtypes {
            let what = format!("{dtype:?} on {name}");
            let (y, grad) = run(&case, dtype, &device, neg_exp);
            assert_error(&format!("neg_exp, {what}"), &y, &rates, bound);
            assert_error(&format!("gradient of neg_exp, {what}"), &grad, &rates_grad, 2.0 * bound);
            let (reference, _) = run(&case, dtype, &device, |x| -x.exp());
            let bound_beside = 2.0 * relative_rms(&reference, &rates) + 1e-7;
            assert_error(&format!("neg_exp beside Burn's, {what}"), &y, &rates, bound_beside);

            let mask = || tensor(&mask, SHAPE, &device.clone().autodiff()).cast(dtype);
            let (y, grad) = run(&case, dtype, &device, |x| masked(x, mask(), 1.5));
            assert_error(&format!("masked, {what}"), &y, &kept[0], bound);
            assert_error(&format!("gradient of masked, {what}"), &grad, &kept[1], bound);
        }
    }
}

/// The draws of the published listing of `pcg4d`, computed by hand from it in another language.
#[test]
fn draws_are_those_of_the_published_hash() {
    let cases: [(u32, u32, [u32; 2], u32); 3] = [
        (0, 0, [0, 0], 3542436074),
        (1, 2, [3, 4], 45698095),
        (1000000, 7, [3735928559, 1], 2583350352),
    ];
    for (place, site, seed, expected) in cases {
        assert_eq!(host::draw(place, site, seed), expected);
    }
}

#[test]
fn draws_are_evenly_spread_and_differ_between_sites_and_seeds() {
    let n: u32 = 1 << 16;
    // Share of places that both of two sites keep, each with its seed.
    let kept_by_both = |[one, other]: [(u32, [u32; 2]); 2]| {
        let keeps = |(site, seed), place| host::draw(place, site, seed) < 1 << 31;
        let kept = |place: &u32| keeps(one, *place) && keeps(other, *place);
        (0..n).filter(kept).count() as f64 / f64::from(n)
    };
    // Five standard deviations of a share of so many draws.
    let bound = |p: f64| 5.0 * (p * (1.0 - p) / f64::from(n)).sqrt();
    for [a, b] in [[0, 0], [1, 0], [7, 9], [u32::MAX, 3]] {
        let one = (1, [a, b]);
        let same = kept_by_both([one, one]);
        assert!((same - 0.5).abs() < bound(0.5), "{one:?}: {same} are kept");
        for other in [(2, [a, b]), (1, [a ^ 1, b]), (1, [a, b ^ 1])] {
            let both = kept_by_both([one, other]);
            assert!((both - 0.25).abs() < bound(0.25), "{one:?}, {other:?}: {both} are kept");
        }
    }
}

#[test]
fn dropped_elements_and_their_gradients_agree_with_the_host() {
    let case = case(3.0);
    let words = [0xfedc_ba98_u32, 0x0123_4567];
    let seed = u64::from(words[1]) << 32 | u64::from(words[0]);
    let keep = 0.7;
    let below = (keep * f64::from(u32::MAX)) as u32;
    for (name, device) in devices() {
        let dtypes = match half_devices().iter().any(|(half, _)| *half == name) {
            true => vec![(FloatDType::F32, 3e-7), (FloatDType::BF16, 6e-3)],
            false => vec![(FloatDType::F32, 3e-7)],
        };
        for (dtype, bound) in dtypes {
            for site in [0, 5] {
                let op = |x| dropped(x, nn::seed_on(seed, &device), site, keep);
                let (y, grad) = run(&case, dtype, &device, op);
                let what = format!("site {site}, {dtype:?} on {name}");
                let exact = |x: &[f64]| host::dropped(x, words, site, below, 1.0 / keep);
                assert_error(&format!("dropped, {what}"), &y, &exact(&case.0), bound);
                assert_error(&format!("gradient, {what}"), &grad, &exact(&case.1), bound);
            }
        }
    }
}

/// Needs the GPU that the variable `SSM_TEST_DEVICE` names, as processors draw otherwise.
#[test]
fn a_seed_in_the_memory_of_an_accelerator_repeats_what_is_dropped() {
    for (name, device) in devices().into_iter().filter(|(name, _)| *name != "flex") {
        if device.memory_pool_usage().is_none() {
            continue;
        }
        let device = device.autodiff();
        let ones = || Tensor::<2>::ones([30, 50], &device);
        let both = |seed: u64| {
            nn::seeded(nn::seed_on(seed, &device), || {
                [(); 2].map(|()| values(&nn::dropout(ones(), 0.5)))
            })
        };
        assert_eq!(both(3), both(3), "{name}");
        assert_ne!(both(3), both(4), "{name}");
        let [first, second] = both(3);
        assert_ne!(first, second, "{name}");
        let kept = first.iter().filter(|value| **value == 2.0).count();
        let share = kept as f64 / 1500.0;
        assert!((share - 0.5).abs() < 5.0 * 0.5 / 1500_f64.sqrt(), "{name}: {share} are kept");
    }
}

#[test]
#[should_panic(expected = "dropout: axis 0 of `seed` is 3, expected words = 2")]
fn a_seed_of_another_length_panics() {
    let device = any_device();
    dropped(Tensor::<1>::ones([4], &device), Tensor::zeros([3], &device), 0, 0.5);
}

#[test]
#[should_panic(expected = "masked: `mask` is [2, 3], expected the shape of `x` = [3, 2]")]
fn a_mask_of_another_shape_panics() {
    let device = any_device();
    masked(Tensor::<2>::ones([3, 2], &device), Tensor::ones([2, 3], &device), 1.0);
}
