//! torch's `.pt`: a zip archive of a pickle and of raw numbers, as written since torch 1.6.
//!
//! The crates that read such files expect the weights of a model, a dictionary; CLAM stores a bare
//! tensor. The pickle is read as data, see [`super::pickle`].

use std::{collections::BTreeMap, io::Cursor, path::Path};

use ssm_train::error::Error;
use zip::ZipArchive;

use super::{
    Array, COORDS, Contents, Kind, features_among, missing,
    pickle::{self, TensorRef, Value},
};
use crate::data::{self, DataFile, UNPACKED_MAX};

/// What a file holds: a tensor, or a dictionary.
struct Opened<'a> {
    file: &'a DataFile,
    archive: ZipArchive<Cursor<&'a [u8]>>,
    root: String,
    value: Value,
}

impl<'a> Opened<'a> {
    fn of(file: &'a DataFile) -> Result<Self, Error> {
        let mut archive = ZipArchive::new(Cursor::new(&file.bytes[..])).map_err(|reason| {
            let hint = "files from before torch 1.6 are not read; save the tensor again";
            file.error(format!("not a zip archive as torch writes it: {reason}"), Some(hint))
        })?;
        let names: Vec<String> =
            archive.file_names().flatten().map(|name| name.into_owned()).collect();
        let Some(root) = names.iter().find_map(|name| name.strip_suffix("data.pkl")) else {
            return Err(file.error("expected an entry `data.pkl`, as torch writes it", None));
        };
        let value = pickle::read(&entry(file, &mut archive, &format!("{root}data.pkl"))?)
            .map_err(|reason| file.error(reason, None))?;
        Ok(Self { file, archive, root: root.to_owned(), value })
    }

    fn array(&mut self, tensor: &TensorRef) -> Result<Array, Error> {
        let name = format!("{}data/{}", self.root, tensor.key);
        let bytes = entry(self.file, &mut self.archive, &name)?;
        gather(tensor, &bytes).map_err(|reason| self.file.error(reason, None))
    }

    /// The tensors of a dictionary by name; what else there is in it is left out.
    fn tensors(&self) -> Option<Vec<(String, TensorRef)>> {
        let Value::Dict(items) = &self.value else { return None };
        let tensors = items.iter().filter_map(|item| match item {
            (Value::Text(name), Value::Tensor(tensor)) => Some((name.clone(), tensor.clone())),
            _ => None,
        });
        Some(tensors.collect())
    }
}

/// Every tensor of a dictionary, as the weights of a model are stored.
///
/// # Errors
/// [`Error::Data`] for anything that is not such a file.
pub(super) fn read_all(path: &Path) -> Result<BTreeMap<String, Array>, Error> {
    let file = data::read(path)?;
    let mut opened = Opened::of(&file)?;
    let tensors = opened.tensors();
    let tensors = tensors.ok_or_else(|| file.error("expected a dictionary of tensors", None))?;
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), opened.array(tensor)?))).collect()
}

/// Reads a tensor, or features and coordinates of a dictionary.
///
/// # Errors
/// [`Error::Data`] for anything that is not such a file.
pub(super) fn read(path: &Path) -> Result<Contents, Error> {
    let file = data::read(path)?;
    let mut opened = Opened::of(&file)?;
    if let Value::Tensor(tensor) = &opened.value {
        let tensor = tensor.clone();
        return Ok(Contents { features: opened.array(&tensor)?, ..Contents::default() });
    }
    let Some(tensors) = opened.tensors() else {
        return Err(file.error("expected a tensor or a dictionary of tensors", None));
    };
    let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
    let find = |key: &str| tensors.iter().find(|(name, _)| name == key);
    let (_, features) =
        features_among(&names).and_then(find).ok_or_else(|| missing(path, &names))?;
    let features = opened.array(features)?;
    let coords = find(COORDS).map(|(_, tensor)| opened.array(tensor)).transpose()?;
    Ok(Contents { features, coords, patch_size: None })
}

fn entry(
    file: &DataFile,
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    name: &str,
) -> Result<Vec<u8>, Error> {
    let refuse = |reason: String| file.error(format!("entry `{name}`: {reason}"), None);
    let entry = archive.by_name(name).map_err(|reason| refuse(reason.to_string()))?;
    data::read_at_most(entry, UNPACKED_MAX)
        .map_err(|reason| refuse(reason.to_string()))?
        .ok_or_else(|| refuse(format!("unpacks to more than {UNPACKED_MAX} bytes")))
}

/// The numbers of a tensor in row-major order, whatever order they are stored in.
fn gather(tensor: &TensorRef, bytes: &[u8]) -> Result<Array, String> {
    let TensorRef { kind, offset, shape, stride, .. } = tensor;
    let kind = match kind.as_str() {
        "HalfStorage" => Kind::F16,
        "BFloat16Storage" => Kind::Bf16,
        "FloatStorage" => Kind::F32,
        "DoubleStorage" => Kind::F64,
        "CharStorage" => Kind::I8,
        "ShortStorage" => Kind::I16,
        "IntStorage" => Kind::I32,
        "LongStorage" => Kind::I64,
        "ByteStorage" => Kind::U8,
        other => return Err(format!("expected a tensor of numbers, got `{other}`")),
    };
    let stored = kind.to_f32(bytes);
    let too_short =
        || format!("a tensor of shape {shape:?} ends after its {} numbers", stored.len());
    if stride.len() != shape.len() {
        return Err("a tensor has strides for other axes than its own".to_owned());
    }
    let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
    let last = shape.iter().zip(stride).try_fold(*offset, |last, (size, stride)| {
        last.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
    });
    let (Some(count), Some(last)) = (count, last) else { return Err(too_short()) };
    // An expanded tensor has more numbers than are stored; features never are.
    if count > stored.len() || (count > 0 && last >= stored.len()) {
        return Err(too_short());
    }
    let mut contiguous = 1;
    let in_order = shape.iter().zip(stride).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == contiguous;
        contiguous *= size;
        fits
    });
    if in_order {
        return Ok(Array {
            shape: shape.clone(),
            values: stored[*offset..offset + count].to_vec(),
        });
    }
    let values = (0..count).map(|index| {
        let mut rest = index;
        let mut place = *offset;
        for (size, stride) in shape.iter().zip(stride).rev() {
            place += rest % size * stride;
            rest /= size;
        }
        stored[place]
    });
    Ok(Array { shape: shape.clone(), values: values.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_gathered_by_their_strides() {
        let bytes = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat();
        let tensor = |offset, shape: &[usize], stride: &[usize]| {
            let (kind, key) = ("FloatStorage".to_owned(), "0".to_owned());
            let (shape, stride) = (shape.to_vec(), stride.to_vec());
            gather(&TensorRef { kind, key, offset, shape, stride }, &bytes)
        };
        assert_eq!(tensor(1, &[2, 3], &[3, 1]).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(tensor(1, &[3, 2], &[1, 3]).unwrap().values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let error = "a tensor of shape [2, 3] ends after its 7 numbers";
        assert_eq!(tensor(2, &[2, 3], &[3, 1]).unwrap_err(), error);
        assert_eq!(tensor(0, &[2, 3], &[7, 7]).unwrap_err(), error);
        assert!(tensor(0, &[usize::MAX, 2], &[0, 0]).is_err());
    }
}
