//! `ssm report`: the page of a run, made again.

use std::path::PathBuf;

use clap::Args;
use ssm_tasks::{TaskEntry, TaskVisitor, with_task};
use ssm_train::{Error, conclusion};

use crate::{DataDirs, DeviceArgs, evaluate::task_of, print};

#[derive(Args)]
pub(crate) struct ReportArgs {
    /// Run directory, as in `runs/etth1_96_smamba`.
    run: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    data: DataDirs,
}

pub(crate) fn run(args: ReportArgs) -> Result<(), Error> {
    with_task(&task_of(&args.run)?, Report(args))?
}

struct Report(ReportArgs);

impl TaskVisitor for Report {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let ReportArgs { run, device, data } = self.0;
        let device = device.section()?;
        let page = conclusion::rebuild::<T>(&run, device.as_ref(), data.resolve())?;
        print(&format!("report  {}\n", page.display()))
    }
}
