//! Files of patch features: one slide a file, told apart by the ending of the name.

mod array;
mod npy;

use std::path::Path;

use ssm_train::error::Error;

pub use self::{
    array::{Array, Kind},
    npy::npz_array,
};
use super::cohort::Bag;

/// Endings of the names that are understood.
pub const ENDINGS: [&str; 1] = ["npy"];

/// Reads the instances of one slide.
///
/// # Errors
/// [`Error::Data`] for a file that is missing, damaged, empty, or holds no features.
pub fn read(path: &Path) -> Result<Bag, Error> {
    Err(Error::Data {
        path: path.to_owned(),
        message: format!("expected a name that ends in one of {}", ENDINGS.join(", ")),
        hint: None,
    })
}
