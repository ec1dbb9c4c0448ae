//! The configuration as JSON Schema: what editors complete and check, and where comments come from.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    CheckpointSection, DeviceSection, LogSection, Optim, RunSection, Schedule, TrainSection,
};
use crate::task::TaskConfig;

/// Gathers the configurations of one or several tasks into one schema.
pub struct SchemaBuilder {
    generator: SchemaGenerator,
    tasks: Vec<Value>,
}

impl Default for SchemaBuilder {
    fn default() -> Self {
        // Draft 7 is what editors of TOML understand.
        Self { generator: SchemaSettings::draft07().into_generator(), tasks: Vec::new() }
    }
}

impl SchemaBuilder {
    /// Adds the configurations of a task.
    pub fn add<T: TaskConfig>(&mut self) {
        let task = json!({
            "type": "object",
            "description": "What is trained: one task.",
            "properties": { T::NAME: self.section::<T::Options>() },
            "required": [T::NAME],
            "additionalProperties": false,
        });
        let sections = [
            ("run", self.section::<RunSection>()),
            ("device", self.section::<DeviceSection>()),
            ("task", task),
            ("data", self.section::<T::Data>()),
            ("model", self.section::<T::Model>()),
            ("optim", self.section::<Optim>()),
            ("schedule", self.section::<Schedule>()),
            ("train", self.section::<TrainSection>()),
            ("checkpoint", self.section::<CheckpointSection>()),
            ("log", self.section::<LogSection>()),
        ];
        let properties: Map<String, Value> =
            sections.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
        self.tasks.push(json!({
            "type": "object",
            "title": format!("configuration of the task `{}`", T::NAME),
            "properties": properties,
            "required": ["task", "data", "model", "optim"],
            "additionalProperties": false,
        }));
    }

    /// The schema of a file for any of the tasks that were added.
    #[must_use]
    pub fn finish(mut self) -> Value {
        let definitions = self.generator.take_definitions(true);
        let mut root = match self.tasks.len() {
            1 => self.tasks.remove(0),
            _ => json!({ "title": "configuration of a run", "anyOf": self.tasks }),
        };
        root["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        root["definitions"] = Value::Object(definitions);
        root
    }

    fn section<S: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<S>().to_value()
    }
}

/// The schema of the configurations of one task.
#[must_use]
pub fn schema<T: TaskConfig>() -> Value {
    let mut builder = SchemaBuilder::default();
    builder.add::<T>();
    builder.finish()
}

/// What a schema says of the value at a path, and the schema of that value.
pub(super) fn at<'s>(root: &'s Value, path: &[&str]) -> Option<(&'s Value, Option<&'s str>)> {
    let mut found = (root, None);
    for key in path {
        found = property(root, found.0, key)?;
    }
    Some(found)
}

/// The schema of a property, also of one that only some alternatives have, and its description: its
/// own, else that of its alternative, else that of its type.
fn property<'s>(
    root: &'s Value,
    schema: &'s Value,
    key: &str,
) -> Option<(&'s Value, Option<&'s str>)> {
    let description = |schema: &'s Value| schema["description"].as_str();
    let schema = resolved(root, schema);
    if let Some(found) = schema["properties"].get(key) {
        let own = description(found);
        return Some((found, own.or_else(|| description(resolved(root, found)))));
    }
    alternatives(schema).find_map(|alternative| {
        let (found, own) = property(root, alternative, key)?;
        let said = found.get("description").and(own);
        Some((found, said.or_else(|| description(alternative)).or(own)))
    })
}

/// The schemas that a value may or must match besides.
fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["oneOf", "anyOf", "allOf"].into_iter();
    lists.filter_map(|list| schema[list].as_array()).flatten()
}

/// The schema behind a reference.
pub(super) fn resolved<'s>(root: &'s Value, mut schema: &'s Value) -> &'s Value {
    while let Some(target) = schema["$ref"].as_str().and_then(|name| {
        name.strip_prefix("#/definitions/").and_then(|name| root["definitions"].get(name))
    }) {
        schema = target;
    }
    schema
}

/// Keys of the table at a path that may be left out and then have no value, with their descriptions.
pub(super) fn absent_keys<'s>(root: &'s Value, path: &[&str]) -> Vec<(&'s str, &'s str)> {
    let Some((schema, _)) = at(root, path) else { return Vec::new() };
    let mut objects = vec![resolved(root, schema)];
    objects.extend(alternatives(objects[0]).map(|schema| resolved(root, schema)));
    let properties = objects.iter().filter_map(|object| object["properties"].as_object()).flatten();
    properties
        .filter(|(_, schema)| {
            let list = schema["type"].as_array();
            list.is_some_and(|types| types.contains(&"null".into()))
                || alternatives(schema).any(|alternative| alternative["type"] == "null")
        })
        .filter_map(|(key, schema)| Some((key.as_str(), schema["description"].as_str()?)))
        .collect()
}
