//! Groups of bars over named categories.

use std::fmt::Write as _;

use super::{
    super::{
        Series,
        html::escape,
        scale::{Axis, readable},
    },
    CHAR, Canvas, Labels, ROW, colour, empty, frame, is_finite, px, range, wrap,
};

/// Groups of bars over named categories.
pub(in crate::report) fn bars(
    canvas: Canvas,
    labels: Labels<'_>,
    categories: &[String],
    series: &[Series],
) -> String {
    let values = || series.iter().flat_map(|one| &one.points).copied().filter(|p| is_finite(*p));
    if categories.is_empty() || values().next().is_none() {
        return empty(canvas, labels);
    }
    let (low, high) = range(values().map(|point| point.1).chain([0.0]));
    let y = Axis::nice(low, high, (canvas.plot_height / 30.0).clamp(4.0, 7.0) as usize);

    // Names stand upright while the longest fits its slot, and lean otherwise.
    let slot = (canvas.width - 60.0) / categories.len() as f64;
    let longest = categories.iter().map(|name| shorten(name).chars().count()).max().unwrap_or(0);
    let leaning = longest as f64 * CHAR + 6.0 > slot;
    let room = if leaning { longest as f64 * CHAR * 0.72 + ROW } else { ROW + 6.0 };
    let mut svg = String::new();
    let (plot, height) = frame(&mut svg, canvas, labels.y, series, &y, room);

    let slot = plot.width / categories.len() as f64;
    let every = (14.0 / slot).ceil().max(1.0) as usize;
    for (index, name) in categories.iter().enumerate().step_by(every) {
        let (x, y) = (plot.left + (index as f64 + 0.5) * slot, plot.top + plot.height + 16.0);
        let turn = if leaning {
            format!("text-anchor=\"end\" transform=\"rotate(-45 {} {})\"", px(x), px(y - 4.0))
        } else {
            "text-anchor=\"middle\"".to_owned()
        };
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" {turn}>{}</text>",
            px(x),
            px(y),
            escape(&shorten(name))
        );
    }
    let bar = (slot * 0.76 / series.len() as f64).min(44.0);
    let zero = plot.y(y.share(0.0));
    for (index, one) in series.iter().enumerate() {
        let _ = write!(svg, "<g class=\"bar {}\">", colour(index));
        for &(category, value) in one.points.iter().filter(|point| is_finite(**point)) {
            let place = category as usize;
            let Some(name) = categories.get(place) else { continue };
            let offset = (index as f64 - series.len() as f64 / 2.0) * bar;
            let end = plot.y(y.share(value));
            let _ = write!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}: {} {}</title></rect>",
                px(plot.left + (place as f64 + 0.5) * slot + offset),
                px(end.min(zero)),
                px((bar - 1.0).max(bar * 0.8)),
                px((end - zero).abs()),
                escape(name),
                escape(&one.name),
                readable(value)
            );
        }
        svg += "</g>";
    }
    let _ = write!(
        svg,
        "<path class=\"base\" d=\"M{} {}h{}\"/>",
        px(plot.left),
        px(zero),
        px(plot.width)
    );
    let ranges = series.iter().filter_map(|one| {
        let values = one.points.iter().filter(|point| is_finite(**point)).map(|point| point.1);
        let (low, high) = range(values);
        (low <= high)
            .then(|| format!("{} between {} and {}", one.name, readable(low), readable(high)))
    });
    let ranges = ranges.collect::<Vec<_>>().join("; ");
    let about = format!("{} of {} categories: {ranges}.", labels.y, categories.len());
    wrap(canvas, labels, height, &about, "", &svg)
}

/// Category names beyond 16 characters are cut; the bar's own title has them whole.
fn shorten(name: &str) -> String {
    if name.chars().count() <= 16 {
        return name.to_owned();
    }
    name.chars().take(15).chain(['…']).collect()
}
