//! What has been measured so far: kept in a file beside the report, so that a run can be taken in slices.

use std::fs;
use std::path::PathBuf;

use avio_tests::{Failure, Result};
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::rows::Row;
use super::window::Results;

/// A row's windows, or why there are none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The row's name.
    pub name: String,
    /// By target.
    pub results: Vec<Results>,
    /// Why it could not be measured.
    pub failure: Option<String>,
}

/// A single figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What it was measured with: a name for `--only`.
    pub kind: String,
    /// What it is.
    pub what: String,
    /// With its unit.
    pub value: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Kept {
    facts: String,
    rows: Vec<Measured>,
    figures: Vec<Figure>,
}

/// See the module.
pub struct Store {
    path: Option<PathBuf>,
    kept: Kept,
}

impl Store {
    /// What earlier slices left; nothing with `--fresh` or `--quick`.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(options: &Options, facts: &str) -> Result<Self> {
        if options.quick {
            return Ok(Self { path: None, kept: Kept { facts: facts.into(), ..Kept::default() } });
        }
        let path = options.results.join("stor.json");
        let mut kept = match fs::read_to_string(&path) {
            Ok(text) if !options.fresh => serde_json::from_str(&text)
                .map_err(|e| Failure::new(format!("{}: {e}: remove it, or --fresh", path.display())))?,
            _ => Kept::default(),
        };
        kept.facts = facts.into();
        Ok(Self { path: Some(path), kept })
    }

    /// Processor, kernel, cores.
    pub fn facts(&self) -> &str {
        &self.kept.facts
    }

    /// A row's windows.
    pub fn row(&self, name: &str) -> Option<&Measured> {
        self.kept.rows.iter().find(|row| row.name == name)
    }

    /// Whether a row has been measured.
    pub fn has(&self, name: &str) -> bool {
        self.row(name).is_some_and(|row| row.failure.is_none())
    }

    /// Whether single figures of this kind have been measured.
    pub fn has_figures(&self, kind: &str) -> bool {
        self.kept.figures.iter().any(|figure| figure.kind == kind)
    }

    /// Single figures.
    pub fn figures(&self) -> &[Figure] {
        &self.kept.figures
    }

    /// Keeps a row, in place of an earlier measurement.
    pub fn add(&mut self, row: &Row, results: Vec<Results>) {
        self.put(Measured { name: row.name.into(), results, failure: None });
    }

    /// Keeps why a row could not be measured.
    pub fn add_failure(&mut self, row: &Row, failure: &str) {
        let failure = Some(failure.replace('\n', " "));
        self.put(Measured { name: row.name.into(), results: Vec::new(), failure });
    }

    /// Forgets the figures of a kind, which is measured again.
    pub fn forget_figures(&mut self, kind: &str) {
        self.kept.figures.retain(|figure| figure.kind != kind);
    }

    /// Keeps a single figure.
    pub fn add_figure(&mut self, kind: &str, what: String, value: String) {
        self.kept.figures.push(Figure { kind: kind.into(), what, value });
    }

    fn put(&mut self, measured: Measured) {
        self.kept.rows.retain(|row| row.name != measured.name);
        self.kept.rows.push(measured);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result {
        if let Some(path) = &self.path {
            fs::write(path, serde_json::to_string(&self.kept).map_err(|e| Failure::new(e.to_string()))?)?;
        }
        Ok(())
    }
}
