//! The report page: one HTML file that asks the network for nothing and reads without a script.

use std::fmt::Write as _;

use super::{
    Figure, RunReport, Table,
    svg::{self, Canvas, Labels},
    text::numeric_columns,
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Facts longer than this get a line of their own.
const SHORT_FACT: usize = 34;

/// Sizes of a figure as wide as the page, on a screen or paper and on a phone.
const FULL: [Canvas; 2] = [
    Canvas { class: "wide", width: 912.0, plot_height: 270.0 },
    Canvas { class: "narrow", width: 350.0, plot_height: 210.0 },
];
/// Sizes of one of two panels side by side.
const HALF: [Canvas; 2] = [
    Canvas { class: "wide", width: 438.0, plot_height: 190.0 },
    Canvas { class: "narrow", width: 350.0, plot_height: 190.0 },
];
/// Sizes of one of three panels side by side.
const THIRD: [Canvas; 2] = [
    Canvas { class: "wide", width: 280.0, plot_height: 150.0 },
    Canvas { class: "narrow", width: 350.0, plot_height: 180.0 },
];

/// The report as one HTML document.
///
/// Order: name, subtitle and facts, the first table, the figures, the remaining tables. The style,
/// the drawings and a small script for reading values off the curves are all inside; a content
/// security policy forbids the page to load anything. It follows the reader's light or dark
/// setting, fits a phone and prints. Every text is escaped.
pub fn html(report: &RunReport) -> String {
    let name = escape(&report.name);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <title>{name}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>{}</h1>\n",
        name.replace('_', "_<wbr>")
    );
    for line in report.subtitle.iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(page, "<p>{}</p>", escape(line));
    }
    facts(&mut page, &report.facts);
    page += "</header>\n";

    let (summary, details) = report.tables.split_at(report.tables.len().min(1));
    let mut ids = 0;
    summary.iter().for_each(|one| table(&mut page, one));
    for one in &report.figures {
        page += "<section>\n";
        figure(&mut page, one, FULL, "h2", &mut ids);
        page += "</section>\n";
    }
    details.iter().for_each(|one| table(&mut page, one));
    let _ =
        write!(page, "</main>\n<script type=\"module\">\n{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

/// `text` with the five characters that mean something to HTML replaced, safe in attributes too.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // Control characters have no place in HTML and could hide text on a terminal.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Short facts stand in columns, long ones below each other.
fn facts(page: &mut String, facts: &[(String, String)]) {
    let (short, long): (Vec<_>, Vec<_>) =
        facts.iter().partition(|(_, value)| value.chars().count() <= SHORT_FACT);
    for (class, group) in [("", short), (" class=\"long\"", long)] {
        if group.is_empty() {
            continue;
        }
        let _ = writeln!(page, "<dl{class}>");
        for (name, value) in group {
            let _ =
                writeln!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        page.push_str("</dl>\n");
    }
}

fn table(page: &mut String, table: &Table) {
    let numeric = numeric_columns(table);
    let class = |column: usize| if numeric[column] { " class=\"n\"" } else { "" };
    page.push_str("<section>\n");
    heading(page, "h2", &table.title);
    let _ = write!(
        page,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">\n<table>\n<thead><tr>",
        escape(if table.title.is_empty() { "table" } else { &table.title })
    );
    for (column, head) in table.columns.iter().enumerate() {
        let _ = write!(page, "<th scope=\"col\"{}>{}</th>", class(column), escape(head));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        page.push_str("<tr>");
        for column in 0..table.columns.len() {
            let cell = row.get(column).map_or("", String::as_str);
            let _ = write!(page, "<td{}>{}</td>", class(column), escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
    note(page, "p", &table.note);
    page.push_str("</section>\n");
}

/// Draws a figure at every size it is shown at; `ids` counts the drawings of the page.
fn figure(page: &mut String, figure: &Figure, sizes: [Canvas; 2], level: &str, ids: &mut usize) {
    page.push_str("<figure>\n");
    let text = match figure {
        Figure::Lines { title, x_label, y_label, series, note } => {
            heading(page, level, title);
            *ids += 1;
            let labels = Labels { id: *ids, title, x: x_label, y: y_label };
            sizes.into_iter().for_each(|size| *page += &svg::lines(size, labels, series));
            note
        }
        Figure::Bars { title, categories, y_label, series, note } => {
            heading(page, level, title);
            *ids += 1;
            let labels = Labels { id: *ids, title, x: "", y: y_label };
            sizes
                .into_iter()
                .for_each(|size| *page += &svg::bars(size, labels, categories, series));
            note
        }
        Figure::Panels { title, panels, note } => {
            heading(page, level, title);
            // Four panels stand better as two by two than as three and one.
            let (class, sizes) = match panels.len() {
                0 | 1 => ("one", FULL),
                2 | 4 => ("two", HALF),
                _ => ("three", THIRD),
            };
            let _ = writeln!(page, "<div class=\"panels {class}\">");
            panels.iter().for_each(|panel| self::figure(page, panel, sizes, "h3", ids));
            page.push_str("</div>\n");
            note
        }
    };
    note(page, "figcaption", text);
    page.push_str("</figure>\n");
}

fn heading(page: &mut String, level: &str, title: &str) {
    if !title.is_empty() {
        let _ = writeln!(page, "<{level}>{}</{level}>", escape(title));
    }
}

fn note(page: &mut String, element: &str, note: &str) {
    if !note.is_empty() {
        let _ = writeln!(page, "<{element} class=\"note\">{}</{element}>", escape(note));
    }
}
