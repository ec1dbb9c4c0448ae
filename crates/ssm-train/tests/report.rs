//! The report page and the terminal table, as a reader meets them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use ssm_train::report::{
    Figure, RunReport, Series, Table, html, text_table, thin, training_figures,
};

fn series(name: &str, points: &[(f64, f64)]) -> Series {
    Series { name: name.into(), points: points.to_vec() }
}

fn lines(title: &str, series: Vec<Series>) -> Figure {
    Figure::Lines {
        title: title.into(),
        x_label: "step".into(),
        y_label: "loss".into(),
        series,
        note: String::new(),
    }
}

fn bars(categories: &[&str], series: Vec<Series>) -> Figure {
    Figure::Bars {
        title: "By variate".into(),
        categories: categories.iter().map(|name| (*name).into()).collect(),
        y_label: "MSE".into(),
        series,
        note: "Lower is better.".into(),
    }
}

fn table(title: &str) -> Table {
    Table {
        title: title.into(),
        columns: vec!["model".into(), "MSE".into()],
        rows: vec![vec!["Network".into(), "0.401".into()], vec!["last value".into(), "–".into()]],
        note: "Every test window.".into(),
        ..Table::default()
    }
}

fn page(figures: Vec<Figure>) -> String {
    html(&RunReport { name: "run".into(), figures, ..RunReport::default() })
}

/// A full report, one of everything.
fn full() -> RunReport {
    let curve: Vec<_> = (0..50).map(|i| (f64::from(i), 1.0 / f64::from(i + 1))).collect();
    RunReport {
        name: "airports_96".into(),
        subtitle: vec!["96 hours in, 24 hours out.".into(), String::new()],
        facts: vec![
            ("seed".into(), "2023".into()),
            ("data".into(), "8,730 rows, 13 variates; 5,992 / 850 / 1,723 windows".into()),
        ],
        tables: vec![table("Test scores"), table("Scores by variate")],
        figures: vec![
            lines("Loss", vec![series("train", &curve), series("validation", &curve[..9])]),
            bars(&["temp", "wind"], vec![series("Network", &[(0.0, 0.1), (1.0, 0.8)])]),
            Figure::Panels {
                title: "Windows".into(),
                panels: vec![lines("one", vec![series("truth", &curve)]); 3],
                note: String::new(),
            },
        ],
    }
}

/// The text of every `name="..."` in the page.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    page.split(start.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn elements_nest_and_close() {
    let page = html(&full());
    let body = &page[page.find("<body>").unwrap()..page.find("<script").unwrap()];
    let mut open = Vec::new();
    for tag in body.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let name = tag.trim_start_matches('/').split(' ').next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "near `<{tag}>`");
        } else if !tag.ends_with('/') && name != "wbr" {
            open.push(name);
        }
    }
    assert_eq!(open, ["body"], "nothing else is open when the script begins");
}

#[test]
fn the_page_has_its_parts_in_order() {
    let page = html(&full());
    assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
    assert!(page.ends_with("</html>\n"));
    let order = [
        "<h1>airports_<wbr>96</h1>",
        "<p>96 hours in, 24 hours out.</p>",
        "<dt>seed</dt><dd>2023</dd>",
        "<dl class=\"long\">",
        "<h2>Test scores</h2>",
        "<th scope=\"col\" class=\"n\">MSE</th>",
        "<td>Network</td><td class=\"n\">0.401</td>",
        "<p class=\"note\">Every test window.</p>",
        "<h2>Loss</h2>",
        "<h2>By variate</h2>",
        "<figcaption class=\"note\">Lower is better.</figcaption>",
        "<h2>Windows</h2>",
        "<div class=\"panels three\">",
        "<h3>one</h3>",
        "<h2>Scores by variate</h2>",
    ];
    let mut from = 0;
    for part in order {
        let at = page[from..].find(part).unwrap_or_else(|| panic!("`{part}` is missing or early"));
        from += at + part.len();
    }
    assert!(!page.contains("<p></p>"), "empty subtitle lines are left out");
}

#[test]
fn every_drawing_is_named_for_those_who_cannot_see_it() {
    let page = html(&full());
    let drawings = page.matches("<svg ").count();
    assert_eq!(drawings, 2 * 5, "a wide and a narrow one of each figure");
    assert_eq!(page.matches("role=\"img\"").count(), drawings);
    let ids = attributes(&page, "id");
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "ids are unique");
    for names in attributes(&page, "aria-labelledby") {
        assert!(names.split(' ').all(|name| ids.contains(&name)), "{names}");
    }
    assert!(page.contains("loss over step from 0 to 49. train from 1 to 0.02; validation from 1"));
    assert!(page.contains("MSE of 2 categories: Network between 0.1 and 0.8."));
}

#[test]
fn the_page_asks_the_network_for_nothing() {
    let page = html(&full());
    for trace in ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<link", "<iframe"] {
        let found = page.match_indices(trace).map(|(at, _)| &page[at..(at + 60).min(page.len())]);
        // Comments of the script are the one place where two slashes stand.
        let found: Vec<_> = found.filter(|text| !text.starts_with("// ")).collect();
        assert!(found.is_empty(), "{trace}: {found:?}");
    }
    assert!(page.contains("content=\"default-src 'none'; style-src 'unsafe-inline'"));
}

#[test]
fn every_text_is_escaped() {
    let evil = "<b>\"x\" & 'y'</b>\u{1b}[31m";
    let safe = "&lt;b&gt;&quot;x&quot; &amp; &#39;y&#39;&lt;/b&gt; [31m";
    let points = [(0.0, 1.0), (1.0, 2.0)];
    let many = vec![series(evil, &points), series(evil, &points)];
    let report = RunReport {
        name: evil.into(),
        subtitle: vec![evil.into()],
        facts: vec![(evil.into(), evil.into()), (evil.into(), evil.repeat(3))],
        tables: vec![Table {
            title: evil.into(),
            columns: vec![evil.into()],
            rows: vec![vec![evil.into()]],
            note: evil.into(),
            ..Table::default()
        }],
        figures: vec![
            Figure::Lines {
                title: evil.into(),
                x_label: evil.into(),
                y_label: evil.into(),
                series: many.clone(),
                note: evil.into(),
            },
            Figure::Panels {
                title: evil.into(),
                panels: vec![Figure::Bars {
                    title: evil.into(),
                    categories: vec![evil.into(), evil.into()],
                    y_label: evil.into(),
                    series: many,
                    note: evil.into(),
                }],
                note: evil.into(),
            },
        ],
    };
    let page = html(&report);
    assert!(!page.contains("<b>"), "markup of the user reached the page");
    assert!(!page.contains("\"x\""));
    assert!(!page.contains('\u{1b}'));
    assert!(page.matches(safe).count() > 25);
}

#[test]
fn points_that_are_not_finite_break_the_line() {
    let points = [
        (0.0, 1.0),
        (1.0, 2.0),
        (2.0, f64::NAN),
        (3.0, 2.0),
        (4.0, f64::INFINITY),
        (5.0, 1.0),
        (6.0, 3.0),
    ];
    let page = page(vec![lines("Loss", vec![series("train", &points)])]);
    assert_eq!(page.matches("<polyline").count(), 2 * 3, "three runs, drawn for two widths");
    assert_eq!(attributes(&page, "data-v")[0], "0,1 1,2 3,2 5,1 6,3");
    for bad in ["NaN", "inf"] {
        assert!(attributes(&page, "points").iter().all(|text| !text.contains(bad)));
    }
}

#[test]
fn a_lone_point_is_a_dot() {
    let mut points: Vec<_> = (0..40).map(|i| (f64::from(i), f64::NAN)).collect();
    points[20].1 = 3.0;
    let page = page(vec![lines("Loss", vec![series("train", &points)])]);
    assert_eq!(page.matches("<circle").count(), 2);
}

#[test]
fn empty_figures_say_so() {
    let nothing = [
        lines("a", vec![]),
        lines("b", vec![series("train", &[(0.0, f64::NAN)])]),
        bars(&[], vec![series("one", &[(0.0, 1.0)])]),
        bars(&["one"], vec![]),
    ];
    let page = page(nothing.to_vec());
    assert_eq!(page.matches(">No data to draw</text>").count(), 2 * nothing.len());
    assert!(!page.contains("NaN"));
}

#[test]
fn extreme_values_draw_without_end() {
    let wild = [(0.0, f64::MAX), (1.0, f64::MIN), (2.0, 1e-320), (3.0, 5e199), (4.0, -5e199)];
    let page = page(vec![
        lines("Loss", vec![series("train", &wild)]),
        bars(&["one"], vec![series("s", &[(0.0, f64::MAX), (7.0, 1.0), (-3.0, f64::NAN)])]),
    ]);
    assert!(page.len() < 100_000);
    for name in ["points", "x", "y", "d"] {
        for text in attributes(&page, name) {
            assert!(!text.contains("NaN") && !text.contains("inf"), "{name}: {text}");
        }
    }
}

#[test]
fn drawn_points_stay_inside_the_plot() {
    let page = page(vec![lines(
        "Loss",
        vec![series("a", &[(3.0, -7.0), (90.0, 4.2)]), series("b", &[(40.0, 11.3), (41.0, 0.0)])],
    )]);
    let plot: Vec<f64> = attributes(&page, "data-plot")[0]
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    for pair in attributes(&page, "points")[..2].iter().flat_map(|text| text.split(' ')) {
        let (x, y) = pair.split_once(',').unwrap();
        let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
        assert!((plot[0]..=plot[0] + plot[2] + 0.1).contains(&x), "x {x} of {plot:?}");
        assert!((plot[1]..=plot[1] + plot[3] + 0.1).contains(&y), "y {y} of {plot:?}");
    }
}

#[test]
fn the_first_series_lies_on_top_in_the_accent_colour() {
    let points = [(0.0, 1.0), (1.0, 2.0)];
    let page = page(vec![lines("a", (0..9).map(|_| series("s", &points)).collect())]);
    let groups: Vec<_> =
        attributes(&page, "class").into_iter().filter(|c| c.starts_with("line ")).take(9).collect();
    assert_eq!(groups[0], "line c1 dashed", "colours repeat with dashes");
    assert_eq!(groups[8], "line c0");
}

#[test]
fn thinning_keeps_the_extremes_and_the_order() {
    let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
    points[31_415].1 = 1e6;
    points[27_182].1 = -1e6;
    let thinned = thin(&points, 600);
    assert!(thinned.len() <= 600 && thinned.len() > 500, "{}", thinned.len());
    assert!(thinned.contains(&points[31_415]));
    assert!(thinned.contains(&points[27_182]));
    assert_eq!(thinned.first(), points.first());
    assert_eq!(thinned.last(), points.last());
    assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0), "order or a point twice");
    assert_eq!(thin(&points[..600], 600), points[..600], "short series stay whole");
}

#[test]
fn thinning_keeps_the_gaps() {
    let mut points: Vec<_> = (0..5000).map(|i| (f64::from(i), f64::from(i % 11))).collect();
    points[2500].1 = f64::NAN;
    let thinned = thin(&points, 600);
    assert!(thinned.len() <= 600);
    assert_eq!(thinned.iter().filter(|point| point.1.is_nan()).count(), 1);
    let lost = vec![(0.0, f64::NAN); 5000];
    assert!(thin(&lost, 600).len() <= 600, "nothing finite at all");
}

/// Rows as the engine logs them, 2,000 steps with an evaluation every 500.
fn rows() -> Vec<Value> {
    let mut rows = Vec::new();
    for step in 1..=2000_u64 {
        let loss = if step == 777 { 9.0 } else { 1.0 / step as f64 };
        rows.push(json!({"step": step, "epoch": step / 500, "split": "train", "loss": loss,
            "lr": 1e-4, "grad_norm": 0.5}));
        if step % 500 == 0 {
            rows.push(json!({"step": step, "epoch": step / 500, "split": "valid", "mse": 0.4,
                "mae": 0.3, "elapsed_secs": 1.5}));
        }
    }
    rows
}

#[test]
fn training_rows_become_figures() {
    let figures = training_figures(&rows());
    let [Figure::Lines { title, series, .. }, Figure::Panels { panels, .. }] = &figures[..] else {
        panic!("{figures:?}");
    };
    assert_eq!(title, "Training loss");
    assert_eq!(series.len(), 1);
    assert!(series[0].points.len() <= 600);
    assert!(series[0].points.contains(&(777.0, 9.0)), "the spike is visible");
    let titles: Vec<_> = panels
        .iter()
        .map(|panel| match panel {
            Figure::Lines { title, series, .. } => (title.as_str(), series[0].points.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(titles[..2], [("Validation mse", 4), ("Validation mae", 4)]);
    assert_eq!([titles[2].0, titles[3].0], ["Learning rate", "Gradient norm"]);
    assert_eq!(titles.len(), 4, "times and counters are no scores");
}

#[test]
fn a_resumed_run_counts_its_last_rows_and_null_is_a_gap() {
    let figures = training_figures(&[
        json!({"step": 20, "split": "train", "loss": 5.0}),
        json!({"step": 10, "split": "train", "loss": 3.0}),
        json!({"step": 20, "split": "train", "loss": 2.0}),
        json!({"step": 30, "split": "train", "loss": null}),
        json!({"split": "train", "loss": 1.0}),
        json!({"step": 30, "split": "valid", "loss": 2.5}),
        json!("not a row"),
    ]);
    let [Figure::Lines { series, .. }] = &figures[..] else { panic!("{figures:?}") };
    assert_eq!(series[0].points[..2], [(10.0, 3.0), (20.0, 2.0)]);
    assert_eq!(series[0].points[2].0, 30.0);
    assert!(series[0].points[2].1.is_nan());
    assert_eq!(series[1], self::series("validation", &[(30.0, 2.5)]));
    assert_eq!(training_figures(&[]), []);
}

#[test]
fn the_page_stays_small() {
    let report = RunReport { figures: training_figures(&rows()), ..full() };
    let size = html(&report).len();
    assert!(size < 300_000, "{size} bytes");
}

#[test]
fn the_terminal_table_is_plain_text() {
    assert_eq!(
        text_table(&table("Test scores")),
        "Test scores\n\n\
         model         MSE\n\
         ----------  -----\n\
         Network     0.401\n\
         last value      –\n\n\
         Every test window.\n"
    );
}
