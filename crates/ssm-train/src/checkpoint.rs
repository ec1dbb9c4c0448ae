//! Checkpoints: `<run>/checkpoints/step_00001000/{model.bpk, optimizer.bpk, state.json,
//! manifest.json}`, each written whole or not at all.
//!
//! A checkpoint is built in a directory with an unfinished name, the manifest (size and SHA-256 of
//! every file, and of itself) last, and gets its name by one rename. `last` and `best` are small files
//! beside the checkpoints: the name of one of them in the first line, the SHA-256 of the name in the
//! second. Whoever loads a checkpoint verifies it first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::Module,
    optim::{ModuleOptimizer, OptimizerRecord},
    store::{ModuleRecord, RecordError},
    tensor::Bytes,
};
use burn_pack::{Reader, Writer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    atomic,
    error::Error,
    position::{FORMAT, Position},
    stored::{fits_model, fits_optimizer},
};

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const LAST: &str = "last";
const BEST: &str = "best";
/// Ending of the names of checkpoints that were set aside.
const DAMAGED: &str = ".damaged";

/// What `manifest.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    files: BTreeMap<String, FileEntry>,
    /// Of `manifest.json` itself without these 64 digits. Older versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

impl Manifest {
    /// The file, which vouches for itself.
    fn signed(files: BTreeMap<String, FileEntry>) -> Vec<u8> {
        let mut manifest = Self { format: FORMAT, files, sha256: Some(String::new()) };
        manifest.sha256 = Some(sha256(&json(&manifest)));
        json(&manifest)
    }

    /// That of the checkpoint in `path`.
    fn load(path: &Path) -> Result<Self, Error> {
        // First, as another format may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let bytes = read(path, MANIFEST)?;
        let Format { format } = parse(path, MANIFEST, &bytes)?;
        check_format(path, MANIFEST, format)?;
        let manifest: Self = parse(path, MANIFEST, &bytes)?;
        if let Some(expected) = &manifest.sha256 {
            let unsigned = String::from_utf8_lossy(&bytes).replacen(expected, "", 1);
            check_hash(path, MANIFEST, expected, &sha256(unsigned.as_bytes()))?;
        }
        Ok(manifest)
    }
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

/// A checkpoint that was read and found intact.
pub struct Checkpoint {
    path: PathBuf,
    position: Position,
    model: Bytes,
    optimizer: Bytes,
}

impl Checkpoints {
    /// The checkpoints of the run in `run_dir`; nothing is touched.
    #[must_use]
    pub fn of_run(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("checkpoints") }
    }

    /// Creates the directory, and removes what an interrupted save left behind.
    ///
    /// Only the process that holds the run may do so.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn prepare(&self) -> Result<(), Error> {
        atomic::create_dir(&self.dir)?;
        for name in self.names()? {
            if name.ends_with(atomic::UNFINISHED) {
                let path = self.dir.join(name);
                let removed =
                    if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(atomic::save("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Steps that a checkpoint exists for, ascending; whether they are intact is not looked at.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, Error> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Saves a checkpoint, then points `last` and `best` to where `position` says.
    ///
    /// # Errors
    /// [`Error::Save`]; what was saved before is still there.
    pub fn save<M: Module>(
        &self,
        model: &M,
        optimizer: &ModuleOptimizer,
        position: &Position,
    ) -> Result<(), Error> {
        let path = self.path(position.step);
        let encode = |bytes: Result<Bytes, String>| {
            bytes.map_err(|error| Error::Checkpoint {
                path: path.clone(),
                message: format!("cannot be encoded: {error}"),
                hint: None,
            })
        };
        let record = model.valid().into_record().into_bytes();
        let model = encode(record.map_err(|error| error.to_string()))?;
        let optimizer = encode(in_order(optimizer.into_bytes()))?;
        let state = json(position);
        let files: [(&str, &[u8]); 3] = [(MODEL, &model), (OPTIMIZER, &optimizer), (STATE, &state)];

        let unfinished = atomic::unfinished(&path);
        // Not with its parents: a run whose directory was taken away is to stop, not to go on in a new one.
        fs::create_dir(&unfinished).map_err(atomic::save("create the directory", &unfinished))?;
        let mut listed = BTreeMap::new();
        for (name, bytes) in files {
            atomic::write(&unfinished.join(name), bytes)?;
            let entry = FileEntry { bytes: bytes.len() as u64, sha256: sha256(bytes) };
            listed.insert(name.to_owned(), entry);
        }
        atomic::write(&unfinished.join(MANIFEST), &Manifest::signed(listed))?;
        atomic::sync_dir(&unfinished)?;
        // Nothing that this run can go on from is in the way: what is newer was set aside.
        self.remove(position.step)?;
        atomic::rename(&unfinished, &path)?;
        self.point(position)
    }

    /// Points `last` and `best` to where `position` says.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn point(&self, position: &Position) -> Result<(), Error> {
        let names = [(LAST, Some(position.step)), (BEST, position.best.map(|best| best.step))];
        for (name, step) in names {
            let path = self.dir.join(name);
            if let Some(step) = step {
                atomic::replace(&path, pointer(step).as_bytes())?;
            } else if path.exists() {
                fs::remove_file(&path).map_err(atomic::save("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Takes checkpoints after `step` out of the way: the run fell back behind them, as they are
    /// damaged, and they must not push out the intact ones that are to come.
    ///
    /// They keep their files under another name, for whoever wants to look at them.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Save`].
    pub(crate) fn set_aside_after(&self, step: u64) -> Result<(), Error> {
        for newer in self.steps()?.into_iter().filter(|newer| *newer > step) {
            let path = self.path(newer);
            let aside = self.dir.join(format!("{}{DAMAGED}", directory_name(newer)));
            if aside.exists() {
                fs::remove_dir_all(&aside).map_err(atomic::save("remove", &aside))?;
            }
            atomic::rename(&path, &aside)?;
            tracing::warn!("the damaged checkpoint is now `{}`", aside.display());
        }
        Ok(())
    }

    /// Whether checkpoints were here that are gone: one is named, or there is no directory for them
    /// although the run has begun.
    pub(crate) fn were_deleted(&self, has_begun: bool) -> bool {
        self.dir.join(LAST).exists() || (has_begun && !self.dir.exists())
    }

    /// Removes all but the newest `keep` checkpoints, those that `position` needs, and the best.
    ///
    /// What an older one that is kept needs stays as well, so that falling back to that one loses
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Save`].
    pub fn prune(&self, keep: usize, position: &Position) -> Result<(), Error> {
        let steps = self.steps()?;
        let newest = &steps[steps.len().saturating_sub(keep.max(1))..];
        let mut kept: BTreeSet<u64> = newest.iter().copied().collect();
        kept.extend(position.needed_steps());
        for older in newest.iter().filter_map(|step| self.peek(*step)) {
            kept.extend(older.needed_steps());
        }
        steps.iter().filter(|step| !kept.contains(step)).try_for_each(|step| self.remove(*step))
    }

    /// The newest checkpoint that is intact, `None` if there is none at all.
    ///
    /// Damaged ones that are newer are reported as warnings.
    ///
    /// # Errors
    /// What is wrong with the newest one, if none is intact; and [`Error::Io`] for one that cannot be
    /// read: that says nothing of what is in it.
    pub fn load_newest(&self) -> Result<Option<Checkpoint>, Error> {
        // Nothing depends on it here; whoever else reads it should know.
        if let Err(error) = self.last() {
            tracing::warn!("{}", error.report());
        }
        let mut first_error = None;
        for step in self.steps()?.into_iter().rev() {
            match self.load(step) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                // A run that goes on has removed it for a newer one.
                Err(_) if is_gone(&self.path(step)) => return self.load_newest(),
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!("{error}; falling back to the checkpoint before it");
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    /// The checkpoint that `best` names, or the newest intact one if nothing was the best yet.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none or if it is damaged.
    pub fn load_best(&self) -> Result<Checkpoint, Error> {
        let Some(step) = self.best()? else {
            return self.load_newest()?.ok_or_else(|| Error::Checkpoint {
                path: self.dir.clone(),
                message: "there is none yet".into(),
                hint: Some("train the run first".into()),
            });
        };
        self.load(step).or_else(|error| match self.best()? {
            // A run that goes on has found a better one and removed this one meanwhile.
            Some(better) if better != step => self.load(better),
            _ => Err(error),
        })
    }

    /// The step that `last` names; `None` if nothing was saved yet.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file is damaged, [`Error::Io`] if it cannot be read.
    pub fn last(&self) -> Result<Option<u64>, Error> {
        self.named(LAST)
    }

    /// The step that `best` names; `None` if nothing was the best yet.
    ///
    /// # Errors
    /// As [`Checkpoints::last`].
    pub fn best(&self) -> Result<Option<u64>, Error> {
        self.named(BEST)
    }

    fn named(&self, file: &str) -> Result<Option<u64>, Error> {
        let path = self.dir.join(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(atomic::read("read", &path)(error)),
        };
        let text = String::from_utf8_lossy(&bytes);
        let name = text.lines().next().unwrap_or_default();
        // Older versions wrote the name alone.
        let step = step_of(name).filter(|step| {
            *text == pointer(*step) || *text == format!("{}\n", directory_name(*step))
        });
        step.map(Some).ok_or_else(|| Error::Checkpoint {
            message: format!(
                "expected the name of a checkpoint and its SHA-256, got `{}`",
                text.trim_end().escape_debug()
            ),
            path,
            hint: Some("continue the run with `--resume`, which writes it anew".into()),
        })
    }

    /// Reads the checkpoint of one step and verifies size and SHA-256 of its files.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], naming the file that is broken.
    pub fn load(&self, step: u64) -> Result<Checkpoint, Error> {
        let path = self.path(step);
        let manifest = Manifest::load(&path)?;
        let verified = |name: &str| {
            let bytes = read(&path, name)?;
            let entry = manifest
                .files
                .get(name)
                .ok_or_else(|| broken(&path, format!("`{MANIFEST}` does not list `{name}`")))?;
            let (expected, got) = (entry.bytes, bytes.len() as u64);
            if got != expected {
                return Err(broken(&path, format!("`{name}` has {got} bytes, not {expected}")));
            }
            check_hash(&path, name, &entry.sha256, &sha256(&bytes))?;
            Ok(bytes)
        };
        let position: Position = parse(&path, STATE, &verified(STATE)?)?;
        check_format(&path, STATE, position.format)?;
        if position.step != step {
            return Err(broken(&path, format!("`{STATE}` is of step {}", position.step)));
        }
        let (model, optimizer) = (shared(verified(MODEL)?), shared(verified(OPTIMIZER)?));
        Ok(Checkpoint { path, position, model, optimizer })
    }

    /// What a checkpoint says of the run, unverified; `None` if it cannot be read.
    pub(crate) fn peek(&self, step: u64) -> Option<Position> {
        serde_json::from_slice(&read(&self.path(step), STATE).ok()?).ok()
    }

    fn remove(&self, step: u64) -> Result<(), Error> {
        let path = self.path(step);
        if !path.exists() {
            return Ok(());
        }
        // Without its name first, so that no half-removed checkpoint can be met.
        let unnamed = self.dir.join(format!("removed_{step}{}", atomic::UNFINISHED));
        atomic::rename(&path, &unnamed)?;
        fs::remove_dir_all(&unnamed).map_err(atomic::save("remove", &unnamed))
    }

    fn path(&self, step: u64) -> PathBuf {
        self.dir.join(directory_name(step))
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(atomic::read("list", &self.dir)(error)),
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<std::io::Result<_>>().map_err(atomic::read("list", &self.dir))
    }
}

impl Checkpoint {
    /// Weights and optimiser as bytes that another replica reads.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for what cannot be encoded.
    pub(crate) fn pack<M: Module>(
        model: &M,
        optimizer: &ModuleOptimizer,
    ) -> Result<Vec<u8>, Error> {
        let encoded = |bytes: Result<Bytes, RecordError>| {
            let path = Path::new("replica 0");
            bytes.map_err(|error| broken(path, format!("cannot be encoded: {error}")))
        };
        let model = encoded(model.valid().into_record().into_bytes())?;
        let optimizer = encoded(optimizer.into_bytes())?;
        Ok([&(model.len() as u64).to_le_bytes()[..], &model, &optimizer].concat())
    }

    /// What [`Checkpoint::pack`] made.
    pub(crate) fn unpack(bytes: &[u8]) -> Result<Self, Error> {
        let path = PathBuf::from("replica 0");
        let cut = bytes.split_at_checked(8).and_then(|(length, rest)| {
            let length = u64::from_le_bytes(length.try_into().ok()?);
            rest.split_at_checked(usize::try_from(length).ok()?)
        });
        let (model, optimizer) =
            cut.ok_or_else(|| broken(&path, "has sent other bytes than weights".to_owned()))?;
        Ok(Self {
            path,
            position: Position::start(0),
            model: shared(model.to_vec()),
            optimizer: shared(optimizer.to_vec()),
        })
    }

    /// Where the run stood.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// `model` with the weights of the checkpoint, on the device and with the autodiff setting it
    /// has.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a model of another structure.
    pub fn model<M: Module>(&self, model: M) -> Result<M, Error> {
        let refuse = |problem: String| self.does_not_fit(MODEL, &problem);
        fits_model(&self.model, &model).map_err(refuse)?;
        ModuleRecord::from_bytes(self.model.clone())
            .and_then(|record| model.try_load_record(record))
            .map_err(|error| refuse(error.to_string()))
    }

    /// `optimizer` with the state of the checkpoint.
    ///
    /// Parameters are recognised by the identity that their record carries, so the model is loaded
    /// first; groups are added before, as adding one forgets the state of its parameters.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for the state of another optimiser.
    pub fn optimizer(&self, optimizer: ModuleOptimizer) -> Result<ModuleOptimizer, Error> {
        let refuse = |problem: String| self.does_not_fit(OPTIMIZER, &problem);
        fits_optimizer(&self.optimizer, &self.model).map_err(refuse)?;
        let record = OptimizerRecord::from_bytes(self.optimizer.clone())
            .map_err(|error| refuse(error.to_string()))?;
        let tensors = record.len();
        let optimizer = optimizer.load_record(record);
        // Burn leaves out what it cannot rebuild, without a word.
        let loaded = optimizer.to_record().len();
        if loaded != tensors {
            let problem = format!("{loaded} of its {tensors} tensors belong to this optimiser");
            return Err(refuse(problem));
        }
        Ok(optimizer)
    }

    fn does_not_fit(&self, file: &str, problem: &str) -> Error {
        broken(&self.path, format!("`{file}` does not fit this run: {problem}"))
    }
}

/// Burn writes the state of an optimiser in the order of a hash table; in the order of names equal
/// states are equal bytes.
fn in_order(record: Result<Bytes, RecordError>) -> Result<Bytes, String> {
    let text = |error: burn_pack::Error| error.to_string();
    let reader = Reader::from_bytes(record.map_err(|error| error.to_string())?).map_err(text)?;
    let (scalars, metadata) = (reader.scalars().clone(), reader.metadata().clone());
    let mut tensors = reader.into_tensors().map_err(text)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut writer = Writer::new(tensors);
    for (key, value) in &scalars {
        writer = writer.with_scalar(key, *value);
    }
    for (key, value) in &metadata {
        writer = writer.with_metadata(key, value);
    }
    writer.into_bytes().map_err(text)
}

/// Whether nothing has this name, not even a link that leads nowhere.
fn is_gone(path: &Path) -> bool {
    let found = path.symlink_metadata();
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Bytes that are read several times and never copied.
fn shared(bytes: Vec<u8>) -> Bytes {
    Bytes::from_bytes_vec(bytes).shared()
}

fn directory_name(step: u64) -> String {
    format!("step_{step:08}")
}

/// What a file that names the checkpoint of a step holds.
fn pointer(step: u64) -> String {
    let name = directory_name(step);
    format!("{name}\n{}\n", sha256(name.as_bytes()))
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step_")?.parse().ok()?;
    (directory_name(step) == name).then_some(step)
}

fn broken(path: &Path, message: String) -> Error {
    let hint = "restore the file, or remove the directory to go on from the checkpoint before it";
    Error::Checkpoint { path: path.to_owned(), message, hint: Some(hint.to_owned()) }
}

fn read(checkpoint: &Path, name: &str) -> Result<Vec<u8>, Error> {
    fs::read(checkpoint.join(name)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => broken(checkpoint, format!("`{name}` is missing")),
        _ => atomic::read("read", &checkpoint.join(name))(error),
    })
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, name: &str, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| broken(path, format!("`{name}` cannot be understood: {error}")))
}

fn check_format(path: &Path, name: &str, format: u32) -> Result<(), Error> {
    if format == FORMAT {
        return Ok(());
    }
    let message = format!("`{name}` has format {format}, this program reads format {FORMAT}");
    Err(broken(path, message))
}

fn check_hash(path: &Path, name: &str, expected: &str, got: &str) -> Result<(), Error> {
    if got == expected {
        return Ok(());
    }
    Err(broken(path, format!("`{name}` has the SHA-256 {got}, not {expected}")))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .expect("numbers and strings in structs and maps with strings as keys always serialise");
    bytes.push(b'\n');
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
