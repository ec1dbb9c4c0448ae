//! `ssm check`: what is wrong with the data of a configuration, before anything is trained.

use std::path::PathBuf;

use clap::Args;
use ssm_tasks::{TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{
    Error,
    config::{self, Config},
    device,
};

use crate::{DataDirs, print_tables};

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Configuration file.
    config: PathBuf,
    /// Override of a value, as in `--set data.slides.table=mine.csv`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
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
        let CheckArgs { config: path, overrides, json, data } = self.0;
        let config = Config::<T::Config>::load(&path, &overrides)?;
        let backend = device::resolve(&config.device.backend, config.device.index)?;
        let device = device::open(backend, config.device.index)?;
        let settings = config.settings(data.resolve());
        let (tables, n_fatal) =
            T::check(&config.task, &config.data, &config.model, &settings, &device)?;
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
