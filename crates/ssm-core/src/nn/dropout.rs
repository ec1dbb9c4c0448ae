//! Dropout whose mask is drawn on the host where the host computes.
//!
//! Burn draws every element through a general sampler, which took a seventh of a training step of
//! S-Mamba on a CPU. Here one draw of the device, which the trainer seeds for every step, becomes
//! the key of ChaCha8, and that fills the mask.
//!
//! On an accelerator the mask is a hash of a seed in the memory of the device, which [`seeded`] names: it
//! takes no memory and no launch of its own, and a recorded step drops something else once the seed in
//! that memory is another.

use std::cell::RefCell;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::ops::pointwise::{dropped, host::draws_below, masked};

thread_local! {
    /// The seed on accelerators and how many times it was drawn from, inside of [`seeded`].
    static SEED: RefCell<Option<(Tensor<1, Int>, u32)>> = const { RefCell::new(None) };
}

/// A seed in the memory of a device, for [`seeded`].
#[must_use]
pub fn seed_on(seed: u64, device: &Device) -> Tensor<1, Int> {
    let words = [seed as u32, (seed >> 32) as u32].map(u32::cast_signed);
    Tensor::from_data(TensorData::from(words), (device, DType::I32))
}

/// Runs `compute`, whose every [`dropout`] on an accelerator then drops what follows from `seed` and from
/// how many there were before it. Backward passes read `seed` again. On processors it changes nothing.
/// One inside of another ends both.
pub fn seeded<R>(seed: Tensor<1, Int>, compute: impl FnOnce() -> R) -> R {
    /// Also where `compute` panics.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            SEED.take();
        }
    }
    SEED.set(Some((seed, 0)));
    let _scope = Scope;
    compute()
}

/// Sets a share of `probability` of the elements to zero and scales the others by
/// `1 / (1 - probability)`; does nothing outside of training, that is, without autodiff.
///
/// # Shapes
/// Any; same shape and dtype out.
///
/// # Source
/// Srivastava et al. 2014, "Dropout", in the scaled form of every framework.
pub fn dropout<const D: usize>(x: Tensor<D>, probability: f64) -> Tensor<D> {
    let device = x.device();
    if probability == 0.0 || !device.is_autodiff() {
        return x;
    }
    let keep = 1.0 - probability;
    if !is_host(&device) {
        let next = SEED.with_borrow_mut(|seed| {
            let (seed, site) = seed.as_mut()?;
            *site += 1;
            Some((seed.clone(), *site))
        });
        if let Some((seed, site)) = next {
            return dropped(x, seed, site, keep);
        }
        let mask = x.random_like(Distribution::Bernoulli(keep));
        return masked(x, mask, 1.0 / keep);
    }
    let mask = mask(x.shape().num_elements(), keep, key(&device));
    let mask = Tensor::from_data(TensorData::new(mask, x.shape()), (&device, x.dtype()));
    x * mask
}

/// Only accelerator runtimes keep memory pools that they can report on.
fn is_host(device: &Device) -> bool {
    device.memory_pool_usage().is_none()
}

/// 60 random bits of the device.
fn key(device: &Device) -> u64 {
    let bound = f64::from(1 << 20);
    let draw: Tensor<1, Int> = Tensor::random([3], Distribution::Uniform(0.0, bound), device);
    draw.into_data().iter::<u64>().fold(0, |key, part| (key << 20) | part)
}

/// `len` values, `1 / keep` with probability `keep` and else 0.
fn mask(len: usize, keep: f64, key: u64) -> Vec<f32> {
    let bound = draws_below(keep);
    let scale = (1.0 / keep) as f32;
    let mut rng = ChaCha8Rng::seed_from_u64(key);
    let mut words = vec![0; 4 * len];
    rng.fill_bytes(&mut words);
    let (words, _) = words.as_chunks::<4>();
    words.iter().map(|word| if u32::from_le_bytes(*word) < bound { scale } else { 0.0 }).collect()
}

#[cfg(feature = "flex")]
#[cfg(test)]
mod tests {
    use super::*;

    fn ones(device: &Device) -> Tensor<2> {
        Tensor::ones([300, 100], device)
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data_as::<f32>().try_into_vec().unwrap()
    }

    #[test]
    fn a_share_is_dropped_and_the_mean_is_kept() {
        for probability in [0.1, 0.5, 0.9] {
            let dropped = values(dropout(ones(&Device::flex().autodiff()), probability));
            let scale = (1.0 / (1.0 - probability)) as f32;
            assert!(dropped.iter().all(|value| *value == 0.0 || *value == scale));
            let share = dropped.iter().filter(|value| **value == 0.0).count() as f64 / 3e4;
            // Five standard deviations of a share of 30,000 draws.
            let bound = 5.0 * (probability * (1.0 - probability) / 3e4).sqrt();
            assert!((share - probability).abs() < bound, "{share} of {probability}");
        }
    }

    #[test]
    fn a_seed_of_the_device_repeats_the_masks() {
        let device = Device::flex().autodiff();
        // Other tests draw from the same generator: the key is tested apart from its source.
        assert_eq!(mask(1000, 0.5, 7), mask(1000, 0.5, 7));
        assert_ne!(mask(1000, 0.5, 7), mask(1000, 0.5, 8));
        assert_ne!(key(&device), key(&device));
    }

    #[test]
    fn half_precision_stays_half() {
        let x = ones(&Device::flex().autodiff()).cast(DType::BF16);
        let dropped = dropout(x, 0.5);
        assert_eq!(dropped.dtype(), DType::BF16);
        assert!(values(dropped).iter().all(|value| *value == 0.0 || *value == 2.0));
    }

    #[test]
    fn nothing_is_dropped_outside_of_training() {
        assert!(values(dropout(ones(&Device::flex()), 0.9)).iter().all(|value| *value == 1.0));
    }
}
