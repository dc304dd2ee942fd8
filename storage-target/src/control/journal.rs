//! State of logical units that must outlive the process: one file each, replaced in one step (DESIGN section 7).
//!
//! Reading and writing happen on helper threads, and at start-up. A file that cannot be read is an error: its logical unit
//! stays offline rather than unfenced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::scsi::{SAVED_FORMAT, SavedState};

/// Where the kernel says which start of the host this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which start of the host this is; empty if the kernel does not say.
pub(super) fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// At which start of the host a daemon ran of the release that noted only that.
pub(super) fn noted_boot(state_dir: &Path) -> Option<String> {
    fs::read_to_string(state_dir.join("stord").join("boot")).ok()
}

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

/// What a predecessor left; the default if there is nothing. What it left before the host started anew, at the start `boot`,
/// is what a logical unit keeps without power.
///
/// # Errors
/// One line.
pub(super) fn read(path: &Path, boot: &str) -> Result<SavedState, String> {
    let offline = |why: &dyn std::fmt::Display| {
        format!("{}: {why}; the LUN stays offline until it is repaired or removed", path.display())
    };
    match fs::read(path) {
        Ok(bytes) => {
            // An object: of anything else that has no fields the defaults would be read.
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&bytes).map_err(|e| offline(&e))?;
            let saved: SavedState = serde_json::from_value(object.into()).map_err(|e| offline(&e))?;
            if saved.format > SAVED_FORMAT {
                let newer = format!("format {} is that of a newer avio-stord", saved.format);
                return Err(offline(&newer));
            }
            Ok(if saved.boot == boot || saved.boot.is_empty() { saved } else { saved.after_power_loss() })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(SavedState::default()),
        Err(error) => Err(format!("{}: {error}; the LUN stays offline", path.display())),
    }
}

/// Replaces the file; on return it is durable.
///
/// # Errors
/// What the file system said.
pub(super) fn write(path: &Path, state: &SavedState) -> std::io::Result<()> {
    replace(path, &serde_json::to_vec(state)?)
}

/// Removes what belongs to a LUN that is no more.
///
/// # Errors
/// What the file system said.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces a file in one step; on return it is durable.
///
/// # Errors
/// What the file system said.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
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
        assert_eq!(read(&path, "b1"), Ok(SavedState::default()));
        let state = SavedState {
            generation: 7,
            backing: "null:1".into(),
            descriptor_sense: true,
            boot: "b1".into(),
            ..SavedState::default()
        };
        write(&path, &state).unwrap();
        assert_eq!(read(&path, "b1"), Ok(state.clone()));
        assert_eq!(read(&path, "b2"), Ok(state.after_power_loss()), "the host was off");
        assert!(!read(&path, "b2").unwrap().descriptor_sense);
        for garbage in ["{", "[]", r#"{"format":3}"#] {
            fs::write(&path, garbage).unwrap();
            assert!(read(&path, "b1").unwrap_err().contains("stays offline"), "{garbage}");
        }
        // As the release before this one wrote it.
        let first = r#"{"reservations":{"registrations":[],"holder":null,"aptpl":false,"generation":4,"reserved_by":null},
            "attentions":[],"replacement":null,"descriptor_sense":true,"backing":"","generation":2}"#;
        fs::write(&path, first).unwrap();
        let state = read(&path, "b1").unwrap();
        assert_eq!((state.generation, state.descriptor_sense, state.format), (2, true, 0));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path, "b1"), Ok(SavedState::default()));
        replace(&folder.join("stord/boot"), b"b1").unwrap();
        assert_eq!(noted_boot(&folder).as_deref(), Some("b1"));
        fs::remove_dir_all(folder).unwrap();
    }
}
