//! Reading a configuration directory, and what it is checked against on this host.
//!
//! Owns the files' names and the look at the host. What is right in them is `avio_proto::config`'s business. Blocks on
//! files, so a running daemon calls it from a helper thread; a start-up may call it directly. Never changes a file.

mod host;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

pub use avio_proto::config::{
    Capabilities, Config, ConfigError, ConfigErrors, Guest, NumberedVswitch, Surroundings,
};
use avio_proto::config::{Files, SourceFile};
pub use host::surroundings;
pub use report::{check, key_table};

/// The switches' file in a configuration directory.
pub const VSWITCHES_FILE: &str = "vswitches.toml";
/// The storage daemon's file in a configuration directory.
pub const STORAGE_FILE: &str = "storage.toml";
/// The directory of the guests' files in a configuration directory.
pub const GUESTS_DIR: &str = "guests";
/// Longest file, in bytes: thousands of vswitches fit; a wrong path (a disk image) is not read into memory.
pub const FILE_LEN_MAX: u64 = 4 << 20;

/// Reads and checks the directory `dir`. A missing `vswitches.toml` or `guests` counts as empty.
///
/// # Errors
/// Everything that is wrong; the caller keeps the configuration that it has.
pub fn load(dir: &Path, surroundings: &Surroundings) -> Result<Config, ConfigErrors> {
    let (files, mut errors) = read(dir);
    match Config::from_files(&files, surroundings) {
        Ok(config) if errors.is_empty() => Ok(config),
        Ok(_) => Err(ConfigErrors(errors)),
        Err(more) => {
            errors.extend(more.0);
            Err(ConfigErrors(errors))
        }
    }
}

/// Every file of `dir` that can be read, and an error for each that cannot.
fn read(dir: &Path) -> (Files, Vec<ConfigError>) {
    let mut files = Files::default();
    let mut errors = Vec::new();
    if let Err(error) = fs::read_dir(dir) {
        let right = "create it, or name the directory of vswitches.toml with --config";
        errors.push(about(dir, format!("cannot be read: {error}; {right}")));
        return (files, errors);
    }
    match read_file(&dir.join(VSWITCHES_FILE)) {
        Ok(file) => files.vswitches = file,
        Err(error) => errors.push(error),
    }
    match read_file(&dir.join(STORAGE_FILE)) {
        Ok(file) => files.storage = file,
        Err(error) => errors.push(error),
    }
    let guests = dir.join(GUESTS_DIR);
    let entries = match fs::read_dir(&guests) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (files, errors),
        Err(error) => {
            errors.push(about(&guests, format!("cannot be read: {error}; it holds one file per guest")));
            return (files, errors);
        }
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                errors.push(about(&guests, format!("cannot be read: {error}")));
                break;
            }
        };
        let name = entry.file_name();
        // Other endings and hidden files are editors' back-ups and files on their way to be renamed.
        let stem = match name.to_str() {
            Some(name) => name.strip_suffix(".toml").filter(|stem| !stem.starts_with('.')),
            None => None,
        };
        let Some(stem) = stem else { continue };
        match read_file(&entry.path()) {
            Ok(Some(file)) => {
                found.insert(stem.to_owned(), file);
            }
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    files.guests = found;
    (files, errors)
}

/// The file at `path`, `None` if there is none.
fn read_file(path: &Path) -> Result<Option<SourceFile>, ConfigError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(about(path, format!("cannot be read: {error}"))),
    };
    // A FIFO here would block whoever opens it.
    if !metadata.is_file() {
        return Err(about(path, "is not a regular file".into()));
    }
    if metadata.len() > FILE_LEN_MAX {
        return Err(about(path, format!("has {} bytes; {FILE_LEN_MAX} at most", metadata.len())));
    }
    match fs::read(path) {
        Ok(bytes) => SourceFile::from_bytes(path.to_owned(), bytes).map(Some),
        Err(error) => Err(about(path, format!("cannot be read: {error}"))),
    }
}

fn about(path: &Path, message: String) -> ConfigError {
    ConfigError { path: path.to_owned(), line: None, key: String::new(), message }
}

#[cfg(test)]
mod tests;
