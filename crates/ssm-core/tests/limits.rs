//! What operations say on a device that cannot run them, and when slower kernels run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::DispatchDevice,
    module::Param,
    nn::{LayerNormConfig, Linear},
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};
use cubecl::ir::{ElemType, FloatKind};
use ssm_core::ops::{
    causal_conv1d::{ConvArgs, causal_conv1d},
    cross_entropy::linear_cross_entropy,
    decode::{self, Chosen, Conv, Product, StateStep},
    layer_norm::layer_norm,
    linear::linear,
    pointwise::{gelu, masked, neg_exp, reverse},
    rms_norm::{add_rms_norm, rms_norm},
    selective_scan::{ScanArgs, selective_scan},
    slow_paths,
};

use crate::support::devices;

/// Without a kernel: a cast on the device would be refused before the operation is.
fn half<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = vec![1.0_f32; shape.iter().product()];
    let data = TensorData::new(values, shape).convert_dtype(DType::BF16);
    Tensor::from_data(data, (device, DType::BF16))
}

type Op = (&'static str, fn(&Device));

/// All in f32.
fn scan(device: &Device) -> ScanArgs {
    let ones = |shape| Tensor::<3>::ones(shape, device);
    ScanArgs {
        u: ones([1, 4, 2]),
        delta: ones([1, 4, 2]),
        a: Tensor::ones([2, 3], device),
        b: ones([1, 4, 3]),
        c: ones([1, 4, 3]),
        d: None,
        z: None,
        delta_bias: None,
        delta_softplus: true,
        initial_state: None,
        resets: None,
    }
}

const OPS: [Op; 27] = [
    ("selective_scan", |device| {
        selective_scan(ScanArgs { u: half([1, 4, 2], device), ..scan(device) });
    }),
    ("selective_scan", |device| {
        selective_scan(ScanArgs { d: Some(half([2], device)), ..scan(device) });
    }),
    ("selective_scan", |device| {
        selective_scan(ScanArgs { z: Some(half([1, 4, 2], device)), ..scan(device) });
    }),
    ("selective_scan", |device| {
        selective_scan(ScanArgs { delta_bias: Some(half([2], device)), ..scan(device) });
    }),
    ("selective_scan", |device| {
        selective_scan(ScanArgs { initial_state: Some(half([1, 2, 3], device)), ..scan(device) });
    }),
    ("causal_conv1d", |device| {
        causal_conv1d(ConvArgs::new(half([1, 4, 2], device), Tensor::ones([2, 3], device)));
    }),
    ("linear", |device| {
        let layer = Linear { weight: Param::from_tensor(half([2, 3], device)), bias: None };
        linear(&layer, half([1, 4, 2], device));
    }),
    ("rms_norm", |device| {
        rms_norm(half([4, 2], device), Tensor::ones([2], device), 1e-5);
    }),
    ("causal_conv1d", |device| {
        let x = Tensor::ones([1, 4, 2], device);
        causal_conv1d(ConvArgs {
            bias: Some(half([2], device)),
            ..ConvArgs::new(x, Tensor::ones([2, 3], device))
        });
    }),
    ("rms_norm", |device| {
        rms_norm(Tensor::<2>::ones([4, 2], device), half([2], device), 1e-5);
    }),
    ("layer_norm", |device| {
        let mut norm = LayerNormConfig::new(2).init(device);
        norm.gamma = Param::from_tensor(half([2], device));
        layer_norm(&norm, Tensor::<2>::ones([4, 2], device), 1e-5);
    }),
    ("rms_norm", |device| {
        let x = || half([4, 2], device);
        add_rms_norm(x(), x(), Tensor::ones([2], device), 1e-5);
    }),
    ("layer_norm", |device| {
        layer_norm(&LayerNormConfig::new(2).init(device), half([4, 2], device), 1e-5);
    }),
    ("cross_entropy", |device| {
        linear_cross_entropy(half([2, 3], device), Tensor::ones([5, 3], device), &[0, 1], 100);
    }),
    ("gelu", |device| drop(gelu(half([1, 4, 2], device)))),
    ("neg_exp", |device| drop(neg_exp(half([1, 4, 2], device)))),
    ("masked", |device| drop(masked(half([4, 2], device), half([4, 2], device), 1.0))),
    ("reverse", |device| drop(reverse(half([1, 4, 2], device)))),
    ("decode_product", |device| {
        decode::product(Product {
            x: Tensor::ones([1, 3], device),
            weight: half([2, 3], device),
            norm: None,
            add: None,
        });
    }),
    ("decode_conv", |device| {
        let taps = Tensor::ones([2, 3], device);
        let past = Tensor::ones([1, 2, 2], device);
        decode::conv(half([1, 2], device), Conv { taps, bias: None, past });
    }),
    ("decode_conv", |device| {
        let past = Tensor::ones([1, 2, 2], device);
        let conv = Conv { taps: half([2, 3], device), bias: None, past };
        decode::conv(Tensor::ones([1, 2], device), conv);
    }),
    ("decode_product", |device| {
        decode::product(Product {
            x: Tensor::ones([1, 3], device),
            weight: Tensor::ones([2, 3], device),
            norm: Some((half([3], device), 1e-5)),
            add: None,
        });
    }),
    ("decode_state", |device| {
        decode::state(StateStep {
            u: half([1, 2], device),
            z: half([1, 2], device),
            projected: half([1, 7], device),
            dt_weight: half([2, 1], device),
            params: Tensor::ones([2, 7], device),
            state: Tensor::ones([1, 2, 3], device),
        });
    }),
    ("decode_add_norm", |device| {
        let weight = Tensor::ones([2], device);
        decode::add_norm(Tensor::ones([1, 2], device), None, weight, 1e-5, FloatDType::BF16);
    }),
    ("decode_add_norm", |device| {
        let weight = half([2], device);
        decode::add_norm(Tensor::ones([1, 2], device), None, weight, 1e-5, FloatDType::F32);
    }),
    ("decode_argmax", |device| {
        let chosen = Chosen {
            newest: Tensor::<1, Int>::zeros([1], device),
            ring: Tensor::<2, Int>::zeros([1, 2], device),
            count: Tensor::<1, Int>::zeros([1], device),
        };
        decode::argmax(half([1, 5], device), chosen, 5);
    }),
    ("decode_copy", |device| drop(decode::copied(half([1, 2], device), FloatDType::F32))),
];

#[test]
fn a_type_that_a_device_lacks_is_named_by_every_operation() {
    for (_, device) in devices() {
        let DispatchDevice::Cube(cube) = device.as_dispatch() else { continue };
        let client = cube.client();
        let properties = client.properties();
        if properties.supports_type(ElemType::Float(FloatKind::BF16)) {
            continue;
        }
        for (op, run) in OPS {
            let panic = catch_unwind(AssertUnwindSafe(|| run(&device))).expect_err(op);
            let text = panic.downcast_ref::<String>().expect("a message");
            let name = &properties.identity.name;
            let expected = "does not compute in bf16; use f32, or another device";
            assert_eq!(*text, format!("{op}: `{name}` {expected}"));
        }
    }
}

/// The name of a device and whether its kernels are WGSL.
fn wgsl(device: &Device) -> Option<String> {
    let DispatchDevice::Cube(cube) = device.as_dispatch() else { return None };
    let client = cube.client();
    (client.name() == "wgpu<wgsl>").then(|| client.properties().identity.name.clone())
}

#[test]
fn a_slower_kernel_is_announced_once_with_its_reason() {
    for (name, device) in devices() {
        let runs = "runs the portable kernels, which are slower:";
        for _ in 0..2 {
            selective_scan(scan(&device));
        }
        let of_wgsl = slow_paths().into_iter().filter(|line| {
            line.starts_with("selective_scan:") && line.ends_with("compiled to WGSL")
        });
        let of_wgsl = of_wgsl.count();
        match wgsl(&device) {
            Some(name) => {
                let expected =
                    format!("selective_scan: `{name}` {runs} its kernels are compiled to WGSL");
                assert!(slow_paths().contains(&expected), "{:?}", slow_paths());
                assert_eq!(of_wgsl, 1);
                let (x, weight) = (Tensor::ones([1, 3], &device), Tensor::ones([2, 3], &device));
                decode::product(Product { x, weight, norm: None, add: None });
                let expected = format!(
                    "decode_product: `{name}` runs kernels without planes, which are slower: its \
                     kernels are compiled to WGSL"
                );
                assert!(slow_paths().contains(&expected), "{:?}", slow_paths());
            }
            None => assert_eq!(of_wgsl, 0, "{name}"),
        }
        if name == "cuda" {
            let identity = device.identity().expect("a name");
            let of = |d_state: usize| {
                format!(
                    "selective_scan: `{}` {runs} `d_state` is {d_state}, above 128",
                    identity.name
                )
            };
            let ones = |shape: [usize; 3]| Tensor::<3>::ones(shape, &device);
            selective_scan(ScanArgs {
                a: Tensor::ones([2, 129], &device),
                b: ones([1, 4, 129]),
                c: ones([1, 4, 129]),
                ..scan(&device)
            });
            assert!(slow_paths().contains(&of(129)), "{:?}", slow_paths());
        }
    }
}

#[test]
fn kernels_in_wgsl_run_where_eight_buffers_are_bound() {
    for (_, device) in devices() {
        let DispatchDevice::Cube(cube) = device.as_dispatch() else { continue };
        if wgsl(&device).is_some() {
            // One of the eight holds sizes. The whole suite runs on this device.
            assert_eq!(cube.client().properties().hardware.max_bindings, 7);
        }
    }
}
