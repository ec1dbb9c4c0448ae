//! `ssm predict`: a trained run applied to a file of the user.

use std::path::PathBuf;

use clap::Args;
use ssm_tasks::{TaskEntry, TaskVisitor, with_task};
use ssm_train::Error;

use crate::{DeviceArgs, evaluate::task_of, output, print};

#[derive(Args)]
pub(crate) struct PredictArgs {
    /// Run directory, as in `runs/etth1_96_smamba`.
    run: PathBuf,
    /// What to predict from: for forecasting a CSV with the columns of the training data, for bags a
    /// file with the features of one slide.
    #[arg(long, visible_alias = "slide", value_name = "FILE")]
    input: PathBuf,
    /// Where to write the result. Default: standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: PredictArgs) -> Result<(), Error> {
    let task = task_of(&args.run)?;
    output::present(&args.input)?;
    with_task(&task, Predict(args))?
}

struct Predict(PredictArgs);

impl TaskVisitor for Predict {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let PredictArgs { run, input, output, device } = self.0;
        let device = device.section()?;
        let (config, artifacts, model) = ssm_train::loading::restore_model::<T::Config, _>(
            &run,
            device.as_ref(),
            |config, artifacts, device| {
                let settings = config.settings(Vec::new());
                T::restore(&config.task, &config.model, artifacts, &settings, device)
            },
        )?;
        let text = T::predict(&config.task, &artifacts, &model, &input)?;
        let Some(output) = output else { return print(&text) };
        output::write(&output, text.as_bytes())
    }
}
