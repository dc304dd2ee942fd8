//! What earlier runs found, beside the report: `net.json`, `stor.json`.
//!
//! Owns the file with every window of every row. A run replaces the rows that it measured; the report is written from all of
//! them, so a full table can be taken a few minutes at a time. Nothing is computed here. `R` is what a benchmark has of a row, `F`
//! of a kind of single figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use avio_tests::{Failure, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One figure with its meaning.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Value, unit, goal.
    pub value: String,
}

/// One measurement of one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Taken<R> {
    /// Day, and the commit that was measured.
    pub when: String,
    /// Processor and kernel.
    pub facts: String,
    /// The windows; empty if it failed.
    pub results: Vec<R>,
    /// Why it could not be measured.
    pub failure: Option<String>,
}

/// All rows and figures by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record<R, F> {
    /// Rows.
    pub rows: BTreeMap<String, Taken<R>>,
    /// Single figures.
    pub figures: BTreeMap<String, F>,
}

impl<R, F> Default for Record<R, F> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), figures: BTreeMap::new() }
    }
}

impl<R: Serialize + DeserializeOwned, F: Serialize + DeserializeOwned> Record<R, F> {
    /// What stands in `path`; nothing if there is no such file.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| {
                Failure::new(format!("{}: {e}: remove it and measure all rows again", path.display()))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Failure::new(format!("{}: {e}", path.display()))),
        }
    }

    /// Writes it to `path`, whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result {
        let part = path.with_extension("part");
        let text = serde_json::to_string_pretty(self).map_err(|e| Failure::new(e.to_string()))?;
        fs::write(&part, text + "\n")?;
        Ok(fs::rename(part, path)?)
    }
}

/// Today in UTC and the commit of this tree.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil((seconds / 86_400) as i64);
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.ok().filter(|o| o.status.success());
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let commit = commit.filter(|text| !text.is_empty()).map_or_else(String::new, |c| format!(", commit {c}"));
    format!("{year}-{month:02}-{day:02}{commit}")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years that begin in March put the leap day last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_784), (2026, 11, 27));
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let path = avio_tests::scratch::folder().join("record.json");
        type Plain = Record<u8, Figure>;
        assert!(Plain::read(&path).unwrap().rows.is_empty(), "no file: nothing yet");
        let mut record = Plain::default();
        let taken = Taken { when: now(), facts: "f".into(), results: vec![], failure: Some("gone".into()) };
        record.rows.insert("size-64".into(), taken);
        record.figures.insert("memory".into(), Figure { what: "w".into(), value: "v".into() });
        record.write(&path).unwrap();
        let read = Plain::read(&path).unwrap();
        assert_eq!(read.rows["size-64"].failure.as_deref(), Some("gone"));
        assert_eq!(read.figures["memory"].value, "v");
        std::fs::write(&path, "no JSON").unwrap();
        assert!(Plain::read(&path).unwrap_err().to_string().contains("record.json"));
    }
}
