//! CSV text to a table of numbers, with the place of whatever is wrong in it.

use std::{collections::HashMap, fmt::Write, path::PathBuf};

use ::csv::{ByteRecord, ReaderBuilder};
use jiff::civil::DateTime;
use ssm_train::error::Error;

use super::{Series, calendar::date_step};
use crate::data::{DataFile, KnownSet, read_known};

/// Formats that a date may have, the frequent ones first; digits need not be padded.
const DATE_FORMATS: [&str; 8] = [
    "%Y-%m-%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M:%S",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d",
    "%Y-%m-%dT%H:%M",
];

/// What a file looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat<'a> {
    /// A header, and dates in the column of this name.
    Dated(&'a str),
    /// A header, and no dates: every column is a variate.
    Undated,
    /// Numbers only. Columns are named `0`, `1`, and so on.
    Headless,
}

/// Finds a published table below `dirs` and reads it.
///
/// # Errors
/// As [`read_known`] and [`parse_table`].
pub(super) fn read_table(
    set: &KnownSet,
    dirs: &[PathBuf],
    format: TableFormat<'_>,
) -> Result<Series, Error> {
    parse_table(set.name, &read_known(set, dirs)?, format)
}

/// Reads a table: a header (unless [`TableFormat::Headless`]), then one row of numbers a time step.
///
/// Bytes that are not UTF-8 in names are replaced, line ends may be LF or CRLF, a byte order mark
/// is skipped, spaces around cells are ignored. Dates that do not increase, or not always by the same
/// step, are a warning.
///
/// # Errors
/// [`Error::Data`] with line and column for an empty file, a repeated column, a missing date
/// column, a row of another length, a cell that is not a finite number, an unknown date format.
pub fn parse_table(name: &str, file: &DataFile, format: TableFormat<'_>) -> Result<Series, Error> {
    let bytes = file.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&file.bytes);
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let unreadable = |reason: ::csv::Error| file.error(format!("not a CSV file: {reason}"), None);

    let mut record = ByteRecord::new();
    if !reader.read_byte_record(&mut record).map_err(unreadable)? {
        return Err(file.error("the file is empty", None));
    }
    let header: Vec<String> = if format == TableFormat::Headless {
        (0..record.len()).map(|column| column.to_string()).collect()
    } else {
        record.iter().map(text).collect()
    };
    let date_column = check_header(file, &header, format)?;

    let columns: Vec<String> = (0..header.len())
        .filter(|index| Some(*index) != date_column)
        .map(|index| header[index].clone())
        .collect();
    let mut table = Rows {
        file,
        header: &header,
        date_column,
        values: vec![Vec::new(); columns.len()],
        dates: Vec::new(),
        date_format: DATE_FORMATS[0],
    };
    // The first record of a file without a header is data already.
    let mut more = format == TableFormat::Headless
        || reader.read_byte_record(&mut record).map_err(unreadable)?;
    while more {
        table.push(&record)?;
        more = reader.read_byte_record(&mut record).map_err(unreadable)?;
    }
    let Rows { values, dates, .. } = table;
    if values.first().is_none_or(Vec::is_empty) {
        return Err(file.error("the file has a header but no rows", None));
    }
    for warning in [disorder(&dates), gaps(&dates)].into_iter().flatten() {
        tracing::warn!(
            "`{}`: {warning}; rows are taken in the order of the file",
            file.path.display()
        );
    }
    Ok(Series {
        name: name.to_owned(),
        path: file.path.clone(),
        sha256: file.sha256.clone(),
        columns,
        values,
        dates: date_column.map(|_| dates),
    })
}

/// Position of the date column, if the format has one.
fn check_header(
    file: &DataFile,
    header: &[String],
    format: TableFormat<'_>,
) -> Result<Option<usize>, Error> {
    let mut seen = HashMap::new();
    for (index, name) in header.iter().enumerate() {
        if let Some(first) = seen.insert(name, index) {
            return Err(file.error(
                format!(
                    "line 1: column `{name}` occurs twice, as columns {} and {}",
                    first + 1,
                    index + 1
                ),
                Some("every variate needs a name of its own"),
            ));
        }
    }
    let TableFormat::Dated(wanted) = format else { return Ok(None) };
    let Some(index) = header.iter().position(|name| name == wanted) else {
        return Err(file.error(
            format!("line 1: no date column `{wanted}`, got {}", list(header)),
            Some("the first line names the columns; a `csv` set names its own with `date_column`"),
        ));
    };
    if header.len() == 1 {
        return Err(file.error(format!("line 1: no column besides `{wanted}`"), None));
    }
    Ok(Some(index))
}

/// The rows read so far.
struct Rows<'a> {
    file: &'a DataFile,
    header: &'a [String],
    date_column: Option<usize>,
    values: Vec<Vec<f64>>,
    dates: Vec<DateTime>,
    date_format: &'static str,
}

impl Rows<'_> {
    fn push(&mut self, record: &ByteRecord) -> Result<(), Error> {
        let line = record.position().map_or(0, ::csv::Position::line);
        if record.len() != self.header.len() {
            return Err(self.file.error(
                format!("line {line}: expected {} cells, got {}", self.header.len(), record.len()),
                None,
            ));
        }
        let mut variate = 0;
        for (index, cell) in record.iter().enumerate() {
            if Some(index) == self.date_column {
                let date = self.date(cell, line)?;
                self.dates.push(date);
            } else {
                let value = self.number(cell, line, index)?;
                self.values[variate].push(value);
                variate += 1;
            }
        }
        Ok(())
    }

    fn number(&self, cell: &[u8], line: u64, index: usize) -> Result<f64, Error> {
        let value: Option<f64> =
            std::str::from_utf8(cell).ok().and_then(|cell| cell.trim().parse().ok());
        value.filter(|value| value.is_finite()).ok_or_else(|| {
            self.file.error(
                format!(
                    "line {line}, column `{}`: expected a finite number, got {}",
                    self.header[index],
                    shown(cell)
                ),
                Some("fill or drop missing values before training"),
            )
        })
    }

    /// Tries the format of the row before, then the others.
    fn date(&mut self, cell: &[u8], line: u64) -> Result<DateTime, Error> {
        let cell_text = text(cell);
        let known = std::iter::once(self.date_format).chain(DATE_FORMATS);
        for format in known {
            if let Ok(date) = DateTime::strptime(format, &cell_text) {
                self.date_format = format;
                return Ok(date);
            }
        }
        let index = self.date_column.unwrap_or(0);
        Err(self.file.error(
            format!(
                "line {line}, column `{}`: expected a date, got {}",
                self.header[index],
                shown(cell)
            ),
            Some("write it as `2016-07-01 00:00:00`, `2016-07-01 00:00` or `2016-07-01`"),
        ))
    }
}

/// That time does not always increase, with the first place.
fn disorder(dates: &[DateTime]) -> Option<String> {
    let places: Vec<usize> = (1..dates.len()).filter(|&i| dates[i] <= dates[i - 1]).collect();
    let first = *places.first()?;
    Some(format!(
        "{} of {} dates do not come after the one before, the first is `{}` after `{}`",
        places.len(),
        dates.len(),
        dates[first],
        dates[first - 1]
    ))
}

/// That time does not always increase by the same step, with the first place: a window takes its rows
/// for neighbours.
fn gaps(dates: &[DateTime]) -> Option<String> {
    let step = date_step(dates)?;
    let is_gap = |i: &usize| {
        let taken = dates[i - 1].duration_until(dates[*i]);
        taken.is_positive() && taken != step
    };
    let places: Vec<usize> = (1..dates.len()).filter(is_gap).collect();
    let first = *places.first()?;
    Some(format!(
        "{} of {} steps are not `{step:#}`, the most frequent one, the first from `{}` to `{}`",
        places.len(),
        dates.len() - 1,
        dates[first - 1],
        dates[first]
    ))
}

fn text(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).trim().to_owned()
}

/// A cell as it is shown in a message.
fn shown(cell: &[u8]) -> String {
    let cell = text(cell);
    if cell.is_empty() {
        return "an empty cell".to_owned();
    }
    let mut start: String = cell.chars().take(40).collect();
    if start.len() < cell.len() {
        start.push_str("...");
    }
    format!("`{start}`")
}

/// Names for a message, a few of many.
pub(in crate::forecasting) fn list(names: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().take(8).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}`{name}`");
    }
    if names.len() > 8 {
        let _ = write!(text, " and {} more", names.len() - 8);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use jiff::civil::date;

    use super::*;

    fn file(bytes: &[u8]) -> DataFile {
        DataFile { path: PathBuf::from("t.csv"), bytes: bytes.to_vec(), sha256: String::new() }
    }

    fn parse(bytes: &[u8]) -> Result<Series, Error> {
        parse_table("t", &file(bytes), TableFormat::Dated("date"))
    }

    fn message(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_dated_table_is_read_by_column() {
        let series =
            parse(b"date,a,OT\n2016-07-01 00:00:00,1,-2.5\n2016-07-01 01:00:00, 3 ,4e-1\n");
        let series = series.unwrap();
        assert_eq!(series.columns, ["a", "OT"]);
        assert_eq!(series.values, [[1.0, 3.0], [-2.5, 0.4]]);
        assert_eq!(series.dates.unwrap()[1], date(2016, 7, 1).at(1, 0, 0, 0));
    }

    #[test]
    fn the_date_column_may_stand_anywhere_and_have_other_formats() {
        for (text, expected) in [
            ("1990/1/1 0:00", date(1990, 1, 1).at(0, 0, 0, 0)),
            ("2010/10/10 23:05", date(2010, 10, 10).at(23, 5, 0, 0)),
            ("2020-02-29", date(2020, 2, 29).at(0, 0, 0, 0)),
            ("2020-02-29T07:08:09", date(2020, 2, 29).at(7, 8, 9, 0)),
        ] {
            let series = parse(format!("x,date\n1,{text}\n").as_bytes()).unwrap();
            assert_eq!(series.dates.unwrap(), [expected]);
            assert_eq!(series.columns, ["x"]);
        }
    }

    #[test]
    fn carriage_returns_marks_and_broken_names_are_accepted() {
        // The weather file has CRLF line ends and U+FFFD in unit names; some copies are Latin-1.
        let series = parse(
            b"\xef\xbb\xbfdate,T (\xef\xbf\xbdC),r (\xb5mol),OT\r\n2020-01-01 00:10:00,1,2,3\r\n",
        );
        let series = series.unwrap();
        assert_eq!(series.columns, ["T (\u{fffd}C)", "r (\u{fffd}mol)", "OT"]);
        assert_eq!(series.values, [[1.0], [2.0], [3.0]]);
    }

    #[test]
    fn a_table_without_header_names_its_columns_by_number() {
        let series = parse_table("t", &file(b"0,1.5\n2,3\n"), TableFormat::Headless).unwrap();
        assert_eq!(series.columns, ["0", "1"]);
        assert_eq!(series.values, [[0.0, 2.0], [1.5, 3.0]]);
        assert!(series.dates.is_none());
    }

    #[test]
    fn every_defect_is_named_with_its_place() {
        let cases: [(&[u8], &str); 13] = [
            (b"", "`t.csv`: the file is empty"),
            (b"date,a\n", "`t.csv`: the file has a header but no rows"),
            (b"time,a\n", "`t.csv`: line 1: no date column `date`, got `time`, `a`"),
            (b"date\n2020-01-01\n", "`t.csv`: line 1: no column besides `date`"),
            (b"date,a,b,a\n", "`t.csv`: line 1: column `a` occurs twice, as columns 2 and 4"),
            (b"date,a,b\n2020-01-01,1\n", "`t.csv`: line 2: expected 3 cells, got 2"),
            (b"date,a\n2020-01-01,1\n2020-01-02,2,3\n", "`t.csv`: line 3: expected 2 cells, got 3"),
            (
                b"date,a,b\n2020-01-01,1,x7\n",
                "`t.csv`: line 2, column `b`: expected a finite number, got `x7`",
            ),
            (
                b"date,a,b\n2020-01-01,1,\n",
                "`t.csv`: line 2, column `b`: expected a finite number, got an empty cell",
            ),
            (
                b"date,a\n2020-01-01,NaN\n",
                "`t.csv`: line 2, column `a`: expected a finite number, got `NaN`",
            ),
            (
                b"date,a\n2020-01-01,-inf\n",
                "`t.csv`: line 2, column `a`: expected a finite number, got `-inf`",
            ),
            (
                b"date,a\nyesterday,1\n",
                "`t.csv`: line 2, column `date`: expected a date, got `yesterday`",
            ),
            (
                b"date,a\n2020-01-01,1\n2020-02-30,1\n",
                "`t.csv`: line 3, column `date`: expected a date, got `2020-02-30`",
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(message(bytes), expected);
        }
    }

    #[test]
    fn time_that_stands_still_turns_back_or_jumps_is_named_with_its_first_place() {
        let hours = |hours: &[i8]| -> Vec<DateTime> {
            hours.iter().map(|hour| date(2020, 1, 1).at(*hour, 0, 0, 0)).collect()
        };
        let regular = hours(&[0, 1, 2, 3]);
        assert_eq!((disorder(&regular), gaps(&regular)), (None, None));
        let jumps = hours(&[0, 1, 2, 5, 6, 9, 10]);
        assert_eq!(disorder(&jumps), None);
        assert_eq!(
            gaps(&jumps).unwrap(),
            "2 of 6 steps are not `1h`, the most frequent one, the first from \
             `2020-01-01T02:00:00` to `2020-01-01T05:00:00`"
        );
        let back = hours(&[0, 1, 1, 2, 1, 2]);
        assert_eq!(
            disorder(&back).unwrap(),
            "2 of 6 dates do not come after the one before, the first is `2020-01-01T01:00:00` \
             after `2020-01-01T01:00:00`"
        );
        // What is out of order is not told twice.
        assert_eq!(gaps(&back), None);
        assert_eq!((disorder(&[]), gaps(&hours(&[3]))), (None, None));
    }

    #[test]
    fn long_lists_and_cells_are_cut() {
        let header: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
        let text = message(format!("{}\n", header.join(",")).as_bytes());
        assert!(text.ends_with("`c6`, `c7` and 12 more"), "{text}");
        let text = message(format!("date,a\n2020-01-01,{}\n", "z".repeat(99)).as_bytes());
        assert!(text.ends_with(&format!("got `{}...`", "z".repeat(40))), "{text}");
    }
}
