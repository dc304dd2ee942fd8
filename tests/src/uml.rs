//! User-Mode Linux guests: a Linux kernel as a process with a vhost-user front-end of its own. It connects once, at start,
//! and never again. Needs `scripts/install-test-deps`.

use std::path::Path;

use crate::console::{Console, command};
use crate::guest_image::{self, Extras};
use crate::linux_guest::LinuxGuest;
use crate::qemu::{Booting, cache};
use crate::{Result, scratch};

/// How long it may take to boot, in seconds: 1.4 when nothing else runs.
const BOOT_S: u64 = 45;

/// What a network device needs, in load order.
pub const NET_MODULES: &[&str] = &["failover", "net_failover", "virtio_net"];

/// The virtio device id of a network device (virtio 1.3 section 5).
pub const VIRTIO_ID_NET: u8 = 1;

/// Boots a guest whose `eth0` is the port behind `socket`.
///
/// # Errors
/// When something is missing or it does not boot in time.
pub fn start(name: &str, socket: &Path) -> Result<LinuxGuest> {
    launch(name, socket)?.wait()
}

/// Starts the guest without waiting for it, so that several can boot at the same time.
///
/// # Errors
/// When something is missing.
pub fn launch(name: &str, socket: &Path) -> Result<Booting> {
    launch_with(name, NET_MODULES, &Extras::default(), &[(socket, VIRTIO_ID_NET)])
}

/// Starts a guest with these kernel modules, in load order, these files beside busybox, and these devices: socket and virtio
/// device id of each (virtio 1.3 section 5).
///
/// # Errors
/// When something is missing.
pub fn launch_with(
    name: &str,
    modules: &[&str],
    extras: &Extras,
    devices: &[(&Path, u8)],
) -> Result<Booting> {
    let initramfs = scratch::folder().join(format!("uml-{}.cpio", modules.len()));
    if !initramfs.exists() {
        guest_image::write(
            &initramfs,
            &guest_image::find_modules(Path::new("/usr/lib/uml/modules"), modules)?,
            extras,
        )?;
    }
    let mut command = command("linux.uml");
    command
        // Without it, UML cannot run on processors with AMX (scripts/uml-xstate.c).
        .env("LD_PRELOAD", cache().join("uml-xstate.so"))
        // Its memory is a file there, and the daemon maps it.
        .env("TMPDIR", "/dev/shm")
        .args(["mem=192M", "con=null", "con0=fd:0,fd:1", "ssl=null", "quiet", "loglevel=1", "panic=-1"])
        .arg(format!("initrd={}", initramfs.display()))
        .arg(format!("umid={}-{}", std::process::id(), name))
        .arg(format!("uml_dir={}", scratch::folder().display()));
    for (socket, id) in devices {
        command.arg(format!("virtio_uml.device={}:{id}", socket.display()));
    }
    Ok(Booting { console: Console::spawn(name, &mut command)?, seconds: BOOT_S })
}
