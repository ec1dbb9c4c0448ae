//! `ssm`: train, evaluate and use selective state space models from one TOML file.
//!
//! Data goes to standard output, messages to standard error. Exit codes: 0 success, 1 failure,
//! 2 wrong usage, configuration or data, 3 the run directory could not be written, 128 + signal
//! number after an interrupt that left a checkpoint.

mod bench;
mod check;
mod compare;
mod data;
mod describe;
mod doctor;
mod evaluate;
mod generate;
mod heatmap;
mod import;
mod init;
mod output;
mod predict;
mod report;
mod runs;
mod tokenize;
mod train;

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};
use ssm_train::{
    Error, World,
    allocation::Counted,
    error::caught,
    progress::Screen,
    report::{Table, text_table},
};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, filter_fn},
    layer::SubscriberExt,
};

/// Tensors of some megabytes are made and dropped all the time; the system's allocator returns each to
/// the kernel and faults it in again, which costs a third of a training step. What is in use is counted
/// where the cost of a configuration is measured.
#[global_allocator]
static ALLOCATOR: Counted<mimalloc::MiMalloc> = Counted(mimalloc::MiMalloc);

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong command, configuration or data, \
                          3 the run could not be saved, 128 + signal after an interrupt.";

/// Train selective state space models (Mamba and its family) from one TOML file.
#[derive(Parser)]
#[command(name = "ssm", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write a commented configuration to begin with.
    Init(init::InitArgs),
    /// Look for whatever is wrong with a configuration and its data, and estimate what the run takes.
    Check(check::CheckArgs),
    /// Train a model, score it on the test split and write a report.
    Train(train::TrainArgs),
    /// Score a trained run again.
    Eval(evaluate::EvalArgs),
    /// Apply a trained run to a file.
    Predict(predict::PredictArgs),
    /// Go on with a text, by a trained language model.
    Generate(generate::GenerateArgs),
    /// Draw where on a slide a trained run looks.
    Heatmap(heatmap::HeatmapArgs),
    /// List runs with their status and best score.
    Runs(runs::RunsArgs),
    /// Put several runs on one page.
    Compare(compare::CompareArgs),
    /// Make the report of a run again.
    Report(report::ReportArgs),
    /// Turn text into files of tokens, or into a new vocabulary.
    Tokenize(tokenize::TokenizeArgs),
    /// Make a run of weights that Hugging Face or state-spaces/mamba wrote.
    Import(import::ImportArgs),
    /// Write the weights of a run for Hugging Face or state-spaces/mamba.
    Export(import::ExportArgs),
    /// Measure how fast a configuration trains.
    Bench(bench::BenchArgs),
    /// Data sets that the tasks know.
    Data(data::DataArgs),
    /// Show what this binary finds on this machine, and test that it computes correctly.
    Doctor(doctor::DoctorArgs),
    /// Print the JSON Schema of configurations, for editors.
    Schema(describe::SchemaArgs),
    /// Print a script that completes commands in a shell.
    Completions(describe::CompletionsArgs),
    /// Write manual pages.
    Man(describe::ManArgs),
}

/// Where data sets are looked for.
#[derive(Args)]
struct DataDirs {
    /// Directory with data sets; may be given several times. Searched before the directory in the
    /// environment variable SSM_DATA and before `data/`.
    #[arg(long = "data-dir", value_name = "DIR")]
    data_dirs: Vec<PathBuf>,
}

impl DataDirs {
    /// The directories in the order in which they are searched.
    fn resolve(self) -> Vec<PathBuf> {
        let mut dirs = self.data_dirs;
        dirs.extend(std::env::var_os("SSM_DATA").filter(|dir| !dir.is_empty()).map(PathBuf::from));
        dirs.push(PathBuf::from("data"));
        dirs
    }
}

/// Which device runs a finished model.
#[derive(Args)]
struct DeviceArgs {
    /// Backend, such as `flex` or `cuda`, with an index as in `cuda:0` where there are several devices.
    /// Default: the one that trained the run.
    #[arg(long, value_name = "BACKEND[:INDEX]")]
    device: Option<String>,
}

impl DeviceArgs {
    fn section(&self) -> Result<Option<ssm_train::config::DeviceSection>, Error> {
        self.device.as_deref().map(device_section).transpose()
    }
}

/// Reads `backend` or `backend:index`, of a device that this binary and machine have.
fn device_section(text: &str) -> Result<ssm_train::config::DeviceSection, Error> {
    let (backend, index) = device_parts(text)?;
    // One that they do not have is a wrong command, not a broken device.
    ssm_train::device::resolve(backend, index).map_err(|error| match error {
        Error::Device { device, message, hint } => {
            Error::Usage { message: format!("device `{device}`: {message}"), hint }
        }
        other => other,
    })?;
    let backend = backend.to_owned();
    Ok(ssm_train::config::DeviceSection { backend, index, ..Default::default() })
}

/// Takes `backend` or `backend:index` apart.
fn device_parts(text: &str) -> Result<(&str, usize), Error> {
    let (backend, index) = text.split_once(':').unwrap_or((text, "0"));
    let index = index.parse().map_err(|_| Error::Usage {
        message: format!("`{text}` is not a device: expected an index after `:`, got `{index}`"),
        hint: Some("write it as in `cuda:0`".into()),
    })?;
    Ok((backend, index))
}

/// The commit that this program was built from, where `build.rs` found one.
fn commit() -> Option<String> {
    option_env!("SSM_COMMIT").map(str::to_owned)
}

/// Bytes of stack of a thread of the pool.
const STACK: usize = 8 << 20;

fn main() -> ExitCode {
    // The main thread of most systems has this much stack, and Burn's autodiff needs some.
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK);
    match pool.build_global() {
        // On a thread of the pool, which then need not be woken for every operation.
        Ok(()) if rayon::current_num_threads() > 1 => rayon::scope(|_| run()),
        // Not on the only one: what reads data on other threads may have work for the pool too. This
        // thread becomes a pool of its own.
        _ => {
            let alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
            let _pool = alone.build();
            run()
        }
    }
}

fn run() -> ExitCode {
    let cli = Cli::parse();
    let world = match &cli.verb {
        Verb::Train(_) => World::enter(),
        _ => Ok(World::alone()),
    };
    let world = match world {
        Ok(world) => world,
        Err(error) => return exit(&error),
    };
    let screen = Screen::default();
    // What it holds back is written when it is dropped, at the end.
    let _profile = match listen(&cli.verb, &screen, world.leads()) {
        Ok(guard) => guard,
        Err(error) => return exit(&error),
    };
    // Where a device fails Burn panics.
    let done = caught("the command", || match cli.verb {
        Verb::Init(args) => init::run(args),
        Verb::Check(args) => check::run(args),
        Verb::Train(args) => train::run(args, screen, &world),
        Verb::Eval(args) => evaluate::run(args),
        Verb::Predict(args) => predict::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Heatmap(args) => heatmap::run(args),
        Verb::Runs(args) => runs::run(&args),
        Verb::Compare(args) => compare::run(&args),
        Verb::Report(args) => report::run(args),
        Verb::Tokenize(args) => tokenize::run(&args),
        Verb::Import(args) => import::import(&args),
        Verb::Export(args) => import::export(&args),
        Verb::Bench(args) => bench::run(args),
        Verb::Data(args) => data::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Schema(args) => describe::schema(&args),
        Verb::Completions(args) => describe::completions(&args),
        Verb::Man(args) => describe::man(&args),
    });
    world.leave(done.as_ref().err());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The one that leads was told, and says it: its exit code is that of all. With another one here
        // `mpirun` would end it before it can.
        Err(_) if !world.leads() => ExitCode::SUCCESS,
        Err(error) => exit(&error),
    }
}

fn exit(error: &Error) -> ExitCode {
    // A closed standard error leaves only the exit code to tell.
    let _ = writeln!(std::io::stderr(), "{}", error.report());
    ExitCode::from(error.exit_code())
}

/// Shows messages, and writes the profile that was asked for; a process that follows another one says
/// only what that one cannot.
fn listen(
    verb: &Verb,
    screen: &Screen,
    leads: bool,
) -> Result<Option<tracing_chrome::FlushGuard>, Error> {
    let screen = screen.clone();
    let messages = tracing_subscriber::fmt::layer()
        .with_writer(move || screen.clone())
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .without_time()
        .with_filter(if leads { LevelFilter::INFO } else { LevelFilter::ERROR });
    let profile = match verb {
        Verb::Train(args) if leads => args.profile.as_deref(),
        _ => None,
    };
    let (spans, guard) = match profile {
        Some(path) => {
            let file = output::open(path)?;
            let (layer, guard) = tracing_chrome::ChromeLayerBuilder::new().writer(file).build();
            let ours = filter_fn(|span| span.is_span() && span.target().starts_with("ssm"));
            (Some(layer.with_filter(ours)), Some(guard))
        }
        None => (None, None),
    };
    let subscriber = tracing_subscriber::registry().with(messages).with(spans);
    // Not by `init`, which may also take what crates log: the engine listens to that, and says what is
    // of use in it. This is the first subscriber, so it is taken.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(guard)
}

/// Writes text to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<(), Error> {
    stream(text).map(|_| ())
}

/// Writes text to standard output at once, and says whether anybody still reads.
fn stream(text: &str) -> Result<bool, Error> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => {
            Err(Error::Io { path: "standard output".into(), action: "write to".into(), source })
        }
        Ok(()) => Ok(true),
    }
}

/// Tables as text, or as JSON objects with the columns as keys and `null` where there is nothing.
fn print_tables(tables: &[Table], json: bool) -> Result<(), Error> {
    if !json {
        let texts: Vec<String> = tables.iter().map(text_table).collect();
        return print(&texts.join("\n"));
    }
    let rows = |table: &Table| -> Value {
        let row = |row: &Vec<String>| -> Value {
            let value = |(column, cell): (usize, &String)| -> Value {
                match (cell.parse::<i64>(), cell.parse::<f64>()) {
                    _ if column > 0 && ["", "-"].contains(&cell.as_str()) => Value::Null,
                    _ if column < table.names => cell.clone().into(),
                    (Ok(count), _) => count.into(),
                    (_, Ok(number)) => number.into(),
                    _ => cell.clone().into(),
                }
            };
            let cells = row.iter().enumerate().map(value);
            Value::Object(table.columns.iter().cloned().zip(cells).collect())
        };
        table.rows.iter().map(row).collect()
    };
    let all: Map<_, _> = tables.iter().map(|table| (table.title.clone(), rows(table))).collect();
    print(&format!("{}\n", Value::Object(all)))
}
