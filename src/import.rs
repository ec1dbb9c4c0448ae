//! `ssm import` and `ssm export`: weights of other programs.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use ssm_tasks::{
    TaskEntry,
    lm::{
        Artifacts, LmTask,
        config::LmConfig,
        weights::{self, Format, Layout},
    },
};
use ssm_train::{Error, config::Config, device, loading};

use crate::{evaluate::task_of, output, print};

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// Directory with `config.json` and `model.safetensors` or `pytorch_model.bin`.
    source: PathBuf,
    /// Run directory to make, as in `runs/mamba-130m`.
    run: PathBuf,
    /// `tokenizer.json` (plain or .gz). Default: the one beside the weights, if there is one.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Text that `ssm eval` scores; may be given several times. Default: `text.txt`.
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ExportArgs {
    /// Run directory, as in `runs/shakespeare_char_mamba`.
    run: PathBuf,
    /// Directory to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose names and configuration to write.
    #[arg(long, value_enum, default_value = "hf")]
    layout: LayoutName,
    /// File of the weights.
    #[arg(long, value_enum, default_value = "safetensors")]
    format: FormatName,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutName {
    /// `MambaForCausalLM` of Hugging Face.
    Hf,
    /// `MambaLMHeadModel` of state-spaces/mamba.
    StateSpaces,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatName {
    /// `model.safetensors`.
    Safetensors,
    /// `pytorch_model.bin`.
    Torch,
}

pub(crate) fn import(args: &ImportArgs) -> Result<(), Error> {
    output::present(&args.source)?;
    let backend = device::resolve("auto", 0)?;
    let device = device::open(backend, 0)?;
    let imported = weights::import(&args.source, args.tokenizer.as_deref(), &device)?;
    let usage = |message: String| Error::Usage { message, hint: None };
    let name = args.run.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| usage(format!("`{}` names no run", args.run.display())))?;
    let dir = args.run.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.map_or_else(|| ".".to_owned(), |dir| dir.display().to_string());
    let texts: Vec<String> = match &args.text[..] {
        [] => vec!["text.txt".to_owned()],
        texts => texts.iter().map(|text| text.display().to_string()).collect(),
    };
    let beside = args.source.join("tokenizer.json");
    let tokenizer = args.tokenizer.clone().or_else(|| beside.is_file().then_some(beside));
    let tokenizer = tokenizer.map_or("bytes".to_owned(), |path| path.display().to_string());
    let sections = serde_json::json!({
        "run": { "name": name, "dir": dir },
        "task": { "lm": {} },
        "data": { "text": { "train": texts, "valid": texts, "tokenizer": tokenizer } },
        "model": imported.config,
        "optim": { "adamw": { "lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1 } },
        "train": { "epochs": 1, "batch_size": 1 },
    });
    let text = weights::to_toml(&sections).map_err(usage)?;
    let config = Config::<LmConfig>::parse(&text, &args.source.display().to_string(), &[])?;
    let origin = format!("weights of {}", args.source.display());
    let artifacts = serde_json::json!(imported.artifacts);
    ssm_train::adopt(&config, &imported.model, origin, artifacts, &device, crate::commit())
        .map_err(|error| match error {
            Error::RunExists { .. } => Error::Usage {
                message: error.to_string(),
                hint: Some("name a new directory for the run".to_owned()),
            },
            other => other,
        })?;
    print(&format!("run     {}\n", args.run.display()))
}

pub(crate) fn export(args: &ExportArgs) -> Result<(), Error> {
    let usage = |message: String, hint: Option<&str>| Error::Usage {
        message,
        hint: hint.map(str::to_owned),
    };
    let task = task_of(&args.run)?;
    if task != "lm" {
        let message = format!("`{}` is a run of the task `{task}`", args.run.display());
        return Err(usage(message, Some("only language models have another layout")));
    }
    let (config, artifacts, model) =
        loading::restore_model::<LmConfig, _>(&args.run, None, |config, artifacts, device| {
            let settings = config.settings(Vec::new());
            LmTask::restore(&config.task, &config.model, artifacts, &settings, device)
        })?;
    let artifacts: Artifacts = serde_json::from_value(artifacts)
        .map_err(|reason| usage(format!("the artifacts of the run: {reason}"), None))?;
    let layout = match args.layout {
        LayoutName::Hf => Layout::HuggingFace,
        LayoutName::StateSpaces => Layout::StateSpaces,
    };
    let format = match args.format {
        FormatName::Safetensors => Format::Safetensors,
        FormatName::Torch => Format::Torch,
    };
    let files = weights::export(&model, &config.model, &artifacts, layout, format)?;
    if args.out.exists() {
        let message = format!("`{}` is already there", args.out.display());
        return Err(usage(message, Some("name a new directory by `--out`")));
    }
    let save = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::Save { path, action: "write".into(), saved: None, source }
    };
    // The directory gets its name when it is whole.
    let mut unfinished = args.out.clone().into_os_string();
    unfinished.push(".tmp");
    let unfinished = PathBuf::from(unfinished);
    fs::create_dir_all(&unfinished).map_err(save(&unfinished))?;
    let mut names = Vec::new();
    for (name, bytes) in files {
        names.push(format!("{}\n", args.out.join(name).display()));
        let path = unfinished.join(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(save(&path))?;
    }
    #[expect(clippy::disallowed_methods, reason = "the whole directory gets its name")]
    fs::rename(&unfinished, &args.out).map_err(save(&args.out))?;
    print(&names.concat())
}
