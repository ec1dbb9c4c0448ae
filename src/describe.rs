//! What editors and shells want to know of this program: `ssm schema`, `ssm completions`, `ssm man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use ssm_tasks::{TASKS, TaskEntry, TaskVisitor, with_task};
use ssm_train::{Error, config::SchemaBuilder};

use crate::{Cli, output, print};

#[derive(Args)]
pub(crate) struct SchemaArgs {
    /// Only configurations of this task. Default: of any task.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TASKS))]
    task: Option<String>,
}

#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell to complete commands in.
    shell: Shell,
}

#[derive(Args)]
pub(crate) struct ManArgs {
    /// Directory for the pages, as in `~/.local/share/man/man1`.
    dir: PathBuf,
}

pub(crate) fn schema(args: &SchemaArgs) -> Result<(), Error> {
    let mut builder = SchemaBuilder::default();
    for task in TASKS.iter().filter(|task| args.task.as_deref().is_none_or(|name| name == **task)) {
        with_task(task, Add(&mut builder))?;
    }
    print(&format!("{:#}\n", builder.finish()))
}

struct Add<'a>(&'a mut SchemaBuilder);

impl TaskVisitor for Add<'_> {
    type Output = ();

    fn visit<T: TaskEntry>(self) {
        self.0.add::<T::Config>();
    }
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ssm", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Error> {
    output::folder(&args.dir)?;
    let mut command = Cli::command().name("ssm");
    command.build();
    let mut pages = vec![command.clone()];
    let mut written = String::new();
    while let Some(page) = pages.pop() {
        pages.extend(page.get_subcommands().filter(|verb| verb.get_name() != "help").cloned());
        let name = page.get_display_name().unwrap_or(page.get_name()).replace(' ', "-");
        let path = args.dir.join(format!("{name}.1"));
        let mut text = Vec::new();
        clap_mangen::Man::new(page).title(name).render(&mut text).map_err(|source| Error::Io {
            path: path.clone(),
            action: "write".into(),
            source,
        })?;
        output::write(&path, &text)?;
        written += &format!("{}\n", path.display());
    }
    print(&written)
}
