//! What may change between the start of a run and its continuation.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use toml::Value;

use crate::{
    config::{self, Config, Optim, Schedule, TrainSection},
    error::Error,
    plan::{self, Plan},
    report,
    run_dir::{Change, Session},
    task::TaskConfig,
};

/// What becomes of a run that goes on with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The run goes on as if it had always had the new value, or the value does not touch its numbers.
    Allowed,
    /// The run goes on, but ends as neither configuration alone would have ended.
    Warned,
    /// The run cannot go on.
    Refused,
}

/// Every key of a configuration and what a change of it means; a table stands for all keys in it, and
/// the longest entry counts.
const RULES: [(&str, Rule, &str); 24] = [
    ("run.name", Rule::Allowed, "the directory was renamed"),
    ("run.dir", Rule::Allowed, "the directory was moved"),
    ("run.seed", Rule::Refused, "data order and random numbers come from it"),
    ("run.fold", Rule::Refused, "another fold has other splits"),
    ("device", Rule::Warned, "not bit-exact from here on"),
    ("device.replicas", Rule::Allowed, "the same sums, in another order"),
    ("task", Rule::Refused, "another task"),
    ("data", Rule::Refused, "other samples"),
    ("model", Rule::Refused, "the weights do not fit"),
    ("optim", Rule::Warned, "holds from here on"),
    ("schedule", Rule::Warned, "holds from here on"),
    ("train.epochs", Rule::Allowed, "another length"),
    ("train.steps", Rule::Allowed, "another length"),
    ("train.patience", Rule::Allowed, "another end"),
    ("train.batch_size", Rule::Refused, "the place in the data is counted in batches"),
    ("train.accumulate", Rule::Refused, "the place in the data is counted in steps"),
    ("train.eval_batch_size", Rule::Allowed, "scores do not depend on it"),
    ("train.eval_every_steps", Rule::Warned, "holds from here on"),
    ("train.clip_norm", Rule::Warned, "holds from here on"),
    ("train.recompute", Rule::Allowed, "the same gradients"),
    ("train.precision", Rule::Warned, "other rounding from here on"),
    ("train", Rule::Warned, "holds from here on"),
    ("checkpoint", Rule::Allowed, "what is kept"),
    ("log", Rule::Allowed, "what is written down"),
];

/// A key whose value is another one than when the run was started.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    key: String,
    was: String,
    is: String,
    rule: Rule,
    why: &'static str,
}

/// Compares the configuration that a run was started with to the one to go on with.
///
/// # Errors
/// [`Error::Checkpoint`] for one that cannot be understood.
pub(crate) fn compare(dir: &Path, old: &str, new: &str) -> Result<Vec<Difference>, Error> {
    let (old, new) = (values(dir, old)?, values(dir, new)?);
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut differences = Vec::new();
    let optimizers = [&old, &new].map(variant_of_optim);
    if optimizers[0] != optimizers[1] {
        let [was, is] = optimizers.map(str::to_owned);
        let why = "its state belongs to the other";
        differences.push(Difference { key: "optim".into(), was, is, rule: Rule::Refused, why });
        keys.retain(|key| !within(key, "optim"));
    }
    for key in keys {
        let (before, after) = (old.get(key), new.get(key));
        if before != after {
            let text = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
            let (rule, why) = rule_of(key);
            let (was, is) = (text(before), text(after));
            differences.push(Difference { key: key.clone(), was, is, rule, why });
        }
    }
    Ok(differences)
}

/// A key that no rule names is not one to go on with.
fn rule_of(key: &str) -> (Rule, &'static str) {
    let named = RULES.iter().filter(|(prefix, ..)| within(key, prefix));
    let longest = named.max_by_key(|(prefix, ..)| prefix.len());
    longest.map_or((Rule::Refused, "unknown"), |(_, rule, why)| (*rule, *why))
}

/// The error of the first difference that a run cannot go on with.
pub(crate) fn refusal(dir: &Path, differences: &[Difference]) -> Option<Error> {
    let first = differences.iter().find(|difference| difference.rule == Rule::Refused)?;
    Some(mismatch(dir, &first.key, first.was.clone(), first.is.clone()))
}

/// All differences for the user, with what they lead to; the worst first.
pub(crate) fn table(differences: &[Difference]) -> report::Table {
    let mut sorted: Vec<&Difference> = differences.iter().collect();
    sorted.sort_by_key(|difference| std::cmp::Reverse(difference.rule));
    let row = |difference: &Difference| {
        let Difference { key, was, is, rule, why } = difference;
        let rule = match rule {
            Rule::Allowed => "allowed",
            Rule::Warned => "warned",
            Rule::Refused => "refused",
        };
        vec![key.clone(), was.clone(), is.clone(), rule.to_owned(), (*why).to_owned()]
    };
    report::Table {
        title: String::new(),
        columns: ["key", "was", "is now", "resume", "why"].map(str::to_owned).to_vec(),
        rows: sorted.into_iter().map(row).collect(),
        ..report::Table::default()
    }
}

/// All differences for the record.
pub(crate) fn changes(differences: &[Difference]) -> Vec<Change> {
    let change = |difference: &Difference| {
        let Difference { key, was, is, .. } = difference.clone();
        Change { key, was, is }
    };
    differences.iter().map(change).collect()
}

/// What the configuration of a run was before, for its report; `None` if it was always the same.
pub(crate) fn history(sessions: &[Session]) -> Option<report::Table> {
    let rows: Vec<Vec<String>> = sessions
        .iter()
        .flat_map(|session| session.changes.iter().map(|change| (session.from_step, change)))
        .map(|(step, Change { key, was, is })| {
            vec![step.to_string(), key.clone(), was.clone(), is.clone()]
        })
        .collect();
    (!rows.is_empty()).then(|| report::Table {
        title: "Changes of the configuration".into(),
        columns: ["from step", "key", "was", "is"].map(str::to_owned).to_vec(),
        rows,
        ..report::Table::default()
    })
}

/// Whether one of the changes makes the run another one than either configuration alone would give.
pub(crate) fn is_notable(differences: &[Difference]) -> bool {
    differences.iter().any(|difference| difference.rule > Rule::Allowed)
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
    let commit = |session: &Session| session.build_commit.clone().unwrap_or_default();
    let [was_built_from, is_built_from] = [old, new].map(commit);
    let parts = [
        ("the version of this program", &old.version, &new.version),
        ("the commit that this program was built from", &was_built_from, &is_built_from),
        ("the version of Burn", &old.burn, &new.burn),
        ("the backend", &old.backend, &new.backend),
        ("the instruction set of the kernels", &old.simd, &new.simd),
    ];
    let changed =
        parts.into_iter().filter(|(_, old, new)| !old.is_empty() && !new.is_empty() && old != new);
    let say = |(what, old, new): (&str, &String, &String)| {
        format!("{what} was `{old}` and is now `{new}`: from here on the run is not bit-exact")
    };
    changed.map(say).collect()
}

/// What another number of replicas means, where it is one.
pub(crate) fn changed_replicas(old: &Session, new: &Session) -> Option<String> {
    let count = |session: &Session| match session.gradients.as_str() {
        "" => session.replicas.to_string(),
        route => format!("{} ({route})", session.replicas),
    };
    let [was, is] = [old, new].map(count);
    (was != is).then(|| {
        format!(
            "replicas: {was} until now, {is} from here on; a step has the same samples, whose \
             gradients may be added up in another order"
        )
    })
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
        ..report::Table::default()
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

/// Whether `key` is `prefix` or inside of it.
fn within(key: &str, prefix: &str) -> bool {
    key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn variant_of_optim(values: &BTreeMap<String, Value>) -> &str {
    let mut keys = values.keys().filter_map(|key| key.strip_prefix("optim."));
    keys.next().and_then(|key| key.split('.').next()).unwrap_or("absent")
}

/// Every value by its full key.
fn values(dir: &Path, text: &str) -> Result<BTreeMap<String, Value>, Error> {
    config::values(text).map_err(|error| unreadable(dir, &error))
}

fn unreadable(dir: &Path, error: &toml::de::Error) -> Error {
    Error::Checkpoint {
        path: dir.to_owned(),
        message: format!("its `config.toml` cannot be understood: {}", error.message()),
        hint: Some("restore the file: it says what the run was started with".into()),
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
        let dir = Path::new("runs/x");
        let differences = compare(dir, OLD, &OLD.replace(from, to)).unwrap();
        match refusal(dir, &differences) {
            Some(error) => Err(error.report()),
            None => {
                let notable = differences.iter().filter(|one| one.rule == Rule::Warned);
                Ok(notable
                    .map(|one| format!("{} was {}, is {}", one.key, one.was, one.is))
                    .collect())
            }
        }
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
        let said = vec!["optim.adam.lr was 0.001, is 0.1".to_owned()];
        assert_eq!(change("lr = 1e-3", "lr = 0.1"), Ok(said));
    }

    #[test]
    fn all_differences_are_in_one_table_the_worst_first() {
        let new = OLD.replace("lr = 1e-3", "lr = 0.1").replace("epochs = 2", "epochs = 3");
        let differences =
            compare(Path::new("x"), OLD, &new.replace("seed = 1", "seed = 2")).unwrap();
        assert_eq!(
            report::text_table(&table(&differences)),
            "key              was  is now  resume   why\n\
             -------------  -----  ------  -------  ------------------------------------------\n\
             run.seed           1       2  refused  data order and random numbers come from it\n\
             optim.adam.lr  0.001     0.1  warned   holds from here on\n\
             train.epochs       2       3  allowed  another length\n"
        );
        assert!(is_notable(&differences));
        assert!(!is_notable(&compare(Path::new("x"), OLD, &OLD.replace("'a'", "'b'")).unwrap()));
    }

    #[test]
    fn the_documentation_has_every_rule() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/faults.md");
        let text = std::fs::read_to_string(path).unwrap();
        for (key, rule, why) in RULES {
            let rule = format!("{rule:?}").to_lowercase();
            let row = format!("| `{key}` | {rule} | {why} |\n");
            assert!(text.contains(&row), "docs/faults.md has no row {row}");
        }
    }

    #[test]
    fn the_longest_rule_counts_and_what_has_none_is_refused() {
        assert_eq!(rule_of("train.steps").0, Rule::Allowed);
        assert_eq!(rule_of("train.anything").0, Rule::Warned);
        assert_eq!(rule_of("train.batch_size").0, Rule::Refused);
        assert_eq!(rule_of("trains").0, Rule::Refused);
    }

    #[test]
    fn another_route_is_said() {
        let old = Session { simd: "x86_64 V4".into(), ..Session::here(0, "flex", 0) };
        assert_eq!(changed_route(&old, &old), [""; 0]);
        let new = Session { simd: "x86_64 V3".into(), backend: "ndarray".into(), ..old.clone() };
        assert_eq!(
            changed_route(&old, &new),
            [
                "the backend was `flex` and is now `ndarray`: from here on the run is not bit-exact",
                "the instruction set of the kernels was `x86_64 V4` and is now `x86_64 V3`: from \
                 here on the run is not bit-exact",
            ]
        );
        let unknown = Session { simd: String::new(), ..old.clone() };
        assert_eq!(changed_route(&unknown, &old), [""; 0]);
    }

    #[test]
    fn another_number_of_replicas_is_said() {
        let one = Session::here(0, "flex", 0);
        assert_eq!(changed_replicas(&one, &one), None);
        let two = Session { replicas: 2, gradients: "NCCL".into(), ..one.clone() };
        assert_eq!(
            changed_replicas(&one, &two).unwrap(),
            "replicas: 1 until now, 2 (NCCL) from here on; a step has the same samples, whose \
             gradients may be added up in another order"
        );
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
