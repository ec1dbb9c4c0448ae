//! `ssm runs`: what runs there are and what they came to.

use std::path::PathBuf;

use clap::Args;
use ssm_train::{Error, overview};

use crate::print_tables;

#[derive(Args)]
pub(crate) struct RunsArgs {
    /// Directory that holds the runs.
    #[arg(default_value = "runs")]
    dir: PathBuf,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RunsArgs) -> Result<(), Error> {
    let runs = overview::runs(&args.dir)?;
    print_tables(&[overview::table(&runs)], args.json)
}
