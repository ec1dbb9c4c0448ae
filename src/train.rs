//! `ssm train`: from a configuration to a scored model.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use ssm_tasks::{TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{
    Error, Summary, TrainOptions, World,
    config::{self, Config},
    progress::{Screen, Show},
};

use crate::{DataDirs, print, print_tables};

#[derive(Args)]
pub(crate) struct TrainArgs {
    /// Configuration file.
    config: PathBuf,
    /// Override of a value, as in `--set optim.adam.lr=1e-4`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Continue the run of this name from its newest checkpoint.
    #[arg(long)]
    resume: bool,
    /// Train this fold only, counted from 0; the same as `--set run.fold=…`. Default: all folds.
    #[arg(long, value_name = "K")]
    fold: Option<usize>,
    /// Backend, with an index as in `cuda:0`; the same as `--set device.backend=…`.
    #[arg(long, value_name = "BACKEND[:INDEX]")]
    device: Option<String>,
    /// No progress bar.
    #[arg(long, short, conflicts_with = "tui")]
    quiet: bool,
    /// Show curves, throughput, memory and remaining time on the whole terminal.
    #[arg(long)]
    tui: bool,
    /// Write a profile of the run (data, forward, backward, optimizer, save) that opens in Perfetto
    /// or `chrome://tracing`. At the end of each span the device is waited for, which takes time itself.
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,
    /// Print the result as JSON: scores in full precision, tables, and where the run is.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirs,
}

pub(crate) fn run(args: TrainArgs, screen: Screen, world: &World) -> Result<(), Error> {
    if let Some(warning) = world.warning() {
        tracing::warn!("{warning}");
    }
    let text = config::read(&args.config)?;
    let name = config::task_name(&text, &args.config.display().to_string(), TASKS)?;
    with_task(&name, Train(args, screen, world))?
}

struct Train<'a>(TrainArgs, Screen, &'a World);

impl TaskVisitor for Train<'_> {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let Self(args, screen, world) = self;
        let TrainArgs {
            config, mut overrides, resume, fold, device, quiet, tui, json, data, ..
        } = args;
        overrides.extend(fold.map(|fold| format!("run.fold={fold}")));
        if let Some(device) = device {
            // Whether there is such a device is looked at with the rest of the configuration.
            let (backend, index) = crate::device_parts(&device)?;
            overrides.push(format!("device.backend={backend}"));
            overrides.push(format!("device.index={index}"));
        }
        let config = Config::<T::Config>::load(&config, &overrides)?;
        let show = match (tui, quiet) {
            (true, _) => Show::Dashboard(screen),
            (false, true) => Show::Quiet,
            (false, false) => Show::Bar(screen),
        };
        let options =
            TrainOptions { resume, show, data_dirs: data.resolve(), commit: crate::commit() };
        let Some(summary) = ssm_train::train_all::<T>(&config, &options, world)? else {
            return Ok(());
        };
        if json {
            return print(&format!("{}\n", as_json(&summary)));
        }
        print_tables(&summary.tables(), false)?;
        print(&format!(
            "\nrun     {}\nreport  {}\n",
            summary.run_dir.display(),
            summary.report.display()
        ))
    }
}

/// `result.json` of the run with the place of the run and its best evaluation.
fn as_json(summary: &Summary) -> Value {
    let best = summary.best.map(|best| json!({ "step": best.step, "value": best.value }));
    // Of several folds each has its own.
    let metric = Some(&summary.metric).filter(|metric| !metric.is_empty());
    json!({
        "run": summary.run_dir,
        "report": summary.report,
        "validation": { "metric": metric, "best": best },
        "stopped_early": summary.stopped_early,
        "result": summary.result,
    })
}
