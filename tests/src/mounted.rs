//! A file system of the host's in an image file, on a loop device.
//!
//! For tests of what a backing does when the file system under it hangs, or when somebody else has the device. Needs root; undoes all of it when dropped.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::wire::run;

/// See the module.
pub struct Mounted {
    /// The loop device.
    pub device: String,
    /// Where it is mounted.
    pub folder: PathBuf,
}

impl Mounted {
    /// Makes a file system in `image` and mounts it beside it.
    ///
    /// # Errors
    /// What mkfs.ext4, losetup or mount say.
    pub fn new(image: &Path) -> Result<Mounted> {
        let folder = image.with_extension("mnt");
        fs::create_dir_all(&folder)?;
        run("mkfs.ext4", &["-q", "-F", &image.display().to_string()])?;
        let device = run("losetup", &["--find", "--show", &image.display().to_string()])?.trim().to_owned();
        let mounted = Mounted { device, folder };
        run("mount", &[&mounted.device, &mounted.folder.display().to_string()])?;
        Ok(mounted)
    }

    /// Freezes it, so that writes hang in the kernel, or lets it go on.
    ///
    /// # Errors
    /// What fsfreeze says.
    pub fn freeze(&self, freeze: bool) -> Result {
        let how = if freeze { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[how, &self.folder.display().to_string()]).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.freeze(false);
        let _ = run("umount", &["--lazy", &self.folder.display().to_string()]);
        let _ = run("losetup", &["--detach", &self.device]);
    }
}
