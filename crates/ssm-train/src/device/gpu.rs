//! Devices of CubeCL: what there is, whether it opens, what it says of itself.

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use std::sync::OnceLock;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use burn::backend::WgpuDeviceKind;
use burn::{
    backend::{CubeDevice, DispatchDevice},
    tensor::{Device, DeviceType},
};
use cubecl::client::Client;
#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use cubecl::wgpu::wgpu;

use crate::machine;

/// Whether a library was found that moves data between CUDA devices.
#[cfg(feature = "cuda")]
pub(super) fn has_transport(index: usize) -> bool {
    let device = cubecl::cuda::CudaDevice::new(index);
    cubecl::Device::Cuda(device).client().has_device_transport()
}

/// The devices of a backend, cards before processors that play one; asked of the machine once.
pub(super) fn devices(backend: &str) -> Vec<Device> {
    static FOUND: Mutex<Vec<(String, Vec<Device>)>> = Mutex::new(Vec::new());
    // A thread that panicked here has added nothing.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, devices)) = found.iter().find(|(name, _)| name == backend) {
        return devices.clone();
    }
    #[cfg(any(feature = "vulkan", feature = "webgpu"))]
    if backend != "cuda" {
        keep_driver();
    }
    let devices = ask(backend);
    found.push((backend.to_owned(), devices.clone()));
    devices
}

/// Holds the graphics driver for as long as the program runs. Every question for devices opens and closes
/// an instance of it, and NVIDIA's Vulkan driver, once closed, lists no cards the second time.
#[cfg(any(feature = "vulkan", feature = "webgpu"))]
fn keep_driver() {
    static KEPT: OnceLock<wgpu::Instance> = OnceLock::new();
    KEPT.get_or_init(instance);
}

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

fn ask(backend: &str) -> Vec<Device> {
    let mut devices = match backend {
        #[cfg(feature = "cuda")]
        "cuda" => Device::enumerate(DeviceType::Cuda).into_vec(),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::enumerate(DeviceType::Vulkan).into_vec(),
        // Burn's own type of this name stands for browsers. Outside of one, WebGPU is a library over
        // whatever graphics interface the machine has.
        #[cfg(feature = "webgpu")]
        "webgpu" => Device::enumerate(DeviceType::Wgpu).into_vec(),
        _ => Vec::new(),
    };
    devices.sort_by_key(is_software);
    devices
}

/// Whether the device is a processor that plays a graphics card.
pub(super) fn is_software(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(any(feature = "vulkan", feature = "webgpu"))]
        DispatchDevice::Cube(CubeDevice::Wgpu(device)) => device.kind == WgpuDeviceKind::Cpu,
        _ => false,
    }
}

/// Name of the card.
pub(super) fn name(device: &Device) -> Option<String> {
    Some(device.identity()?.name)
}

/// Opens the device, unless its driver refuses. CubeCL panics then, on a thread of its own whose message is
/// on standard error, and may be asked again.
pub(super) fn opens(device: &Device) -> bool {
    catch_unwind(AssertUnwindSafe(|| client(device))).is_ok()
}

/// Opens the device; `None` for one of another kind.
fn client(device: &Device) -> Option<Client> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client()),
        _ => None,
    }
}

/// The language that kernels are compiled to.
pub(super) fn language(device: &Device) -> Option<&'static str> {
    Some(match client(device)?.name() {
        "cuda" => "CUDA C++",
        "wgpu<spirv>" => "SPIR-V",
        "wgpu<wgsl>" => "WGSL",
        other => other,
    })
}

/// Memory in bytes, where the driver says.
pub(super) fn memory(device: &Device) -> Option<u64> {
    if is_software(device) {
        return machine::memory();
    }
    client(device)?.properties().memory.max_memory()
}

/// Name and version of the driver, where it is known.
pub(super) fn driver(device: &Device) -> Option<String> {
    let DispatchDevice::Cube(cube) = device.as_dispatch() else { return None };
    match cube {
        CubeDevice::Cuda(_) => machine::nvidia_driver().map(|version| format!("NVIDIA {version}")),
        #[cfg(any(feature = "vulkan", feature = "webgpu"))]
        CubeDevice::Wgpu(_) => graphics_driver(&name(device)?),
        _ => None,
    }
}

/// What the adapter of this name says.
#[cfg(any(feature = "vulkan", feature = "webgpu"))]
fn graphics_driver(name: &str) -> Option<String> {
    let instance = instance();
    let adapters = instance.enumerate_adapters(wgpu::Backends::PRIMARY);
    let adapters = cubecl::future::block_on(adapters);
    let info = adapters.iter().map(wgpu::Adapter::get_info).find(|info| info.name == name)?;
    let text = [info.driver, info.driver_info].join(" ");
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
