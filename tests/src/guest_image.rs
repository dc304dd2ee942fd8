//! The root file system of the Linux guests: an initramfs with busybox, the programs that the tests run inside, the kernel
//! modules of the guest's kernel, and an init that reads commands from the console. Built anew for each kernel in
//! milliseconds; no root is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::ensure;
use crate::{Failure, Result};

/// Programs of every guest.
const PROGRAMS: &[&str] = &["/usr/bin/iperf3", "/usr/sbin/ethtool", "/usr/bin/socat"];

/// What a guest gets beside busybox: files of the host, or of its packages.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Programs, with the libraries that they need: where they are, and their places in the guest (without the first slash).
    pub programs: Vec<(PathBuf, String)>,
    /// Other files, likewise.
    pub files: Vec<(PathBuf, String)>,
}

impl Extras {
    /// Adds a program, which gets the same place in the guest.
    pub fn program(&mut self, path: &str) {
        self.programs.push((path.into(), path.trim_start_matches('/').to_owned()));
    }
}

/// What the guest's init prints when it takes commands.
pub const READY: &str = "AVIO-GUEST-READY";

/// Line by line from the console: run it, say how it ended. Nothing is echoed, so an answer cannot be taken for its question.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module || echo "insmod $module failed"; done
ip link set lo up
stty -echo -onlcr 2>/dev/null
echo AVIO-GUEST-READY
while read -r line; do eval "$line"; done
poweroff -f
"#;

/// Writes an initramfs with `modules` (paths, in the order in which they are to be loaded) and `extras` to `path`.
///
/// # Errors
/// When a program or module is missing (`scripts/install-test-deps` installs them) or the file cannot be written.
pub fn write(path: &Path, modules: &[PathBuf], extras: &Extras) -> Result {
    let mut archive = Archive::default();
    let folders = [
        "bin", "dev", "etc", "lib", "lib64", "modules", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
        "usr/bin", "usr/sbin",
    ];
    folders.iter().for_each(|folder| archive.folder(folder));
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &read(Path::new("/bin/busybox"))?);
    let mut libraries = BTreeSet::new();
    let mut programs = Extras::default();
    PROGRAMS.iter().for_each(|path| programs.program(path));
    for (program, place) in programs.programs.iter().chain(&extras.programs) {
        archive.file(place, 0o755, &read(program)?);
        libraries.extend(libraries_of(program)?);
    }
    let mut made: BTreeSet<String> = folders.iter().map(|folder| (*folder).to_owned()).collect();
    for (file, place) in &extras.files {
        // The kernel makes no folder that the archive does not have.
        let above: Vec<&Path> = Path::new(place).ancestors().skip(1).collect();
        for folder in above.iter().rev().map(|folder| folder.display().to_string()) {
            if !folder.is_empty() && made.insert(folder.clone()) {
                archive.folder(&folder);
            }
        }
        archive.file(place, 0o755, &read(file)?);
    }
    for library in libraries {
        // The loader searches /lib for those that are elsewhere on the host.
        let place = if library.starts_with("/lib64") {
            library.trim_start_matches('/').to_owned()
        } else {
            in_lib(&library)
        };
        archive.file(&place, 0o755, &read(Path::new(&library))?);
    }
    let mut order = String::new();
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("modules/{name}"), 0o644, &read(module)?);
        order += &format!("{name}\n");
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    fs::write(path, archive.finish())?;
    Ok(())
}

/// Finds kernel modules by name below `folder`, in the order given.
///
/// # Errors
/// When one is missing.
pub fn find_modules(folder: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).map_err(|e| Failure::from(e).while_doing(&folder.display().to_string()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { all.push(path) }
        }
    }
    let find = |name: &&str| {
        let file = format!("{name}.ko");
        let found = all.iter().find(|path| path.file_name().is_some_and(|n| n == file.as_str()));
        found.cloned().ok_or_else(|| Failure::new(format!("no module {file} under {}", folder.display())))
    };
    names.iter().map(find).collect()
}

fn in_lib(library: &str) -> String {
    let name = Path::new(library).file_name().unwrap_or_default();
    format!("lib/{}", name.to_string_lossy())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| {
        Failure::from(e).while_doing(&format!("{} (scripts/install-test-deps installs it)", path.display()))
    })
}

/// The shared libraries that `program` loads, its loader included.
pub fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.success() || text.contains("statically"), || {
        format!("ldd {} failed", program.display())
    })?;
    // "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)"
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}

/// A cpio archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | permissions, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len(), name.len() + 1);
        // Magic, inode, mode, uid, gid, links, mtime, size, device and rdevice numbers, name size, check.
        let fields = [self.entries, mode, 0, 0, 1, 0].map(|n| format!("{n:08x}")).concat();
        self.bytes.extend(
            format!("070701{fields}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}", 0, 0, 0, 0, 0)
                .bytes(),
        );
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_headers_names_and_padded_content() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005", "size of the content in bytes");
        assert_eq!(&bytes[94..102], b"00000002", "size of the name with its end");
        // Header 110 + "a\0" = 112, a multiple of four already.
        assert_eq!(&bytes[112..120], b"hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701", "the trailer follows the padding");
        assert_eq!(bytes.len() % 4, 0);
    }
}
