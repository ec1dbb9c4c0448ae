//! Devices, host-seeded inputs and comparisons shared by the suite.

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use burn::tensor::DeviceKind;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Every device that this build can run, with a name for messages.
pub(crate) fn devices() -> Vec<(&'static str, Device)> {
    let mut devices = Vec::new();
    #[cfg(feature = "flex")]
    devices.push(("flex", Device::flex()));
    #[cfg(feature = "ndarray")]
    {
        #[allow(deprecated, reason = "Burn deprecates its ndarray backend, it stays selectable")]
        devices.push(("ndarray", Device::ndarray()));
    }
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "webgpu"))]
    devices.extend(gpu());
    devices
}

/// One of [`devices`], for what is the same on all of them.
pub(crate) fn any_device() -> Device {
    devices().remove(0).1
}

/// The device that the variable `SSM_TEST_DEVICE` names: what a machine has is not for a build to know.
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "webgpu"))]
fn gpu() -> Option<(&'static str, Device)> {
    let name = std::env::var("SSM_TEST_DEVICE").ok()?;
    Some(match name.as_str() {
        #[cfg(feature = "cuda")]
        "cuda" => ("cuda", Device::cuda(0)),
        #[cfg(feature = "vulkan")]
        "vulkan" => ("vulkan", Device::vulkan(DeviceKind::DefaultDevice)),
        // Outside of a browser WebGPU is whatever graphics interface wgpu finds.
        #[cfg(feature = "webgpu")]
        "webgpu" => ("webgpu", Device::wgpu(DeviceKind::DefaultDevice)),
        #[cfg(all(feature = "webgpu", feature = "vulkan"))]
        "webgpu:cpu" => ("webgpu", Device::wgpu(DeviceKind::Cpu)),
        #[cfg(all(feature = "webgpu", not(feature = "vulkan")))]
        "webgpu:cpu" => ("webgpu", browser()),
        other => panic!("SSM_TEST_DEVICE is `{other}`: this build has no such device"),
    })
}

/// The processor that plays a graphics card, as a browser would show it: with no more storage buffers a
/// kernel than every implementation of WebGPU binds.
#[cfg(all(feature = "webgpu", not(feature = "vulkan")))]
fn browser() -> Device {
    use cubecl::{
        future::block_on,
        wgpu::{RuntimeOptions, WgpuDeviceKind, WgpuSetup, init_device, wgpu},
    };
    use std::sync::LazyLock;

    // A device of its own for every thread would have its own memory and kernels.
    static DEVICE: LazyLock<Device> = LazyLock::new(|| {
        let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        let instance = wgpu::Instance::new(descriptor);
        let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN)).into_iter();
        let mut played =
            adapters.filter(|adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu);
        let adapter = played.next().expect("a driver that runs kernels on a processor");
        let mut limits = adapter.limits();
        limits.max_storage_buffers_per_shader_stage = 8;
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            required_features: adapter
                .features()
                .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            // SAFETY: as CubeCL does for the devices that it opens itself.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        });
        let (device, queue) = block_on(request).expect("a device");
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device, queue, backend };
        match init_device(setup, RuntimeOptions::default()).kind {
            WgpuDeviceKind::Existing(id) => Device::wgpu(DeviceKind::Existing(id)),
            other => panic!("an opened device is {other:?}"),
        }
    });
    DEVICE.clone()
}

/// Those of [`devices`] that compute in half precision: Burn's ndarray backend has no such types,
/// Vulkan and WebGPU not both of them.
pub(crate) fn half_devices() -> Vec<(&'static str, Device)> {
    let has_none = ["ndarray", "vulkan", "webgpu"];
    devices().into_iter().filter(|(name, _)| !has_none.contains(name)).collect()
}

/// Where Burn's own matrix product rounds no factor: on CUDA it may take TF32.
pub(crate) fn exact(device: &Device) -> Device {
    #[cfg(feature = "flex")]
    let exact = if device.is_autodiff() { Device::flex().autodiff() } else { Device::flex() };
    #[cfg(not(feature = "flex"))]
    let exact = device.clone();
    exact
}

/// Draws values on the host, so that every device sees the same.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[low, high)`; representable in f32, so that f32 and f64 start from equal numbers.
    pub(crate) fn uniform(&mut self, len: usize, low: f64, high: f64) -> Vec<f64> {
        let unit = |bits: u64| (bits >> 11) as f64 / (1_u64 << 53) as f64;
        let rng = &mut self.0;
        (0..len).map(|_| f64::from((low + (high - low) * unit(rng.next_u64())) as f32)).collect()
    }
}

/// A tensor of f32 values.
pub(crate) fn tensor<const D: usize>(
    values: &[f64],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// As [`tensor`], in one row of memory: a device may put space behind the rows of others.
pub(crate) fn in_a_row<const D: usize>(
    values: &[f64],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    tensor::<1>(values, [values.len()], device).reshape(shape)
}

/// The values of a tensor in row-major order.
pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    let data = tensor.clone().into_data().convert::<f64>();
    data.try_into_vec::<f64>().expect("f64 data")
}

/// RMS of the difference over RMS of the truth; infinite if any value is not finite.
pub(crate) fn relative_rms(got: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(got.len(), truth.len(), "lengths differ");
    if !got.iter().chain(truth).all(|v| v.is_finite()) {
        return f64::INFINITY;
    }
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut got.iter().zip(truth).map(|(a, b)| a - b));
    let scale = square(&mut truth.iter().copied());
    if difference == 0.0 { 0.0 } else { difference / scale.max(1e-30) }
}

/// Fails with what, the error, the bound and the worst element.
pub(crate) fn assert_error(what: &str, got: &[f64], truth: &[f64], bound: f64) {
    let error = relative_rms(got, truth);
    // NaN and infinity fail: `relative_rms` turns both into infinity.
    if error.is_nan() || error > bound {
        let worst = (0..truth.len())
            .max_by(|a, b| {
                let gap = |i: usize| {
                    let gap = (got[i] - truth[i]).abs();
                    if gap.is_nan() { f64::INFINITY } else { gap }
                };
                gap(*a).total_cmp(&gap(*b))
            })
            .unwrap_or(0);
        panic!(
            "{what}: relative RMS error {error:.3e}, bound {bound:.3e}, worst at {worst}: got {}, \
             expected {}",
            got[worst], truth[worst]
        );
    }
}

/// Central differences of `f` at `x`, one coordinate at a time.
pub(crate) fn finite_difference(x: &[f64], eps: f64, mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + eps;
            let above = f(&x);
            x[i] = at - eps;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * eps)
        })
        .collect()
}

/// What `run` panics with.
pub(crate) fn panic_of<T>(run: impl FnOnce() -> T) -> String {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(_) => "no panic".to_owned(),
        Err(panic) => *panic.downcast::<String>().expect("a formatted message"),
    }
}

/// A tensor of equal values that lies in memory in another order of axes: a view of `leaf`, its
/// transpose, and what a gradient of the leaf has to be turned by too.
pub(crate) struct View<const D: usize> {
    leaf: Tensor<D>,
}

impl<const D: usize> View<D> {
    pub(crate) fn new(tensor: &Tensor<D>) -> Self {
        let device = tensor.device();
        let turned = tensor.clone().swap_dims(D - 2, D - 1).into_data();
        Self { leaf: Tensor::from_data(turned, &device).require_grad() }
    }

    pub(crate) fn tensor(&self) -> Tensor<D> {
        self.leaf.clone().swap_dims(D - 2, D - 1)
    }

    pub(crate) fn grad(&self, grads: &burn::tensor::Gradients) -> Vec<f64> {
        values(&self.leaf.grad(grads).expect("a gradient").swap_dims(D - 2, D - 1))
    }
}

/// Sum of products.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
