//! `--set a.b=c`: values from the command line, merged into the tables of the file.
//!
//! - The value is TOML; what is not TOML is a plain string: `--set data.ett.variant=h2`. Text that
//!   starts with `[`, `{` or a quote must be TOML.
//! - No value at all removes the key, and with it goes back to the default: `--set train.clip_norm=`.
//! - A table replaces the whole table: `--set schedule.constant={}`.
//! - A new variant replaces the one of the file under `data`, `model`, `optim`, `schedule` and
//!   `mixer`, which hold one table each; so do `train.steps` and `train.epochs` replace each other.
//! - Of two overrides of one key the last one holds.

use std::{borrow::Cow, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Diagnostic, explain, source::Sources, tables::kind};

/// Sections at the root that hold one table, named after the variant.
const ONE_TABLE_SECTIONS: &[&str] = &["data", "model", "optim", "schedule"];
/// Keys at any depth of `model` that hold one table, named after the variant.
const ONE_TABLE_KEYS: &[&str] = &["mixer"];
/// Keys of which the file has one and the override may choose the other.
const EXCLUSIVE: &[(&str, &str, &str)] = &[("train", "epochs", "steps")];

/// Deeper paths than that are no keys of any section.
const MAX_DEPTH: usize = 32;

/// A part of a dotted path and where it stands.
struct Segment<'i> {
    name: &'i str,
    span: Range<usize>,
}

/// Merges every override of `sources` into `root`, the tables of its file.
pub(super) fn apply<'i>(root: &mut DeTable<'i>, sources: &'i Sources) -> Vec<Diagnostic> {
    let mut wrong = Vec::new();
    for (start, text) in sources.overrides() {
        if let Err(diagnostic) = apply_one(root, sources, start, text) {
            wrong.push(diagnostic);
        }
    }
    wrong
}

fn apply_one<'i>(
    root: &mut DeTable<'i>,
    sources: &'i Sources,
    start: usize,
    text: &'i str,
) -> Result<(), Diagnostic> {
    let whole = start..start + text.len();
    let malformed = |span: Range<usize>, message: &str| {
        let mut diagnostic = sources.diagnostic(Some(span), message.to_owned());
        diagnostic.expected = Some("expected `section.key=value`".into());
        diagnostic
    };
    let Some((path, value)) = text.split_once('=') else {
        return Err(malformed(whole, "override without `=`"));
    };
    let mut segments = Vec::new();
    let mut offset = start;
    for part in path.split('.') {
        let name = part.trim();
        let at = offset + (part.len() - part.trim_start().len());
        let span = at..at + name.len();
        let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(is_bare) {
            return Err(malformed(span, &format!("`{name}` in an override is not a key")));
        }
        segments.push(Segment { name, span });
        offset += part.len() + 1;
    }
    if segments.len() > MAX_DEPTH {
        return Err(malformed(whole, &format!("override of more than {MAX_DEPTH} keys in a row")));
    }
    let value_start = start + path.len() + 1 + (value.len() - value.trim_start().len());
    match value.trim() {
        "" => remove(root, sources, &segments),
        value => {
            let value = parse(value, value_start)
                .map_err(|error| explain::syntax(&error, value_start, sources))?;
            set(root, sources, &segments, value)
        }
    }
}

/// A value with its spans moved to where it stands among the sources.
fn parse(text: &str, start: usize) -> Result<Spanned<DeValue<'_>>, toml::de::Error> {
    match DeValue::parse(text) {
        Ok(value) => Ok(shift(value, start)),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(error),
        Err(_) => Ok(Spanned::new(start..start + text.len(), DeValue::String(Cow::Borrowed(text)))),
    }
}

fn shift(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let moved = |span: Range<usize>| span.start + by..span.end + by;
    let span = moved(value.span());
    let value = match value.into_inner() {
        DeValue::Array(array) => {
            DeValue::Array(array.into_iter().map(|item| shift(item, by)).collect())
        }
        DeValue::Table(table) => {
            let entries = table.into_iter().map(|(key, item)| {
                (Spanned::new(moved(key.span()), key.into_inner()), shift(item, by))
            });
            DeValue::Table(entries.collect())
        }
        leaf => leaf,
    };
    Spanned::new(span, value)
}

fn set<'i>(
    root: &mut DeTable<'i>,
    sources: &Sources,
    segments: &[Segment<'i>],
    value: Spanned<DeValue<'i>>,
) -> Result<(), Diagnostic> {
    let Some((last, parents)) = segments.split_last() else { return Ok(()) };
    let mut table = root;
    for (depth, segment) in parents.iter().enumerate() {
        make_room(table, sources, &segments[..depth], segment.name);
        if !table.contains_key(segment.name) {
            insert(
                table,
                segment,
                Spanned::new(segment.span.clone(), DeValue::Table(DeTable::new())),
            );
        }
        table = descend(table, sources, &segments[..=depth])?;
    }
    if value.get_ref().is_table() {
        make_room(table, sources, parents, last.name);
    }
    if let [section] = parents {
        for &(exclusive, one, other) in EXCLUSIVE {
            let rival = match last.name {
                name if exclusive != section.name || (name != one && name != other) => continue,
                name if name == one => other,
                _ => one,
            };
            let in_file = |(key, _): (&Spanned<_>, _)| sources.is_in_file(&key.span());
            if table.get_key_value(rival).is_some_and(in_file) {
                table.remove(rival);
            }
        }
    }
    insert(table, last, value);
    Ok(())
}

/// Inserts a key with its own span, also over an old one.
fn insert<'i>(table: &mut DeTable<'i>, segment: &Segment<'i>, value: Spanned<DeValue<'i>>) {
    table.remove(segment.name);
    table.insert(Spanned::new(segment.span.clone(), Cow::Borrowed(segment.name)), value);
}

/// Drops the variant of the file where an override brings another one.
fn make_room(table: &mut DeTable<'_>, sources: &Sources, parents: &[Segment<'_>], variant: &str) {
    let holds_one = match parents {
        [section] => ONE_TABLE_SECTIONS.contains(&section.name),
        [section, .., key] => section.name == "model" && ONE_TABLE_KEYS.contains(&key.name),
        [] => false,
    };
    let replaces = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        key.get_ref() != variant && value.get_ref().is_table() && sources.is_in_file(&key.span())
    };
    if holds_one && table.len() == 1 && table.iter().all(replaces) {
        table.clear();
    }
}

fn descend<'t, 'i>(
    table: &'t mut DeTable<'i>,
    sources: &Sources,
    path: &[Segment<'_>],
) -> Result<&'t mut DeTable<'i>, Diagnostic> {
    let missing = || sources.diagnostic(None, "override without a key".into());
    let segment = path.last().ok_or_else(missing)?;
    let value = table.get_mut(segment.name).ok_or_else(|| not_set(sources, path))?;
    match value.get_mut() {
        DeValue::Table(table) => Ok(table),
        other => {
            let message = format!("`{}` holds one {} and no keys", dotted(path), kind(other));
            Err(sources.diagnostic(Some(segment.span.clone()), message))
        }
    }
}

fn remove(
    root: &mut DeTable<'_>,
    sources: &Sources,
    segments: &[Segment<'_>],
) -> Result<(), Diagnostic> {
    let Some((last, parents)) = segments.split_last() else { return Ok(()) };
    let mut table = root;
    for depth in 0..parents.len() {
        table = descend(table, sources, &segments[..=depth])?;
    }
    match table.remove(last.name) {
        Some(_) => Ok(()),
        None => Err(not_set(sources, segments)),
    }
}

fn not_set(sources: &Sources, path: &[Segment<'_>]) -> Diagnostic {
    let span = path.first().zip(path.last()).map(|(first, last)| first.span.start..last.span.end);
    let message = format!("nothing to remove: `{}` is not set", dotted(path));
    let mut diagnostic = sources.diagnostic(span, message);
    diagnostic.hint = Some("an override without a value removes a key of the file".into());
    diagnostic
}

fn dotted(path: &[Segment<'_>]) -> String {
    path.iter().map(|segment| segment.name).collect::<Vec<_>>().join(".")
}
