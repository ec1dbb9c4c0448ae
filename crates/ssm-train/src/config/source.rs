//! Where a configuration comes from: its file and the overrides, and how to point into them.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
};

use super::{Diagnostic, Excerpt, names::nearest};
use crate::error::Error;

/// Larger files are not configurations but data given by mistake.
const MAX_BYTES: u64 = 1 << 20;
/// Some editors begin every file with it; it belongs to no line.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// Longer lines are cut around the marked part.
const MAX_LINE_CHARS: usize = 100;

/// The file and the overrides in one text, so that a byte offset says where anything comes from.
pub(super) struct Sources {
    text: String,
    parts: Vec<Part>,
}

struct Part {
    origin: String,
    range: Range<usize>,
}

impl Sources {
    pub(super) fn new(file: &str, origin: &str, overrides: &[String]) -> Self {
        let file = file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(file);
        let mut sources = Self { text: String::new(), parts: Vec::new() };
        sources.push(origin, file);
        for text in overrides {
            sources.push("--set", text);
        }
        sources
    }

    fn push(&mut self, origin: &str, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.parts.push(Part { origin: origin.to_owned(), range: start..self.text.len() });
        // Keeps the end of one part and the start of the next apart.
        self.text.push('\n');
    }

    pub(super) fn origin(&self) -> &str {
        &self.parts[0].origin
    }

    pub(super) fn file(&self) -> &str {
        &self.text[self.parts[0].range.clone()]
    }

    /// Every override with the offset of its first byte.
    pub(super) fn overrides(&self) -> impl Iterator<Item = (usize, &str)> {
        self.parts[1..].iter().map(|part| (part.range.start, &self.text[part.range.clone()]))
    }

    pub(super) fn is_in_file(&self, span: &Range<usize>) -> bool {
        span.start <= self.parts[0].range.end
    }

    pub(super) fn slice(&self, span: Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }

    /// A diagnostic at `span`, or about the file as a whole.
    pub(super) fn diagnostic(&self, span: Option<Range<usize>>, message: String) -> Diagnostic {
        let (location, excerpt) = match span {
            Some(span) => self.point(span),
            None => (self.origin().to_owned(), None),
        };
        Diagnostic { message, location, excerpt, expected: None, hint: None }
    }

    fn point(&self, span: Range<usize>) -> (String, Option<Box<Excerpt>>) {
        let part = self.parts.iter().find(|part| span.start <= part.range.end);
        let Some(part) = part else { return (self.origin().to_owned(), None) };
        let text = &self.text[part.range.clone()];
        let start = (span.start - part.range.start).min(text.len());
        let end = (span.end.max(span.start) - part.range.start).min(text.len());
        let excerpt = excerpt(text, start..end);
        let column = text[..start].chars().rev().take_while(|c| *c != '\n').count() + 1;
        (format!("{}:{}:{column}", part.origin, excerpt.line), Some(Box::new(excerpt)))
    }
}

/// The line of `text` that `span` starts in; `span` lies on character boundaries.
fn excerpt(text: &str, span: Range<usize>) -> Excerpt {
    let line_start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let line_end = line_start + line.len();
    let marked_from = text[line_start..span.start.min(line_end)].chars().count();
    let marked_to =
        marked_from + text[span.start.min(line_end)..span.end.min(line_end)].chars().count();
    let number = text[..line_start].matches('\n').count() + 1;
    let visible =
        |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    let chars: Vec<char> = line.chars().map(visible).collect();
    if chars.len() <= MAX_LINE_CHARS {
        return Excerpt {
            line: number,
            text: chars.iter().collect(),
            marked: marked_from..marked_to,
        };
    }
    let from = marked_from.saturating_sub(MAX_LINE_CHARS / 4);
    let to = (from + MAX_LINE_CHARS).min(chars.len());
    let lead = if from > 0 { "..." } else { "" };
    let tail = if to < chars.len() { "..." } else { "" };
    let shown: String = chars[from..to].iter().collect();
    let shift = |at: usize| at.min(to) - from + lead.len();
    Excerpt {
        line: number,
        text: format!("{lead}{shown}{tail}"),
        marked: shift(marked_from)..shift(marked_to),
    }
}

/// Reads the text of a configuration file: UTF-8, at most 1 MiB.
///
/// # Errors
/// [`Error::Config`] for a file that is missing, a directory, too large or not UTF-8.
pub fn read(path: &Path) -> Result<String, Error> {
    let shown = path.display();
    let fail = |message: String, hint: Option<String>| {
        let location = String::new();
        let diagnostic = Diagnostic { message, location, excerpt: None, expected: None, hint };
        Error::Config { diagnostics: vec![diagnostic] }
    };
    if path.is_dir() {
        let message = format!("`{shown}` is a directory, expected a TOML file");
        return Err(fail(message, contents(path)));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(fail(format!("there is no file `{shown}`"), near(path)));
        }
        Err(error) => return Err(fail(format!("cannot read `{shown}`: {error}"), None)),
        Ok(_) => {}
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(fail(
            format!("`{shown}` is too large, expected at most 1 MiB"),
            Some("a configuration names its data under `[data]` and does not hold it".into()),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        let sources = Sources::new(&text, &shown.to_string(), &[]);
        // Positions among the sources do not count a byte order mark.
        let start =
            if text.starts_with(BYTE_ORDER_MARK) { at - BYTE_ORDER_MARK.len_utf8() } else { at };
        let mark = start..start + char::REPLACEMENT_CHARACTER.len_utf8();
        let byte = error.as_bytes()[at];
        let message = format!("invalid byte `0x{byte:02x}`, expected UTF-8 text");
        let mut diagnostic = sources.diagnostic(Some(mark), message);
        diagnostic.hint = Some("save the file as UTF-8".into());
        Error::Config { diagnostics: vec![diagnostic] }
    })
}

/// What might have been meant instead of a path that does not exist.
fn near(path: &Path) -> Option<String> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if !dir.is_dir() {
        return Some(format!("the directory `{}` does not exist", dir.display()));
    }
    let name = path.file_name()?.to_string_lossy();
    let names = entries(dir);
    let known = || names.iter().map(String::as_str);
    let with_extension = format!("{name}.toml");
    let meant = known().find(|known| *known == with_extension).or_else(|| nearest(&name, known()));
    match meant {
        Some(meant) => Some(format!("did you mean `{}`?", path.with_file_name(meant).display())),
        None => contents(dir),
    }
}

/// One line on what lies in a directory.
fn contents(dir: &Path) -> Option<String> {
    const SHOWN: usize = 5;
    let names = entries(dir);
    let dir = dir.display();
    if names.is_empty() {
        return Some(format!("`{dir}` holds no configuration"));
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let rest = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("`{dir}` holds {}{rest}", shown.join(", ")))
}

/// Configurations and directories (with a final `/`) in `dir`, sorted; empty if it cannot be read.
fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                None
            } else if entry.path().is_dir() {
                Some(format!("{name}/"))
            } else {
                name.ends_with(".toml").then_some(name)
            }
        })
        .collect();
    names.sort();
    names
}
