//! The text of a file, and where in it each key stands.
//!
//! Serde forgets positions; operators need them. A file is walked once and the line of every key is remembered under its
//! path, `network[0].mac`, so that a check that comes later can point at it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// One file as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it was read from; appears in errors.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    /// The file at `path` with these bytes.
    ///
    /// # Errors
    /// The bytes are not UTF-8.
    pub fn from_bytes(path: PathBuf, bytes: Vec<u8>) -> Result<SourceFile, ConfigError> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(SourceFile { path, text }),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = line_count(valid.iter());
                Err(ConfigError {
                    path,
                    line: Some(line),
                    key: String::new(),
                    message: "is not UTF-8 text".into(),
                })
            }
        }
    }

    /// An error about line `line`.
    pub(super) fn error(&self, line: Option<u32>, key: &str, message: String) -> ConfigError {
        ConfigError { path: self.path.clone(), line, key: key.to_owned(), message }
    }

    /// The line, from 1, of a byte offset.
    pub(super) fn line_of(&self, offset: usize) -> u32 {
        line_count(self.text.as_bytes().iter().take(offset))
    }
}

fn line_count<'a>(before: impl Iterator<Item = &'a u8>) -> u32 {
    let newlines = before.filter(|byte| **byte == b'\n').count();
    u32::try_from(newlines).unwrap_or(u32::MAX - 1) + 1
}

/// The files of a configuration directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// `vswitches.toml`; a missing one is an empty one.
    pub vswitches: Option<SourceFile>,
    /// `storage.toml`; a missing one is an empty one.
    pub storage: Option<SourceFile>,
    /// `guests/*.toml`, with each file's name without `.toml`, sorted by it.
    pub guests: BTreeMap<String, SourceFile>,
}

/// Where the keys of one file stand.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// Line of each key or array element, by path.
    lines: BTreeMap<String, u32>,
    /// Bytes of each key and of each value, with the key's path.
    spans: Vec<(Range<usize>, String)>,
    /// Offset of each line's end: a file is searched once, not once per key.
    newlines: Vec<usize>,
}

impl Positions {
    /// Walks a parsed file.
    pub(super) fn of(source: &SourceFile, table: &DeTable<'_>) -> Positions {
        let newlines =
            source.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        let mut positions = Positions { newlines, ..Positions::default() };
        positions.walk_table(table, "");
        positions
    }

    /// The line, from 1, of a byte offset.
    fn line_of(&self, offset: usize) -> u32 {
        let before = self.newlines.partition_point(|newline| *newline < offset);
        u32::try_from(before).unwrap_or(u32::MAX - 1) + 1
    }

    fn walk_table(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            let line = self.line_of(key.span().start);
            self.lines.insert(path.clone(), line);
            self.spans.push((key.span(), path.clone()));
            self.spans.push((value.span(), path.clone()));
            self.walk_value(value.get_ref(), &path);
        }
    }

    fn walk_value(&mut self, value: &DeValue<'_>, path: &str) {
        match value {
            DeValue::Table(table) => self.walk_table(table, path),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    let line = self.line_of(item.span().start);
                    self.lines.insert(path.clone(), line);
                    self.walk_value(item.get_ref(), &path);
                }
            }
            _ => {}
        }
    }

    /// The line of `path`, or of what contains it.
    pub(super) fn line(&self, path: &str) -> Option<u32> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// The path of the innermost key around a byte offset.
    pub(super) fn path_at(&self, offset: usize) -> Option<&str> {
        self.spans
            .iter()
            .filter(|(span, _)| span.contains(&offset))
            .min_by_key(|(span, _)| span.len())
            .map(|(_, path)| path.as_str())
    }
}

/// The key at the end of a path: `mac` of `network[0].mac`, `ips` of `network[0].ips[1]`.
pub(super) fn last_key(path: &str) -> &str {
    let key = path.rsplit('.').next().unwrap_or(path);
    key.split('[').next().unwrap_or(key)
}
