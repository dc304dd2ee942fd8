//! State of logical units that must outlive the process: one file each, replaced in one step (DESIGN section 7).
//!
//! Reading and writing happen on helper threads, and at start-up. A file that cannot be read is an error: its logical unit
//! stays offline rather than unfenced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::scsi::SavedState;

/// Where the state of the logical unit called `name` is kept.
pub(super) fn path_of(state_dir: &Path, name: &str) -> PathBuf {
    // Names are made of guests' names and backings: whatever a file name cannot have is written as its number.
    let mut file = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => file.push(byte.into()),
            other => file.push_str(&format!("_{other:02x}")),
        }
    }
    state_dir.join("stord").join(format!("{file}.json"))
}

/// What a predecessor left; the default if there is nothing.
///
/// # Errors
/// One line.
pub(super) fn read(path: &Path) -> Result<SavedState, String> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            format!("{}: {e}; the LUN stays offline until it is repaired or removed", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(SavedState::default()),
        Err(error) => Err(format!("{}: {error}; the LUN stays offline", path.display())),
    }
}

/// Replaces the file; on return it is durable.
///
/// # Errors
/// What the file system said.
pub(super) fn write(path: &Path, state: &SavedState) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_garbage_is_refused() {
        let folder = std::env::temp_dir().join(format!("avio-journal-{}", std::process::id()));
        let path = path_of(&folder, "g1/0:4");
        assert_eq!(path.file_name().unwrap(), "g1_2f0_3a4.json");
        assert_eq!(read(&path), Ok(SavedState::default()));
        let state = SavedState { generation: 7, backing: "null:1".into(), ..SavedState::default() };
        write(&path, &state).unwrap();
        assert_eq!(read(&path), Ok(state));
        fs::write(&path, "{").unwrap();
        assert!(read(&path).unwrap_err().contains("stays offline"));
        fs::remove_dir_all(folder).unwrap();
    }
}
