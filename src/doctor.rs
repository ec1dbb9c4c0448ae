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

/// Least time between two lines that say how far the tests of a device are.
const PAUSE: Duration = Duration::from_secs(10);

/// A device, and how its tests went unless its driver does not open it.
struct Examined {
    found: Found,
    tests: Result<Vec<SelfTest>, Error>,
}

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
    let examined: Vec<Examined> = found.into_iter().map(Examined::of).collect();
    let tables = [program(), backends(), devices(&examined), tests(&examined)];
    print_tables(&tables, args.json)?;
    examined.iter().try_for_each(Examined::judge)?;
    examined.into_iter().try_for_each(|Examined { tests, .. }| tests.map(|_| ()))
}

impl Examined {
    /// Opens and tests a device; says now and then how far the tests are.
    fn of(found: Found) -> Self {
        let (mut n_ended, mut said) = (0, Instant::now());
        let tests = found.open().map(|()| {
            self_test(&found.device, |test| {
                n_ended += 1;
                if said.elapsed() > PAUSE {
                    let op = test.op;
                    tracing::info!("self-tests of `{found}`: {n_ended} so far, the last of `{op}`");
                    said = Instant::now();
                }
            })
        });
        Self { found, tests }
    }

    /// Of a device that opens: an error if a test failed.
    fn judge(&self) -> Result<(), Error> {
        let Ok(tests) = &self.tests else { return Ok(()) };
        let failed: Vec<&SelfTest> = tests.iter().filter(|test| !test.passed()).collect();
        let Some(first) = failed.first() else { return Ok(()) };
        let (n_failed, n_tests) = (failed.len(), tests.len());
        Err(Error::Device {
            device: self.found.to_string(),
            message: format!(
                "{n_failed} of {n_tests} self-tests failed, the first is `{}` ({})",
                first.op, first.shape
            ),
            hint: Some(
                "results of this device are wrong: update its driver, or use another device".into(),
            ),
        })
    }
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

fn devices(examined: &[Examined]) -> Table {
    let row = |Examined { found, tests }: &Examined| {
        let device = found.to_string();
        if tests.is_err() {
            return [&device, "does not open", "-", "-", "-", "-", "-"].map(str::to_owned).to_vec();
        }
        let memory = found.memory().map_or_else(|| "-".to_owned(), machine::readable);
        vec![
            device,
            "open".to_owned(),
            found.name().unwrap_or_else(|| "-".to_owned()),
            found.driver().unwrap_or_else(|| "-".to_owned()),
            found.language().unwrap_or("-").to_owned(),
            found.float_types().join(" "),
            memory,
        ]
    };
    let columns = ["device", "state", "name", "driver", "kernels in", "float types", "memory"];
    table("devices", &columns, 6, examined.iter().map(row).collect())
}

fn tests(examined: &[Examined]) -> Table {
    let mut rows = Vec::new();
    for Examined { found, tests } in examined {
        for test in tests.iter().flatten() {
            let [error, worst, time] = match &test.outcome {
                Ok(measured) => [
                    format!("{:.1e}", measured.error),
                    measured.worst.to_owned(),
                    format!("{:.2}", measured.time.as_secs_f64() * 1e3),
                ],
                Err(panic) => ["-".to_owned(), panic.clone(), "-".to_owned()],
            };
            rows.push(vec![
                found.to_string(),
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
                  all outputs and gradients. Time: forward, backward and copies to the host, of all steps where there are several."
            .to_owned();
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        Error::Device { device: "cuda".into(), message: "does not open".into(), hint: None }
    }

    /// Both ways it goes.
    #[test]
    fn a_device_that_does_not_open_is_a_row_beside_the_others() {
        let found = device::all().swap_remove(0);
        let wrong = SelfTest::of("norm", "3", 0.0, || vec![("y", vec![1.0], vec![2.0])]);
        let examined = |tests| Examined { found: found.clone(), tests };
        let all = [examined(Err(error())), examined(Ok(vec![wrong]))];
        let states: Vec<String> =
            devices(&all).rows.into_iter().map(|row| row[1].clone()).collect();
        assert_eq!(states, ["does not open", "open"]);
        assert_eq!(super::tests(&all).rows.len(), 1);
        all[0].judge().unwrap();
        let report = all[1].judge().unwrap_err().report();
        let expected = format!(
            "error: device `{found}`: 1 of 1 self-tests failed, the first is `norm` (3)\nhint: results of \
             this device are wrong: update its driver, or use another device"
        );
        assert_eq!(report, expected);
    }
}
