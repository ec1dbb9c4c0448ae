//! Tables for the terminal: aligned columns of plain text.

use super::Table;

/// The table as plain text: title, column heads, rows and note, numbers to the right.
///
/// Columns are two spaces apart and nothing is drawn around them; every line ends in a line break
/// and carries no trailing space. Widths are counted in characters.
///
/// # Example
/// ```
/// use ssm_train::report::{Table, text_table};
///
/// let table = Table {
///     title: "Test scores".into(),
///     columns: vec!["model".into(), "MSE".into()],
///     rows: vec![vec!["last value".into(), "0.914".into()]],
///     ..Table::default()
/// };
/// assert_eq!(
///     text_table(&table),
///     "Test scores\n\nmodel         MSE\n----------  -----\nlast value  0.914\n"
/// );
/// ```
pub fn text_table(table: &Table) -> String {
    let numeric = numeric_columns(table);
    let rule = vec![String::new(); table.columns.len()];
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|column| {
            let cells = table.rows.iter().filter_map(|row| row.get(column));
            cells.chain(&table.columns[column..=column]).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String], fill: char| {
        let mut text = String::new();
        for (column, &size) in widths.iter().enumerate() {
            let cell =
                cells.get(column).map_or("", String::as_str).replace(['\n', '\r', '\t'], " ");
            let space = String::from(fill).repeat(size - width(&cell));
            let gap = if column == 0 { "" } else { "  " };
            let (left, right) = if numeric[column] { (space, cell) } else { (cell, space) };
            text += &format!("{gap}{left}{right}");
        }
        text.truncate(text.trim_end().len());
        text + "\n"
    };

    let mut text = String::new();
    if !table.title.is_empty() {
        text += &format!("{}\n\n", table.title);
    }
    text += &line(&table.columns, ' ');
    text += &line(&rule, '-');
    for row in &table.rows {
        text += &line(row, ' ');
    }
    if !table.note.is_empty() {
        text += &format!("\n{}\n", table.note);
    }
    text
}

/// Which columns hold numbers only, and so read best aligned to the right.
pub(super) fn numeric_columns(table: &Table) -> Vec<bool> {
    (0..table.columns.len())
        .map(|column| {
            let mut cells = table
                .rows
                .iter()
                .filter_map(|row| row.get(column))
                .filter(|cell| !is_blank(cell))
                .peekable();
            cells.peek().is_some() && cells.all(|cell| is_number(cell))
        })
        .collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn is_blank(cell: &str) -> bool {
    matches!(cell.trim(), "" | "-" | "–" | "—" | "n/a" | "NaN" | "nan" | "inf")
}

/// A number with its sign, spread, percent mark or short unit: `0.386 ± 0.002`, `-38 %`, `12.3 ms`.
fn is_number(cell: &str) -> bool {
    let body = cell.trim().trim_start_matches(['+', '-', '−', '±', '~', '<', '>']).trim_start();
    let letters = body.chars().filter(|c| c.is_alphabetic()).count();
    body.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && letters <= 3
        && !body.contains(['>', ':', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&[&str]]) -> Table {
        let own = |row: &[&str]| row.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        Table {
            title: "Scores".into(),
            columns: own(&["model", "MSE", "horizon", "Δ"]),
            rows: rows.iter().map(|row| own(row)).collect(),
            note: "Lower is better.".into(),
            ..Table::default()
        }
    }

    #[test]
    fn numbers_align_right_and_words_left() {
        let text = text_table(&table(&[
            &["Network", "0.386 ± 0.002", "96 -> 24", "−3.1 %"],
            &["last value", "–", "all", "+12 %"],
        ]));
        assert_eq!(
            text,
            "Scores\n\n\
             model                 MSE  horizon        Δ\n\
             ----------  -------------  --------  ------\n\
             Network     0.386 ± 0.002  96 -> 24  −3.1 %\n\
             last value              –  all        +12 %\n\n\
             Lower is better.\n"
        );
    }

    #[test]
    fn short_rows_and_line_breaks_do_not_break_the_columns() {
        let text = text_table(&table(&[&["a\nb"], &[]]));
        assert!(text.contains("\na b\n"), "{text}");
        assert!(text.lines().all(|line| line.trim_end() == line));
    }

    #[test]
    fn numbers_are_told_from_words() {
        for cell in
            ["1", "0.5", "-3", "+2 %", ".5", "12.3 ms", "1,234", "3.2e-4", "2x", "1.0 ± 0.1"]
        {
            assert!(is_number(cell), "{cell}");
        }
        for cell in ["", "h1", "3 seeds", "96 -> 24", "10:20", "[1]"] {
            assert!(!is_number(cell), "{cell}");
        }
    }
}
