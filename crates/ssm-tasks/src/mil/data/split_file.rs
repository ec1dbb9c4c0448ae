//! Splits as CLAM and MambaMIL publish them: a CSV file with the slides of each part below its name.

use std::collections::BTreeMap;

use ssm_train::{config::nearest, error::Error};

use super::slides::Table;
use crate::mil::cohort::{Part, Slide};

/// The part of every slide. A cell names a slide, or a patient with all their slides.
///
/// # Errors
/// [`Error::Data`] if a part is missing, a name is unknown, or a slide stands in two parts.
pub(super) fn parts(table: &Table<'_>, slides: &[Slide]) -> Result<Vec<Part>, Error> {
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, slide) in slides.iter().enumerate() {
        places.entry(&slide.case).or_default().push(place);
    }
    // A slide that has the name of a patient is meant alone.
    places.extend(slides.iter().enumerate().map(|(place, slide)| (&*slide.id, vec![place])));
    let valid = if table.header.iter().any(|head| head == "valid") { "valid" } else { "val" };
    let mut parts = vec![Part::Unused; slides.len()];
    for (column, part) in [("train", Part::Train), (valid, Part::Valid), ("test", Part::Test)] {
        for (row, name) in table.column(column)?.into_iter().enumerate() {
            if name.is_empty() {
                continue;
            }
            let refuse = |message: String, hint| table.refuse_with(row, column, message, hint);
            let named = places.get(name).ok_or_else(|| {
                let hint = nearest(name, places.keys().copied());
                refuse(
                    format!("expected a slide or a patient of the table, got `{name}`"),
                    hint.map(|name| format!("did you mean `{name}`?")),
                )
            })?;
            for place in named {
                if ![Part::Unused, part].contains(&parts[*place]) {
                    let id = &slides[*place].id;
                    return Err(refuse(format!("slide `{id}` stands in another part too"), None));
                }
                parts[*place] = part;
            }
        }
    }
    Ok(parts)
}
