//! `ssm compare`: several runs on one page.

use std::path::PathBuf;

use clap::Args;
use ssm_train::{Error, overview};

use crate::{output, print, print_tables};

#[derive(Args)]
pub(crate) struct CompareArgs {
    /// Run directories, as in `runs/a runs/b`.
    #[arg(required = true, num_args = 1..)]
    runs: Vec<PathBuf>,
    /// Where to write the page.
    #[arg(long, value_name = "FILE", default_value = "compare.html")]
    output: PathBuf,
    /// Print the tables as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &CompareArgs) -> Result<(), Error> {
    let (page, tables) = overview::compare(&args.runs)?;
    output::write(&args.output, page.as_bytes())?;
    print_tables(&tables, args.json)?;
    if args.json {
        return Ok(());
    }
    print(&format!("\npage  {}\n", args.output.display()))
}
