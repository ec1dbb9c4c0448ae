//! Finding things among the parsed tables: values by path, paths by byte range.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::source::Sources;

/// Where a byte range lies among the tables.
pub(super) struct Place<'t, 'i> {
    /// Keys from the root; elements of arrays as `[0]`.
    pub(super) path: Vec<String>,
    /// The value at the path.
    pub(super) value: &'t Spanned<DeValue<'i>>,
    /// The range is that of the key, not of the value.
    pub(super) is_key: bool,
}

impl<'t, 'i> Place<'t, 'i> {
    pub(super) fn find(table: &'t DeTable<'i>, span: &Range<usize>) -> Option<Self> {
        table.iter().find_map(|(key, value)| {
            let place = Self::find_in(value, key.span() == *span, span);
            place.map(|place| place.below(key.to_string()))
        })
    }

    /// The deepest match: a table without a header of its own shares the range of its key.
    fn find_in(value: &'t Spanned<DeValue<'i>>, is_key: bool, span: &Range<usize>) -> Option<Self> {
        let inside = match value.get_ref() {
            DeValue::Table(table) => Self::find(table, span),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                Self::find_in(item, false, span).map(|place| place.below(format!("[{index}]")))
            }),
            _ => None,
        };
        let here = || Self { path: Vec::new(), value, is_key };
        inside.or_else(|| (is_key || value.span() == *span).then(here))
    }

    fn below(mut self, key: String) -> Self {
        self.path.insert(0, key);
        self
    }

    /// Name of the last key.
    pub(super) fn key(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    /// As written in messages: `optim.adam.betas[1]`.
    pub(super) fn dotted(&self) -> String {
        dotted(&self.path)
    }

    /// The path without its last key.
    pub(super) fn parent(&self) -> String {
        dotted(&self.path[..self.path.len().saturating_sub(1)])
    }
}

fn dotted(path: &[String]) -> String {
    path.join(".").replace(".[", "[")
}

/// The value at a path of keys; elements of arrays as `[0]`.
pub(super) fn lookup<'t, 'i>(
    root: &'t DeTable<'i>,
    path: &[&str],
) -> Option<&'t Spanned<DeValue<'i>>> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(root.get(*first)?, |value, key| match value.get_ref() {
        DeValue::Table(table) => table.get(*key),
        DeValue::Array(items) => {
            let index = key.strip_prefix('[')?.strip_suffix(']')?;
            items.get(index.parse::<usize>().ok()?)
        }
        _ => None,
    })
}

/// What a value is, in the words of TOML.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Float(_) => "float",
        DeValue::Boolean(_) => "boolean",
        DeValue::Datetime(_) => "date",
        DeValue::Array(_) => "array",
        DeValue::Table(_) => "table",
    }
}

/// A value that is not what it should be: its type, and itself where that is short.
pub(super) fn describe(value: &Spanned<DeValue<'_>>, sources: &Sources) -> String {
    let kind = kind(value.get_ref());
    match value.get_ref() {
        DeValue::String(text) => format!("the string `{text}`"),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
        _ => format!("the {kind} `{}`", sources.slice(value.span())),
    }
}
