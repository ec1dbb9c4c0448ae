//! `ssm data`: what is known of published data sets.

use clap::{Args, Subcommand};
use ssm_train::{Error, report::Table};

use crate::print_tables;

#[derive(Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Subcommand)]
enum DataVerb {
    /// Known data sets with origin, licence and checksum.
    List {
        /// Print the table as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: &DataArgs) -> Result<(), Error> {
    let DataVerb::List { json } = args.verb;
    let row = |set: ssm_tasks::data::KnownSet| {
        [set.name, set.task, set.config, set.file, set.shape, set.licence, set.origin]
            .into_iter()
            .chain([set.sha256.unwrap_or("-")])
            .map(str::to_owned)
            .collect()
    };
    let table = Table {
        title: "data sets".into(),
        columns: ["name", "task", "config", "file", "shape", "licence", "origin", "sha256"]
            .map(str::to_owned)
            .to_vec(),
        names: 8,
        rows: ssm_tasks::known_sets().into_iter().map(row).collect(),
        note: "Nothing is downloaded: put the file (plain or .gz) below `data/`, the directory in \
               SSM_DATA, or one given by --data-dir."
            .into(),
    };
    print_tables(&[table], json)
}
