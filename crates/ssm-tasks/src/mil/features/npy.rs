//! NumPy arrays: `.npy` files and `.npz` archives of them.

use std::{borrow::Cow, io::Cursor};

use ssm_train::error::Error;
use zip::{ZipArchive, result::ZipError};

use super::{Array, Kind};
use crate::data::{DataFile, UNPACKED_MAX, read_at_most};

const HINT: Option<&str> = Some("the file may be cut off; get it again");

/// Names of the arrays of an archive, in its order.
///
/// # Errors
/// [`Error::Data`] for a broken archive.
pub(super) fn npz_names(file: &DataFile) -> Result<Vec<String>, Error> {
    let archive = open(file)?;
    let names = archive.file_names().flatten();
    Ok(names.map(|name| name.strip_suffix(".npy").unwrap_or(&name).to_owned()).collect())
}

/// Array `key` of an archive, compressed or not.
///
/// # Errors
/// [`Error::Data`] for a broken archive, a missing key, or anything but numbers.
pub fn npz_array(file: &DataFile, key: &str) -> Result<Array, Error> {
    let mut archive = open(file)?;
    let names: Vec<String> = archive.file_names().flatten().map(Cow::into_owned).collect();
    let entry = match archive.by_name(&format!("{key}.npy")) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => {
            let got = names.join(", ");
            return Err(file.error(format!("expected an array `{key}`, got {got}"), None));
        }
        Err(reason) => return Err(file.error(format!("not a .npz archive: {reason}"), HINT)),
    };
    let bytes = read_at_most(entry, UNPACKED_MAX)
        .map_err(|reason| file.error(format!("array `{key}`: {reason}"), HINT))?
        .ok_or_else(|| {
            file.error(format!("array `{key}`: unpacks to more than {UNPACKED_MAX} bytes"), None)
        })?;
    parse(&bytes).map_err(|reason| file.error(format!("array `{key}`: {reason}"), None))
}

fn open(file: &DataFile) -> Result<ZipArchive<Cursor<&[u8]>>, Error> {
    ZipArchive::new(Cursor::new(&file.bytes[..]))
        .map_err(|reason| file.error(format!("not a .npz archive: {reason}"), HINT))
}

/// Parses one `.npy` file.
pub(super) fn parse(bytes: &[u8]) -> Result<Array, String> {
    let cut_off = || "the header is cut off".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("not a .npy array")?;
    let (&[major, _minor], rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
    let (header_len, rest) = if major == 1 {
        let (len, rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
        (usize::from(u16::from_le_bytes(*len)), rest)
    } else {
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
        (u32::from_le_bytes(*len) as usize, rest)
    };
    let (header, data) = rest.split_at_checked(header_len).ok_or_else(cut_off)?;
    let header = String::from_utf8_lossy(header);
    let field = |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start().to_owned());
    let descr = field("'descr':").and_then(|rest| {
        rest.strip_prefix('\'').and_then(|rest| rest.split('\'').next().map(str::to_owned))
    });
    let kind = kind(&descr.ok_or("the header has no `descr`")?)?;
    let columns_first = field("'fortran_order':").is_some_and(|value| value.starts_with("True"));
    let inside = field("'shape':").and_then(|rest| {
        rest.strip_prefix('(').and_then(|rest| rest.split(')').next().map(str::to_owned))
    });
    let inside = inside.ok_or("the header has no `shape`")?;
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape: Option<Vec<usize>> = sizes.map(|size| size.parse().ok()).collect();
    let mut shape = shape.ok_or("the header has no `shape`")?;
    if !columns_first {
        return kind.array(shape, data);
    }
    // An array in Fortran order is its transpose in C order.
    shape.reverse();
    Ok(kind.array(shape, data)?.transposed())
}

fn kind(descr: &str) -> Result<Kind, String> {
    Ok(match descr {
        "<f2" => Kind::F16,
        "<f4" => Kind::F32,
        "<f8" => Kind::F64,
        "|i1" => Kind::I8,
        "<i2" => Kind::I16,
        "<i4" => Kind::I32,
        "<i8" => Kind::I64,
        "|u1" => Kind::U8,
        "<u2" => Kind::U16,
        "<u4" => Kind::U32,
        "<u8" => Kind::U64,
        other => return Err(format!("expected little-endian numbers, got the type `{other}`")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn arrays_are_read_and_defects_are_named() {
        let data = [1.5_f32, -2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
        let array = parse(&npy("<f4", "False", "(2, 2)", &data)).unwrap();
        assert_eq!((array.shape, array.values), (vec![2, 2], vec![1.5, -2.0, 3.0, 4.0]));
        let by_columns = parse(&npy("<f4", "True", "(1, 4)", &data)).unwrap();
        assert_eq!((by_columns.shape, by_columns.values), (vec![1, 4], vec![1.5, -2.0, 3.0, 4.0]));
        let by_columns = parse(&npy("<f4", "True", "(2, 2)", &data)).unwrap();
        assert_eq!((by_columns.shape, by_columns.values), (vec![2, 2], vec![1.5, 3.0, -2.0, 4.0]));
        let refused = |bytes: &[u8]| parse(bytes).unwrap_err();
        assert_eq!(refused(b"no array"), "not a .npy array");
        assert_eq!(refused(b"\x93NUMPY\x01\x00\xff"), "the header is cut off");
        assert_eq!(
            refused(&npy(">f4", "False", "(2, 2)", &data)),
            "expected little-endian numbers, got the type `>f4`"
        );
        assert_eq!(
            refused(&npy("<f4", "False", "(2, 3)", &data)),
            "expected values of shape [2, 3], got 4 values"
        );
    }
}
