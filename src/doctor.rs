//! `ssm doctor`: what this binary finds on this machine, and whether it computes what it should.

use std::time::{Duration, Instant};

use clap::Args;
use ssm_tasks::{SelfTest, self_test};
use ssm_train::{
    Error,
    device::{self, Found},
    machine,
    report::Table,
    run_dir::Session,
};

use crate::{device_section, print_tables};

/// Longest time without a word, where kernels are compiled.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Test this device only, as in `cuda:0`. Default: every device.
    #[arg(long, value_name = "BACKEND[:INDEX]")]
    device: Option<String>,
    /// Print the tables as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Error> {
    let mut found = device::all();
    if let Some(text) = &args.device {
        let section = device_section(text)?;
        let backend = device::resolve(&section.backend, section.index)?;
        found.retain(|found| found.backend == backend && found.index == section.index);
    }
    let found: Vec<(Found, Result<(), Error>)> =
        found.into_iter().map(|found| (found.clone(), found.open())).collect();
    let open = found.iter().filter(|(_, opened)| opened.is_ok());
    let tested: Vec<(String, Vec<SelfTest>)> = open.map(|(found, _)| tested(found)).collect();
    let tables = [program(), backends(), devices(&found), tests(&tested)];
    print_tables(&tables, args.json)?;
    found.into_iter().try_for_each(|(_, opened)| opened)?;
    for (device, tests) in tested {
        let failed: Vec<&SelfTest> = tests.iter().filter(|test| !test.passed()).collect();
        if let Some(first) = failed.first() {
            return Err(Error::Device {
                device,
                message: format!(
                    "{} of {} self-tests failed, the first is `{}` ({})",
                    failed.len(),
                    tests.len(),
                    first.op,
                    first.shape
                ),
                hint: Some(
                    "results of this device are wrong: update its driver, or use another device"
                        .into(),
                ),
            });
        }
    }
    Ok(())
}

/// The self-tests of a device by its name; says now and then how far they are.
fn tested(found: &Found) -> (String, Vec<SelfTest>) {
    let (mut n_ended, mut said) = (0, Instant::now());
    let tests = self_test(&found.device, |test| {
        n_ended += 1;
        if said.elapsed() > SILENCE {
            tracing::info!(
                "self-tests of `{found}`: {n_ended} so far, the last one of `{}`",
                test.op
            );
            said = Instant::now();
        }
    });
    (found.to_string(), tests)
}

fn table(title: &str, columns: &[&str], names: usize, rows: Vec<Vec<String>>) -> Table {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    Table { title: title.to_owned(), columns, names, rows, note: String::new() }
}

fn program() -> Table {
    let here = Session::here(0, "", 0);
    let rows = [
        ("version", here.version),
        ("burn", here.burn),
        ("built from commit", crate::commit().unwrap_or_else(|| "-".to_owned())),
        ("instructions", here.simd),
        ("threads", here.cpus.to_string()),
    ];
    let rows = rows.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    table("program", &["what", "value"], 1, rows)
}

fn backends() -> Table {
    let row = |(name, compiled): (&str, bool)| {
        let (state, n_devices) = match compiled {
            true => ("compiled in", device::count(name).to_string()),
            false => ("not compiled in", "-".to_owned()),
        };
        vec![name.to_owned(), state.to_owned(), n_devices]
    };
    let rows = device::backends().into_iter().map(row).collect();
    table("backends", &["backend", "state", "devices"], 2, rows)
}

fn devices(found: &[(Found, Result<(), Error>)]) -> Table {
    let row = |(found, opened): &(Found, Result<(), Error>)| {
        if opened.is_err() {
            let cells = [&found.to_string(), "does not open", "-", "-", "-", "-"];
            return cells.map(str::to_owned).to_vec();
        }
        let memory = found.memory().map_or_else(|| "-".to_owned(), machine::readable);
        vec![
            found.to_string(),
            found.name().unwrap_or_else(|| "-".to_owned()),
            found.driver().unwrap_or_else(|| "-".to_owned()),
            found.language().unwrap_or("-").to_owned(),
            found.float_types().join(" "),
            memory,
        ]
    };
    let columns = ["device", "name", "driver", "kernels in", "float types", "memory"];
    table("devices", &columns, 5, found.iter().map(row).collect())
}

fn tests(tested: &[(String, Vec<SelfTest>)]) -> Table {
    let mut rows = Vec::new();
    for (device, tests) in tested {
        for test in tests {
            let [error, worst, time] = match &test.outcome {
                Ok(measured) => [
                    format!("{:.1e}", measured.error),
                    measured.worst.to_owned(),
                    format!("{:.2}", measured.time.as_secs_f64() * 1e3),
                ],
                Err(panic) => ["-".to_owned(), panic.clone(), "-".to_owned()],
            };
            rows.push(vec![
                device.clone(),
                test.op.to_owned(),
                test.shape.clone(),
                error,
                format!("{:.1e}", test.bound),
                worst,
                time,
                if test.passed() { "passed" } else { "FAILED" }.to_owned(),
            ]);
        }
    }
    let columns = ["device", "op", "shape", "error", "bound", "worst", "ms", "result"];
    let mut table = table("self-tests", &columns, 3, rows);
    table.note =
        "Error: RMS of the difference to the specification in f64 over its RMS, the worst of \
                  all outputs and gradients. Time: forward, backward and copies to the host."
            .to_owned();
    table
}
