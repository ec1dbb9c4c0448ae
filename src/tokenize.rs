//! `ssm tokenize`: text to files of tokens, or to a new vocabulary.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use ssm_tasks::lm::{
    bpe::BpeTrainer,
    shards::{ENDING, ShardWriter, VOCABULARY},
    tokenizer::{END_OF_TEXT, Tokenizer, Vocabulary},
};
use ssm_train::Error;

/// Bytes of a document that are tokenized at once.
const PIECE: usize = 1 << 20;
/// Without a place to cut, a document is cut here.
const PIECE_MAX: usize = 16 * PIECE;
/// Tokens of a shard, at most one piece more.
const SHARD: u64 = 1 << 27;

#[derive(Args)]
pub(crate) struct TokenizeArgs {
    /// Text files (plain or .gz; .jsonl with one document a line under `text`), or directories of
    /// such files.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// `bytes`, or a `tokenizer.json` (plain or .gz).
    #[arg(long, value_name = "T", required_unless_present = "train")]
    tokenizer: Option<String>,
    /// Directory for the tokens; with `--train` the `tokenizer.json` to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Train a byte-level BPE vocabulary instead.
    #[arg(long, conflicts_with = "tokenizer")]
    train: bool,
    /// Tokens of the new vocabulary.
    #[arg(long, value_name = "N", default_value_t = 32768)]
    vocab_size: usize,
}

pub(crate) fn run(args: &TokenizeArgs) -> Result<(), Error> {
    let mut files = Vec::new();
    for input in &args.inputs {
        let before = files.len();
        collect(input, &mut files)?;
        if files.len() == before {
            return Err(data(input, "holds no text file", None));
        }
    }
    if args.train { train(args, &files) } else { tokenize(args, &files) }
}

fn data(path: &Path, message: impl Into<String>, hint: Option<&str>) -> Error {
    Error::Data { path: path.to_owned(), message: message.into(), hint: hint.map(str::to_owned) }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::Io { path, action: "read".into(), source }
}

fn save_error(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::Save { path, action: "write".into(), saved: None, source }
}

/// The files below a path in the order of their names.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if !path.is_dir() {
        if !path.exists() {
            return Err(data(path, "no such file or directory", None));
        }
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(read_error(path))?;
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(read_error(path))?;
    paths.sort();
    paths.iter().try_for_each(|path| collect(path, files))
}

/// Hands on the text of a file piece by piece, with whether a piece begins a document.
fn read_pieces(
    path: &Path,
    take: &mut dyn FnMut(&str, bool) -> Result<(), Error>,
) -> Result<(), Error> {
    let name = path.to_string_lossy().into_owned();
    let file = File::open(path).map_err(read_error(path))?;
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let source: Box<dyn Read> = if plain.len() < name.len() {
        Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(file)
    };
    let mut source = BufReader::with_capacity(PIECE, source);
    if plain.ends_with(".jsonl") {
        let mut line = String::new();
        for number in 1_u64.. {
            line.clear();
            if source.read_line(&mut line).map_err(read_error(path))? == 0 {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let value: serde_json::Value = serde_json::from_str(&line)
                .map_err(|reason| data(path, format!("line {number}: no JSON: {reason}"), None))?;
            let text = value.get("text").and_then(serde_json::Value::as_str).ok_or_else(|| {
                data(path, format!("line {number}: expected a text under `text`"), None)
            })?;
            take(text, true)?;
        }
        return Ok(());
    }
    let mut pending: Vec<u8> = Vec::new();
    let mut begins = true;
    let mut done = 0;
    loop {
        let n = source.by_ref().take(PIECE as u64).read_to_end(&mut pending);
        let at_end = n.map_err(read_error(path))? == 0;
        let cut = if at_end { Some(pending.len()) } else { place_to_cut(&pending) };
        let Some(cut) = cut else { continue };
        let text = std::str::from_utf8(&pending[..cut]).map_err(|reason| {
            let place = done + reason.valid_up_to();
            let hint = "`--tokenizer bytes` takes anything";
            data(path, format!("expected UTF-8, got other bytes at {place}"), Some(hint))
        })?;
        if !text.is_empty() || begins {
            take(text, begins)?;
        }
        begins = false;
        done += cut;
        pending.drain(..cut);
        if at_end {
            return Ok(());
        }
    }
}

/// The last place where a text may be cut without changing its tokens: behind a single line break
/// between two words.
fn place_to_cut(bytes: &[u8]) -> Option<usize> {
    let word = |byte: u8| byte.is_ascii_alphanumeric();
    let place = bytes.windows(3).rposition(|w| word(w[0]) && w[1] == b'\n' && word(w[2]));
    if let Some(place) = place {
        return Some(place + 2);
    }
    // A character has at most four bytes.
    (bytes.len() >= PIECE_MAX).then(|| {
        let end = bytes.len() - 4;
        let last = bytes[end..].iter().rposition(|byte| byte & 0xc0 != 0x80);
        end + last.unwrap_or(0)
    })
}

fn train(args: &TokenizeArgs, files: &[PathBuf]) -> Result<(), Error> {
    let mut trainer = BpeTrainer::new(vec![END_OF_TEXT.to_owned()]);
    for path in files {
        read_pieces(path, &mut |text, _| {
            trainer.count(text).map_err(|reason| data(path, reason, None))
        })?;
        tracing::info!("read `{}`", path.display());
    }
    let text = trainer.train(args.vocab_size).map_err(|message| Error::Usage {
        message: format!("--vocab-size: {message}"),
        hint: None,
    })?;
    let unfinished = unfinished(&args.out);
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(save_error(&unfinished))?;
    name(&unfinished, &args.out)?;
    crate::print(&format!("vocabulary  {}\n", args.out.display()))
}

fn tokenize(args: &TokenizeArgs, files: &[PathBuf]) -> Result<(), Error> {
    let named = args.tokenizer.as_deref().unwrap_or_default();
    let tokenizer = match named {
        "bytes" => Tokenizer::new(Vocabulary::Bytes),
        path => {
            let file = ssm_tasks::data::read(Path::new(path))?;
            Tokenizer::new(Vocabulary::Json(String::from_utf8_lossy(&file.bytes).into_owned()))
        }
    };
    let hint = "`--tokenizer` is `bytes` or the path of a `tokenizer.json`";
    let tokenizer = tokenizer.map_err(|reason| data(Path::new(named), reason, Some(hint)))?;
    let dir = &args.out;
    if dir.is_dir() && fs::read_dir(dir).map_err(read_error(dir))?.next().is_some() {
        let message = format!("the directory `{}` is not empty", dir.display());
        return Err(Error::Usage { message, hint: Some("name a new one by `--out`".into()) });
    }
    fs::create_dir_all(dir).map_err(save_error(dir))?;
    let vocabulary = dir.join(VOCABULARY);
    let text = serde_json::json!(tokenizer.vocabulary()).to_string();
    let written = File::create(&vocabulary).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(save_error(&vocabulary))?;
    let mut shards = Rolling { dir, tokenizer: &tokenizer, open: None, n_done: 0, n_tokens: 0 };
    let mut n_documents = 0_u64;
    for path in files {
        let mut in_document = false;
        read_pieces(path, &mut |text, begins| {
            if begins {
                if in_document {
                    shards.end_document()?;
                }
                in_document = true;
                n_documents += 1;
                shards.begin_document()?;
            }
            let tokens =
                tokenizer.encode(text.as_bytes()).map_err(|reason| data(path, reason, None))?;
            shards.write(&tokens)
        })?;
        if in_document {
            shards.end_document()?;
        }
        tracing::info!("read `{}`: {} tokens so far", path.display(), shards.n_tokens);
    }
    shards.close()?;
    let (n_tokens, n_shards) = (shards.n_tokens, shards.n_done);
    if n_tokens == 0 {
        return Err(data(dir, "the inputs hold no token", None));
    }
    crate::print(&format!(
        "{n_tokens} tokens of {n_documents} documents in {n_shards} files in `{}`\n",
        dir.display()
    ))
}

/// Shards one after the other, each with its name once it is whole.
struct Rolling<'a> {
    dir: &'a Path,
    tokenizer: &'a Tokenizer,
    open: Option<(PathBuf, ShardWriter<BufWriter<File>>)>,
    n_done: usize,
    n_tokens: u64,
}

impl Rolling<'_> {
    fn writer(&mut self) -> Result<&mut (PathBuf, ShardWriter<BufWriter<File>>), Error> {
        let full = self.open.as_ref().is_some_and(|(_, writer)| writer.n_tokens() >= SHARD);
        if full {
            self.close()?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let path = self.dir.join(format!("part_{:05}.{ENDING}", self.n_done));
                let file = unfinished(&path);
                let writer = File::create(&file)
                    .and_then(|file| ShardWriter::new(BufWriter::new(file), self.tokenizer));
                (path, writer.map_err(save_error(&file))?)
            }
        };
        Ok(self.open.insert(open))
    }

    fn begin_document(&mut self) -> Result<(), Error> {
        self.writer()?.1.begin_document();
        Ok(())
    }

    fn end_document(&mut self) -> Result<(), Error> {
        let end = self.tokenizer.end_of_text();
        end.map_or(Ok(()), |end| self.write(&[end]))
    }

    fn write(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let (path, writer) = self.writer()?;
        writer.write(tokens).map_err(save_error(path))?;
        self.n_tokens += tokens.len() as u64;
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some((path, writer)) = self.open.take() else { return Ok(()) };
        let finished = writer.finish().and_then(|out| out.into_inner().map_err(|e| e.into_error()));
        finished.and_then(|file| file.sync_all()).map_err(save_error(&path))?;
        self.n_done += 1;
        name(&unfinished(&path), &path)
    }
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

fn name(from: &Path, to: &Path) -> Result<(), Error> {
    #[expect(clippy::disallowed_methods, reason = "the whole file gets its name")]
    fs::rename(from, to).map_err(save_error(to))
}
