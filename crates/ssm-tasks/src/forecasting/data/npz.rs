//! Arrays of NumPy archives (`.npz`).
//!
//! `npyz` reads these too, but its npz feature brings old encryption and compression crates and C
//! builds; the format itself is a short header before plain numbers, so it is parsed here.

use std::{borrow::Cow, io::Cursor};

use ssm_train::error::Error;
use zip::{ZipArchive, result::ZipError};

use crate::data::{DataFile, UNPACKED_MAX, read_at_most};

/// A dense array in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NpyArray {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
}

/// Reads array `key` of an archive, compressed or not.
///
/// # Errors
/// [`Error::Data`] for a broken archive, a missing key, another type than little-endian numbers, an
/// array of more than 4 GiB.
pub(super) fn read_array(file: &DataFile, key: &str) -> Result<NpyArray, Error> {
    read_array_at_most(file, key, UNPACKED_MAX)
}

fn read_array_at_most(file: &DataFile, key: &str, limit: u64) -> Result<NpyArray, Error> {
    let hint = Some("the file may be cut off or not a NumPy archive; get it again");
    let broken = |reason: ZipError| file.error(format!("not a .npz archive: {reason}"), hint);
    let mut archive = ZipArchive::new(Cursor::new(&file.bytes)).map_err(broken)?;
    let names: Vec<String> = archive.file_names().flatten().map(Cow::into_owned).collect();
    let entry = match archive.by_name(&format!("{key}.npy")) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => {
            let got = super::table::list(&names);
            return Err(file.error(format!("expected an array `{key}`, got {got}"), None));
        }
        Err(reason) => return Err(broken(reason)),
    };
    let bytes = read_at_most(entry, limit)
        .map_err(|reason| file.error(format!("array `{key}`: {reason}"), hint))?
        .ok_or_else(|| {
            file.error(format!("array `{key}`: unpacks to more than {limit} bytes"), None)
        })?;
    parse(&bytes).map_err(|reason| file.error(format!("array `{key}`: {reason}"), None))
}

/// Parses one `.npy` file.
fn parse(bytes: &[u8]) -> Result<NpyArray, String> {
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
    let descr = quoted(&header, "'descr':").ok_or("the header has no `descr`")?;
    if field(&header, "'fortran_order':").is_none_or(|value| !value.starts_with("False")) {
        return Err("expected rows in C order, got Fortran order".to_owned());
    }
    let shape = shape(&header).ok_or("the header has no `shape`")?;
    let values = numbers(descr, data)?;
    // An overflow cannot equal the number of values in memory either.
    let expected = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    if expected != Some(values.len()) {
        return Err(format!("expected values of shape {shape:?}, got {} values", values.len()));
    }
    Ok(NpyArray { shape, values })
}

/// What follows `key` in a Python dictionary.
fn field<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    header.split_once(key).map(|(_, rest)| rest.trim_start())
}

fn quoted<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    field(header, key)?.strip_prefix('\'')?.split('\'').next()
}

fn shape(header: &str) -> Option<Vec<usize>> {
    let inside = field(header, "'shape':")?.strip_prefix('(')?.split(')').next()?;
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().ok()).collect()
}

fn numbers(descr: &str, data: &[u8]) -> Result<Vec<f64>, String> {
    /// Little-endian numbers of `N` bytes; a remainder shows as a wrong count in the caller.
    fn each<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
    }
    match descr {
        "<f8" => Ok(each(data, f64::from_le_bytes)),
        "<f4" => Ok(each(data, |bytes| f64::from(f32::from_le_bytes(bytes)))),
        // Counts of vehicles are far below 2^53.
        "<i8" => Ok(each(data, |bytes| i64::from_le_bytes(bytes) as f64)),
        "<i4" => Ok(each(data, |bytes| f64::from(i32::from_le_bytes(bytes)))),
        "<i2" => Ok(each(data, |bytes| f64::from(i16::from_le_bytes(bytes)))),
        "|u1" => Ok(each(data, |[byte]| f64::from(byte))),
        other => {
            Err(format!("expected numbers of type <f8, <f4, <i8, <i4, <i2 or |u1, got `{other}`"))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{io::Write, path::PathBuf};

    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

    use super::*;

    pub(in super::super) fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    pub(in super::super) fn npz(key: &str, npy: &[u8], method: CompressionMethod) -> DataFile {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(method);
        writer.start_file(format!("{key}.npy"), options).unwrap();
        writer.write_all(npy).unwrap();
        DataFile {
            path: PathBuf::from("t.npz"),
            bytes: writer.finish().unwrap().into_inner(),
            sha256: String::new(),
        }
    }

    #[test]
    fn arrays_are_read_stored_and_deflated() {
        let data: Vec<u8> = [1.5_f64, -2.0, 3.0, 4.0, 5.0, 6.0].map(f64::to_le_bytes).concat();
        let npy = npy("<f8", "(3, 2)", &data);
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let array = read_array(&npz("data", &npy, method), "data").unwrap();
            assert_eq!(array.shape, [3, 2]);
            assert_eq!(array.values, [1.5, -2.0, 3.0, 4.0, 5.0, 6.0]);
        }
    }

    #[test]
    fn an_array_that_unpacks_to_too_much_is_refused() {
        let npy = npy("|u1", "(5000,)", &[0; 5000]);
        let file = npz("data", &npy, CompressionMethod::Deflated);
        let len = npy.len() as u64;
        assert!(read_array_at_most(&file, "data", len).is_ok());
        let error = read_array_at_most(&file, "data", len - 1).unwrap_err().to_string();
        let expected = format!("`t.npz`: array `data`: unpacks to more than {} bytes", len - 1);
        assert_eq!(error, expected);
    }

    #[test]
    fn other_number_types_are_read() {
        for (descr, data) in [
            ("<f4", [7.0_f32, 9.0].map(f32::to_le_bytes).concat()),
            ("<i8", [7_i64, 9].map(i64::to_le_bytes).concat()),
            ("<i4", [7_i32, 9].map(i32::to_le_bytes).concat()),
            ("<i2", [7_i16, 9].map(i16::to_le_bytes).concat()),
            ("|u1", vec![7, 9]),
        ] {
            assert_eq!(parse(&npy(descr, "(2,)", &data)).unwrap().values, [7.0, 9.0], "{descr}");
        }
    }

    #[test]
    fn defects_are_named() {
        let file = npz("other", &npy("|u1", "(1,)", &[1]), CompressionMethod::Stored);
        let error = read_array(&file, "data").unwrap_err().to_string();
        assert_eq!(error, "`t.npz`: expected an array `data`, got `other.npy`");
        let file = DataFile { bytes: b"no archive".to_vec(), ..file };
        let error = read_array(&file, "data").unwrap_err().to_string();
        assert!(error.starts_with("`t.npz`: not a .npz archive: "), "{error}");
        assert_eq!(
            parse(&npy("<f8", "(2, 3)", &[0; 40])).unwrap_err(),
            "expected values of shape [2, 3], got 5 values"
        );
        assert!(parse(&npy("|O", "(1,)", &[0])).unwrap_err().ends_with("got `|O`"));
        assert_eq!(parse(b"\x93NUMPY\x01\x00\xff").unwrap_err(), "the header is cut off");
    }
}
