//! From the parser's and serde's words to a [`Diagnostic`].
//!
//! Both say what is wrong and where, as a byte range; the path, the value that is there, and the
//! nearest valid name are added here.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error as TomlError, ValueDeserializer},
};

use super::{
    Diagnostic,
    names::{did_you_mean, expected, expected_names, home, quoted, type_name, variants},
    source::Sources,
    tables::{Place, describe, lookup},
};

/// The file's text as tables, with the byte range of every key and value.
pub(super) fn parse(sources: &Sources) -> Result<DeTable<'_>, Diagnostic> {
    match DeTable::parse(sources.file()) {
        Ok(root) => Ok(root.into_inner()),
        Err(error) => Err(syntax(&error, 0, sources)),
    }
}

/// What the parser says of a text that starts at `start` among the sources.
pub(super) fn syntax(error: &TomlError, start: usize, sources: &Sources) -> Diagnostic {
    let span = error.span().map(|span| start + span.start..start + span.end);
    let there = span.clone().map(|span| sources.slice(span)).unwrap_or_default();
    let (message, wanted) = match error.message().split_once(", expected ") {
        Some((message, wanted)) => (message, Some(format!("expected {wanted}"))),
        None => (error.message(), None),
    };
    let (message, wanted, hint) = match message {
        "duplicate key" => {
            let wanted = "expected every key and every table once";
            (format!("duplicate key `{there}`"), Some(wanted.to_owned()), None)
        }
        "string values must be quoted" if there.is_empty() => {
            ("syntax error: missing value".into(), Some("expected a value".into()), None)
        }
        "string values must be quoted" | "invalid boolean" => (
            format!("syntax error: `{there}` is not a value"),
            Some("expected a number, `true`, `false`, or text in quotes".into()),
            did_you_mean(there, &["true".into(), "false".into()])
                .or_else(|| Some(format!("write `\"{there}\"` if it is text"))),
        ),
        "missing escaped value" => (
            format!("syntax error: {message}"),
            wanted,
            Some("in a path write `/`, or put the text in single quotes".into()),
        ),
        _ => (format!("syntax error: {message}"), wanted, None),
    };
    Diagnostic { expected: wanted, hint, ..sources.diagnostic(span, message) }
}

/// The section at `path` as `S`.
pub(super) fn section<S: DeserializeOwned>(
    root: &DeTable<'_>,
    path: &[&str],
    sources: &Sources,
) -> Result<S, Diagnostic> {
    let dotted = path.join(".");
    let empty = Spanned::new(0..0, DeValue::Table(DeTable::new()));
    let variants = || variants::<S>(&empty, &[]);
    let headers = |variants: &[String]| -> Vec<String> {
        variants.iter().map(|name| format!("[{dotted}.{name}]")).collect()
    };
    let Some(value) = lookup(root, path) else {
        let variants = variants();
        let wanted = (!variants.is_empty()).then(|| expected(&headers(&variants)));
        let diagnostic = sources.diagnostic(None, format!("missing section `[{dotted}]`"));
        return Err(Diagnostic { expected: wanted, ..diagnostic });
    };
    let span = value.span();
    if !value.get_ref().is_table() {
        let variant = value.get_ref().as_str().filter(|name| variants().iter().any(|v| v == name));
        let header = variant.map_or(dotted.clone(), |name| format!("{dotted}.{name}"));
        return Err(Diagnostic {
            expected: Some(format!("expected a table, got {}", describe(value, sources))),
            hint: Some(match sources.is_in_file(&span) {
                true => format!("write `[{header}]` with its keys below"),
                false => format!("write `--set {header}={{}}`, or set its keys"),
            }),
            ..sources.diagnostic(Some(span), format!("wrong type of `{dotted}`"))
        });
    }
    S::deserialize(ValueDeserializer::from(value.clone())).map_err(|error| {
        let fault = Fault::new(&error, root, path, sources);
        fault.explain(|inner| super::names::variants::<S>(value, inner))
    })
}

/// An error of serde with its place.
struct Fault<'f, 'i> {
    error: &'f TomlError,
    root: &'f DeTable<'i>,
    section: &'f [&'f str],
    sources: &'f Sources,
    /// Absent where serde lost the place (`flatten`, untagged enums).
    place: Option<Place<'f, 'i>>,
}

impl<'f, 'i> Fault<'f, 'i> {
    fn new(
        error: &'f TomlError,
        root: &'f DeTable<'i>,
        section: &'f [&'f str],
        sources: &'f Sources,
    ) -> Self {
        let place = error.span().and_then(|span| Place::find(root, &span));
        Self { error, root, section, sources, place }
    }

    /// `variants` tells the names that are valid at a path below the section.
    fn explain(&self, variants: impl Fn(&[String]) -> Vec<String>) -> Diagnostic {
        let message = self.error.message();
        let is = |prefix: &str| message.starts_with(prefix);
        if is("unknown field ") || is("unexpected keys in table: ") {
            return self.unknown_key();
        }
        if let Some(rest) = message.strip_prefix("unknown variant `") {
            return self.unknown_variant(rest.split('`').next().unwrap_or_default());
        }
        if let Some(rest) = message.strip_prefix("missing field `") {
            let name = rest.trim_end_matches('`');
            let headline = format!("missing key `{name}` in `{}`", self.path());
            return self.at(headline, format!("expected `{name}`, which has no default"), None);
        }
        if is("wanted exactly 1 element") {
            let below = self.place.as_ref().map_or(&[][..], |p| &p.path[self.section.len()..]);
            return self.not_one_variant(&variants(below));
        }
        if let Some(rest) = message.strip_prefix("invalid length ") {
            let (got, wanted) = rest.split_once(", expected ").unwrap_or((rest, "another"));
            let headline = format!("wrong length of `{}`", self.path());
            return self.at(headline, format!("expected {wanted}, got length `{got}`"), None);
        }
        if is("invalid type: ") || is("invalid value: ") {
            return self.wrong_value();
        }
        if message == "wanted string or table" {
            let headline = format!("wrong type of `{}`", self.path());
            return self.at(headline, format!("expected a table, got {}", self.got()), None);
        }
        let headline = format!("invalid value of `{}`: {message}", self.path());
        self.sources.diagnostic(self.error.span(), headline)
    }

    fn at(&self, message: String, expected: String, hint: Option<String>) -> Diagnostic {
        let diagnostic = self.sources.diagnostic(self.error.span(), message);
        Diagnostic { expected: Some(expected), hint, ..diagnostic }
    }

    fn path(&self) -> String {
        self.place.as_ref().map_or_else(|| self.section.join("."), Place::dotted)
    }

    fn value(&self) -> Option<&'f DeValue<'i>> {
        self.place.as_ref().map(|place| place.value.get_ref())
    }

    fn got(&self) -> String {
        let describe = |place: &Place<'_, '_>| describe(place.value, self.sources);
        self.place.as_ref().map_or_else(|| "another type".into(), describe)
    }

    fn unknown_key(&self) -> Diagnostic {
        let known = expected_names(self.error.message());
        let (key, parent) = match &self.place {
            Some(place) => (place.key(), place.parent()),
            None => ("", self.path()),
        };
        let hint = did_you_mean(key, &known).or_else(|| home(key, self.root));
        self.at(format!("unknown key `{key}` in `{parent}`"), expected(&known), hint)
    }

    fn unknown_variant(&self, name: &str) -> Diagnostic {
        let known = expected_names(self.error.message());
        let owner = match &self.place {
            Some(place) if place.is_key => place.parent(),
            _ => self.path(),
        };
        let hint = did_you_mean(name, &known);
        self.at(format!("unknown variant `{name}` of `{owner}`"), expected(&known), hint)
    }

    fn not_one_variant(&self, known: &[String]) -> Diagnostic {
        let wanted = format!("expected exactly one of {}", quoted(known));
        let Some(DeValue::Table(held)) = self.value() else {
            return self.at(format!("`{}` holds several variants", self.path()), wanted, None);
        };
        let Some(last) = held.keys().max_by_key(|key| key.span().start) else {
            return self.at(format!("`{}` is empty", self.path()), wanted, None);
        };
        let held: Vec<String> = held.keys().map(|key| key.get_ref().to_string()).collect();
        let headline = format!("`{}` holds several variants: {}", self.path(), quoted(&held));
        let diagnostic = self.sources.diagnostic(Some(last.span()), headline);
        Diagnostic { expected: Some(wanted), ..diagnostic }
    }

    fn wrong_value(&self) -> Diagnostic {
        let message = self.error.message();
        let path = self.path();
        let wanted = message.rsplit_once(", expected ").map_or("another", |(_, wanted)| wanted);
        let wanted_name = type_name(wanted);
        // An integer that is too large for serde's integers comes as a wrong type.
        let is_range = message.starts_with("invalid value: ")
            || (matches!(self.value(), Some(DeValue::Integer(_)))
                && wanted_name.contains("integer"));
        let headline = match is_range {
            true => format!("value out of range for `{path}`"),
            false => format!("wrong type of `{path}`"),
        };
        let span = self.error.span().unwrap_or_default();
        let in_file = self.sources.is_in_file(&span);
        let hint = match self.value() {
            Some(DeValue::String(name)) if wanted.ends_with(" variant") => Some(match in_file {
                true => format!("write `[{path}.{name}]` with its keys below"),
                false => format!("write `--set {path}.{name}={{}}`, or set its keys"),
            }),
            Some(DeValue::Table(_)) | None => None,
            Some(_) if wanted_name == "a string" => {
                let text = self.sources.slice(span);
                Some(match in_file {
                    true => format!("write `\"{text}\"` if it is text"),
                    false => format!("write `--set '{path}=\"{text}\"'` if it is text"),
                })
            }
            Some(_) => None,
        };
        self.at(headline, format!("expected {wanted_name}, got {}", self.got()), hint)
    }
}

/// The one key under `[task]`, which has to be in `known` unless that is empty.
pub(super) fn task_name(
    root: &DeTable<'_>,
    known: &[&str],
    sources: &Sources,
) -> Result<String, Diagnostic> {
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    let sections: Vec<String> = known.iter().map(|name| format!("[task.{name}]")).collect();
    let wrong = |span, message: String, hint| Diagnostic {
        expected: (!known.is_empty()).then(|| expected(&sections)),
        hint,
        ..sources.diagnostic(span, message)
    };
    let Some(task) = root.get("task") else {
        return Err(wrong(None, "missing section `[task]`".into(), None));
    };
    let DeValue::Table(tasks) = task.get_ref() else {
        return Err(wrong(Some(task.span()), "wrong type of `task`".into(), None));
    };
    let mut names: Vec<_> = tasks.keys().collect();
    names.sort_by_key(|name| name.span().start);
    match names[..] {
        [] => Err(wrong(Some(task.span()), "`task` is empty".into(), None)),
        [name] if known.is_empty() || known.iter().any(|known| known == name.get_ref()) => {
            Ok(name.to_string())
        }
        [name] => {
            let hint = did_you_mean(name.get_ref(), &known);
            Err(wrong(Some(name.span()), format!("unknown task `{name}`"), hint))
        }
        [first, second, ..] => {
            let message = format!("`task` holds several tasks: `{first}`, `{second}`");
            Err(wrong(Some(second.span()), message, None))
        }
    }
}

/// An unknown key or section at the root of the file.
pub(super) fn unknown_section(
    key: &Spanned<Cow<'_, str>>,
    known: &[&str],
    root: &DeTable<'_>,
    sources: &Sources,
) -> Diagnostic {
    let name = key.get_ref();
    let is_table = root.get(name.as_ref()).is_some_and(|value| value.get_ref().is_table());
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    let (message, hint) = match is_table {
        true => (format!("unknown section `{name}`"), did_you_mean(name, &known)),
        false => (format!("unknown key `{name}` outside of all sections"), home(name, root)),
    };
    let wanted = format!("expected a section, one of {}", quoted(&known));
    let diagnostic = sources.diagnostic(Some(key.span()), message);
    Diagnostic { expected: Some(wanted), hint, ..diagnostic }
}
