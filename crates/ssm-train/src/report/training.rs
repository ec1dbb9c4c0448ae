//! Figures of the training itself, from the rows of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Figure, Series};

/// Points that a curve of a training figure has at most.
const MAX_POINTS: usize = 600;
/// Numbers of an evaluation row that are no score.
const NOT_SCORES: [&str; 4] = ["step", "epoch", "elapsed_secs", "samples_per_sec"];

/// Loss, validation scores, learning rate and gradient norm over the optimiser steps.
///
/// Takes rows such as `{"step":50,"split":"train","loss":0.4,"lr":1e-4,"grad_norm":0.8}` and
/// `{"step":264,"split":"valid","mse":0.3,"mae":0.4}`, in any order. Every number of a validation
/// row but its step, epoch and times is a score and gets its own panel. Of several rows for one
/// step and split the last counts: a resumed run writes some again. A value that is `null` breaks
/// its curve. Long curves are thinned as by [`thin`].
///
/// Rows without a step are left out, and so are figures that would show nothing.
pub fn training_figures(rows: &[Value]) -> Vec<Figure> {
    let train = |key: &str| curve(rows, "train", key);
    let mut scores: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row["split"] == "valid") {
        for (key, value) in row.as_object().into_iter().flatten() {
            let new = !NOT_SCORES.contains(&key.as_str()) && !scores.contains(&key.as_str());
            if value.is_number() && new {
                scores.push(key);
            }
        }
    }

    let mut figures = Vec::new();
    let mut loss = vec![Series { name: "train".to_owned(), points: train("loss") }];
    if scores.contains(&"loss") {
        loss.push(Series { name: "validation".to_owned(), points: curve(rows, "valid", "loss") });
    }
    loss.retain(|series| !series.points.is_empty());
    if !loss.is_empty() {
        figures.push(lines("Training loss", "loss", loss));
    }

    let mut panels: Vec<Figure> = scores
        .iter()
        .filter(|score| **score != "loss")
        .map(|score| {
            let series = Series { name: (*score).to_owned(), points: curve(rows, "valid", score) };
            lines(&format!("Validation {score}"), score, vec![series])
        })
        .collect();
    for (title, label, key) in
        [("Learning rate", "learning rate", "lr"), ("Gradient norm", "global norm", "grad_norm")]
    {
        let points = train(key);
        if !points.is_empty() {
            panels.push(lines(title, label, vec![Series { name: label.to_owned(), points }]));
        }
    }
    if !panels.is_empty() {
        let title = "Validation and optimisation".to_owned();
        figures.push(Figure::Panels { title, panels, note: String::new() });
    }
    figures
}

/// Keeps at most `max` of the points, in order, such that every peak and every trough stays visible.
///
/// The points are cut into buckets of equal count, and each gives its lowest and its highest one;
/// the first and the last point stay. A bucket that holds a point which is not finite also gives
/// that, so that the line still breaks there. Series of up to `max` points are returned whole, and
/// a `max` below 8 counts as 8.
pub fn thin(points: &[(f64, f64)], max: usize) -> Vec<(f64, f64)> {
    let max = max.max(8);
    if points.len() <= max {
        return points.to_vec();
    }
    let is_finite = |index: usize| points[index].0.is_finite() && points[index].1.is_finite();
    let gaps = (0..points.len()).any(|index| !is_finite(index));
    let buckets = (max - 2) / if gaps { 3 } else { 2 };
    let inner = points.len() - 2;
    let mut kept = vec![points[0]];
    for bucket in 0..buckets {
        let range = 1 + bucket * inner / buckets..1 + (bucket + 1) * inner / buckets;
        let by_y = |a: &usize, b: &usize| points[*a].1.total_cmp(&points[*b].1);
        let low = range.clone().filter(|index| is_finite(*index)).min_by(by_y);
        let high = range.clone().filter(|index| is_finite(*index)).max_by(by_y);
        let gap = range.clone().find(|index| !is_finite(*index));
        let mut picks: Vec<usize> = [low, high, gap].into_iter().flatten().collect();
        picks.sort_unstable();
        picks.dedup();
        kept.extend(picks.into_iter().map(|index| points[index]));
    }
    kept.push(points[points.len() - 1]);
    kept
}

/// One key of one split over the steps; null, which is how JSON writes a NaN, becomes a NaN.
fn curve(rows: &[Value], split: &str, key: &str) -> Vec<(f64, f64)> {
    let mut by_step = BTreeMap::new();
    for row in rows.iter().filter(|row| row["split"] == split) {
        if let (Some(step), Some(value)) = (row["step"].as_u64(), row.get(key)) {
            by_step.insert(step, value.as_f64().unwrap_or(f64::NAN));
        }
    }
    let points: Vec<_> = by_step.into_iter().map(|(step, value)| (step as f64, value)).collect();
    thin(&points, MAX_POINTS)
}

fn lines(title: &str, y_label: &str, series: Vec<Series>) -> Figure {
    Figure::Lines {
        title: title.to_owned(),
        x_label: "optimiser step".to_owned(),
        y_label: y_label.to_owned(),
        series,
        note: String::new(),
    }
}
