//! Figures as inline SVG: plain shapes whose colours come from the style sheet of the page.
//!
//! Text scales with its drawing, so a figure is drawn once for a wide page and once for a phone.

mod bars;
mod lines;

use std::fmt::Write as _;

pub(super) use bars::bars;
pub(super) use lines::lines;

use super::{Series, html::escape, scale::Axis};

/// Colours of the palette; further series repeat them with dashes.
const COLOURS: usize = 7;
/// Mean advance of a character of the 12 px font, with a reserve for wide fonts.
const CHAR: f64 = 7.0;
/// Values from here on are drawn no more than infinity is.
const LARGEST: f64 = 1e200;
/// Height of a row of text.
const ROW: f64 = 18.0;
/// Space right of the plot, for half the width of its line.
const RIGHT: f64 = 2.0;

/// The size a figure is drawn for, in CSS pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Canvas {
    /// Class of the `<svg>`, by which the style sheet shows or hides it.
    pub(super) class: &'static str,
    /// Whole width.
    pub(super) width: f64,
    /// Height of the plot alone; labels and legend come on top of it.
    pub(super) plot_height: f64,
}

/// What a figure says besides its curves or bars.
#[derive(Clone, Copy, Debug)]
pub(super) struct Labels<'a> {
    /// Unique on the page.
    pub(super) id: usize,
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
}

/// The rectangle that data are drawn in.
struct Plot {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Plot {
    fn x(&self, share: f64) -> f64 {
        self.left + share * self.width
    }

    fn y(&self, share: f64) -> f64 {
        self.top + (1.0 - share) * self.height
    }
}

/// Draws what all figures share: y label, legend, grid and y ticks. Returns the plot and the height
/// of the whole, which leaves `room` below the plot.
fn frame(
    svg: &mut String,
    canvas: Canvas,
    y_label: &str,
    series: &[Series],
    y: &Axis,
    room: f64,
) -> (Plot, f64) {
    let widest = y.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(1);
    let left = (widest as f64 * CHAR + 12.0).max(28.0);
    let _ = write!(
        svg,
        "<text class=\"label\" x=\"0\" y=\"12\">{}{}</text>",
        escape(y_label),
        y.unit()
    );
    let below = if y_label.is_empty() { 0.0 } else { ROW };
    let top = below + legend(svg, canvas.width, below, series) + 12.0;
    let plot = Plot { left, top, width: canvas.width - left - RIGHT, height: canvas.plot_height };
    let mut grid = String::new();
    for (value, label) in &y.ticks {
        let at = plot.y(y.share(*value));
        let _ = write!(grid, "M{} {}h{}", px(plot.left), px(at), px(plot.width));
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>",
            px(plot.left - 8.0),
            px(at + 4.0)
        );
    }
    let _ = write!(svg, "<path class=\"grid\" d=\"{grid}\"/>");
    let height = plot.top + plot.height + room + 4.0;
    (plot, height)
}

/// Names the series in rows below the y label; a single one needs no name. Returns the height.
fn legend(svg: &mut String, width: f64, below: f64, series: &[Series]) -> f64 {
    if series.len() < 2 {
        return 0.0;
    }
    let (mut x, mut y) = (0.0, below + 14.0);
    for (index, one) in series.iter().enumerate().filter(|(_, one)| !one.points.is_empty()) {
        let size = 22.0 + text_width(&one.name) + 18.0;
        if x > 0.0 && x + size > width {
            (x, y) = (0.0, y + ROW);
        }
        let _ = write!(
            svg,
            "<g class=\"key {}\"><path d=\"M{} {}h16\"/><text x=\"{}\" y=\"{}\">{}</text></g>",
            colour(index),
            px(x),
            px(y - 4.0),
            px(x + 22.0),
            px(y),
            escape(&one.name)
        );
        x += size;
    }
    y + 4.0 - below
}

/// A figure without a finite point says so.
fn empty(canvas: Canvas, labels: Labels<'_>) -> String {
    let height = canvas.plot_height * 0.5;
    let svg = format!(
        "<rect class=\"none\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\
         <text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">No data to draw</text>",
        px(canvas.width - 1.0),
        px(height - 1.0),
        px(canvas.width / 2.0),
        px(height / 2.0 + 4.0)
    );
    wrap(canvas, labels, height, "No data to draw.", "", &svg)
}

fn wrap(
    canvas: Canvas,
    labels: Labels<'_>,
    height: f64,
    about: &str,
    data: &str,
    body: &str,
) -> String {
    let id = format!("f{}-{}", labels.id, canvas.class);
    format!(
        "<svg class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"{data}>\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>{body}</svg>\n",
        canvas.class,
        px(canvas.width),
        px(height),
        escape(labels.title),
        escape(about)
    )
}

fn colour(index: usize) -> String {
    let dashes = if index < COLOURS { "" } else { " dashed" };
    format!("c{}{dashes}", index % COLOURS)
}

/// Whether a point can be drawn; sizes near the end of f64 would overflow the span of an axis.
fn is_finite((x, y): (f64, f64)) -> bool {
    x.abs() < LARGEST && y.abs() < LARGEST
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// An estimate of the width of 12 px text; no font is at hand to measure it.
fn text_width(text: &str) -> f64 {
    let advance = |c: char| match c {
        'm' | 'w' | '—' => 10.5,
        c if c.is_uppercase() => 8.8,
        c if " fijlrtI.,:;|!'()-".contains(c) => 4.6,
        _ => 7.4,
    };
    text.chars().map(advance).sum()
}

/// A coordinate, to a tenth of a pixel.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
