//! HDF5, as CLAM and TRIDENT write it: decoded in Rust, chunk by chunk, without the C library.

use std::path::Path;

use hdf5_reader::{Dataset, Hdf5File, error::Error as HdfError, messages::datatype::Datatype};
use ssm_train::error::Error;

use super::{Array, COORDS, Contents, Kind, features_among, missing, refuse};

/// HDF5's number of h5py's own filter LZF.
const LZF: &str = "32000";

/// Bytes that a byte of deflate unpacks to at most. What a damaged header claims beyond is not even
/// allocated.
const DEFLATED: u64 = 1032;

/// Reads features and coordinates from the root of a file.
///
/// # Errors
/// [`Error::Data`] for anything that is not such a file.
pub(super) fn read(path: &Path) -> Result<Contents, Error> {
    let broken = |reason: HdfError| match reason {
        HdfError::Io(source) => {
            Error::Io { path: path.to_owned(), action: "read".to_owned(), source }
        }
        reason => broken(path, &reason.to_string()),
    };
    let file = Hdf5File::open(path).map_err(broken)?;
    let (_, names) = file.root_group().and_then(|root| root.member_names()).map_err(broken)?;
    let key = features_among(&names).ok_or_else(|| missing(path, &names))?;
    let features = array(path, &file.dataset(key).map_err(broken)?, key)?;
    if !names.iter().any(|name| name == COORDS) {
        return Ok(Contents { features, ..Contents::default() });
    }
    let dataset = file.dataset(COORDS).map_err(broken)?;
    // At full resolution, where TRIDENT and CLAM say it.
    let number =
        |name: &str| dataset.attribute(name).ok().and_then(|value| value.read_as_f64().ok());
    let patch_size = number("patch_size_level0").or_else(|| number("patch_size"));
    Ok(Contents { features, coords: Some(array(path, &dataset, COORDS)?), patch_size })
}

fn broken(path: &Path, reason: &str) -> Error {
    let hint = if reason.contains(LZF) {
        "LZF is h5py's own compression; write the file again with gzip or without compression"
    } else {
        "the file may be cut off; extract or copy it again"
    };
    Error::Data {
        path: path.to_owned(),
        message: format!("not a HDF5 file that can be read: {reason}"),
        hint: Some(hint.to_owned()),
    }
}

fn array(path: &Path, dataset: &Dataset, key: &str) -> Result<Array, Error> {
    let kind = kind(dataset.dtype()).ok_or_else(|| {
        refuse(path, format!("expected numbers in `{key}`, got {:?}", dataset.dtype()))
    })?;
    let too_large = || refuse(path, format!("`{key}` of shape {:?} is too large", dataset.shape()));
    let shape = dataset.shape().iter().map(|size| usize::try_from(*size).ok());
    let shape: Vec<usize> = shape.collect::<Option<_>>().ok_or_else(too_large)?;
    let size = shape.iter().try_fold(kind.size(), |size, n| size.checked_mul(*n));
    let stored = path.metadata().map_or(u64::MAX, |file| file.len());
    let largest = stored.saturating_mul(DEFLATED);
    if size.is_none_or(|size| size as u64 > largest) {
        return Err(too_large());
    }
    // Not every way of reading names the data set.
    let broken = |reason: HdfError| match reason.to_string() {
        text if text.starts_with(key) => broken(path, &text),
        text => broken(path, &format!("{key}: {text}")),
    };
    if kind == Kind::F32 {
        // What features are in nearly always: chunks are read and unpacked by several threads, into place.
        let values = dataset.read_array_parallel::<f32>().map_err(broken)?;
        return Ok(Array { shape, values: values.into_raw_vec_and_offset().0 });
    }
    // Native order is little-endian wherever this program runs; files of the other order are turned.
    let bytes = dataset.read_native_bytes().map_err(broken)?;
    kind.array(shape, &bytes).map_err(|reason| refuse(path, format!("`{key}`: {reason}")))
}

fn kind(datatype: &Datatype) -> Option<Kind> {
    Some(match *datatype {
        Datatype::FloatingPoint { size: 2, .. } => Kind::F16,
        Datatype::FloatingPoint { size: 4, .. } => Kind::F32,
        Datatype::FloatingPoint { size: 8, .. } => Kind::F64,
        Datatype::FixedPoint { size: 1, signed: true, .. } => Kind::I8,
        Datatype::FixedPoint { size: 2, signed: true, .. } => Kind::I16,
        Datatype::FixedPoint { size: 4, signed: true, .. } => Kind::I32,
        Datatype::FixedPoint { size: 8, signed: true, .. } => Kind::I64,
        Datatype::FixedPoint { size: 1, signed: false, .. } => Kind::U8,
        Datatype::FixedPoint { size: 2, signed: false, .. } => Kind::U16,
        Datatype::FixedPoint { size: 4, signed: false, .. } => Kind::U32,
        Datatype::FixedPoint { size: 8, signed: false, .. } => Kind::U64,
        _ => return None,
    })
}
