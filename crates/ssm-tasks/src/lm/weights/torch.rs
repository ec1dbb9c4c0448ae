//! `pytorch_model.bin`: a zip archive of a pickle and of raw numbers, as torch reads it.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write},
};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::mil::features::Array;

/// A dictionary of f32 tensors.
///
/// # Errors
/// A sentence, for a tensor that is too large for the format.
pub(super) fn write(tensors: &BTreeMap<String, Array>) -> Result<Vec<u8>, String> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // torch maps the numbers into memory, so they are not compressed.
    let options =
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    let mut entry = |name: String, bytes: &[u8]| {
        let started = archive.start_file(name, options).map_err(|reason| reason.to_string());
        started.and_then(|()| archive.write_all(bytes).map_err(|reason| reason.to_string()))
    };
    entry("archive/data.pkl".to_owned(), &pickle(tensors)?)?;
    entry("archive/byteorder".to_owned(), b"little")?;
    for (number, array) in tensors.values().enumerate() {
        let bytes: Vec<u8> = array.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        entry(format!("archive/data/{number}"), &bytes)?;
    }
    entry("archive/version".to_owned(), b"3\n")?;
    let finished = archive.finish().map_err(|reason| reason.to_string())?;
    Ok(finished.into_inner())
}

/// `OrderedDict` of calls of `_rebuild_tensor_v2`, in the second protocol of pickle.
fn pickle(tensors: &BTreeMap<String, Array>) -> Result<Vec<u8>, String> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    }
    fn number(out: &mut Vec<u8>, number: usize) -> Result<(), String> {
        let number = i32::try_from(number).map_err(|_| "a tensor has more than 2^31 numbers")?;
        out.push(b'J');
        out.extend(number.to_le_bytes());
        Ok(())
    }
    fn tuple(out: &mut Vec<u8>, numbers: &[usize]) -> Result<(), String> {
        out.push(b'(');
        numbers.iter().try_for_each(|size| number(out, *size))?;
        out.push(b't');
        Ok(())
    }
    const DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02".to_vec();
    out.extend(DICT);
    out.push(b'(');
    for (index, (key, array)) in tensors.iter().enumerate() {
        text(&mut out, key);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        number(&mut out, array.values.len())?;
        // The tuple names the numbers; they begin with the first.
        out.extend(b"tQ");
        number(&mut out, 0)?;
        tuple(&mut out, &array.shape)?;
        let mut strides = vec![1; array.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * array.shape[axis];
        }
        tuple(&mut out, &strides)?;
        // No gradient, no hooks; then the call.
        out.push(0x89);
        out.extend(DICT);
        out.extend(b"tR");
    }
    out.extend(b"u.");
    Ok(out)
}
