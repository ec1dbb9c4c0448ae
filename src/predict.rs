//! `ssm predict`: a trained run applied to a file of the user.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use ssm_tasks::{TaskEntry, TaskVisitor, with_task};
use ssm_train::Error;

use crate::{DeviceArgs, evaluate::task_of, print};

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
    with_task(&task_of(&args.run)?, Predict(args))?
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
                T::restore(&config.task, &config.model, artifacts, config.run.seed, device)
            },
        )?;
        let text = T::predict(&config.task, &artifacts, &model, &input)?;
        let Some(output) = output else { return print(&text) };
        write(&output, &text).map_err(|source| Error::Io {
            path: output,
            action: "write".into(),
            source,
        })
    }
}

/// Writes a file whole or not at all: what was there before may be the input.
fn write(output: &Path, text: &str) -> io::Result<()> {
    // A link goes on pointing to the file that it names.
    let path = fs::canonicalize(output).unwrap_or_else(|_| output.to_owned());
    if path.exists() && !path.is_file() {
        // A pipe or a terminal has no name to give away.
        return File::create(&path)?.write_all(text.as_bytes());
    }
    let mut unfinished: OsString = path.clone().into_os_string();
    unfinished.push(".tmp");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    #[expect(clippy::disallowed_methods, reason = "the whole file gets its name")]
    let named = written.and_then(|()| fs::rename(&unfinished, &path));
    if named.is_err() {
        // Should this fail too, the first reason is the one to tell.
        let _ = fs::remove_file(&unfinished);
    }
    named
}
