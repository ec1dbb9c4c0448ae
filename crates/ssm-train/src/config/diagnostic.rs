//! One thing that is wrong with a configuration, and how it is shown.

use std::{fmt, ops::Range};

use super::Issue;

/// A mistake in a configuration: what, where, what was expected, what to do.
///
/// Shown as the compiler shows its own errors:
/// ```text
/// unknown key `d_sate` in `model.stack.mixer.scan`
///   --> configs/x.toml:21:1
///    |
/// 21 | d_sate = 2
///    | ^^^^^^
///    = expected one of `d_state`, `d_conv`, `expand`
/// hint: did you mean `d_state`?
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, in one line.
    pub message: String,
    /// File, with `:line:column` where there is one, or `--set` for the command line; empty if the
    /// message names the file.
    pub location: String,
    /// The line in question.
    pub excerpt: Option<Box<Excerpt>>,
    /// What would have been right.
    pub expected: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// A line of a configuration with the part in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Line number, counted from 1.
    pub line: usize,
    /// The line without its end.
    pub text: String,
    /// Characters of `text` in question.
    pub marked: Range<usize>,
}

impl Diagnostic {
    /// An issue whose place in the file is not known.
    pub(crate) fn unplaced(origin: &str, issue: Issue) -> Self {
        Self {
            message: issue.to_string(),
            location: origin.to_owned(),
            excerpt: None,
            expected: None,
            hint: issue.hint,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.excerpt.as_ref().map(|e| e.line.to_string()).unwrap_or_default();
        let gutter = number.len().max(1);
        // A key in quotes can hold anything, also what would steer a terminal.
        let visible = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        write!(f, "{}", self.message.chars().map(visible).collect::<String>())?;
        if !self.location.is_empty() {
            write!(f, "\n{:gutter$}--> {}", "", self.location)?;
        }
        if let Some(excerpt) = &self.excerpt {
            let Excerpt { text, marked, .. } = &**excerpt;
            // A tab stays a tab, so the carets stay below what they mark at any tab width.
            let pad: String = text
                .chars()
                .take(marked.start)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let carets = "^".repeat(marked.len().max(1));
            write!(f, "\n{:gutter$} |", "")?;
            write!(f, "\n{number} | {text}")?;
            write!(f, "\n{:gutter$} | {pad}{carets}", "")?;
        }
        if let Some(expected) = &self.expected {
            write!(f, "\n{:gutter$} = {expected}", "")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}
