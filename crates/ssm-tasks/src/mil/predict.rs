//! A trained model applied to one slide: what it says of the slide, and how much it heeds each patch.

use std::{path::Path, sync::Arc};

use ssm_train::error::Error;

use super::{
    Artifacts,
    cohort::Bag,
    features,
    model::BagModel,
    score::{Said, ask, softmax},
    survival::risk,
};

/// A slide and what a model says of it.
pub(super) struct Reading {
    pub(super) bag: Arc<Bag>,
    pub(super) said: Said,
}

/// Reads a file of features, standardises it as in training, and asks the model.
///
/// # Errors
/// A file that cannot be read, or of another width than the model was trained on.
pub(super) fn read(artifacts: &Artifacts, model: &BagModel, path: &Path) -> Result<Reading, Error> {
    let bag = features::read(path)?;
    let refuse = |message: String, hint: Option<&str>| Error::Data {
        path: path.to_owned(),
        message,
        hint: hint.map(str::to_owned),
    };
    if bag.d_feature != artifacts.d_feature {
        let message =
            format!("expected features of width {}, got {}", artifacts.d_feature, bag.d_feature);
        let hint = "use the encoder that the model was trained with";
        return Err(refuse(message, Some(hint)));
    }
    let broken = bag.features.iter().filter(|value| !value.is_finite()).count();
    if broken > 0 {
        return Err(refuse(format!("{broken} features are not finite"), None));
    }
    let bag = Arc::new(bag);
    let standardised = match &artifacts.scaler {
        Some(scaler) => scaler.apply(bag.clone()),
        None => bag.clone(),
    };
    let said = ask(model, standardised, &model.device())?;
    Ok(Reading { bag, said })
}

/// The reading of a slide as JSON: probabilities of the classes, or the hazard of each time bin and
/// the risk; then one entry a patch with its place and its attention, where there are such.
pub(super) fn to_json(artifacts: &Artifacts, path: &Path, reading: &Reading) -> String {
    let Reading { bag, said } = reading;
    let mut result = serde_json::json!({
        "slide": path.display().to_string(),
        "n_instances": bag.n_instances(),
    });
    match &artifacts.bins {
        None => {
            let probabilities = artifacts.classes.iter().cloned().zip(softmax(&said.logits));
            let probabilities = probabilities.map(|(class, p)| (class, p.into()));
            result["probabilities"] = serde_json::Value::Object(probabilities.collect());
        }
        Some(bins) => {
            let hazards = said.logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp()));
            result["hazards"] = hazards.collect::<Vec<f64>>().into();
            result["bin_edges"] = bins.edges.clone().into();
            result["risk"] = risk(&said.logits).into();
        }
    }
    let patches = (0..bag.n_instances()).map(|patch| {
        let mut entry = serde_json::Map::new();
        if let Some(coords) = &bag.coords {
            let [x, y] = coords[patch];
            entry.insert("x".to_owned(), x.into());
            entry.insert("y".to_owned(), y.into());
        }
        if let Some(attention) = &said.attention {
            entry.insert("attention".to_owned(), f64::from(attention[patch]).into());
        }
        serde_json::Value::Object(entry)
    });
    result["patches"] = patches.collect();
    format!("{result}\n")
}
