//! What a finished run has to show.

use burn::module::Module;
use ssm_train::{
    error::Error,
    report::{Figure, Series, Table},
    task::{Outcome, Split},
};

use super::{
    LmTask,
    data::Parts,
    model::MambaLm,
    score::{Scores, score},
};

/// Scores the test part.
pub(super) fn conclude(task: &LmTask, model: &MambaLm) -> Result<Outcome, Error> {
    match &task.corpus.parts {
        Parts::Text { test, .. } => text(task, model, test.is_some()),
        Parts::MadeUp(made_up) => {
            let lens = match made_up.test_lens() {
                [] => vec![made_up.len()],
                lens => lens.to_vec(),
            };
            made_up_at(task, model, &lens)
        }
    }
}

fn text(task: &LmTask, model: &MambaLm, has_test: bool) -> Result<Outcome, Error> {
    let metrics = score(task, model, Split::Test, None)?.metrics();
    let part = if has_test { "test" } else { "validation" };
    let columns = ["parameters", "loss", "bits_per_byte", "perplexity", "accuracy"];
    let mut row = vec![model.num_params().to_string()];
    row.extend(columns[1..].iter().map(|name| format!("{:.4}", metrics[*name])));
    let mut note = format!(
        "Every token of the {part} text but the first, in blocks of {}; the loss in nats a token.",
        task.sequence_len()
    );
    if !has_test {
        note += " There is no test text: this is the text that selected the checkpoint.";
    }
    let table = Table {
        title: format!("Scores on the {part} text of {}", task.corpus.name),
        columns: columns.map(|name| name.replace('_', " ")).to_vec(),
        rows: vec![row],
        note,
        ..Table::default()
    };
    Ok(Outcome { metrics, tables: vec![table], ..Outcome::default() })
}

fn made_up_at(task: &LmTask, model: &MambaLm, lens: &[usize]) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let mut rows = Vec::new();
    let mut points = Vec::new();
    for &len in lens {
        let scores = score(task, model, Split::Test, Some(len))?;
        if lens.len() == 1 {
            outcome.metrics = scores.metrics();
        } else {
            outcome.metrics.insert(format!("accuracy_{len}"), scores.accuracy());
        }
        rows.push(row(len, &scores));
        points.push((len as f64, scores.accuracy()));
    }
    outcome.tables.push(Table {
        title: format!("Test scores on {}", task.corpus.name),
        columns: ["length", "sequences", "accuracy", "exact", "loss"].map(str::to_owned).to_vec(),
        rows,
        note: "Accuracy over all targets; exact is the share of sequences without a mistake; the \
               loss in nats."
            .to_owned(),
        ..Table::default()
    });
    if points.len() > 1 {
        outcome.figures.push(Figure::Lines {
            title: "Accuracy by length".to_owned(),
            x_label: "length".to_owned(),
            y_label: "accuracy".to_owned(),
            series: vec![Series { name: "accuracy".to_owned(), points }],
            note: String::new(),
        });
    }
    Ok(outcome)
}

fn row(len: usize, scores: &Scores) -> Vec<String> {
    vec![
        len.to_string(),
        scores.n_sequences().to_string(),
        format!("{:.4}", scores.accuracy()),
        format!("{:.4}", scores.exact()),
        format!("{:.4}", scores.loss()),
    ]
}
