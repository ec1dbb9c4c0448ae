//! The specification: the loss and its gradients on plain slices, in f64.
//!
//! Nothing of Burn is imported here.

/// Loss and gradients of its arguments.
pub struct Outcome {
    /// Mean over the positions whose target is not negative.
    pub loss: f64,
    /// `[n, d_model]`
    pub hidden: Vec<f64>,
    /// `[n_rows, d_model]`
    pub weight: Vec<f64>,
}

/// With `z = weight * hidden` at each position, the loss is the mean of `logsumexp(z) - z[target]`, and
/// the gradient of `z` is `softmax(z)`, less one at the target, over the number of positions that
/// count.
pub fn cross_entropy(hidden: &[f64], weight: &[f64], targets: &[i32], d_model: usize) -> Outcome {
    let count = targets.iter().filter(|target| **target >= 0).count() as f64;
    let mut out =
        Outcome { loss: 0.0, hidden: vec![0.0; hidden.len()], weight: vec![0.0; weight.len()] };
    for (i, &target) in targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        let target = target as usize;
        let row = i * d_model..(i + 1) * d_model;
        let hidden = &hidden[row.clone()];
        let dot = |w: &[f64]| hidden.iter().zip(w).map(|(h, w)| h * w).sum::<f64>();
        let logits: Vec<f64> = weight.chunks_exact(d_model).map(dot).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // The share of the target is one less those of the others, which are added up without it: they
        // may be less than what is rounded off a one.
        let shares = logits.iter().map(|z| (z - max).exp()).enumerate();
        let others: f64 = shares.filter(|(j, _)| *j != target).map(|(_, share)| share).sum();
        let distance = max - logits[target];
        let sum = others + (-distance).exp();
        out.loss += if distance == 0.0 { others.ln_1p() } else { distance + sum.ln() } / count;
        for (j, z) in logits.iter().enumerate() {
            let share = if j == target { -others } else { (z - max).exp() };
            let grad = share / sum / count;
            for k in 0..d_model {
                out.hidden[row.start + k] += grad * weight[j * d_model + k];
                out.weight[j * d_model + k] += grad * hidden[k];
            }
        }
    }
    out
}
