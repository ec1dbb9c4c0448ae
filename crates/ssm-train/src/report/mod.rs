//! What a run shows of itself: tables and figures as plain data, drawn into one self-contained page.

mod html;
mod scale;
mod svg;
mod text;
mod training;

pub use html::html;
pub use text::text_table;
pub use training::{thin, training_figures};

/// Everything that the report page of a run shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunReport {
    /// Heading of the page.
    pub name: String,
    /// Sentences below the heading, one a line.
    pub subtitle: Vec<String>,
    /// The run header, name and value: task, data, device, seed, parameters, steps, time.
    pub facts: Vec<(String, String)>,
    /// The first one comes before the figures, the others after them.
    pub tables: Vec<Table>,
    /// In order of importance.
    pub figures: Vec<Figure>,
}

/// A table of text cells; numbers are formatted by whoever builds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Heading above the table.
    pub title: String,
    /// Column heads.
    pub columns: Vec<String>,
    /// How many columns, from the left, hold names: a run may be called `007`.
    pub names: usize,
    /// One entry a row, each as long as `columns`.
    pub rows: Vec<Vec<String>>,
    /// A sentence below the table, empty for none.
    pub note: String,
}

/// One named curve or one named group of bars.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// `(x, y)` in drawing order; points that are not finite are left out and break the line. A curve
    /// without points is neither drawn nor named, but has a colour.
    pub points: Vec<(f64, f64)>,
}

/// A drawing for the report.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// Curves over a common x axis.
    Lines {
        /// Heading.
        title: String,
        /// Name and unit of the x axis.
        x_label: String,
        /// Name and unit of the y axis.
        y_label: String,
        /// The curves; the first is drawn in the accent colour.
        series: Vec<Series>,
        /// A sentence below, empty for none.
        note: String,
    },
    /// Groups of bars over named categories: bar `i` of a series has x = index of its category.
    Bars {
        /// Heading.
        title: String,
        /// Category names, in order.
        categories: Vec<String>,
        /// Name and unit of the y axis.
        y_label: String,
        /// One bar of each series per category.
        series: Vec<Series>,
        /// A sentence below, empty for none.
        note: String,
    },
    /// Small figures side by side, wrapped to the width of the page.
    Panels {
        /// Heading of the group.
        title: String,
        /// The small figures; their own titles are drawn small.
        panels: Vec<Figure>,
        /// A sentence below, empty for none.
        note: String,
    },
}
