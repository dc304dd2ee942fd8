//! A change to the configuration files, made as a whole or not at all.
//!
//! Called by subcommands that edit. Reads the directory under a lock, lets the caller replace texts, checks the result the
//! way the daemons will, and only then replaces the files, each by rename. Can be undone while it is alive.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use avio_proto::config::{Config, Files, SourceFile, Surroundings};
use rustix::fs::FlockOperation;

use crate::cli::Failure;

/// The files of a directory as they are and as they will be.
#[derive(Debug)]
pub struct Staged {
    vswitches: PathBuf,
    files: Files,
    /// What each changed file was before; `None`: it did not exist.
    before: BTreeMap<PathBuf, Option<String>>,
    /// Holds off other edits until this one is over.
    _lock: File,
}

fn failure(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::Refused(format!("{}: {what}: {error}", path.display()))
}

impl Staged {
    /// Locks and reads `dir`.
    ///
    /// # Errors
    /// It or a file in it cannot be read.
    pub fn open(dir: &Path) -> Result<Staged, Failure> {
        let lock = File::open(dir).map_err(|error| {
            let right = "create it, or name the directory of vswitches.toml with --config";
            Failure::Refused(format!("{}: cannot be read: {error}; {right}", dir.display()))
        })?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| failure(dir, "cannot be locked", &error.into()))?;
        let vswitches = dir.join("vswitches.toml");
        let storage = read(&dir.join("storage.toml"))?;
        let mut files = Files { vswitches: read(&vswitches)?, storage, guests: BTreeMap::new() };
        let guests = dir.join("guests");
        let entries = match fs::read_dir(&guests) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        for entry in entries.map_err(|error| failure(&guests, "cannot be read", &error))? {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".toml"));
            let Some(stem) = stem.filter(|stem| !stem.starts_with('.')) else { continue };
            if let Some(file) = read(&entry.path())? {
                files.guests.insert(stem.to_owned(), file);
            }
        }
        Ok(Staged { vswitches, files, before: BTreeMap::new(), _lock: lock })
    }

    /// The text of `vswitches.toml`; empty if there is none.
    #[must_use]
    pub fn vswitches(&self) -> &str {
        self.files.vswitches.as_ref().map_or("", |file| file.text.as_str())
    }

    /// The guests' files, by name.
    #[must_use]
    pub fn guests(&self) -> &BTreeMap<String, SourceFile> {
        &self.files.guests
    }

    /// Replaces the text of `vswitches.toml`.
    pub fn set_vswitches(&mut self, text: String) {
        let old = self.files.vswitches.replace(SourceFile { path: self.vswitches.clone(), text });
        self.before.entry(self.vswitches.clone()).or_insert(old.map(|file| file.text));
    }

    /// Replaces the text of an existing guest's file.
    pub fn set_guest(&mut self, name: &str, text: String) {
        if let Some(file) = self.files.guests.get_mut(name) {
            let old = std::mem::replace(&mut file.text, text);
            self.before.entry(file.path.clone()).or_insert(Some(old));
        }
    }

    /// The configuration that the files make, changes included.
    ///
    /// # Errors
    /// Everything that is wrong with it, a line each. What only the daemon knows (this host's addresses, what its
    /// release can do) is left to the daemon.
    pub fn check(&self) -> Result<Config, Failure> {
        Config::from_files(&self.files, &Surroundings::default())
            .map_err(|errors| Failure::Refused(errors.to_string()))
    }

    /// Checks, then replaces the changed files.
    ///
    /// # Errors
    /// As [`Staged::check`], or a file cannot be written; the files are then as before.
    pub fn commit(&self) -> Result<(), Failure> {
        self.check()?;
        let texts = self.files.vswitches.iter().chain(self.files.guests.values());
        for file in texts.filter(|file| self.before.contains_key(&file.path)) {
            if let Err(error) = replace(&file.path, &file.text) {
                self.undo()?;
                return Err(failure(&file.path, "cannot be written; nothing was changed", &error));
            }
        }
        Ok(())
    }

    /// Makes the changed files what they were.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn undo(&self) -> Result<(), Failure> {
        for (path, text) in &self.before {
            let undone = match text {
                Some(text) if fs::read_to_string(path).is_ok_and(|now| now == *text) => Ok(()),
                Some(text) => replace(path, text),
                None => match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                },
            };
            undone.map_err(|error| failure(path, "cannot be put back", &error))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<SourceFile>, Failure> {
    match fs::read(path) {
        Ok(bytes) => match SourceFile::from_bytes(path.to_owned(), bytes) {
            Ok(file) => Ok(Some(file)),
            Err(error) => Err(Failure::Refused(error.to_string())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failure(path, "cannot be read", &error)),
    }
}

/// Replaces a file so that a reader, or a crash, sees the old text or the new one, never a part. A link stays a link;
/// mode and owner stay.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (Some(dir), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    // Hidden and without the ending of a guest's file, so that a reload in between does not read it.
    let temporary = dir.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    let written = write_new(&temporary, text, fs::metadata(&target).ok().as_ref())
        .and_then(|()| fs::rename(&temporary, &target))
        .and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(path: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut file = File::create(path)?;
    if let Some(like) = like {
        file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        // Only root can give a file away; anybody else keeps their own files.
        let _ = std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()));
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("avio-staged-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("guests")).unwrap();
        dir
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Staged::open(Path::new("/nonexistent")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/nonexistent: cannot be read: No such file or directory (os error 2); create it, or name the directory of \
             vswitches.toml with --config"
        );
    }

    #[test]
    fn a_wrong_change_changes_nothing_and_a_right_one_can_be_undone() {
        let dir = dir("change");
        let path = dir.join("vswitches.toml");
        fs::write(&path, "# mine\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut staged = Staged::open(&dir).unwrap();
        staged.set_vswitches("[[vswitch]]\nname = 'a'\nmax_ports = 0\n".into());
        let error = staged.commit().unwrap_err().to_string();
        assert!(error.ends_with("vswitches.toml:3: max_ports: 0 is out of range; give 1 to 4096"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\n");

        staged.set_vswitches("[[vswitch]]\nname = 'a'\n".into());
        staged.commit().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[[vswitch]]\nname = 'a'\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        staged.undo().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\n");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file stays");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn undoing_a_creation_removes_the_file_and_links_stay_links() {
        let dir = dir("create");
        let mut staged = Staged::open(&dir).unwrap();
        staged.set_vswitches("[[vswitch]]\nname = 'a'\n".into());
        staged.commit().unwrap();
        staged.undo().unwrap();
        assert!(!dir.join("vswitches.toml").exists());
        drop(staged);

        fs::write(dir.join("real.txt"), "").unwrap();
        std::os::unix::fs::symlink("real.txt", dir.join("vswitches.toml")).unwrap();
        let mut staged = Staged::open(&dir).unwrap();
        staged.set_vswitches("[workers]\n".into());
        staged.commit().unwrap();
        assert_eq!(fs::read_to_string(dir.join("real.txt")).unwrap(), "[workers]\n");
        assert!(fs::symlink_metadata(dir.join("vswitches.toml")).unwrap().is_symlink());
        fs::remove_dir_all(&dir).unwrap();
    }
}
