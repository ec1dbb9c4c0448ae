//! Scores against what scikit-learn, scikit-survival and lifelines say of the same numbers.
//!
//! Recorded by `fixtures/mil/make_fixtures.py`.

use std::path::Path;

use serde_json::Value;
use ssm_tasks::mil::{
    metrics::Predictions,
    survival::{FollowUp, concordance, kaplan_meier, log_rank},
};

fn recorded() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mil/scores.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn assert_close(what: &str, got: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= 1e-9 * (1.0 + expected.abs()), "{what}: {got}, {expected}");
}

#[test]
fn classification_scores_are_those_of_scikit_learn() {
    for (index, case) in recorded()["classification"].as_array().unwrap().iter().enumerate() {
        let predictions = Predictions {
            n_classes: case["n_classes"].as_u64().unwrap() as usize,
            truth: numbers(&case["truth"]).iter().map(|class| *class as usize).collect(),
            probabilities: numbers(&case["probabilities"]),
        };
        for (name, score) in [
            ("accuracy", predictions.accuracy()),
            ("auc", predictions.auc()),
            ("balanced_accuracy", predictions.balanced_accuracy()),
            ("f1", predictions.f1()),
        ] {
            assert_close(&format!("{name} of case {index}"), score.unwrap(), &case[name]);
        }
        let confusion = serde_json::to_value(predictions.confusion()).unwrap();
        assert_eq!(confusion, case["confusion"], "case {index}");
    }
}

#[test]
fn survival_scores_are_those_of_scikit_survival_and_lifelines() {
    for (index, case) in recorded()["survival"].as_array().unwrap().iter().enumerate() {
        let (time, risk) = (numbers(&case["time"]), numbers(&case["risk"]));
        let event = case["event"].as_array().unwrap().iter().map(|event| event.as_bool().unwrap());
        let patients: Vec<FollowUp> = time
            .iter()
            .zip(&risk)
            .zip(event)
            .map(|((&time, &risk), event)| FollowUp { time, event, risk })
            .collect();
        assert_close("concordance", concordance(&patients).unwrap(), &case["c_index"]);

        let ours = kaplan_meier(&patients);
        // lifelines has a point at every time, events or not.
        for point in case["kaplan_meier"].as_array().unwrap() {
            let at = point[0].as_f64().unwrap();
            let level = ours.iter().rev().find(|(time, _)| *time <= at).unwrap().1;
            assert_close(&format!("survival at {at} of case {index}"), level, &point[1]);
        }

        let mut sorted = risk.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        let (high, low): (Vec<FollowUp>, Vec<FollowUp>) =
            patients.into_iter().partition(|patient| patient.risk > median);
        let (statistic, p) = log_rank(&high, &low).unwrap();
        assert_close("log-rank", statistic, &case["log_rank"]);
        assert_close("p-value", p, &case["p_value"]);
    }
}
