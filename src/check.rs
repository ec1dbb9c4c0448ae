//! `ssm check`: what is wrong with the data of a configuration and what the run will cost, before
//! anything is trained.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use ssm_tasks::{TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{
    Error,
    bench::{self, Limit},
    config::{self, Config, DeviceSection},
    device,
};

use crate::{DataDirs, device_section, print_tables};

/// What is measured: a few seconds, of a part of the model where its steps take longer.
const MEASURED: Limit = Limit { steps: 5, time: Duration::from_secs(3), reduces: true };

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Configuration file.
    config: PathBuf,
    /// Override of a value, as in `--set data.slides.table=mine.csv`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Measure whole steps on this device, as in `cuda:0`. Default: on the processor, of a part of the
    /// model if it is large; nothing else touches an accelerator.
    #[arg(long, value_name = "BACKEND[:INDEX]")]
    device: Option<String>,
    /// Print the tables as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirs,
}

pub(crate) fn run(args: CheckArgs) -> Result<(), Error> {
    let text = config::read(&args.config)?;
    let name = config::task_name(&text, &args.config.display().to_string(), TASKS)?;
    with_task(&name, Check(args))?
}

struct Check(CheckArgs);

impl TaskVisitor for Check {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let CheckArgs { config: path, overrides, device, json, data } = self.0;
        let mut config = Config::<T::Config>::load(&path, &overrides)?;
        let limit = Limit { reduces: device.is_none(), ..MEASURED };
        config.device = match (device, device::processor()) {
            (Some(text), _) => device_section(&text)?,
            (None, Some(backend)) => {
                DeviceSection { backend: backend.into(), ..DeviceSection::default() }
            }
            (None, None) => config.device,
        };
        let device =
            device::open_for(&config.device.backend, config.device.index, config.train.precision)?;
        let dirs = data.resolve();
        let settings = config.settings(dirs.clone());
        let (mut tables, n_fatal) =
            T::check(&config.task, &config.data, &config.model, &settings, &device)?;
        if n_fatal == 0 {
            tables.push(bench::cost::<T>(&config, &dirs, limit)?.estimate(!json));
        }
        print_tables(&tables, json)?;
        if n_fatal == 0 {
            return Ok(());
        }
        Err(Error::Data {
            path,
            message: format!("{n_fatal} findings stand in the way of training"),
            hint: Some("the table above lists them".to_owned()),
        })
    }
}
