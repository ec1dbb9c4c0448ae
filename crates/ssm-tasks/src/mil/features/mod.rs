//! Files of patch features: one slide a file, told apart by the ending of the name.
//!
//! | ending | what is read |
//! |---|---|
//! | `.h5`, `.hdf5` | `features` or `feats`, and `coords` with their attributes (CLAM, TRIDENT) |
//! | `.pt`, `.pth` | a tensor, or a dictionary with `features` or `feats` and `coords` |
//! | `.safetensors`, `.npz` | `features` or `feats`, and `coords` |
//! | `.npy` | the array |
//!
//! Features have the shape `[n, d]`, or `[1, n, d]`; coordinates `[n, 2]`. Numbers may be of any type.

mod array;
mod h5;
mod npy;
mod pickle;
mod pt;
mod safetensors;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ssm_train::error::Error;

pub use self::{
    array::{Array, Kind},
    npy::npz_array,
};
use super::cohort::Bag;
use crate::data;

/// Endings of the names that are understood, in the order in which a slide's file is looked for.
pub const ENDINGS: [&str; 7] = ["h5", "hdf5", "pt", "pth", "safetensors", "npz", "npy"];
/// Names under which features are stored.
const FEATURES: [&str; 2] = ["features", "feats"];
const COORDS: &str = "coords";

/// What a file holds, before its shapes are looked at.
#[derive(Default)]
struct Contents {
    features: Array,
    coords: Option<Array>,
    patch_size: Option<f64>,
}

/// Reads the instances of one slide.
///
/// # Errors
/// [`Error::Data`] for a file that is missing, damaged, empty, or holds no features;
/// [`Error::Io`] for one that cannot be read.
pub fn read(path: &Path) -> Result<Bag, Error> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let contents = match ending.as_str() {
        "h5" | "hdf5" => h5::read(path)?,
        "pt" | "pth" => pt::read(path)?,
        "safetensors" => safetensors::read(&data::read_unhashed(path)?)?,
        "npz" => {
            let file = data::read_unhashed(path)?;
            let names = npy::npz_names(&file)?;
            let array = |key: &str| npz_array(&file, key);
            let coords = names.iter().any(|name| name == COORDS);
            Contents {
                features: array(features_among(&names).ok_or_else(|| missing(path, &names))?)?,
                coords: coords.then(|| array(COORDS)).transpose()?,
                patch_size: None,
            }
        }
        "npy" => {
            let file = data::read_unhashed(path)?;
            let array = npy::parse(&file.bytes).map_err(|reason| file.error(reason, None))?;
            Contents { features: array, ..Contents::default() }
        }
        _ => {
            let endings: Vec<String> =
                ENDINGS.iter().map(|ending| format!("`.{ending}`")).collect();
            let message = format!("expected a name that ends in one of {}", endings.join(", "));
            return Err(refuse(path, message));
        }
    };
    bag(path, contents)
}

/// Every tensor of torch's file of a model's weights, as f32.
///
/// # Errors
/// As [`read`].
pub fn pt_tensors(path: &Path) -> Result<BTreeMap<String, Array>, Error> {
    pt::read_all(path)
}

/// Every tensor of a safetensors file, as f32.
///
/// # Errors
/// As [`read`].
pub fn safetensors_tensors(path: &Path) -> Result<BTreeMap<String, Array>, Error> {
    safetensors::read_all(&data::read(path)?)
}

/// The file of a slide in a directory: its id with one of the known endings, as the id is or below
/// `h5_files/` or `pt_files/`, where CLAM puts them.
#[must_use]
pub fn find(dir: &Path, id: &str) -> Option<PathBuf> {
    let places = ["", "h5_files", "pt_files"].map(|folder| dir.join(folder));
    let mut paths = places.iter().flat_map(|place| {
        std::iter::once(place.join(id))
            .chain(ENDINGS.map(|ending| place.join(format!("{id}.{ending}"))))
    });
    paths.find(|path| path.is_file())
}

/// The first of the known names that is there.
fn features_among(names: &[String]) -> Option<&'static str> {
    FEATURES.into_iter().find(|known| names.iter().any(|name| name == known))
}

fn missing(path: &Path, names: &[String]) -> Error {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let got = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    refuse(path, format!("expected features under `features` or `feats`, got {got}"))
}

fn refuse(path: &Path, message: String) -> Error {
    Error::Data { path: path.to_owned(), message, hint: None }
}

/// Gives arrays the shape of a bag.
fn bag(path: &Path, contents: Contents) -> Result<Bag, Error> {
    let Contents { features, coords, patch_size } = contents;
    let (n, d_feature) = match features.shape[..] {
        [n, d] | [1, n, d] => (n, d),
        _ => {
            let message = format!("expected features of shape [n, d], got {:?}", features.shape);
            return Err(refuse(path, message));
        }
    };
    if n == 0 || d_feature == 0 {
        let message = format!("expected at least one instance, got the shape {:?}", features.shape);
        return Err(refuse(path, message));
    }
    let coords = match coords {
        None => None,
        Some(Array { shape, values }) => match shape[..] {
            [rows, columns] | [1, rows, columns] if rows == n && columns >= 2 => {
                let row = |row: &[f32]| [f64::from(row[0]), f64::from(row[1])];
                Some(values.chunks(columns).map(row).collect())
            }
            _ => {
                let message = format!("expected coordinates of shape [{n}, 2], got {shape:?}");
                return Err(refuse(path, message));
            }
        },
    };
    Ok(Bag { features: features.values, d_feature, coords, patch_size })
}
