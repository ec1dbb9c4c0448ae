//! `ssm init`: a configuration to begin with.

use std::path::{Path, PathBuf};

use clap::Args;
use ssm_tasks::{Example, TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{Error, config::Config};

use crate::{output, print};

#[derive(Args)]
pub(crate) struct InitArgs {
    /// What to train.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TASKS))]
    task: String,
    /// Where to write the configuration. Default: the name of the task with `.toml`.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: InitArgs) -> Result<(), Error> {
    let task = args.task.clone();
    with_task(&task, Init(args))?
}

struct Init(InitArgs);

impl TaskVisitor for Init {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let InitArgs { task, output } = self.0;
        let output = output.unwrap_or_else(|| PathBuf::from(format!("{task}.toml")));
        let Some(Example { config, data }) = T::example() else {
            return Err(Error::Usage {
                message: format!("the task `{task}` has no example"),
                hint: Some(format!("begin with a file of `configs/{task}`")),
            });
        };
        let folder = output.parent().unwrap_or(Path::new(""));
        let name = output.file_stem().unwrap_or_default().to_string_lossy();
        let mut overrides = vec![format!("run.name={name}")];
        if let Some(data) = &data {
            overrides.push(format!("{}={}", data.key, folder.join(data.name).display()));
        }
        let config = Config::<T::Config>::parse(config, &task, &overrides)?;
        let text = format!(
            "# Made by `ssm init {task}`. Train it with `ssm train {}`.\n\n{}",
            output.display(),
            config.to_commented_toml()
        );
        output::create(&output, text.as_bytes())?;
        let mut written = format!("config  {}\n", output.display());
        if let Some(data) = data {
            let path = folder.join(data.file);
            if !path.exists() {
                output::create(&path, data.bytes)?;
            }
            written += &format!("data    {}\n", path.display());
        }
        print(&written)
    }
}
