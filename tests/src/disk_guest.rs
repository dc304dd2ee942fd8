//! Linux guests with disks: which modules and devices they need, and what one asks of a disk inside. Used by the storage
//! tests; the daemon's side is [`crate::storage`].

use std::path::Path;

use crate::daemon::program;
use crate::guest_image::Extras;
use crate::linux_guest::LinuxGuest;
use crate::qemu::{self, Booting, Machine, NO_MSI_X};
use crate::{Result, uml};

/// What virtio devices and SCSI need of Debian's kernels, in load order; drivers come behind.
pub const SCSI_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "scsi_common",
    "scsi_mod",
];

/// Disks, DVD drives and their passthrough nodes with Debian's cloud kernel.
const DRIVERS: &[&str] = &["virtio_scsi", "sd_mod", "cdrom", "sr_mod", "sg", "isofs", "virtio_blk"];

/// All of that.
fn qemu_modules() -> Vec<&'static str> {
    [SCSI_MODULES, DRIVERS].concat()
}

/// The same of User-Mode Linux's kernel, which has more built in.
const UML_MODULES: &[&str] = &[
    "scsi_common",
    "scsi_mod",
    "virtio_scsi",
    "crc64",
    "crc64-rocksoft",
    "t10-pi",
    "sd_mod",
    "cdrom",
    "sr_mod",
    "sg",
    "isofs",
    "virtio_blk",
];

/// Virtio device ids (virtio 1.3 section 5).
const VIRTIO_ID_BLOCK: u8 = 2;
const VIRTIO_ID_SCSI: u8 = 8;

/// What a guest has behind one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A virtio-blk disk: `/dev/vda`.
    Blk,
    /// A virtio-scsi adapter: `/dev/sda` and so on.
    Scsi,
}

/// Of sg3-utils and e2fsprogs: what the tests run in a guest.
const PROGRAMS: &[&str] = &[
    "/usr/bin/sg_compare_and_write",
    "/usr/bin/sg_get_lba_status",
    "/usr/bin/sg_inq",
    "/usr/bin/sg_logs",
    "/usr/bin/sg_luns",
    "/usr/bin/sg_modes",
    "/usr/bin/sg_opcodes",
    "/usr/bin/sg_persist",
    "/usr/bin/sg_raw",
    "/usr/bin/sg_readcap",
    "/usr/bin/sg_requests",
    "/usr/bin/sg_reset",
    "/usr/bin/sg_start",
    "/usr/bin/sg_sync",
    "/usr/bin/sg_turs",
    "/usr/bin/sg_unmap",
    "/usr/bin/sg_verify",
    "/usr/bin/sg_vpd",
    "/usr/bin/sg_write_same",
    "/usr/sbin/e2fsck",
    "/usr/sbin/mke2fs",
];

/// The udev rule that `make install` ships for guests.
const RULE: &str = "systemd/60-avio-gvsd.rules";

/// An adapter of an emulated machine.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Where the daemon listens.
    pub socket: &'a Path,
    /// What it is.
    pub kind: Kind,
    /// Request queues.
    pub queues: u16,
    /// Further properties for QEMU, each after a comma.
    pub extra: &'a str,
}

/// What guests with disks have beside busybox: sg3-utils, e2fsprogs, udev, and our own `gvsdmgr` with its rule.
fn extras() -> Result<Extras> {
    let mut extras = Extras::default();
    PROGRAMS.iter().for_each(|path| extras.program(path));
    extras.programs.push((qemu::cache().join("udev/bin/udevadm"), "bin/udevadm".to_owned()));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    extras.files = vec![
        (program("gvsdmgr")?, "usr/bin/gvsdmgr".to_owned()),
        (root.join(RULE), "etc/udev/rules.d/60-avio-gvsd.rules".to_owned()),
    ];
    Ok(extras)
}

/// An emulated machine with one adapter; `extra` are further properties of the device.
///
/// # Errors
/// When something is missing.
pub fn qemu(name: &str, socket: &Path, kind: Kind, queues: u16, extra: &str) -> Result<Booting> {
    qemu_with(name, &[Device { socket, kind, queues, extra }])
}

/// An emulated machine with these adapters, and as many virtual CPUs as the first has queues.
///
/// # Errors
/// When something is missing.
pub fn qemu_with(name: &str, devices: &[Device<'_>]) -> Result<Booting> {
    let modules = qemu_modules();
    let mut machine = Machine::new(name, &modules);
    machine.cpus = devices.first().map_or(1, |device| device.queues);
    machine.extras = extras()?;
    for (number, Device { socket, kind, queues, extra }) in devices.iter().enumerate() {
        // QEMU 7.2 reconnects its disks, not its SCSI adapters.
        let (model, count, reconnect) = match kind {
            Kind::Blk => ("vhost-user-blk-pci", "num-queues", ",reconnect=1"),
            Kind::Scsi => ("vhost-user-scsi-pci", "num_queues", ""),
        };
        machine.arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id=c{number},path={}{reconnect}", socket.display()),
            "-device".to_owned(),
            format!("{model},chardev=c{number},{count}={queues},{NO_MSI_X}{extra}"),
        ]);
    }
    machine.launch()
}

/// An emulated machine with whatever devices these arguments of QEMU's make.
///
/// # Errors
/// When something is missing.
pub fn qemu_with_arguments(name: &str, arguments: Vec<String>) -> Result<Booting> {
    let modules = qemu_modules();
    let mut machine = Machine::new(name, &modules);
    machine.extras = extras()?;
    machine.arguments = arguments;
    machine.launch()
}

/// A User-Mode Linux guest with one adapter.
///
/// # Errors
/// When something is missing.
pub fn uml(name: &str, socket: &Path, kind: Kind) -> Result<Booting> {
    let id = match kind {
        Kind::Blk => VIRTIO_ID_BLOCK,
        Kind::Scsi => VIRTIO_ID_SCSI,
    };
    uml::launch_with(name, UML_MODULES, &extras()?, &[(socket, id)])
}

impl LinuxGuest {
    /// How many disks with names like `pattern` (`sd*`) the guest has, partitions not counted.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn count_disks(&mut self, pattern: &str) -> Result<usize> {
        let text = self.run(&format!("ls -d /sys/block/{pattern} 2>/dev/null | wc -l"))?;
        Ok(text.trim().parse()?)
    }

    /// Waits until the guest has exactly so many such disks.
    ///
    /// # Errors
    /// When it has not within `seconds`.
    pub fn wait_disks(&mut self, pattern: &str, count: usize, seconds: u64) -> Result {
        let command = format!(
            "for i in $(seq {}); do [ $(ls -d /sys/block/{pattern} 2>/dev/null | wc -l) = {count} ] && break; \
             usleep 100000; done; ls -d /sys/block/{pattern} 2>/dev/null | wc -l",
            seconds * 10
        );
        let (_, text) = self.run_for(seconds + 30, &command)?;
        crate::failure::ensure(text.trim() == count.to_string(), || format!("{text} disks, not {count}"))
    }

    /// As [`LinuxGuest::wait_disks`] of `sd*`, and gives them their names in the order of their targets: the kernel probes
    /// SCSI disks side by side and names them as they come.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn wait_disks_in_order(&mut self, count: usize, seconds: u64) -> Result {
        self.wait_disks("sd*", count, seconds)?;
        self.run(
            "cd /sys/bus/scsi/drivers/sd; for d in *:*:*:*; do echo $d > unbind; done; \
             for d in $(ls /sys/bus/scsi/devices | grep '^[0-9]*:' | sort -t: -k1n -k3n); do echo $d > bind; done 2>/dev/null; cd /",
        )?;
        self.wait_disks("sd*", count, seconds)
    }

    /// Size of a disk in bytes, as the guest's kernel has it.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn disk_bytes(&mut self, disk: &str) -> Result<u64> {
        Ok(self.run(&format!("cat /sys/block/{disk}/size"))?.trim().parse::<u64>()? * 512)
    }

    /// Writes `mib` MiB of random bytes to `/dev/DISK`, past the cache, and finds them there again.
    ///
    /// # Errors
    /// When what is read is not what was written.
    pub fn ensure_holds(&mut self, disk: &str, mib: u64, block: &str) -> Result {
        let command = format!(
            "dd if=/dev/urandom of=/tmp/r bs=1M count={mib} 2>/dev/null && dd if=/tmp/r of=/dev/{disk} bs={block} oflag=direct 2>/dev/null && \
             dd if=/dev/{disk} bs=64k count={} iflag=direct 2>/dev/null | cmp - /tmp/r && rm /tmp/r",
            mib * 16
        );
        let (status, text) = self.run_for(120, &command)?;
        crate::failure::ensure(status == 0, || format!("{command} ended with {status}: {text}"))
    }
}
