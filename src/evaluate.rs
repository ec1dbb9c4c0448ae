//! `ssm eval`: the score of a trained run, computed again.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use ssm_tasks::{TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{Error, config, report::Table, run_dir, task::Split};

use crate::{DataDirs, DeviceArgs, print, print_tables};

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Run directory, as in `runs/etth1_96_smamba`.
    run: PathBuf,
    /// Split to score.
    #[arg(long, value_enum, default_value = "test")]
    split: SplitName,
    /// Print the scores as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    data: DataDirs,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Valid,
    Test,
}

pub(crate) fn run(args: EvalArgs) -> Result<(), Error> {
    with_task(&task_of(&args.run)?, Evaluate(args))?
}

/// The task that trained a run.
pub(crate) fn task_of(run: &Path) -> Result<String, Error> {
    let text = run_dir::config_text(run)?;
    config::task_name(&text, &run.join("config.toml").display().to_string(), TASKS)
}

struct Evaluate(EvalArgs);

impl TaskVisitor for Evaluate {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let EvalArgs { run, split, json, device, data } = self.0;
        let (name, split) = match split {
            SplitName::Train => ("train", Split::Train),
            SplitName::Valid => ("valid", Split::Valid),
            SplitName::Test => ("test", Split::Test),
        };
        let device = device.section()?;
        let metrics = ssm_train::evaluate::<T>(&run, device.as_ref(), data.resolve(), split)?;
        let title = format!("{} on {name}", run.display());
        if json {
            // Every digit, which a table of text does not have.
            return print(&format!("{}\n", json!({ title: [metrics] })));
        }
        let scores = Table {
            title,
            columns: metrics.keys().cloned().collect(),
            rows: vec![metrics.values().map(|value| format!("{value:.6}")).collect()],
            ..Table::default()
        };
        print_tables(&[scores], false)
    }
}
