//! A configuration as a file to begin with: every value, each below what it means.

use serde_json::Value;

use super::{
    Config,
    schema::{absent_keys, at, schema},
};
use crate::task::TaskConfig;

/// Columns of a comment.
const WIDTH: usize = 98;

impl<T: TaskConfig> Config<T> {
    /// [`Config::to_toml`] with the documentation of every section and key above it. Keys that are
    /// not set stand there as comments.
    #[must_use]
    pub fn to_commented_toml(&self) -> String {
        let schema = schema::<T>();
        let mut text = String::new();
        let mut path: Vec<String> = Vec::new();
        let mut given: Vec<String> = Vec::new();
        for line in self.to_toml().lines() {
            if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                absent(&mut text, &schema, &path, &given);
                given.clear();
                path = keys(header);
                text.push('\n');
                describe(&mut text, &schema, &path);
            } else if let Some((key, _)) = line.split_once(" = ") {
                let key = keys(key).concat();
                describe(&mut text, &schema, &[&path[..], std::slice::from_ref(&key)].concat());
                given.push(key);
            } else if line.is_empty() {
                continue;
            }
            text.push_str(line);
            text.push('\n');
        }
        absent(&mut text, &schema, &path, &given);
        text.trim_start().to_owned()
    }
}

/// The keys of a header; those of a configuration hold no dots.
fn keys(text: &str) -> Vec<String> {
    text.split('.').map(|key| key.trim().trim_matches(['"', '\'']).to_owned()).collect()
}

fn describe(text: &mut String, schema: &Value, path: &[String]) {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if let Some((_, Some(description))) = at(schema, &path) {
        comment(text, description);
    }
}

/// Keys of the table that ends here which were not given.
fn absent(text: &mut String, schema: &Value, path: &[String], given: &[String]) {
    if path.is_empty() {
        return;
    }
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    for (key, description) in absent_keys(schema, &path) {
        if !given.iter().any(|one| one == key) {
            comment(text, description);
            text.push_str(&format!("# {key} =\n"));
        }
    }
}

/// Paragraphs as lines of comments.
fn comment(text: &mut String, description: &str) {
    let paragraph = description.replace("\n\n", "\u{0}").replace('\n', " ").replace('\u{0}', "\n");
    for paragraph in paragraph.lines() {
        let mut line = String::from("#");
        for word in paragraph.split_whitespace() {
            if line.len() + 1 + word.len() > WIDTH && line.len() > 1 {
                text.push_str(&line);
                text.push('\n');
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        text.push_str(&line);
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_wrapped_and_paragraphs_stay_apart() {
        let mut text = String::new();
        comment(&mut text, &format!("{}\nend.\n\nMore.", "word ".repeat(20)));
        let words = ["word"; 19].join(" ");
        assert_eq!(text, format!("# {words}\n# word end.\n# More.\n"));
    }
}
