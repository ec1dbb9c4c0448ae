//! The readers of files that come from elsewhere, each with good files of every kind that it reads:
//! what `tests/hostile.rs` changes at random and `fuzz/` by what the code does.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    io::Write,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use ssm_tasks::{
    data::DataFile,
    forecasting::{
        config::ForecastingConfig,
        data::{DataSet, PemsConfig, TableFormat, parse_table},
    },
    lm::{
        bpe::BpeTrainer,
        config::{LmConfig, LmOptions},
        data::{DataSet as _, Parts, ShardsConfig},
        shards::{ShardWriter, VOCABULARY},
        tokenizer::{Tokenizer, Vocabulary},
        weights,
    },
    mil::{MilTask, config::MilConfig, features},
};
use ssm_train::{
    Config, Task, TrainOptions, checkpoint::Checkpoints, config, optim, progress::Show,
    result::RunResult, run_dir, task::Host,
};

use crate::source;

/// Remembers the largest piece of memory that was asked for.
struct Watch;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Watch = Watch;

// SAFETY: all of it is the system's allocator; what is remembered is a number.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// The files are of some kilobytes. A reader may unpack a thousand times that, as deflate does.
const LARGEST_ALLOWED: usize = 64 << 20;

/// A file: its name, which may decide how it is read, and its bytes.
pub(crate) type File = (String, Vec<u8>);

/// Takes the name of a file and its bytes.
type Read = Box<dyn Fn(&str, &[u8])>;

/// The name of a reader, and what makes it ready.
type Known = (&'static str, fn() -> Reader);

/// A reader, ready to read.
pub(crate) struct Reader {
    /// Good files of every kind.
    pub(crate) files: Vec<File>,
    /// Reads a file of this name or refuses it with a message; anything else is a panic.
    read: Read,
}

impl Reader {
    /// What a fuzzer makes and keeps: the name of a file, a line break, and bytes to be read in the place
    /// of that file. `None` if there is no such file.
    pub(crate) fn file_of<'a>(&self, input: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let end = input.iter().position(|byte| *byte == b'\n')?;
        let (name, bytes) = (&input[..end], &input[end + 1..]);
        let file = self.files.iter().position(|(known, _)| known.as_bytes() == name)?;
        Some((file, bytes))
    }

    fn new(files: Vec<File>, read: impl Fn(&str, &[u8]) + 'static) -> Self {
        Self { files, read: Box::new(read) }
    }

    /// Reads `bytes` in the place of a good file; panics for an allocation out of proportion too.
    pub(crate) fn case(&self, file: usize, bytes: &[u8]) {
        let (name, _) = &self.files[file];
        LARGEST.store(0, Ordering::Relaxed);
        (self.read)(name, bytes);
        let largest = LARGEST.load(Ordering::Relaxed);
        let length = bytes.len();
        assert!(
            largest < LARGEST_ALLOWED,
            "{name}: {largest} bytes at once for a file of {length}"
        );
    }
}

/// Every reader by its name.
pub(crate) const READERS: &[Known] = &[
    ("archives", archives),
    ("configurations", configurations),
    ("features", features_of_slides),
    ("foreign_weights", foreign_weights),
    ("overrides", overrides),
    ("runs", runs),
    ("shards", shards),
    ("tables", tables),
    ("vocabularies", vocabularies),
    ("weights", weights_of_runs),
];

/// The reader of this name.
pub(crate) fn reader(name: &str) -> Reader {
    let found = READERS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no reader `{name}`")).1()
}

/// Files of a folder of the repository.
fn good(folder: &str, endings: &[&str]) -> Vec<File> {
    let mut files = source::folder(folder);
    let ending = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    files.retain(|(name, _)| endings.contains(&ending(name).as_str()));
    files.sort();
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

/// The text of a file of the repository.
fn text(folder: &str, name: &str) -> String {
    let file = source::folder(folder).into_iter().find(|(known, _)| known == name);
    String::from_utf8(file.unwrap().1).unwrap()
}

fn put(path: &Path, bytes: &[u8]) {
    fs::File::create(path).and_then(|mut file| file.write_all(bytes)).unwrap();
}

fn configurations() -> Reader {
    let mut files = good("configs/forecasting", &["toml"]);
    files.extend(good("configs/mil", &["toml"]));
    files.extend(good("configs/lm", &["toml"]));
    Reader::new(files, |name, bytes| {
        let text = String::from_utf8_lossy(bytes);
        let refused = |error: ssm_train::Error| assert!(!error.report().is_empty());
        let _ = config::task_name(&text, name, &["forecasting", "mil", "lm"]).map_err(refused);
        let overrides = ["train.steps=3".to_owned()];
        if let Err(error) = Config::<ForecastingConfig>::parse(&text, name, &overrides) {
            refused(error);
        }
        if let Err(error) = Config::<MilConfig>::parse(&text, name, &[]) {
            refused(error);
        }
        if let Err(error) = Config::<LmConfig>::parse(&text, name, &[]) {
            refused(error);
        }
    })
}

fn overrides() -> Reader {
    let text = text("configs/forecasting", "debug.toml");
    let typed = ["optim.adam.lr=1e-3", "model.s_mamba.mixer={mamba={d_state=4}}", "run.name=x"];
    let files = typed.map(|typed| (typed.to_owned(), typed.as_bytes().to_vec()));
    Reader::new(files.into(), move |_, bytes| {
        let typed = String::from_utf8_lossy(bytes).into_owned();
        if let Err(error) = Config::<ForecastingConfig>::parse(&text, "debug.toml", &[typed]) {
            assert!(!error.report().is_empty());
        }
    })
}

/// The text files of a checkpoint, and what a run says of itself.
fn runs() -> Reader {
    let manifest = br#"{"format":1,"files":{"model.bpk":{"bytes":3,"sha256":"00"},
        "optimizer.bpk":{"bytes":3,"sha256":"00"},"state.json":{"bytes":3,"sha256":"00"}}}"#;
    let run =
        br#"{"seed":1,"parameters":2,"data":"x","data_hashes":{"a.csv":"00"},"artifacts":null,
        "decayed_parameters":[],"sessions":[]}"#;
    let result = br#"{"steps":1,"scored_step":1,"metrics":{"mse":0.5,"mae":null},"tables":[
        {"title":"t","columns":["a"],"rows":[["b"]],"note":""}]}"#;
    let files = [
        ("manifest.json".to_owned(), manifest.to_vec()),
        ("run.json".to_owned(), run.to_vec()),
        ("result.json".to_owned(), result.to_vec()),
        ("metrics.jsonl".to_owned(), b"{\"step\":1,\"split\":\"train\",\"loss\":0.5}\n".to_vec()),
        ("best".to_owned(), format!("step_00000003\n{}\n", sha256(b"step_00000003")).into_bytes()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let step = dir.path().join("checkpoints/step_00000003");
    fs::create_dir_all(&step).unwrap();
    for name in ["model.bpk", "optimizer.bpk", "state.json"] {
        put(&step.join(name), b"abc");
    }
    Reader::new(files.into(), move |name, bytes| {
        let folder = match name {
            "manifest.json" => &step,
            "best" => &dir.path().join("checkpoints"),
            _ => dir.path(),
        };
        put(&folder.join(name), bytes);
        let all = Checkpoints::of_run(dir.path());
        let error = all.load(3).err().unwrap();
        assert!(!error.report().is_empty());
        match all.best() {
            Ok(step) => assert!(name != "best" || step.is_some()),
            Err(error) => assert!(!error.report().is_empty()),
        }
        let _ = run_dir::info(dir.path());
        let _ = RunResult::load(&dir.path().join("result.json"));
        let _ = ssm_train::logging::rows(&dir.path().join("metrics.jsonl"));
    })
}

/// Weights whose checksum is right and whose bytes are wrong.
fn weights_of_runs() -> Reader {
    let dir = tempfile::tempdir().unwrap();
    let text = text("configs/mil", "debug.toml");
    let overrides = [
        format!("run.dir={}", dir.path().display()),
        "run.fold=0".to_owned(),
        "train.epochs=1".to_owned(),
        "device.backend=flex".to_owned(),
    ];
    let config = Config::<MilConfig>::parse(&text, "debug.toml", &overrides).unwrap();
    let options = TrainOptions { show: Show::Quiet, ..TrainOptions::default() };
    let summary = ssm_train::train::<MilTask>(&config, &options).unwrap();
    let all = Checkpoints::of_run(&summary.run_dir);
    let step = *all.steps().unwrap().last().unwrap();
    let folder = summary.run_dir.join(format!("checkpoints/step_{step:08}"));
    let files = ["model.bpk", "optimizer.bpk", "state.json"]
        .map(|name| (name.to_owned(), fs::read(folder.join(name)).unwrap()));
    let manifest = fs::read(folder.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    // As older versions wrote it, which did not vouch for it.
    manifest.as_object_mut().unwrap().remove("sha256").unwrap();
    let device = ssm_train::device::open("flex", 0).unwrap().autodiff();
    let good = files.clone();
    let runs = Cell::new(0_u64);
    Reader::new(files.into(), move |name, bytes| {
        let _ = &dir;
        for (other, bytes) in &good {
            put(&folder.join(other), bytes);
        }
        put(&folder.join(name), bytes);
        let mut manifest = manifest.clone();
        manifest["files"][name]["bytes"] = bytes.len().into();
        manifest["files"][name]["sha256"] = sha256(bytes).into();
        put(&folder.join("manifest.json"), manifest.to_string().as_bytes());
        let fresh = || {
            let settings = config.settings(Vec::new());
            MilTask::new(&config.task, &config.data, &config.model, &settings, &device)
        };
        // Burn keeps the graphs of parameters that are gone until something is differentiated.
        if runs.replace(runs.get() + 1) % 500 == 499 {
            let (task, model) = fresh().unwrap();
            task.loss(&model, Host(task.batch(0).unwrap())).mean.backward();
        }
        let read = all.load(step).and_then(|checkpoint| {
            let (_, model) = fresh()?;
            let model = checkpoint.model(model)?;
            checkpoint.optimizer(optim::build(&config.optim, &model, &device)).map(drop)
        });
        if let Err(error) = read {
            assert!(!error.report().is_empty());
        }
    })
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// h5, pt, safetensors, npz and npy.
fn features_of_slides() -> Reader {
    let endings = ["h5", "pt", "safetensors", "npz", "npy"];
    let files = good("crates/ssm-tasks/tests/fixtures/mil", &endings);
    let dir = tempfile::tempdir().unwrap();
    Reader::new(files, move |name, bytes| {
        let path = dir.path().join(name);
        put(&path, bytes);
        match features::read(&path) {
            Ok(bag) => assert_eq!(bag.features.len() % bag.d_feature, 0),
            Err(error) => assert!(!error.report().is_empty()),
        }
    })
}

fn tables() -> Reader {
    let dated = "date,a,b\n2020-01-01 00:00,1,2\n2020-01-01 01:00,-3.5,4e3\n2020-01-01 02:00,5,6\n";
    let quoted = "\u{feff}\"date\",\"a, b\"\r\n\"2020-01-01\",\"1\"\r\n";
    let files = [
        ("dated".to_owned(), dated.as_bytes().to_vec()),
        ("quoted".to_owned(), quoted.as_bytes().to_vec()),
        ("headless".to_owned(), b"1,2,3\n4,5,6\n".to_vec()),
    ];
    Reader::new(files.into(), |name, bytes| {
        let file = DataFile { path: name.into(), bytes: bytes.to_vec(), sha256: String::new() };
        for format in [TableFormat::Dated("date"), TableFormat::Undated, TableFormat::Headless] {
            match parse_table(name, &file, format) {
                Ok(series) => assert!(series.values.iter().flatten().all(|v| v.is_finite())),
                Err(error) => assert!(!error.report().is_empty()),
            }
        }
    })
}

/// Compressed tables, and the archives of traffic data.
fn archives() -> Reader {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("timeseries")).unwrap();
    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 3, 1), }\n";
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    archive.start_file("data.npy", options).unwrap();
    let head = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..]].concat();
    let values = [1.0_f64; 12].map(f64::to_le_bytes).concat();
    archive.write_all(&[&head[..], header.as_bytes(), &values].concat()).unwrap();
    let npz = archive.finish().unwrap().into_inner();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&npz).unwrap();
    let files = [("npz".to_owned(), npz), ("npz.gz".to_owned(), packed.finish().unwrap())];
    let pems: PemsConfig = toml::from_str("variant = \"03\"").unwrap();
    Reader::new(files.into(), move |name, bytes| {
        let path = dir.path().join(format!("timeseries/PEMS03.{name}"));
        put(&path, bytes);
        if let Err(error) = pems.load(&[dir.path().to_owned()]) {
            assert!(!error.report().is_empty());
        }
        fs::remove_file(path).unwrap();
    })
}

const PROSE: &str = "The king's men rode out at dawn; the men of the king rode home at dusk. \
                     Wärme, 12 — and the 3rd king.\n";

/// A `tokenizer.json` as `ssm tokenize --train` writes it.
fn tokenizer_json() -> String {
    let mut trainer = BpeTrainer::new(vec!["<|endoftext|>".to_owned()]);
    trainer.count(&PROSE.repeat(20)).unwrap();
    trainer.train(300).unwrap()
}

/// `tokenizer.json`, and what lies beside shards.
fn vocabularies() -> Reader {
    let json = tokenizer_json();
    let stored = |vocabulary: Vocabulary| serde_json::to_vec(&vocabulary).unwrap();
    let files = [
        ("tokenizer.json".to_owned(), json.clone().into_bytes()),
        ("bytes".to_owned(), stored(Vocabulary::Bytes)),
        ("chars".to_owned(), stored(Tokenizer::chars_of(PROSE))),
        ("numbers".to_owned(), stored(Vocabulary::Numbers(300))),
        ("json".to_owned(), stored(Vocabulary::Json(json))),
    ];
    Reader::new(files.into(), |name, bytes| {
        let vocabulary = match name {
            "tokenizer.json" => Vocabulary::Json(String::from_utf8_lossy(bytes).into_owned()),
            _ => match serde_json::from_slice(bytes) {
                Ok(vocabulary) => vocabulary,
                Err(_) => return,
            },
        };
        match Tokenizer::new(vocabulary) {
            Ok(tokenizer) => {
                for text in [PROSE.as_bytes(), b"1 2 300", b"\xff"] {
                    match tokenizer.encode(text) {
                        Ok(ids) => _ = tokenizer.decode(&ids),
                        Err(error) => assert!(!error.is_empty()),
                    }
                }
            }
            Err(error) => assert!(!error.is_empty()),
        }
    })
}

fn shards() -> Reader {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = Tokenizer::chars_of(PROSE);
    let stored = serde_json::to_vec(&vocabulary).unwrap();
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let mut writer = ShardWriter::new(std::io::Cursor::new(Vec::new()), &tokenizer).unwrap();
    for _ in 0..5 {
        writer.begin_document();
        writer.write(&tokenizer.encode(PROSE.as_bytes()).unwrap()).unwrap();
    }
    let shard = writer.finish().unwrap().into_inner();
    let files = vec![(VOCABULARY.to_owned(), stored), ("0.tokens".to_owned(), shard)];
    let train = format!("train = [{{ dir = {:?} }}]", dir.path().display().to_string());
    let config: ShardsConfig = toml::from_str(&train).unwrap();
    let good = files.clone();
    Reader::new(files, move |name, bytes| {
        for (other, bytes) in &good {
            put(&dir.path().join(other), bytes);
        }
        put(&dir.path().join(name), bytes);
        match config.load(&LmOptions::default(), &[]) {
            Ok(corpus) => {
                let Parts::Text { train, valid, .. } = corpus.parts else { panic!("made up") };
                for stream in [&train[0].0, &valid] {
                    for block in 0..stream.n_blocks(32) {
                        let example = stream.block(block * 32, 32, true);
                        assert_eq!(example.inputs.len(), example.targets.len());
                    }
                }
            }
            Err(error) => assert!(!error.report().is_empty()),
        }
    })
}

/// `config.json`, `model.safetensors`, `pytorch_model.bin` and `tokenizer.json` of other programs.
fn foreign_weights() -> Reader {
    let dirs = ["hf", "state_spaces"].map(|layout| {
        let folder = format!("crates/ssm-tasks/tests/fixtures/lm/{layout}");
        let files = good(&folder, &["json", "safetensors", "bin"]);
        (layout, tempfile::tempdir().unwrap(), files)
    });
    let named = |(layout, _, files): &(&str, _, Vec<File>)| {
        let name = |(name, bytes): &File| (format!("{layout}/{name}"), bytes.clone());
        files.iter().map(name).collect::<Vec<_>>()
    };
    let files = dirs.iter().flat_map(named).collect();
    let device = ssm_train::device::open("flex", 0).unwrap();
    Reader::new(files, move |name, bytes| {
        let (layout, name) = name.split_once('/').unwrap();
        let (_, dir, files) = dirs.iter().find(|(known, ..)| *known == layout).unwrap();
        for (other, bytes) in files {
            put(&dir.path().join(other), bytes);
        }
        put(&dir.path().join(name), bytes);
        if let Err(error) = weights::import(dir.path(), None, &device) {
            assert!(!error.report().is_empty());
        }
    })
}
