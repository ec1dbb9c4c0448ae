//! `ssm bench`: how fast a configuration trains on a device.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use ssm_tasks::{TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{
    Error,
    bench::{self, Limit},
    config::{self, Config},
};

use crate::{DataDirs, device_section, print_tables};

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Configuration file.
    config: PathBuf,
    /// Override of a value, as in `--set train.batch_size=64`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Backend, with an index as in `cuda:0`. Default: the one of the configuration.
    #[arg(long, value_name = "BACKEND[:INDEX]")]
    device: Option<String>,
    /// Steps to measure; one more comes first, which is not counted.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Print the tables as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirs,
}

pub(crate) fn run(args: BenchArgs) -> Result<(), Error> {
    let text = config::read(&args.config)?;
    let name = config::task_name(&text, &args.config.display().to_string(), TASKS)?;
    with_task(&name, Bench(args))?
}

struct Bench(BenchArgs);

impl TaskVisitor for Bench {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let BenchArgs { config, overrides, device, steps, json, data } = self.0;
        let mut config = Config::<T::Config>::load(&config, &overrides)?;
        if let Some(device) = device {
            config.device = device_section(&device)?;
        }
        let limit = Limit { steps, time: Duration::MAX, reduces: false };
        let cost = bench::cost::<T>(&config, &data.resolve(), limit)?;
        print_tables(&[cost.estimate(!json), cost.parts()], json)
    }
}
