//! Valid names: asked of the types themselves, listed in messages, compared with what was typed.

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    CheckpointSection, DeviceSection, LogSection, Optim, RunSection, TrainSection, tables::lookup,
};

/// The name in `known` that was meant by `name`, if one is close: equal but for the case, or less
/// than a third of the letters away.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| match known.eq_ignore_ascii_case(name) {
        true => 0,
        false => strsim::damerau_levenshtein(name, known),
    };
    let length = name.chars().count();
    let limit = (length.max(3) / 3).min(length.saturating_sub(1));
    known
        .into_iter()
        .map(|known| (distance(known), known))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

pub(super) fn did_you_mean(name: &str, known: &[String]) -> Option<String> {
    nearest(name, known.iter().map(String::as_str)).map(|known| format!("did you mean `{known}`?"))
}

/// The names that serde or the parser says it expected.
pub(super) fn expected_names(message: &str) -> Vec<String> {
    if let Some((_, available)) = message.split_once("available keys: ") {
        return available.split(", ").map(str::to_owned).collect();
    }
    let expected = message.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Names of the variants that `S` takes at `path` inside of `section`, if it takes variants there;
/// found by offering one that cannot exist.
pub(super) fn variants<S: DeserializeOwned>(
    section: &Spanned<DeValue<'_>>,
    path: &[String],
) -> Vec<String> {
    let mut section = section.clone();
    let mut value = &mut section;
    for key in path {
        value = match value.get_mut() {
            DeValue::Table(table) => match table.get_mut(key.as_str()) {
                Some(value) => value,
                None => return Vec::new(),
            },
            _ => return Vec::new(),
        };
    }
    *value.get_mut() = impossible();
    match S::deserialize(ValueDeserializer::from(section)) {
        Err(error) if error.message().starts_with("unknown variant ") => {
            expected_names(error.message())
        }
        _ => Vec::new(),
    }
}

/// A hint for a key of the engine that stands in the wrong section.
pub(super) fn home(key: &str, root: &DeTable<'_>) -> Option<String> {
    let optim = match lookup(root, &["optim"]).map(Spanned::get_ref) {
        Some(DeValue::Table(table)) if table.contains_key("adamw") => "adamw",
        _ => "adam",
    };
    let sections = [
        ("run".to_owned(), keys::<RunSection>(impossible())),
        ("device".to_owned(), keys::<DeviceSection>(impossible())),
        (format!("optim.{optim}"), keys::<Optim>(one_key(optim, impossible()))),
        ("train".to_owned(), keys::<TrainSection>(impossible())),
        ("checkpoint".to_owned(), keys::<CheckpointSection>(impossible())),
        ("log".to_owned(), keys::<LogSection>(impossible())),
    ];
    let mut homes = sections.iter().filter(|(_, keys)| keys.iter().any(|name| name == key));
    match (homes.next(), homes.next()) {
        (Some((section, _)), None) => Some(format!("`{key}` is a key of `[{section}]`")),
        _ => None,
    }
}

/// Names of the keys of `S`, of which `value` is one without valid keys.
fn keys<S: DeserializeOwned>(value: DeValue<'_>) -> Vec<String> {
    match S::deserialize(ValueDeserializer::from(Spanned::new(0..0, value))) {
        Err(error) => expected_names(error.message()),
        Ok(_) => Vec::new(),
    }
}

/// A table whose only key is no name of anything.
fn impossible() -> DeValue<'static> {
    one_key("?", DeValue::Table(DeTable::new()))
}

fn one_key<'i>(key: &'static str, value: DeValue<'i>) -> DeValue<'i> {
    let mut table = DeTable::new();
    table.insert(Spanned::new(0..0, key.into()), Spanned::new(0..0, value));
    DeValue::Table(table)
}

/// `expected one of ..`, for names of keys and variants.
pub(super) fn expected(names: &[String]) -> String {
    match names {
        [] => "expected no key".into(),
        [one] => format!("expected `{one}`"),
        [one, other] => format!("expected `{one}` or `{other}`"),
        _ => format!("expected one of {}", quoted(names)),
    }
}

/// Names in backticks, separated by commas.
pub(super) fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A type of Rust in the words of somebody who writes TOML.
pub(super) fn type_name(name: &str) -> &str {
    match name {
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "a non-negative integer",
        "i8" => "an integer from -128 to 127",
        "i16" => "an integer from -32768 to 32767",
        "i32" => "an integer from -2147483648 to 2147483647",
        "i64" | "isize" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a sequence" => "an array",
        "path string" => "a string",
        "a map" => "a table",
        _ if name.starts_with("struct ") || name.ends_with(" variant") => "a table",
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["d_state", "d_conv", "expand", "M", "MS"];
        for (typed, meant) in [
            ("d_sate", Some("d_state")),
            ("D_STATE", Some("d_state")),
            ("dconv", Some("d_conv")),
            ("m", Some("M")),
            ("ms", Some("MS")),
            ("X", None),
            ("", None),
            ("heads", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
    }
}
