//! Linux guests with disks: which modules and devices they need, and what one asks of a disk inside. Used by the storage
//! tests; the daemon's side is [`crate::storage`].

use std::path::Path;

use crate::linux_guest::LinuxGuest;
use crate::qemu::{Booting, Machine, NO_MSI_X};
use crate::{Result, uml};

/// What disks, DVD drives and their passthrough nodes need of Debian's cloud kernel, in load order.
const QEMU_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "scsi_common",
    "scsi_mod",
    "virtio_scsi",
    "sd_mod",
    "cdrom",
    "sr_mod",
    "sg",
    "isofs",
    "virtio_blk",
];

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

/// An emulated machine with one adapter; `extra` are further properties of the device.
///
/// # Errors
/// When something is missing.
pub fn qemu(name: &str, socket: &Path, kind: Kind, queues: u16, extra: &str) -> Result<Booting> {
    let mut machine = Machine::new(name, QEMU_MODULES);
    machine.cpus = queues;
    let device = match kind {
        Kind::Blk => format!("vhost-user-blk-pci,chardev=c0,num-queues={queues},{NO_MSI_X}{extra}"),
        Kind::Scsi => format!("vhost-user-scsi-pci,chardev=c0,num_queues={queues},{NO_MSI_X}{extra}"),
    };
    // QEMU 7.2 reconnects its disks, not its SCSI adapters.
    let reconnect = if kind == Kind::Blk { ",reconnect=1" } else { "" };
    machine.arguments = vec![
        "-chardev".to_owned(),
        format!("socket,id=c0,path={}{reconnect}", socket.display()),
        "-device".to_owned(),
        device,
    ];
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
    uml::launch_with(name, UML_MODULES, &[(socket, id)])
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
