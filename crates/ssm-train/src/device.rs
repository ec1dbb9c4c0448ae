//! From the words of `[device]` to a Burn device: the only place that names backends.

use burn::tensor::Device;

use crate::error::Error;

/// A backend that a configuration can name.
struct Backend {
    name: &'static str,
    /// Cargo feature of the binary that compiles it in.
    compiled: bool,
}

/// In the order of preference of `auto`.
const BACKENDS: &[Backend] = &[
    Backend { name: "flex", compiled: cfg!(feature = "flex") },
    Backend { name: "ndarray", compiled: cfg!(feature = "ndarray") },
    Backend { name: "cuda", compiled: false },
    Backend { name: "vulkan", compiled: false },
    Backend { name: "webgpu", compiled: false },
];

/// Every backend by name, and whether this binary holds it.
#[must_use]
pub fn backends() -> Vec<(&'static str, bool)> {
    BACKENDS.iter().map(|backend| (backend.name, backend.compiled)).collect()
}

/// The backend that `name` stands for: itself, or for `auto` the first of [`backends`] that is
/// compiled in.
///
/// # Errors
/// [`Error::Device`] for an unknown name, one that is not compiled in, and an index that the
/// backend does not have.
pub fn resolve(name: &str, index: usize) -> Result<&'static str, Error> {
    let error = |message: String, hint: String| Error::Device {
        device: if index == 0 { name.to_owned() } else { format!("{name}:{index}") },
        message,
        hint: Some(hint),
    };
    let compiled = || BACKENDS.iter().filter(|backend| backend.compiled).map(|b| b.name);
    let known = || ["auto"].into_iter().chain(BACKENDS.iter().map(|b| b.name));
    let backend = match name {
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
    // Both CPU backends use the whole machine and have nothing to count.
    if index != 0 {
        return Err(error(
            format!("the backend `{backend}` has one device, got index {index}"),
            "leave `device.index` at 0".into(),
        ));
    }
    Ok(backend)
}

/// Opens the device that `[device]` asks for.
///
/// # Errors
/// As [`resolve`].
pub fn open(name: &str, index: usize) -> Result<Device, Error> {
    let backend = resolve(name, index)?;
    match backend {
        #[cfg(feature = "flex")]
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        "ndarray" => {
            #[expect(deprecated, reason = "kept as the second CPU route that checks the first")]
            let device = Device::ndarray();
            Ok(device)
        }
        // `resolve` returns compiled backends only, and those are the arms above.
        _ => unreachable!("backend `{backend}` has no device"),
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
    fn auto_is_flex() {
        assert_eq!(resolve("auto", 0).unwrap(), "flex");
        assert_eq!(open("auto", 0).unwrap(), Device::flex());
    }

    #[test]
    fn compiled_backends_open_and_the_others_name_their_feature() {
        for (name, compiled) in backends() {
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
    fn unknown_names_are_refused() {
        assert_eq!(
            report("felx", 0),
            "error: device `felx`: unknown backend, expected one of `auto`, `flex`, `ndarray`, \
             `cuda`, `vulkan`, `webgpu`\nhint: did you mean `flex`?"
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
}
