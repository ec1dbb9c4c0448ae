//! What the system says of this machine and this process; `None` where it does not say.

use std::fs;

/// Name of the processor.
#[must_use]
pub fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = text
        .lines()
        .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == "model name"))?;
    Some(name.trim().to_owned())
}

/// Main memory, in bytes.
#[must_use]
pub fn memory() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal")
}

/// Main memory that this process occupies now, in bytes.
#[must_use]
pub fn resident() -> Option<u64> {
    kibibytes("/proc/self/status", "VmRSS")
}

/// The most main memory that this process ever occupied, in bytes.
#[must_use]
pub fn peak() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM")
}

/// Main memory that the files take which this process has mapped, itself among them, in bytes.
#[must_use]
pub fn mapped() -> Option<u64> {
    kibibytes("/proc/self/status", "RssFile")
}

/// Version of NVIDIA's driver, which may be there without its tools.
#[must_use]
pub fn nvidia_driver() -> Option<String> {
    let version = fs::read_to_string("/sys/module/nvidia/version").ok();
    if let Some(version) = version.filter(|version| !version.trim().is_empty()) {
        return Some(version.trim().to_owned());
    }
    // NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025
    driver_version(&fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word that is a number with points.
fn driver_version(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// Of a line such as `VmRSS:   123 kB`, in bytes.
fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let (_, value) =
        text.lines().find_map(|line| line.split_once(':').filter(|(name, _)| *name == key))?;
    let number: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

/// Bytes for people: `1.5 GiB`.
#[must_use]
pub fn readable(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_a_part_of_the_memory() {
        let (resident, memory) = (resident().unwrap(), memory().unwrap());
        assert!(resident > 1 << 16 && resident < memory, "{resident} of {memory}");
        assert!(peak().unwrap() >= resident && mapped().unwrap() < resident);
    }

    #[test]
    fn the_version_of_a_driver_is_a_number_with_points() {
        for module in [
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build",
        ] {
            assert_eq!(driver_version(module).as_deref(), Some("580.95.05"));
        }
        assert_eq!(driver_version("no driver"), None);
    }

    #[test]
    fn bytes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (200 << 20, "200 MiB"),
            (3 << 30, "3.0 GiB"),
        ] {
            assert_eq!(readable(bytes), text);
        }
    }
}
