//! safetensors.

use ::safetensors::{Dtype, SafeTensors};
use ssm_train::error::Error;

use super::{Array, COORDS, Contents, Kind, features_among, missing};
use crate::data::DataFile;

/// Reads features and coordinates.
///
/// # Errors
/// [`Error::Data`] for anything that is not such a file.
pub(super) fn read(file: &DataFile) -> Result<Contents, Error> {
    let hint = Some("the file may be cut off; get it again");
    let tensors = SafeTensors::deserialize(&file.bytes)
        .map_err(|reason| file.error(format!("not a safetensors file: {reason}"), hint))?;
    let names: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
    let array = |key: &str| -> Result<Array, Error> {
        let refuse = |reason: String| file.error(format!("`{key}`: {reason}"), None);
        let view = tensors.tensor(key).map_err(|reason| refuse(reason.to_string()))?;
        let kind = kind(view.dtype())
            .ok_or_else(|| refuse(format!("expected numbers, got {:?}", view.dtype())))?;
        kind.array(view.shape().to_vec(), view.data()).map_err(refuse)
    };
    let key = features_among(&names).ok_or_else(|| missing(&file.path, &names))?;
    let coords = names.iter().any(|name| name == COORDS);
    Ok(Contents {
        features: array(key)?,
        coords: coords.then(|| array(COORDS)).transpose()?,
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
