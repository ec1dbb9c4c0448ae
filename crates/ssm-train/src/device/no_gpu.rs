//! Stands in for `gpu.rs` in a program without backends for graphics cards.

use burn::tensor::Device;

pub(super) fn devices(_backend: &str) -> Vec<Device> {
    Vec::new()
}

pub(super) fn opens(_device: &Device) -> bool {
    true
}

pub(super) fn is_software(_device: &Device) -> bool {
    false
}

pub(super) fn name(_device: &Device) -> Option<String> {
    None
}

pub(super) fn language(_device: &Device) -> Option<&'static str> {
    None
}

pub(super) fn memory(_device: &Device) -> Option<u64> {
    None
}

pub(super) fn driver(_device: &Device) -> Option<String> {
    None
}
