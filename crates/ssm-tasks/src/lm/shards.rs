//! Files of tokens that are mapped into memory instead of being read.
//!
//! A shard is a header of 64 bytes, its tokens as u16 or u32, and where documents begin as u64, all
//! little-endian. Shards of one directory are one row of tokens; `vocabulary.json` beside them says what
//! the tokens are.
//!
//! | bytes | header |
//! |---|---|
//! | 0..8 | `ssmtok1\0` |
//! | 8..12 | bytes of a token: 2 or 4 |
//! | 12..16 | number of tokens of the vocabulary |
//! | 16..24 | tokens in this file |
//! | 24..32 | documents that begin in this file |
//! | 32..64 | SHA-256 of the vocabulary |

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use sha2::{Digest, Sha256};
use ssm_train::error::Error;

use super::{
    stream::{Tokens, within},
    tokenizer::{Tokenizer, Vocabulary},
};
use crate::data;

/// Name of the vocabulary beside the shards.
pub const VOCABULARY: &str = "vocabulary.json";
/// Ending of the names of shards.
pub const ENDING: &str = "tokens";
const MAGIC: &[u8; 8] = b"ssmtok1\0";
const HEADER: usize = 64;

/// What a shard says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    width: usize,
    n_vocab: usize,
    n_tokens: usize,
    n_starts: usize,
    vocabulary: [u8; 32],
}

impl Header {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((self.width as u32).to_le_bytes());
        bytes.extend((self.n_vocab as u32).to_le_bytes());
        bytes.extend((self.n_tokens as u64).to_le_bytes());
        bytes.extend((self.n_starts as u64).to_le_bytes());
        bytes.extend(self.vocabulary);
        bytes
    }

    /// `None` for what is no shard of this version.
    fn of(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(..HEADER)?.strip_prefix(MAGIC)?;
        let u32_at = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        let width = u32_at(0)? as usize;
        (width == 2 || width == 4).then_some(())?;
        Some(Self {
            width,
            n_vocab: u32_at(4)? as usize,
            n_tokens: usize::try_from(u64_at(8)?).ok()?,
            n_starts: usize::try_from(u64_at(16)?).ok()?,
            vocabulary: rest[24..56].try_into().ok()?,
        })
    }

    /// Bytes of the whole file.
    fn file_len(&self) -> Option<usize> {
        let tokens = self.n_tokens.checked_mul(self.width)?;
        HEADER.checked_add(tokens)?.checked_add(self.n_starts.checked_mul(8)?)
    }
}

fn vocabulary_hash(tokenizer: &Tokenizer) -> [u8; 32] {
    Sha256::digest(serde_json::json!(tokenizer.vocabulary()).to_string().as_bytes()).into()
}

/// Writes one shard, token by token; only the beginnings of documents are kept in memory.
pub struct ShardWriter<W: Write + Seek> {
    out: W,
    header: Header,
    starts: Vec<u64>,
}

impl<W: Write + Seek> ShardWriter<W> {
    /// # Errors
    /// What `out` fails with.
    pub fn new(mut out: W, tokenizer: &Tokenizer) -> io::Result<Self> {
        let n_vocab = tokenizer.n_vocab();
        let width = if n_vocab <= 1 << 16 { 2 } else { 4 };
        let vocabulary = vocabulary_hash(tokenizer);
        let header = Header { width, n_vocab, n_tokens: 0, n_starts: 0, vocabulary };
        // The numbers come when they are known.
        out.write_all(&[0; HEADER])?;
        Ok(Self { out, header, starts: Vec::new() })
    }

    /// Tokens so far.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.header.n_tokens as u64
    }

    /// The next token begins a document.
    pub fn begin_document(&mut self) {
        self.starts.push(self.header.n_tokens as u64);
    }

    /// # Errors
    /// What `out` fails with.
    pub fn write(&mut self, tokens: &[u32]) -> io::Result<()> {
        let bytes: Vec<u8> = match self.header.width {
            2 => tokens.iter().flat_map(|token| (*token as u16).to_le_bytes()).collect(),
            _ => tokens.iter().flat_map(|token| token.to_le_bytes()).collect(),
        };
        self.header.n_tokens += tokens.len();
        self.out.write_all(&bytes)
    }

    /// Writes what is left and gives the file back.
    ///
    /// # Errors
    /// What `out` fails with.
    pub fn finish(mut self) -> io::Result<W> {
        self.header.n_starts = self.starts.len();
        let starts: Vec<u8> = self.starts.iter().flat_map(|start| start.to_le_bytes()).collect();
        self.out.write_all(&starts)?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&self.header.to_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// One file in memory.
struct Shard {
    map: Mmap,
    header: Header,
    /// Place of its first token in the whole row.
    first: u64,
}

impl Shard {
    fn token(&self, place: usize) -> u32 {
        let at = HEADER + place * self.header.width;
        match self.header.width {
            2 => u32::from(u16::from_le_bytes([self.map[at], self.map[at + 1]])),
            _ => {
                let bytes = &self.map[at..at + 4];
                u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
        }
    }
}

/// The shards of a directory.
pub struct Shards {
    shards: Vec<Shard>,
    /// Where documents begin in the whole row.
    starts: Vec<u64>,
    len: u64,
}

/// A directory of shards that was opened: its tokens, what they are, and the hashes of its files.
pub type Opened = (Shards, Tokenizer, BTreeMap<String, String>);

/// Opens a directory that `ssm tokenize` wrote; every file is read once, to verify it.
///
/// # Errors
/// [`Error::Data`] for a directory without shards or without a vocabulary, for a file that is cut off,
/// of another vocabulary, or with a token that the vocabulary does not have; [`Error::Io`].
pub fn open(dir: &Path) -> Result<Opened, Error> {
    let refuse = |path: &Path, message: String, hint: Option<&str>| Error::Data {
        path: path.to_owned(),
        message,
        hint: hint.map(str::to_owned),
    };
    let io = |path: &Path, action: &str| {
        let (path, action) = (path.to_owned(), action.to_owned());
        move |source| Error::Io { path, action, source }
    };
    let entries = std::fs::read_dir(dir).map_err(|reason| {
        let hint = "make it with `ssm tokenize`, or give its path from the working directory";
        refuse(dir, format!("no directory of tokens: {reason}"), Some(hint))
    })?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(io(dir, "list"))?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == ENDING));
    paths.sort();
    if paths.is_empty() {
        let hint = "make it with `ssm tokenize`";
        return Err(refuse(dir, format!("holds no file `*.{ENDING}`"), Some(hint)));
    }
    let file = data::read(&dir.join(VOCABULARY))?;
    let vocabulary: Vocabulary = serde_json::from_slice(&file.bytes)
        .map_err(|reason| file.error(format!("not a vocabulary: {reason}"), None))?;
    let tokenizer = Tokenizer::new(vocabulary).map_err(|reason| file.error(reason, None))?;
    let expected = vocabulary_hash(&tokenizer);
    let mut opened = Shards { shards: Vec::new(), starts: Vec::new(), len: 0 };
    let mut hashes = BTreeMap::from([(file.name(), file.sha256.clone())]);
    for path in paths {
        let mapped = File::open(&path).and_then(|file| {
            // SAFETY: the map is undefined if another process cuts the file off while it is mapped;
            // finished shards are never written again.
            unsafe { Mmap::map(&file) }
        });
        let map = mapped.map_err(io(&path, "read"))?;
        let header = Header::of(&map)
            .ok_or_else(|| refuse(&path, "not a shard of tokens of this version".into(), None))?;
        if header.file_len() != Some(map.len()) {
            let message = format!(
                "{} bytes are not those of the {} tokens and {} documents of its header",
                map.len(),
                header.n_tokens,
                header.n_starts
            );
            return Err(refuse(&path, message, Some("the file is cut off: tokenize again")));
        }
        if header.vocabulary != expected || header.n_vocab != tokenizer.n_vocab() {
            let message = format!("was made with another vocabulary than `{VOCABULARY}` beside it");
            return Err(refuse(&path, message, Some("tokenize into a directory of its own")));
        }
        let starts = map[HEADER + header.n_tokens * header.width..].chunks_exact(8);
        let first = opened.len;
        let starts: Vec<u64> = starts
            .map(|bytes| bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
            .collect();
        if !starts.is_sorted() || starts.last().is_some_and(|last| *last > header.n_tokens as u64) {
            let message = "documents do not begin one after the other".to_owned();
            return Err(refuse(&path, message, Some("the file is damaged: tokenize again")));
        }
        opened.starts.extend(starts.iter().map(|start| first + start));
        let digest = Sha256::digest(&map[..]);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hashes.insert(name, digest.iter().map(|byte| format!("{byte:02x}")).collect());
        let shard = Shard { map, header, first };
        let wrong = (0..shard.header.n_tokens)
            .find(|place| shard.token(*place) as usize >= tokenizer.n_vocab());
        if let Some(place) = wrong {
            let message = format!(
                "token {place} is {}, the vocabulary has {}",
                shard.token(place),
                tokenizer.n_vocab()
            );
            return Err(refuse(&path, message, Some("the file is damaged: tokenize again")));
        }
        opened.len += shard.header.n_tokens as u64;
        opened.shards.push(shard);
    }
    Ok((opened, tokenizer, hashes))
}

impl Tokens for Shards {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> Vec<u32> {
        let mut tokens = Vec::with_capacity((range.end - range.start) as usize);
        let first = self.shards.partition_point(|shard| shard.first <= range.start);
        for shard in &self.shards[first.saturating_sub(1)..] {
            let end = shard.first + shard.header.n_tokens as u64;
            let (from, to) = (range.start.max(shard.first), range.end.min(end));
            if shard.first >= range.end {
                break;
            }
            tokens.extend((from..to).map(|place| shard.token((place - shard.first) as usize)));
        }
        tokens
    }

    fn starts(&self, range: Range<u64>) -> Vec<u64> {
        within(&self.starts, range).to_vec()
    }
}
