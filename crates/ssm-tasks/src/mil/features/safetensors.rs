//! safetensors.

use std::collections::BTreeMap;

use ::safetensors::{Dtype, SafeTensors};
use ssm_train::error::Error;

use super::{Array, COORDS, Contents, Kind, features_among, missing};
use crate::data::DataFile;

/// The arrays of a file by name.
struct Opened<'a> {
    file: &'a DataFile,
    tensors: SafeTensors<'a>,
}

impl<'a> Opened<'a> {
    fn of(file: &'a DataFile) -> Result<Self, Error> {
        let hint = Some("the file may be cut off; get it again");
        let tensors = SafeTensors::deserialize(&file.bytes)
            .map_err(|reason| file.error(format!("not a safetensors file: {reason}"), hint))?;
        Ok(Self { file, tensors })
    }

    fn array(&self, key: &str) -> Result<Array, Error> {
        let refuse = |reason: String| self.file.error(format!("`{key}`: {reason}"), None);
        let view = self.tensors.tensor(key).map_err(|reason| refuse(reason.to_string()))?;
        let kind = kind(view.dtype())
            .ok_or_else(|| refuse(format!("expected numbers, got {:?}", view.dtype())))?;
        kind.array(view.shape().to_vec(), view.data()).map_err(refuse)
    }

    fn names(&self) -> Vec<String> {
        self.tensors.names().into_iter().map(str::to_owned).collect()
    }
}

/// Every array, as the weights of a model are stored.
///
/// # Errors
/// [`Error::Data`] for anything that is not such a file.
pub(super) fn read_all(file: &DataFile) -> Result<BTreeMap<String, Array>, Error> {
    let opened = Opened::of(file)?;
    opened.names().into_iter().map(|name| Ok((name.clone(), opened.array(&name)?))).collect()
}

/// Reads features and coordinates.
///
/// # Errors
/// [`Error::Data`] for anything that is not such a file.
pub(super) fn read(file: &DataFile) -> Result<Contents, Error> {
    let opened = Opened::of(file)?;
    let names = opened.names();
    let key = features_among(&names).ok_or_else(|| missing(&file.path, &names))?;
    let coords = names.iter().any(|name| name == COORDS);
    Ok(Contents {
        features: opened.array(key)?,
        coords: coords.then(|| opened.array(COORDS)).transpose()?,
        patch_size: None,
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F16 => Kind::F16,
        Dtype::BF16 => Kind::Bf16,
        Dtype::F32 => Kind::F32,
        Dtype::F64 => Kind::F64,
        Dtype::I8 => Kind::I8,
        Dtype::I16 => Kind::I16,
        Dtype::I32 => Kind::I32,
        Dtype::I64 => Kind::I64,
        Dtype::U8 => Kind::U8,
        Dtype::U16 => Kind::U16,
        Dtype::U32 => Kind::U32,
        Dtype::U64 => Kind::U64,
        _ => return None,
    })
}
