//! The specification: the norm and its gradients on plain slices, in f64.
//!
//! Nothing of Burn is imported here.

/// `y = (x - mean) * r * weight + bias` with `r = 1 / sqrt(mean((x - mean)^2) + epsilon)`, for every row
/// of `weight.len()` values.
pub fn forward(x: &[f64], weight: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let (mean, r) = statistics(row, epsilon);
        for ((x, weight), bias) in row.iter().zip(weight).zip(bias) {
            y.push((x - mean) * r * weight + bias);
        }
    }
    y
}

/// Gradients of the arguments.
pub struct Gradients {
    /// Of `x`.
    pub x: Vec<f64>,
    /// Of `weight`.
    pub weight: Vec<f64>,
    /// Of `bias`.
    pub bias: Vec<f64>,
}

/// Gradients of `sum(forward(x, weight, bias) * grad_y)`.
///
/// With `n = (x - mean) r` and `g = grad_y * weight`: `grad_x = r (g - mean(g) - n mean(g n))`,
/// `grad_weight` is the sum of `grad_y n` over rows and `grad_bias` that of `grad_y`.
pub fn backward(x: &[f64], weight: &[f64], grad_y: &[f64], epsilon: f64) -> Gradients {
    let width = weight.len();
    let mut grads = Gradients {
        x: Vec::with_capacity(x.len()),
        weight: vec![0.0; width],
        bias: vec![0.0; width],
    };
    for (x, grad_y) in x.chunks_exact(width).zip(grad_y.chunks_exact(width)) {
        let (mean, r) = statistics(x, epsilon);
        let normal = |i: usize| (x[i] - mean) * r;
        let scaled = |i: usize| grad_y[i] * weight[i];
        let sum: f64 = (0..width).map(scaled).sum();
        let product: f64 = (0..width).map(|i| scaled(i) * normal(i)).sum();
        for (i, grad_y) in grad_y.iter().enumerate() {
            let shift = (sum + normal(i) * product) / width as f64;
            grads.x.push(r * (scaled(i) - shift));
            grads.weight[i] += grad_y * normal(i);
            grads.bias[i] += grad_y;
        }
    }
    grads
}

/// Mean of a row and what it is divided by, inverted.
fn statistics(row: &[f64], epsilon: f64) -> (f64, f64) {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
    (mean, (var + epsilon).sqrt().recip())
}
