//! What may change between the start of a run and its continuation.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use toml::{Table, Value};

use crate::{
    config::{Config, Optim, Schedule, TrainSection},
    error::Error,
    plan::{self, Plan},
    report,
    run_dir::Session,
    task::TaskConfig,
};

/// Keys that the weights, the data order or the place in it depend on; a table stands for all keys
/// in it.
const FIXED: [&str; 6] =
    ["task", "data", "model", "train.batch_size", "train.accumulate", "run.seed"];

/// Keys that may change without a word of their own: they change how long the run is, what is
/// kept of it, and what memory it takes. What another length does to the learning rate is said by [`changed_rates`].
const FREE: [&str; 9] = [
    "run.name",
    "run.dir",
    "train.epochs",
    "train.steps",
    "train.patience",
    "train.eval_batch_size",
    "train.recompute",
    "checkpoint",
    "log",
];

/// Compares the configuration that a run was started with to the one to go on with.
///
/// Returns a sentence for every change that is allowed but makes the run another one than either
/// configuration alone would give, such as a new learning rate.
///
/// # Errors
/// [`Error::ResumeMismatch`] for the first key that must not change.
pub(crate) fn compare(dir: &Path, old: &str, new: &str) -> Result<Vec<String>, Error> {
    let (old, new) = (values(dir, old)?, values(dir, new)?);
    let mut changes = Vec::new();
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let optimizers = [&old, &new].map(variant_of_optim);
    if optimizers[0] != optimizers[1] {
        let [checkpoint, config] = optimizers.map(str::to_owned);
        return Err(mismatch(dir, "optim", checkpoint, config));
    }
    for key in keys {
        let (before, after) = (old.get(key), new.get(key));
        if before == after || within(key, &FREE) {
            continue;
        }
        let text = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
        if within(key, &FIXED) {
            return Err(mismatch(dir, key, text(before), text(after)));
        }
        changes.push(format!("`{key}` was {} and is now {}", text(before), text(after)));
    }
    Ok(changes)
}

/// Compares the data files that a run was started with to those that are there now.
///
/// # Errors
/// [`Error::ResumeMismatch`] for the first one that differs.
pub(crate) fn compare_data(
    dir: &Path,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Result<(), Error> {
    match changed_data(old, new) {
        None => Ok(()),
        Some((name, [old, new])) => {
            Err(mismatch(dir, &format!("SHA-256 of {name}"), old.to_owned(), new.to_owned()))
        }
    }
}

/// The first data file, by name, whose hash is another one, with both hashes.
pub(crate) fn changed_data<'a>(
    old: &'a BTreeMap<String, String>,
    new: &'a BTreeMap<String, String>,
) -> Option<(&'a str, [&'a str; 2])> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    let name = names.into_iter().find(|name| old.get(*name) != new.get(*name))?;
    let hash = |hashes: &'a BTreeMap<String, String>| hashes.get(name).map_or("absent", |h| h);
    Some((name, [hash(old), hash(new)]))
}

/// Compares what computed the run last to what computes it now.
///
/// Returns a sentence for everything that may change the last bits of every number from here on.
pub(crate) fn changed_route(old: &Session, new: &Session) -> Vec<String> {
    let parts = [
        ("the version of this program", &old.version, &new.version),
        ("the version of Burn", &old.burn, &new.burn),
        ("the backend", &old.backend, &new.backend),
        ("the instruction set of the kernels", &old.simd, &new.simd),
    ];
    let changed = parts.into_iter().filter(|(_, old, new)| !old.is_empty() && old != new);
    let say = |(what, old, new): (&str, &String, &String)| {
        format!("{what} was `{old}` and is now `{new}`: the last bits of the results may differ")
    };
    changed.map(say).collect()
}

/// The sections that learning rates come from.
#[derive(Deserialize)]
struct Rates {
    train: TrainSection,
    optim: Optim,
    #[serde(default)]
    schedule: Schedule,
}

/// Compares the learning rates of a run that was started with the configuration `old` to those of
/// `config`, where the run has another length now.
///
/// Returns a warning with a table if the steps that are `done` had other rates than they would have
/// had in a run of the new length: then the run is not the same as that one.
///
/// # Errors
/// [`Error::Checkpoint`] for an `old` that cannot be understood.
pub(crate) fn changed_rates<T: TaskConfig>(
    dir: &Path,
    old: &str,
    config: &Config<T>,
    plan: &Plan,
    done: u64,
) -> Result<Option<String>, Error> {
    let old: Rates = toml::from_str(old).map_err(|error| unreadable(dir, &error))?;
    let per_epoch = plan.steps_per_epoch;
    let [before, now] = [plan::total_steps(&old.train, per_epoch), plan.total_steps];
    let factors = |step| {
        [(&old.schedule, before), (&config.schedule, now)]
            .map(|(schedule, total)| schedule.factor(step, total, per_epoch))
    };
    let differs = |step: u64| factors(step)[0] != factors(step)[1];
    if before == now || !(0..done).any(differs) {
        return Ok(None);
    }
    let mut steps = vec![0, done / 2, done.saturating_sub(1), done, done.midpoint(now), now - 1];
    steps.retain(|step| *step < now);
    steps.sort_unstable();
    steps.dedup();
    let row = |step: u64| {
        let [was, is] = factors(step);
        let was = format!("{:.3e}", old.optim.lr() * was);
        let was = if step < before { was } else { "-".into() };
        vec![step.to_string(), was, format!("{:.3e}", config.optim.lr() * is)]
    };
    let table = report::text_table(&report::Table {
        title: "learning rate".into(),
        columns: vec!["step".into(), format!("of {before} steps"), format!("of {now} steps")],
        rows: steps.into_iter().map(row).collect(),
        note: String::new(),
    });
    Ok(Some(format!(
        "the run had {before} steps and has {now} now, and `schedule.{}` depends on that: the {done} \
         steps that are done had other learning rates than in a run of {now} steps\n\n{table}",
        config.schedule.name()
    )))
}

fn mismatch(dir: &Path, key: &str, checkpoint: String, config: String) -> Error {
    Error::ResumeMismatch { dir: dir.to_owned(), key: key.to_owned(), checkpoint, config }
}

/// Whether `key` is one of `keys` or inside of one.
fn within(key: &str, keys: &[&str]) -> bool {
    keys.iter().any(|prefix| {
        key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

fn variant_of_optim(values: &BTreeMap<String, Value>) -> &str {
    let mut keys = values.keys().filter_map(|key| key.strip_prefix("optim."));
    keys.next().and_then(|key| key.split('.').next()).unwrap_or("absent")
}

/// Every value by its full key.
fn values(dir: &Path, text: &str) -> Result<BTreeMap<String, Value>, Error> {
    let table: Table = text.parse().map_err(|error| unreadable(dir, &error))?;
    let mut values = BTreeMap::new();
    flatten("", &table, &mut values);
    Ok(values)
}

fn unreadable(dir: &Path, error: &toml::de::Error) -> Error {
    Error::Checkpoint {
        path: dir.to_owned(),
        message: format!("its `config.toml` cannot be understood: {}", error.message()),
        hint: Some("restore the file: it says what the run was started with".into()),
    }
}

fn flatten(prefix: &str, table: &Table, values: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            // An empty table is a value: it names a variant without fields.
            Value::Table(table) if !table.is_empty() => flatten(&key, table, values),
            value => {
                values.insert(key, value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "\
        run = { name = 'a', seed = 1 }\n\
        model.mlp = { n_layer = 4, kind.relu = {} }\n\
        optim.adam = { lr = 1e-3 }\n\
        train = { epochs = 2, batch_size = 8 }\n\
        log = { every_steps = 50 }\n";

    fn change(from: &str, to: &str) -> Result<Vec<String>, String> {
        assert!(OLD.contains(from));
        compare(Path::new("runs/x"), OLD, &OLD.replace(from, to)).map_err(|error| error.report())
    }

    #[test]
    fn what_the_weights_depend_on_must_not_change() {
        let refused = |key: &str, old: &str, new: &str| {
            Err(format!(
                "error: cannot resume `runs/x`: `{key}` is {old} in the checkpoint and {new} in \
                 the config\nhint: start a new run directory, or restore the value"
            ))
        };
        assert_eq!(change("n_layer = 4", "n_layer = 2"), refused("model.mlp.n_layer", "4", "2"));
        assert_eq!(
            change("n_layer = 4, ", ""),
            refused("model.mlp.n_layer", "4", "absent"),
            "a key that is gone"
        );
        assert_eq!(
            change("kind.relu = {}", "kind.gelu = {}"),
            refused("model.mlp.kind.gelu", "absent", "{}")
        );
        assert_eq!(change("seed = 1", "seed = 2"), refused("run.seed", "1", "2"));
        assert_eq!(
            change("batch_size = 8", "batch_size = 9"),
            refused("train.batch_size", "8", "9")
        );
        assert_eq!(change("optim.adam", "optim.adamw"), refused("optim", "adam", "adamw"));
    }

    #[test]
    fn length_and_logging_may_change() {
        assert_eq!(change("epochs = 2", "steps = 90"), Ok(vec![]));
        assert_eq!(change("every_steps = 50", "every_steps = 5"), Ok(vec![]));
        assert_eq!(change("name = 'a'", "name = 'b'"), Ok(vec![]));
    }

    #[test]
    fn other_changes_are_said() {
        let said = vec!["`optim.adam.lr` was 0.001 and is now 0.1".to_owned()];
        assert_eq!(change("lr = 1e-3", "lr = 0.1"), Ok(said));
    }

    #[test]
    fn another_route_is_said() {
        let old = Session { simd: "x86_64 V4".into(), ..Session::here(0, "flex", 0) };
        assert_eq!(changed_route(&old, &old), [""; 0]);
        let new = Session { simd: "x86_64 V3".into(), backend: "ndarray".into(), ..old.clone() };
        assert_eq!(
            changed_route(&old, &new),
            [
                "the backend was `flex` and is now `ndarray`: the last bits of the results may \
                 differ",
                "the instruction set of the kernels was `x86_64 V4` and is now `x86_64 V3`: the \
                 last bits of the results may differ",
            ]
        );
        let unknown = Session { simd: String::new(), ..old.clone() };
        assert_eq!(changed_route(&unknown, &old), [""; 0]);
    }

    #[test]
    fn changed_data_is_refused() {
        let hashes = |hash: &str| BTreeMap::from([("a.csv".to_owned(), hash.to_owned())]);
        let compare = |old: &str, new: &str| {
            compare_data(Path::new("runs/x"), &hashes(old), &hashes(new)).map_err(|e| e.to_string())
        };
        assert_eq!(compare("12", "12"), Ok(()));
        let expected = "cannot resume `runs/x`: `SHA-256 of a.csv` is 12 in the checkpoint and 34 \
                        in the config";
        assert_eq!(compare("12", "34"), Err(expected.to_owned()));
    }
}
