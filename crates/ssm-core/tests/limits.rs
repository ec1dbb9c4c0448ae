//! What operations say on a device that cannot run them, and which devices run slower kernels.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::DispatchDevice,
    module::Param,
    nn::Linear,
    tensor::{DType, Device, Tensor, TensorData},
};
use cubecl::ir::{ElemType, FloatKind};
use ssm_core::ops::{
    causal_conv1d::{ConvArgs, causal_conv1d},
    linear::linear,
    pointwise::{gelu, reverse},
    rms_norm::rms_norm,
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

const OPS: [Op; 6] = [
    ("selective_scan", |device| {
        let steps = || half([1, 4, 2], device);
        selective_scan(ScanArgs {
            u: steps(),
            delta: steps(),
            a: Tensor::ones([2, 3], device),
            b: half([1, 4, 3], device),
            c: half([1, 4, 3], device),
            d: None,
            z: None,
            delta_bias: None,
            delta_softplus: true,
            initial_state: None,
            resets: None,
        });
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
    ("gelu", |device| drop(gelu(half([1, 4, 2], device)))),
    ("reverse", |device| drop(reverse(half([1, 4, 2], device)))),
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

#[test]
fn devices_without_planes_say_that_they_run_slower_kernels() {
    for (name, device) in devices() {
        let lines = slow_paths(&device);
        assert_eq!(lines, slow_paths(&device.clone().autodiff()));
        match name {
            "flex" | "ndarray" | "cuda" => assert!(lines.is_empty(), "{lines:?}"),
            "webgpu" if !cfg!(feature = "vulkan") => {
                let identity = device.identity().expect("a name");
                let text =
                    "runs the portable kernels, which are slower: its kernels are compiled to WGSL";
                assert_eq!(lines, [format!("selective_scan: `{}` {text}", identity.name)]);
            }
            // The driver decides.
            _ => {}
        }
    }
}
