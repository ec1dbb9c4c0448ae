//! PEMS: traffic flow of four districts of California, every 5 minutes.
//!
//! The archives hold one array `data` of shape `[time, sensor, feature]`; feature 0, the flow, is
//! taken. There are no dates, so no calendar features. Splits are 60, 20 and 20 % and, other than
//! in the other sets, share no row.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{Borders, DataSet, Series, npz::read_array};
use crate::data::{DataFile, KnownSet, read_known};

pub(super) const KNOWN: [KnownSet; 4] = [
    known(
        "PEMS03",
        "pems = { variant = \"03\" }",
        "timeseries/PEMS03.npz",
        "26208 rows x 358 variates, every 5 minutes, no dates",
    ),
    known(
        "PEMS04",
        "pems = { variant = \"04\" }",
        "timeseries/PEMS04.npz",
        "16992 rows x 307 variates, every 5 minutes, no dates",
    ),
    known(
        "PEMS07",
        "pems = { variant = \"07\" }",
        "timeseries/PEMS07.npz",
        "28224 rows x 883 variates, every 5 minutes, no dates",
    ),
    known(
        "PEMS08",
        "pems = { variant = \"08\" }",
        "timeseries/PEMS08.npz",
        "17856 rows x 170 variates, every 5 minutes, no dates",
    ),
];

const fn known(
    name: &'static str,
    config: &'static str,
    file: &'static str,
    shape: &'static str,
) -> KnownSet {
    KnownSet {
        name,
        task: "forecasting",
        config,
        file,
        shape,
        licence: "California Department of Transportation (PeMS), no explicit licence",
        origin: "https://github.com/thuml/iTransformer (its data archive)",
        sha256: None,
    }
}

/// Which district.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PemsVariant {
    /// District 3.
    #[serde(rename = "03")]
    D03,
    /// District 4.
    #[serde(rename = "04")]
    D04,
    /// District 7.
    #[serde(rename = "07")]
    D07,
    /// District 8.
    #[serde(rename = "08")]
    D08,
}

/// `[data.pems]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PemsConfig {
    /// `"03"`, `"04"`, `"07"` or `"08"`; required.
    pub variant: PemsVariant,
}

impl DataSet for PemsConfig {
    fn date_column(&self) -> Option<&str> {
        None
    }

    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        let set = &KNOWN[self.variant as usize];
        flow(set.name, &read_known(set, dirs)?)
    }

    fn borders(&self, n_rows: usize, _lookback_len: usize) -> Result<Borders, String> {
        Ok(Borders::apart(n_rows))
    }
}

/// Feature 0 of every sensor, one column a sensor.
fn flow(name: &str, file: &DataFile) -> Result<Series, Error> {
    let array = read_array(file, "data")?;
    let &[n_rows, n_variates, n_features] = array.shape.as_slice() else {
        return Err(file.error(
            format!("array `data`: expected [time, sensor, feature], got shape {:?}", array.shape),
            None,
        ));
    };
    if array.values.is_empty() {
        return Err(file.error(format!("array `data` is empty, shape {:?}", array.shape), None));
    }
    let mut values = vec![Vec::with_capacity(n_rows); n_variates];
    for (row, sensors) in array.values.chunks_exact(n_variates * n_features).enumerate() {
        for (sensor, features) in sensors.chunks_exact(n_features).enumerate() {
            if !features[0].is_finite() {
                return Err(file.error(
                    format!(
                        "array `data`, time {row}, sensor {sensor}: expected a finite number, \
                         got `{}`",
                        features[0]
                    ),
                    Some("fill missing values before training"),
                ));
            }
            values[sensor].push(features[0]);
        }
    }
    Ok(Series {
        name: name.to_owned(),
        path: file.path.clone(),
        sha256: file.sha256.clone(),
        columns: (0..n_variates).map(|sensor| sensor.to_string()).collect(),
        values,
        dates: None,
    })
}

#[cfg(test)]
mod tests {
    use zip::CompressionMethod;

    use super::*;
    use crate::forecasting::data::npz::tests::{npy, npz};

    fn archive(shape: &str, values: &[f64]) -> DataFile {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        npz("data", &npy("<f8", shape, &data), CompressionMethod::Deflated)
    }

    #[test]
    fn feature_zero_of_every_sensor_is_taken() {
        let values: Vec<f64> = (0..12).map(f64::from).collect();
        let series = flow("PEMS03", &archive("(2, 3, 2)", &values)).unwrap();
        assert_eq!(series.values, [[0.0, 6.0], [2.0, 8.0], [4.0, 10.0]]);
        assert_eq!(series.columns, ["0", "1", "2"]);
    }

    #[test]
    fn a_table_or_a_hole_is_refused() {
        let error = flow("PEMS03", &archive("(2, 2)", &[0.0; 4])).unwrap_err().to_string();
        assert_eq!(
            error,
            "`t.npz`: array `data`: expected [time, sensor, feature], got shape [2, 2]"
        );
        let error = flow("PEMS03", &archive("(1, 2, 1)", &[0.0, f64::NAN])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`t.npz`: array `data`, time 0, sensor 1: expected a finite number, got `NaN`"
        );
    }
}
