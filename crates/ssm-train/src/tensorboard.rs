//! Event files for TensorBoard: one record for every line of `metrics.jsonl`.
//!
//! A file is a sequence of records (length, checksum of the length, bytes, checksum of the bytes; the
//! checksums are CRC-32C, rotated and shifted), each a protocol buffer `Event`. The first says
//! `brain.Event:2`, the others hold a step and scalars. Because lines and records correspond, a run
//! that goes on cuts the file where its checkpoint cuts the log.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crc::{CRC_32_ISCSI, Crc};
use serde_json::Value;

use crate::{atomic, error::Error};

const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// The ending by which TensorBoard knows the file.
const NAME: &str = "events.out.tfevents.0.ssm";

/// The event file of a run, open at its end.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens `<dir>/tensorboard/…` with the records of `rows`, the lines of the log so far; records
    /// behind them are cut off, missing ones are added.
    pub(crate) fn open(dir: &Path, rows: &[Value]) -> Result<Self, Error> {
        let dir = dir.join("tensorboard");
        atomic::create_dir(&dir)?;
        let path = dir.join(NAME);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let file = options.open(&path).map_err(atomic::save("write", &path))?;
        let bytes = fs::read(&path).map_err(atomic::read("read", &path))?;
        let mut events = Self { path, file };
        let ends = record_ends(&bytes);
        // The first record is the header.
        let kept = ends.len().min(1 + rows.len());
        events.cut(kept.checked_sub(1).map_or(0, |last| ends[last]))?;
        if kept == 0 {
            events.write(&header(now()))?;
        }
        for row in &rows[kept.max(1) - 1..] {
            events.append(row)?;
        }
        Ok(events)
    }

    /// Appends the record of a line.
    pub(crate) fn append(&mut self, row: &Value) -> Result<(), Error> {
        self.write(&event(now(), row))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), Error> {
        self.file.write_all(&record(event)).map_err(atomic::save("write", &self.path))
    }

    fn cut(&mut self, bytes: usize) -> Result<(), Error> {
        let cut = self.file.set_len(bytes as u64).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(|_| ()).map_err(atomic::save("truncate", &self.path))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1e3
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let crc = CASTAGNOLI.checksum(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), event, &checksum(event)].concat()
}

/// Where each whole and intact record ends.
fn record_ends(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some((length, rest)) = bytes[at..].split_first_chunk::<8>() {
        let Some((check, rest)) = rest.split_first_chunk::<4>() else { break };
        let Ok(size) = usize::try_from(u64::from_le_bytes(*length)) else { break };
        if *check != checksum(length) || rest.len() < size.saturating_add(4) {
            break;
        }
        if rest[size..size + 4] != checksum(&rest[..size]) {
            break;
        }
        at += 8 + 4 + size + 4;
        ends.push(at);
    }
    ends
}

fn header(wall_time: f64) -> Vec<u8> {
    let mut event = double(1, wall_time);
    event.extend(bytes(3, b"brain.Event:2"));
    event
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn event(wall_time: f64, row: &Value) -> Vec<u8> {
    let split = row["split"].as_str().unwrap_or("run");
    let mut summary = Vec::new();
    for (name, value) in row.as_object().into_iter().flatten() {
        if ["step", "epoch", "elapsed_secs"].contains(&name.as_str()) {
            continue;
        }
        // What is not finite is `null` in the log.
        let scalar = match value {
            Value::Null => f32::NAN,
            value => match value.as_f64() {
                Some(value) => value as f32,
                None => continue,
            },
        };
        let mut one = bytes(1, format!("{split}/{name}").as_bytes());
        one.push(2 << 3 | 5);
        one.extend(scalar.to_le_bytes());
        summary.extend(bytes(1, &one));
    }
    let mut event = double(1, wall_time);
    event.push(2 << 3);
    event.extend(varint(row["step"].as_u64().unwrap_or(0)));
    event.extend(bytes(5, &summary));
    event
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(n: u64) -> Vec<Value> {
        (1..=n).map(|step| json!({ "step": step, "split": "train", "loss": 1.5 })).collect()
    }

    fn read(dir: &Path) -> Vec<u8> {
        fs::read(dir.join("tensorboard").join(NAME)).unwrap()
    }

    #[test]
    fn checksums_are_those_of_the_format() {
        assert_eq!(CASTAGNOLI.checksum(b"123456789"), 0xe306_9283);
        // The length 24 of the first record of many a file, as TensorFlow writes it.
        assert_eq!(checksum(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn an_event_is_a_protocol_buffer() {
        let row =
            json!({ "step": 300, "epoch": 2, "split": "valid", "mse": 1.5, "elapsed_secs": 9 });
        let mut expected = vec![0x09];
        expected.extend(2.0f64.to_le_bytes());
        expected.extend([0x10, 0xac, 0x02, 0x2a, 18, 0x0a, 16, 0x0a, 9]);
        expected.extend(b"valid/mse");
        expected.push(0x15);
        expected.extend(1.5f32.to_le_bytes());
        assert_eq!(event(2.0, &row), expected);
    }

    /// After a fall-back, a torn write, or with a file that is not there yet.
    #[test]
    fn the_file_has_the_records_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::open(dir.path(), &rows(3)).unwrap();
        events.append(&rows(4)[3]).unwrap();
        let whole = read(dir.path());
        assert_eq!(record_ends(&whole).len(), 1 + 4);
        drop(events);

        EventFile::open(dir.path(), &rows(2)).unwrap();
        let cut = read(dir.path());
        assert_eq!(cut, whole[..record_ends(&whole)[2]], "the records keep their time");

        let path = dir.path().join("tensorboard").join(NAME);
        let torn = OpenOptions::new().append(true).open(path).unwrap().write_all(&whole[..20]);
        torn.unwrap();
        EventFile::open(dir.path(), &rows(4)).unwrap();
        assert_eq!(record_ends(&read(dir.path())).len(), 1 + 4);
    }
}
