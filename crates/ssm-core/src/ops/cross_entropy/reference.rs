//! The loss over `Tensor`, for any device; gradients by ordinary autodiff.

use burn::tensor::{FloatDType, Int, Tensor, TensorData, activation};

/// As [`linear_cross_entropy`](super::linear_cross_entropy), with all logits at once.
pub fn reference(hidden: Tensor<2>, weight: Tensor<2>, targets: &[i32]) -> Tensor<1> {
    super::check(&hidden, &weight, targets);
    let device = hidden.device();
    let places: Vec<i32> = (0..targets.len() as i32).collect();
    let places: Vec<i32> =
        places.into_iter().filter(|place| targets[*place as usize] >= 0).collect();
    let targets: Vec<i32> = targets.iter().copied().filter(|target| *target >= 0).collect();
    let n = targets.len();
    let hidden =
        hidden.select(0, Tensor::<1, Int>::from_data(TensorData::new(places, [n]), &device));
    let weight = weight.cast(FloatDType::from(hidden.dtype()));
    let logits = hidden.matmul(weight.transpose()).cast(FloatDType::F32);
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [n, 1]), &device);
    -activation::log_softmax(logits, 1).gather(1, targets).mean()
}
