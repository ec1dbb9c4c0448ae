//! Files that were made to break their reader: every one is read or refused, with neither a panic nor
//! an allocation out of proportion to its size.
//!
//! Each test changes good files at random. The cases are the same ones every time and few; with
//! `PROPTEST_CASES=1000000 cargo test --release --test hostile` they are many, and others each time.
//! A case that fails is written to `proptest-regressions/` and tried first from then on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner},
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
    mil::{config::MilConfig, features},
};
use ssm_train::{Config, checkpoint::Checkpoints, config, result::RunResult, run_dir};

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

/// One change of a file; places are shares of its length.
#[derive(Clone, Debug)]
enum Change {
    Flip(f64, u8),
    Cut(f64),
    Insert(f64, Vec<u8>),
    Overwrite(f64, Vec<u8>),
    Repeat(f64, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let place = || 0.0..1.0_f64;
    // Numbers that sizes and offsets overflow with, and words of the formats.
    let nasty = prop_oneof![
        vec(any::<u8>(), 1..16),
        prop::sample::select(vec![
            vec![0xff; 8],
            vec![0xff, 0xff, 0xff, 0x7f],
            vec![0; 8],
            vec![0, 0, 0, 0, 0, 0, 0, 0x80],
            b"18446744073709551615".to_vec(),
            b"-1".to_vec(),
            b"1e400".to_vec(),
            b"nan".to_vec(),
            b"null".to_vec(),
            b"\"".to_vec(),
            b"[[[[[[[[".to_vec(),
            b"{\"".to_vec(),
            b",".to_vec(),
            b"\n".to_vec(),
            b"\xef\xbb\xbf".to_vec(),
            "☃".as_bytes().to_vec(),
        ]),
    ];
    prop_oneof![
        4 => (place(), 1..=255_u8).prop_map(|(at, flip)| Change::Flip(at, flip)),
        1 => place().prop_map(Change::Cut),
        2 => (place(), nasty.clone()).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        3 => (place(), nasty).prop_map(|(at, bytes)| Change::Overwrite(at, bytes)),
        1 => (place(), 1..64_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

fn apply(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let place = |share: f64| (share * bytes.len() as f64) as usize;
        match change {
            Change::Flip(at, flip) => {
                let at = place(*at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= flip;
                }
            }
            Change::Cut(at) => bytes.truncate(place(*at)),
            Change::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Overwrite(at, new) => {
                let at = place(*at);
                let end = (at + new.len()).min(bytes.len());
                bytes.splice(at..end, new.iter().copied());
            }
            Change::Repeat(at, length) => {
                let at = place(*at);
                let piece = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// Reads changed copies of `files`; the first case of each is the file itself.
fn survives(files: &[(String, Vec<u8>)], read: impl Fn(&str, &[u8])) {
    for (name, bytes) in files {
        read(name, bytes);
    }
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if asked { Cases::default() } else { Cases::with_cases(400) };
    let cases = Cases { failure_persistence: None, ..cases };
    let mut runner = if asked {
        TestRunner::new(cases)
    } else {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        TestRunner::new_with_rng(cases, rng)
    };
    let case = (0..files.len(), vec(change(), 1..6));
    let ran = runner.run(&case, |(file, changes)| {
        let (name, bytes) = &files[file];
        let changed = apply(bytes, &changes);
        let before = LARGEST.swap(0, Ordering::Relaxed);
        read(name, &changed);
        let largest = LARGEST.fetch_max(before, Ordering::Relaxed);
        prop_assert!(
            largest < LARGEST_ALLOWED,
            "{name}: {largest} bytes at once for a file of {}",
            changed.len()
        );
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn corpus(folder: &str, endings: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(root(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| endings.iter().any(|ending| path.extension().is_some_and(|e| e == *ending)))
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

#[expect(clippy::disallowed_methods, reason = "a test makes its own input")]
fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

#[test]
fn configurations_are_read_or_refused() {
    let mut files = corpus("configs/forecasting", &["toml"]);
    files.extend(corpus("configs/mil", &["toml"]));
    files.extend(corpus("configs/lm", &["toml"]));
    survives(&files, |name, bytes| {
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
    });
}

#[test]
fn overrides_are_read_or_refused() {
    let text = fs::read_to_string(root("configs/forecasting/debug.toml")).unwrap();
    let typed = ["optim.adam.lr=1e-3", "model.s_mamba.mixer={mamba={d_state=4}}", "run.name=x"];
    let files = typed.map(|typed| (typed.to_owned(), typed.as_bytes().to_vec()));
    survives(&files, |_, bytes| {
        let typed = String::from_utf8_lossy(bytes).into_owned();
        if let Err(error) = Config::<ForecastingConfig>::parse(&text, "debug.toml", &[typed]) {
            assert!(!error.report().is_empty());
        }
    });
}

/// The text files of a checkpoint, and what a run says of itself.
#[test]
fn what_a_run_says_of_itself_is_read_or_refused() {
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
    ];
    let dir = tempfile::tempdir().unwrap();
    let step = dir.path().join("checkpoints/step_00000003");
    fs::create_dir_all(&step).unwrap();
    for name in ["model.bpk", "optimizer.bpk", "state.json"] {
        put(&step.join(name), b"abc");
    }
    survives(&files, |name, bytes| {
        let folder = if name == "manifest.json" { &step } else { dir.path() };
        put(&folder.join(name), bytes);
        let error = Checkpoints::of_run(dir.path()).load(3).err().unwrap();
        assert!(!error.report().is_empty());
        let _ = run_dir::info(dir.path());
        let _ = RunResult::load(&dir.path().join("result.json"));
        let _ = ssm_train::logging::rows(&dir.path().join("metrics.jsonl"));
    });
}

/// Weights whose checksum is right and whose bytes are wrong.
#[test]
fn weights_are_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root("configs/mil/debug.toml")).unwrap();
    let overrides = [
        format!("run.dir={}", dir.path().display()),
        "run.fold=0".to_owned(),
        "train.epochs=1".to_owned(),
        "device.backend=flex".to_owned(),
    ];
    let config = Config::<MilConfig>::parse(&text, "debug.toml", &overrides).unwrap();
    let options = ssm_train::TrainOptions {
        show: ssm_train::progress::Show::Quiet,
        ..ssm_train::TrainOptions::default()
    };
    let summary = ssm_train::train::<ssm_tasks::mil::MilTask>(&config, &options).unwrap();
    let all = Checkpoints::of_run(&summary.run_dir);
    let step = *all.steps().unwrap().last().unwrap();
    let folder = summary.run_dir.join(format!("checkpoints/step_{step:08}"));
    let files = ["model.bpk", "optimizer.bpk"]
        .map(|name| (name.to_owned(), fs::read(folder.join(name)).unwrap()));
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let device = ssm_train::device::open("flex", 0).unwrap();
    survives(&files, |name, bytes| {
        for (other, bytes) in &files {
            put(&folder.join(other), bytes);
        }
        put(&folder.join(name), bytes);
        let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        manifest["files"][name]["bytes"] = bytes.len().into();
        manifest["files"][name]["sha256"] = sha256(bytes).into();
        put(&folder.join("manifest.json"), manifest.to_string().as_bytes());
        let checkpoint = all.load(step).unwrap();
        let settings = config.settings(Vec::new());
        let (_, model) = <ssm_tasks::mil::MilTask as ssm_train::Task>::new(
            &config.task,
            &config.data,
            &config.model,
            &settings,
            &device,
        )
        .unwrap();
        if let Err(error) = checkpoint.model(model) {
            assert!(!error.report().is_empty());
        }
    });
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// h5, pt, safetensors, npz and npy.
#[test]
fn files_of_features_are_read_or_refused() {
    let endings = ["h5", "pt", "safetensors", "npz", "npy"];
    let files = corpus("crates/ssm-tasks/tests/fixtures/mil", &endings);
    let dir = tempfile::tempdir().unwrap();
    survives(&files, |name, bytes| {
        let path = dir.path().join(name);
        put(&path, bytes);
        match features::read(&path) {
            Ok(bag) => assert_eq!(bag.features.len() % bag.d_feature, 0),
            Err(error) => assert!(!error.report().is_empty()),
        }
    });
}

#[test]
fn tables_are_read_or_refused() {
    let dated = "date,a,b\n2020-01-01 00:00,1,2\n2020-01-01 01:00,-3.5,4e3\n2020-01-01 02:00,5,6\n";
    let quoted = "\u{feff}\"date\",\"a, b\"\r\n\"2020-01-01\",\"1\"\r\n";
    let files = [
        ("dated".to_owned(), dated.as_bytes().to_vec()),
        ("quoted".to_owned(), quoted.as_bytes().to_vec()),
        ("headless".to_owned(), b"1,2,3\n4,5,6\n".to_vec()),
    ];
    survives(&files, |name, bytes| {
        let file = DataFile { path: name.into(), bytes: bytes.to_vec(), sha256: String::new() };
        for format in [TableFormat::Dated("date"), TableFormat::Undated, TableFormat::Headless] {
            match parse_table(name, &file, format) {
                Ok(series) => assert!(series.values.iter().flatten().all(|v| v.is_finite())),
                Err(error) => assert!(!error.report().is_empty()),
            }
        }
    });
}

/// Compressed tables, and the archives of traffic data.
#[test]
fn archives_of_series_are_read_or_refused() {
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
    let dirs = [dir.path().to_owned()];
    survives(&files, |name, bytes| {
        let path = dir.path().join(format!("timeseries/PEMS03.{name}"));
        put(&path, bytes);
        if let Err(error) = pems.load(&dirs) {
            assert!(!error.report().is_empty());
        }
        fs::remove_file(path).unwrap();
    });
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
#[test]
fn vocabularies_are_read_or_refused() {
    let json = tokenizer_json();
    let stored = |vocabulary: Vocabulary| serde_json::to_vec(&vocabulary).unwrap();
    let files = [
        ("tokenizer.json".to_owned(), json.clone().into_bytes()),
        ("bytes".to_owned(), stored(Vocabulary::Bytes)),
        ("chars".to_owned(), stored(Tokenizer::chars_of(PROSE))),
        ("numbers".to_owned(), stored(Vocabulary::Numbers(300))),
        ("json".to_owned(), stored(Vocabulary::Json(json))),
    ];
    survives(&files, |name, bytes| {
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
    });
}

#[test]
fn shards_of_tokens_are_read_or_refused() {
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
    let files = [(VOCABULARY.to_owned(), stored), ("0.tokens".to_owned(), shard)];
    let train = format!("train = [{{ dir = {:?} }}]", dir.path().display().to_string());
    let config: ShardsConfig = toml::from_str(&train).unwrap();
    survives(&files, |name, bytes| {
        for (other, bytes) in &files {
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
    });
}

/// `config.json`, `model.safetensors`, `pytorch_model.bin` and `tokenizer.json` of other programs.
#[test]
fn weights_of_other_programs_are_read_or_refused() {
    let dirs = ["hf", "state_spaces"].map(|name| {
        let dir = tempfile::tempdir().unwrap();
        let files = corpus(
            &format!("crates/ssm-tasks/tests/fixtures/lm/{name}"),
            &["json", "safetensors", "bin"],
        );
        (dir, files)
    });
    let device = ssm_train::device::open("flex", 0).unwrap();
    for (dir, files) in &dirs {
        survives(files, |name, bytes| {
            for (other, bytes) in files {
                put(&dir.path().join(other), bytes);
            }
            put(&dir.path().join(name), bytes);
            if let Err(error) = weights::import(dir.path(), None, &device) {
                assert!(!error.report().is_empty());
            }
        });
    }
}
