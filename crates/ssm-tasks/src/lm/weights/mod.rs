//! Weights of other programs: the names and shapes that state-spaces/mamba and Hugging Face use.
//!
//! Linear layers are stored there as `[out, in]` and here as `[in, out]`; nothing else differs but names,
//! so that a file comes back bit for bit.

mod config_json;
mod torch;

use std::{collections::BTreeMap, path::Path};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Tensor, TensorData},
};
use safetensors::{Dtype, tensor::TensorView};
use ssm_core::init::Init;
use ssm_train::error::Error;

pub use self::config_json::ModelJson;
use super::{
    Artifacts,
    model::{MambaLm, MambaLmConfig},
    tokenizer::{Tokenizer, Vocabulary},
};
use crate::{
    data,
    mil::features::{Array, pt_tensors, safetensors_tensors},
};

/// Whose names weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `MambaLMHeadModel` of state-spaces/mamba: `backbone.embedding`, and the head beside it.
    StateSpaces,
    /// `MambaForCausalLM` of Hugging Face: `backbone.embeddings`, without the tied head.
    HuggingFace,
}

/// How a file holds weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `model.safetensors`.
    Safetensors,
    /// `pytorch_model.bin`.
    Torch,
}

impl Format {
    /// Name of the file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors",
            Self::Torch => "pytorch_model.bin",
        }
    }
}

/// The head, which is the embedding once more.
const HEAD: &str = "lm_head.weight";

impl Layout {
    /// The name of a parameter, and whether it is a matrix that is stored the other way round.
    fn key(self, path: &str) -> (String, bool) {
        let name = path.rsplit('.').next().unwrap_or_default();
        let module = path.rsplit('.').nth(1).unwrap_or_default();
        let turned = name == "weight" && module.ends_with("_proj");
        if path == "embedding.weight" {
            let embedding = match self {
                Self::StateSpaces => "embedding",
                Self::HuggingFace => "embeddings",
            };
            return (format!("backbone.{embedding}.weight"), false);
        }
        // The path of an enum holds the name of its variant.
        let key = path.replace(".mixer.Mamba.", ".mixer.");
        let key = match name {
            "gamma" => key.replace("gamma", "weight"),
            "a_log" => key.replace("a_log", "A_log"),
            "d" if key.ends_with(".mixer.d") => format!("{}D", &key[..key.len() - 1]),
            _ => key,
        };
        (key, turned)
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn turn(array: Array) -> Array {
    let [rows, columns] = array.shape[..] else { return array };
    let values = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| row * columns + column))
        .map(|place| array.values[place])
        .collect();
    Array { shape: vec![columns, rows], values }
}

/// Walks through the parameters and keeps the path of where it is.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
}

struct Reading {
    walk: Walk,
    layout: Layout,
    tensors: BTreeMap<String, Array>,
}

impl ModuleVisitor for Reading {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.walk.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.walk.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (key, turned) = self.layout.key(&self.walk.path.join("."));
        let data = param.val().into_data();
        let array = Array { shape: data.shape().to_vec(), values: data.iter::<f32>().collect() };
        self.tensors.insert(key, if turned { turn(array) } else { array });
    }
}

/// The weights of a model under the names of a layout, none of which knows a scale of logits: the last
/// norm has it in its weight.
#[must_use]
pub fn tensors_of(model: &MambaLm, layout: Layout) -> BTreeMap<String, Array> {
    let mut reading = Reading { walk: Walk::default(), layout, tensors: BTreeMap::new() };
    model.visit(&mut reading);
    let mut tensors = reading.tensors;
    let norm = tensors.get_mut("backbone.norm_f.weight").expect("every backbone ends in a norm");
    norm.values.iter_mut().for_each(|value| *value *= model.logit_scale as f32);
    if layout == Layout::StateSpaces {
        let embedding = tensors["backbone.embedding.weight"].clone();
        tensors.insert(HEAD.to_owned(), embedding);
    }
    tensors
}

struct Writing {
    walk: Walk,
    layout: Layout,
    tensors: BTreeMap<String, Array>,
    missing: Vec<String>,
    wrong: Vec<String>,
}

impl ModuleMapper for Writing {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.walk.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.walk.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (key, turned) = self.layout.key(&self.walk.path.join("."));
        let Some(array) = self.tensors.remove(&key) else {
            self.missing.push(key);
            return param;
        };
        let array = if turned { turn(array) } else { array };
        let expected = param.val().dims();
        if array.shape != expected {
            let order = if turned { " (turned)" } else { "" };
            self.wrong.push(format!("`{key}` is {:?}{order}, not {expected:?}", array.shape));
            return param;
        }
        let device = param.val().device();
        let data = TensorData::new(array.values, array.shape);
        param.map(|_| Tensor::from_data(data, &device))
    }
}

/// A model with these weights.
///
/// # Errors
/// A sentence that lists every key that is missing, that is not known, or that has another shape.
pub fn load(
    model: MambaLm,
    mut tensors: BTreeMap<String, Array>,
    layout: Layout,
) -> Result<MambaLm, String> {
    let head = tensors.remove(HEAD);
    let embedding = tensors.get(&layout.key("embedding.weight").0);
    if let (Some(head), Some(embedding)) = (head, embedding)
        && head != *embedding
    {
        return Err(format!("`{HEAD}` is not the embedding: an untied head is not supported"));
    }
    let walk = Walk::default();
    let (missing, wrong) = (Vec::new(), Vec::new());
    let mut writing = Writing { walk, layout, tensors, missing, wrong };
    let model = model.map(&mut writing);
    let list = |keys: Vec<String>| {
        keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
    };
    let mut problems = Vec::new();
    if !writing.missing.is_empty() {
        problems.push(format!("missing {}", list(writing.missing)));
    }
    if !writing.tensors.is_empty() {
        problems.push(format!("unexpected {}", list(writing.tensors.into_keys().collect())));
    }
    problems.extend(writing.wrong);
    if problems.is_empty() { Ok(model) } else { Err(problems.join("; ")) }
}

/// Weights with everything that is needed to use them.
pub struct Imported {
    /// The model.
    pub model: MambaLm,
    /// Its sizes.
    pub config: MambaLmConfig,
    /// What is stored with a run.
    pub artifacts: Artifacts,
    /// Whose names the weights had.
    pub layout: Layout,
}

/// Reads a directory with `config.json`, `model.safetensors` or `pytorch_model.bin`, and
/// `tokenizer.json` if there is one; or another tokenizer.
///
/// # Errors
/// [`Error::Data`] for a missing or malformed file, and for weights that are not those of the
/// configuration; [`Error::Io`].
pub fn import(dir: &Path, tokenizer: Option<&Path>, device: &Device) -> Result<Imported, Error> {
    let file = data::read(&dir.join("config.json"))?;
    let json = ModelJson::read(&file.bytes).map_err(|reason| file.error(reason, None))?;
    let (layout, n_rows) = (json.layout, json.n_rows);
    let formats = [Format::Safetensors, Format::Torch];
    let format = formats.into_iter().find(|format| dir.join(format.file()).is_file());
    let Some(format) = format else {
        return Err(Error::Data {
            path: dir.to_owned(),
            message: "holds neither `model.safetensors` nor `pytorch_model.bin`".to_owned(),
            hint: Some("weights in several files are to be joined first".to_owned()),
        });
    };
    let path = dir.join(format.file());
    let tensors = match format {
        Format::Safetensors => safetensors_tensors(&path)?,
        Format::Torch => pt_tensors(&path)?,
    };
    // Before anything is allocated that `config.json` alone asks for.
    let held: usize = tensors.values().map(|array| array.values.len()).sum();
    let needed = json.least_parameters();
    // What is a little wrong is named key by key further on.
    if needed > 16 * held as u128 + (1 << 20) {
        let hint = "the weights have to be those that `config.json` describes";
        return Err(Error::Data {
            path,
            message: format!("holds {held} numbers, `config.json` asks for {needed} or more"),
            hint: Some(hint.to_owned()),
        });
    }
    let beside = dir.join("tokenizer.json");
    let named = tokenizer.or_else(|| beside.is_file().then_some(beside.as_path()));
    let vocabulary = match named {
        Some(path) => {
            let file = data::read(path)?;
            let text = String::from_utf8_lossy(&file.bytes).into_owned();
            let vocabulary = Vocabulary::Json(text);
            let tokenizer =
                Tokenizer::new(vocabulary.clone()).map_err(|reason| file.error(reason, None))?;
            let n_vocab = tokenizer.n_vocab();
            if n_vocab > n_rows {
                let message = format!("has {n_vocab} tokens, the model has {n_rows}");
                return Err(file.error(message, Some("use the tokenizer of the model")));
            }
            vocabulary
        }
        None => Vocabulary::Numbers(n_rows),
    };
    // Rows that stand for no token are the padding of ours where the numbers agree.
    let n_vocab = Tokenizer::new(vocabulary.clone()).map_or(n_rows, |known| known.n_vocab());
    let mut config = json.config;
    let padded = n_vocab.next_multiple_of(8) == n_rows;
    config.pad_vocab_to = if padded { 8 } else { 1 };
    let artifacts = Artifacts { n_vocab: if padded { n_vocab } else { n_rows }, vocabulary };
    let empty = config.init(artifacts.n_vocab, &mut Init::new(0, device));
    let model = load(empty, tensors, layout).map_err(|message| Error::Data {
        path,
        message,
        hint: Some("the weights have to be those that `config.json` describes".to_owned()),
    })?;
    Ok(Imported { model, config, artifacts, layout })
}

/// The files of a model for another program, by name: configuration, weights, and the tokenizer where
/// it is a `tokenizer.json`.
///
/// # Errors
/// [`Error::Usage`] for a model that the other program does not have.
pub fn export(
    model: &MambaLm,
    config: &MambaLmConfig,
    artifacts: &Artifacts,
    layout: Layout,
    format: Format,
) -> Result<BTreeMap<&'static str, Vec<u8>>, Error> {
    let usage = |message: String| Error::Usage { message, hint: None };
    let n_rows = config.n_rows(artifacts.n_vocab);
    let json = ModelJson { config: config.clone(), layout, n_rows }.write().map_err(usage)?;
    let tensors = tensors_of(model, layout);
    let weights = match format {
        Format::Torch => torch::write(&tensors),
        Format::Safetensors => safetensors_bytes(&tensors),
    };
    let weights = weights.map_err(usage)?;
    let mut files = BTreeMap::from([("config.json", json), (format.file(), weights)]);
    if let Vocabulary::Json(text) = &artifacts.vocabulary {
        files.insert("tokenizer.json", text.clone().into_bytes());
    }
    Ok(files)
}

/// The sections of a configuration as TOML.
///
/// # Errors
/// A sentence, for a value that TOML does not have.
pub fn to_toml(sections: &serde_json::Value) -> Result<String, String> {
    toml::to_string(sections).map_err(|reason| reason.to_string())
}

fn safetensors_bytes(tensors: &BTreeMap<String, Array>) -> Result<Vec<u8>, String> {
    let bytes: Vec<(&String, &Array, Vec<u8>)> = tensors
        .iter()
        .map(|(key, array)| {
            (key, array, array.values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views: Result<Vec<_>, _> = bytes
        .iter()
        .map(|(key, array, bytes)| {
            Ok((key.as_str(), TensorView::new(Dtype::F32, array.shape.clone(), bytes)?))
        })
        .collect();
    let views = views.map_err(|reason: safetensors::SafeTensorError| reason.to_string())?;
    // What the loader of Hugging Face asks for.
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(|reason| reason.to_string())
}
