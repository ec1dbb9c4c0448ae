//! The specification: the norm and its gradients on plain slices, in f64.
//!
//! Nothing of Burn is imported here.

/// `y = x * r * weight` with `r = 1 / sqrt(mean(x^2) + epsilon)` for every row of `weight.len()` values.
pub fn forward(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let rows = x.chunks_exact(weight.len());
    rows.flat_map(|row| {
        let r = inverse_rms(row, epsilon);
        row.iter().zip(weight).map(move |(x, weight)| x * r * weight)
    })
    .collect()
}

/// Gradients of `x` and `weight` of `sum(forward(x, weight) * grad_y)`.
///
/// With `g = grad_y * weight`: `grad_x = r g - x r^3 mean(x g)`, and `grad_weight` is the sum of
/// `grad_y x r` over rows.
pub fn backward(x: &[f64], weight: &[f64], grad_y: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len();
    let mut grad_x = Vec::with_capacity(x.len());
    let mut grad_weight = vec![0.0; width];
    for (x, grad_y) in x.chunks_exact(width).zip(grad_y.chunks_exact(width)) {
        let r = inverse_rms(x, epsilon);
        let sum: f64 = (0..width).map(|i| x[i] * grad_y[i] * weight[i]).sum();
        for i in 0..width {
            grad_x.push(r * grad_y[i] * weight[i] - x[i] * r.powi(3) * sum / width as f64);
            grad_weight[i] += grad_y[i] * x[i] * r;
        }
    }
    (grad_x, grad_weight)
}

fn inverse_rms(row: &[f64], epsilon: f64) -> f64 {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    (mean + epsilon).sqrt().recip()
}
