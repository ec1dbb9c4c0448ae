//! From the words of `[device]` to a Burn device: the only place that names backends.

#[cfg(feature = "cube")]
mod gpu;
#[cfg(not(feature = "cube"))]
#[path = "device/no_gpu.rs"]
mod gpu;
#[cfg(feature = "cube")]
mod kernels;

use std::{fmt, sync::Once};

use burn::tensor::{DType, Device};

use crate::{config::Precision, error::Error, machine};

/// A backend that a configuration can name.
struct Backend {
    name: &'static str,
    /// Cargo feature of the binary that compiles it in.
    compiled: bool,
    /// Whether it computes in bf16; a processor does in f32, and rounds.
    bf16: bool,
}

const BACKENDS: &[Backend] = &[
    Backend { name: "flex", compiled: cfg!(feature = "flex"), bf16: true },
    Backend { name: "ndarray", compiled: cfg!(feature = "ndarray"), bf16: false },
    Backend { name: "cuda", compiled: cfg!(feature = "cuda"), bf16: true },
    Backend { name: "vulkan", compiled: cfg!(feature = "vulkan"), bf16: false },
    Backend { name: "webgpu", compiled: cfg!(feature = "webgpu"), bf16: false },
];

/// Whether tensors of `device` live in host memory, so that reading one as a slice copies nothing.
///
/// A wrong answer costs time, never correctness.
#[must_use]
pub fn is_host(device: &Device) -> bool {
    // Only accelerator runtimes keep memory pools that they can report on.
    device.memory_pool_usage().is_none()
}

/// Every backend by name, and whether this binary holds it.
#[must_use]
pub fn backends() -> Vec<(&'static str, bool)> {
    BACKENDS.iter().map(|backend| (backend.name, backend.compiled)).collect()
}

/// The backend that `name` stands for: itself, or for `auto` CUDA where there is such a device, and
/// else the first of [`backends`] that is compiled in. Vulkan and WebGPU are never chosen: their only
/// device may be a processor that plays a GPU, slower than the backends for processors.
///
/// # Errors
/// [`Error::Device`] for an unknown name, one that is not compiled in, and an index that the
/// backend does not have.
pub fn resolve(name: &str, index: usize) -> Result<&'static str, Error> {
    // Before anything looks for devices: the first one to look settles the configuration.
    #[cfg(feature = "cube")]
    kernels::keep();
    let error = |message: String, hint: String| Error::Device {
        device: named(name, index),
        message,
        hint: Some(hint),
    };
    let compiled = || BACKENDS.iter().filter(|backend| backend.compiled).map(|b| b.name);
    let known = || ["auto"].into_iter().chain(BACKENDS.iter().map(|b| b.name));
    let backend = match name {
        "auto" if count("cuda") > 0 => "cuda",
        "auto" => compiled().next().ok_or_else(|| {
            error("no backend is compiled in".into(), "build with `--features flex`".into())
        })?,
        _ => match BACKENDS.iter().find(|backend| backend.name == name) {
            Some(backend) if backend.compiled => backend.name,
            Some(_) => {
                let names: Vec<String> = compiled().map(|name| format!("`{name}`")).collect();
                return Err(error(
                    format!("not compiled into this binary, which holds {}", names.join(", ")),
                    format!("build with `--features {name}`, or use `auto`"),
                ));
            }
            None => {
                let names: Vec<String> = known().map(|name| format!("`{name}`")).collect();
                return Err(error(
                    format!("unknown backend, expected one of {}", names.join(", ")),
                    crate::config::nearest(name, known())
                        .map(|name| format!("did you mean `{name}`?"))
                        .unwrap_or_else(|| "`auto` takes the best one of this binary".into()),
                ));
            }
        },
    };
    match count(backend) {
        0 => Err(error(
            format!("this machine has no device for `{backend}`"),
            "check that the driver is installed, or use `auto`".into(),
        )),
        1 if index != 0 => Err(error(
            format!("the backend `{backend}` has one device, got index {index}"),
            "leave `device.index` at 0".into(),
        )),
        devices if index >= devices => Err(error(
            format!("the backend `{backend}` has {devices} devices, got index {index}"),
            format!("`device.index` counts from 0 to {}", devices - 1),
        )),
        _ => Ok(backend),
    }
}

/// Why a backend cannot compute in a precision, and what to do about it; `None` if it can.
pub(crate) fn cannot_compute(backend: &str, precision: Precision) -> Option<(String, String)> {
    let can = |backend: &Backend| precision == Precision::F32 || backend.bf16;
    if BACKENDS.iter().any(|one| one.name == backend && can(one)) {
        return None;
    }
    let got = precision.name();
    let able = BACKENDS.iter().filter(|backend| can(backend));
    let able: Vec<String> = able.map(|backend| format!("`{}`", backend.name)).collect();
    Some((
        format!("expected `f32` on the backend `{backend}`, got `{got}`"),
        format!("{} compute in {got}; f32 runs everywhere", able.join(" and ")),
    ))
}

/// Opens the device that `[device]` asks for, to compute in a precision.
///
/// # Errors
/// As [`resolve`], and for a device that does not compute in that precision.
pub fn open_for(name: &str, index: usize, precision: Precision) -> Result<Device, Error> {
    let backend = resolve(name, index)?;
    let refuse = |(message, hint): (String, String)| Error::Device {
        device: named(backend, index),
        message: format!("`train.precision`: {message}"),
        hint: Some(hint),
    };
    if let Some(reason) = cannot_compute(backend, precision) {
        return Err(refuse(reason));
    }
    let device = open(backend, index)?;
    // Not every card can what its backend can.
    match precision.activations() {
        Some(dtype) if !device.supports_dtype(dtype) => Err(refuse((
            format!("this device computes in `f32` only, got `{}`", precision.name()),
            "leave the precision at `f32`, or choose another device".into(),
        ))),
        _ => Ok(device),
    }
}

/// Most floating-point operations a second of a device in a precision, where its maker's number is known:
/// dense matrix products in bf16, and f32 outside of tensor cores.
#[must_use]
pub fn peak_flops(device: &Device, precision: Precision) -> Option<f64> {
    #[cfg(feature = "cube")]
    let name = device.identity()?.name;
    #[cfg(not(feature = "cube"))]
    let name = {
        let _ = device;
        String::new()
    };
    peak_of(&name, precision)
}

/// Peak by the name of a card: H100 and H200 as SXM modules (NVIDIA's data sheets; PCIe and NVL cards are
/// slower by amounts that depend on their power limit).
fn peak_of(name: &str, precision: Precision) -> Option<f64> {
    let is = |words: &[&str]| words.iter().all(|word| name.contains(word));
    let known = is(&["H100", "HBM3"]) || is(&["H200"]);
    let slower = is(&["NVL"]) || is(&["PCIe"]);
    (known && !slower).then_some(match precision {
        Precision::F32 => 67e12,
        Precision::Bf16 => 989e12,
    })
}

/// Whether a backend computes on the processor.
pub(crate) fn is_processor(backend: &str) -> bool {
    PROCESSORS.contains(&backend)
}

/// Whether NCCL adds up what lies on several devices of a backend. On CUDA it has to: the way through
/// the memory of the host takes longer than what several GPUs save.
///
/// # Errors
/// [`Error::Device`] on CUDA without the library.
pub(crate) fn has_nccl(backend: &str, index: usize) -> Result<bool, Error> {
    #[cfg(feature = "cuda")]
    if backend == "cuda" {
        return if gpu::has_transport(index) { Ok(true) } else { Err(no_nccl(backend)) };
    }
    let _ = (backend, index);
    Ok(false)
}

/// Said where several GPUs have nothing that adds up their gradients.
#[cfg(feature = "cuda")]
fn no_nccl(backend: &str) -> Error {
    Error::Device {
        device: backend.to_owned(),
        message: "several devices need NCCL to add up their gradients, and there is no `libnccl.so`"
            .into(),
        hint: Some(
            "put a directory with `libnccl.so` on LD_LIBRARY_PATH; where there is a `libnccl.so.2`, \
             as in the Python package `nvidia-nccl-cu13`, a link of that name to it will do"
                .into(),
        ),
    }
}

/// The first backend for processors that is compiled in.
#[must_use]
pub fn processor() -> Option<&'static str> {
    let mut compiled = BACKENDS.iter().filter(|backend| backend.compiled).map(|b| b.name);
    compiled.find(|name| PROCESSORS.contains(name))
}

/// Backends that compute on the processor.
const PROCESSORS: [&str; 2] = ["flex", "ndarray"];

/// A device of this machine that this binary can use; displayed as a configuration names it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Name of the backend.
    pub backend: &'static str,
    /// Which of its devices.
    pub index: usize,
    /// The device.
    pub device: Device,
}

/// Every device of every backend that is compiled in.
#[must_use]
pub fn all() -> Vec<Found> {
    #[cfg(feature = "cube")]
    kernels::keep();
    let compiled = BACKENDS.iter().filter(|backend| backend.compiled).map(|b| b.name);
    let devices =
        compiled.flat_map(|backend| (0..count(backend)).map(move |index| (backend, index)));
    // One that is lost meanwhile is no device.
    devices
        .filter_map(|(backend, index)| {
            Some(Found { backend, index, device: device(backend, index)? })
        })
        .collect()
}

impl Found {
    /// Opens it, which everything that is asked of a card needs.
    ///
    /// # Errors
    /// [`Error::Device`] if its driver refuses.
    pub fn open(&self) -> Result<(), Error> {
        opened(self.backend, self.index, &self.device)
    }

    fn is_processor(&self) -> bool {
        PROCESSORS.contains(&self.backend)
    }

    /// Name of the processor or of the card, where it is known.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        if self.is_processor() { machine::processor() } else { gpu::name(&self.device) }
    }

    /// Float types that it computes in, widest first.
    #[must_use]
    pub fn float_types(&self) -> Vec<&'static str> {
        let types =
            [("f64", DType::F64), ("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
        let held = types.into_iter().filter(|(_, dtype)| self.device.supports_dtype(*dtype));
        held.map(|(name, _)| name).collect()
    }

    /// Name and version of the driver of a card, where it is known.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        gpu::driver(&self.device)
    }

    /// The language that kernels are compiled to when the program runs; none for processors, whose
    /// kernels are part of it.
    #[must_use]
    pub fn language(&self) -> Option<&'static str> {
        gpu::language(&self.device)
    }

    /// Memory in bytes, where it is known.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        if self.is_processor() { machine::memory() } else { gpu::memory(&self.device) }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&named(self.backend, self.index))
    }
}

/// Devices of a backend that is compiled in; 0 for one that is not.
#[must_use]
pub fn count(backend: &str) -> usize {
    match backend {
        _ if !BACKENDS.iter().any(|known| known.compiled && known.name == backend) => 0,
        // Both CPU backends use the whole machine and have nothing to count.
        "flex" | "ndarray" => 1,
        _ => gpu::devices(backend).len(),
    }
}

/// Opens the device that `[device]` asks for.
///
/// # Errors
/// As [`resolve`], and if its driver refuses.
pub fn open(name: &str, index: usize) -> Result<Device, Error> {
    let backend = resolve(name, index)?;
    let device = device(backend, index).ok_or_else(|| Error::Device {
        device: named(backend, index),
        message: "it was there a moment ago and is gone".into(),
        hint: Some(
            "list the devices with `ssm doctor`, and look into the log of the system".into(),
        ),
    })?;
    opened(backend, index, &device)?;
    if gpu::is_software(&device) {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            let text = plays(name, &gpu::name(&device).unwrap_or_default());
            tracing::warn!("{text}");
        });
    }
    Ok(device)
}

/// A device as a configuration names it: its index is said where there are several.
fn named(backend: &str, index: usize) -> String {
    if index > 0 || count(backend) > 1 { format!("{backend}:{index}") } else { backend.to_owned() }
}

/// Opens a device that was found.
fn opened(backend: &str, index: usize, device: &Device) -> Result<(), Error> {
    if !gpu::opens(device) {
        return Err(Error::Device {
            device: named(backend, index),
            message: "its driver does not open it; why is on standard error".into(),
            hint: Some("see what else uses the card, or take another device".into()),
        });
    }
    #[cfg(feature = "cube")]
    kernels::forgets(gpu::language(device) == Some("WGSL"));
    Ok(())
}

/// What is said of a processor that plays a graphics card.
fn plays(backend: &str, device: &str) -> String {
    format!(
        "`{backend}` is `{device}` here, a processor that plays a graphics card: good for tests, \
         slower than `flex`"
    )
}

/// The device of a backend that is compiled in, if it has so many at the moment.
fn device(backend: &str, index: usize) -> Option<Device> {
    match backend {
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[expect(deprecated, reason = "kept as the second CPU route that checks the first")]
        "ndarray" => Some(Device::ndarray()),
        _ => gpu::devices(backend).into_iter().nth(index),
    }
}

/// The device that the variable `SSM_TEST_DEVICE` names, for tests of kernels.
#[cfg(test)]
pub(crate) fn test_device() -> Option<Device> {
    let name = std::env::var("SSM_TEST_DEVICE").ok()?;
    #[cfg(feature = "webgpu")]
    if name == "webgpu:cpu" {
        return Some(Device::wgpu(burn::tensor::DeviceKind::Cpu));
    }
    Some(open(&name, 0).unwrap())
}

/// A device for tests that run on any: the processor, unless the binary has no backend for it.
#[cfg(test)]
pub(crate) fn any_device() -> Device {
    match processor() {
        Some(name) => open(name, 0).unwrap(),
        None => test_device().expect("`SSM_TEST_DEVICE` names a device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, index: usize) -> String {
        open(name, index).expect_err("the device does not exist").report()
    }

    #[test]
    #[cfg(feature = "flex")]
    #[cfg(not(feature = "cube"))]
    fn auto_is_flex() {
        assert_eq!(resolve("auto", 0).unwrap(), "flex");
        assert_eq!(open("auto", 0).unwrap(), Device::flex());
    }

    #[test]
    fn compiled_backends_open_and_the_others_name_their_feature() {
        for (name, compiled) in backends() {
            if compiled && count(name) == 0 {
                assert_eq!(
                    report(name, 0),
                    format!(
                        "error: device `{name}`: this machine has no device for `{name}`\n\
                         hint: check that the driver is installed, or use `auto`"
                    )
                );
                continue;
            }
            match open(name, 0) {
                Ok(_) => assert!(compiled, "{name}"),
                Err(error) => {
                    assert!(!compiled, "{name}");
                    let hint = format!("build with `--features {name}`, or use `auto`");
                    assert_eq!(error.hint(), Some(hint));
                }
            }
        }
    }

    #[test]
    fn only_the_cards_of_the_table_have_a_peak() {
        assert_eq!(peak_of("NVIDIA H200", Precision::Bf16), Some(989e12));
        assert_eq!(peak_of("NVIDIA H100 80GB HBM3", Precision::F32), Some(67e12));
        for name in ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA A100", ""] {
            assert_eq!(peak_of(name, Precision::Bf16), None, "{name}");
        }
    }

    #[test]
    #[cfg(feature = "ndarray")]
    fn a_precision_that_a_device_does_not_compute_in_is_refused() {
        assert!(open_for("ndarray", 0, Precision::F32).is_ok());
        let error = open_for("ndarray", 0, Precision::Bf16).expect_err("ndarray has no bf16");
        assert_eq!(
            error.report(),
            "error: device `ndarray`: `train.precision`: expected `f32` on the backend `ndarray`, got \
             `bf16`\nhint: `flex` and `cuda` compute in bf16; f32 runs everywhere"
        );
        #[cfg(feature = "flex")]
        assert!(open_for("flex", 0, Precision::Bf16).is_ok());
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(
            report("felx", 0),
            "error: device `felx`: unknown backend, expected one of `auto`, `flex`, `ndarray`, \
             `cuda`, `vulkan`, `webgpu`\nhint: did you mean `flex`?"
        );
    }

    #[test]
    fn a_processor_that_plays_a_card_is_named() {
        assert_eq!(
            plays("webgpu", "SwiftShader"),
            "`webgpu` is `SwiftShader` here, a processor that plays a graphics card: good for tests, \
             slower than `flex`"
        );
    }

    #[test]
    #[cfg(feature = "flex")]
    fn a_cpu_has_no_second_device() {
        assert_eq!(
            report("flex", 1),
            "error: device `flex:1`: the backend `flex` has one device, got index 1\n\
             hint: leave `device.index` at 0"
        );
    }

    #[test]
    #[cfg(feature = "webgpu")]
    fn a_card_that_does_not_open_is_no_panic() {
        let Some(device) = test_device() else { return };
        let missing = Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(99));
        for _ in 0..2 {
            assert_eq!(
                opened("webgpu", 99, &missing).unwrap_err().report(),
                "error: device `webgpu:99`: its driver does not open it; why is on standard error\n\
                 hint: see what else uses the card, or take another device"
            );
        }
        opened("webgpu", 0, &device).unwrap();
    }
}
