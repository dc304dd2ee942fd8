//! QEMU guests without hardware virtualization: Debian's cloud kernel, an initramfs of ours, vhost-user devices with
//! shared memory. Needs `scripts/install-test-deps`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::console::{Console, command};
use crate::guest_image::{self, Extras};
use crate::linux_guest::LinuxGuest;
use crate::{Failure, Result, scratch};

/// What a network device of Debian's cloud kernel needs, in load order.
pub const NET_MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// 8021q and what it needs.
pub const VLAN_MODULES: &[&str] = &["llc", "stp", "garp", "mrp", "8021q"];

/// What QEMU's e1000 needs.
const E1000_MODULES: &[&str] = &["e1000"];

/// What makes QEMU take commands for the guest `name` where the daemon with this run directory looks for it.
pub fn control_socket(run_dir: &Path, name: &str) -> Vec<String> {
    let path = run_dir.join("guests").join(name).join("qmp.sock");
    vec!["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path.display())]
}

/// Starts a guest whose NIC is an emulated e1000 on the TAP `tap`; `arguments` are further ones of the VMM.
///
/// # Errors
/// When something is missing.
pub fn launch_e1000(name: &str, tap: &str, mac: &str, arguments: Vec<String>) -> Result<Booting> {
    let mut machine = Machine::new(name, E1000_MODULES);
    machine.kernel = "kernel-pc";
    machine.arguments = [
        ["-netdev".to_owned(), format!("tap,id=n0,ifname={tap},script=no,downscript=no")],
        ["-device".to_owned(), format!("e1000,id=net-0-5,netdev=n0,mac={mac}")],
    ]
    .concat();
    machine.arguments.extend(arguments);
    machine.launch()
}

/// How long an emulated guest may take to boot beside another and a busy switch, in seconds.
const BOOT_S: u64 = 90;

/// A guest to be started.
pub struct Qemu<'a> {
    /// Names its transcript.
    pub name: &'a str,
    /// The switch's socket of its port.
    pub socket: &'a Path,
    /// The MAC address that the VMM tells the guest.
    pub mac: &'a str,
    /// QEMU listens on the socket and the switch connects.
    pub server: bool,
    /// Queue pairs, and as many virtual CPUs.
    pub queue_pairs: u16,
    /// Further properties of the device, such as `packed=on` or `host_mtu=9000`.
    pub device: &'a str,
    /// Further arguments of the VMM.
    pub arguments: Vec<String>,
}

/// Where `scripts/install-test-deps` unpacks what it does not install.
pub fn cache() -> PathBuf {
    env::var_os("AVIO_TEST_CACHE").map_or_else(|| PathBuf::from("/var/cache/avio-tests"), PathBuf::from)
}

impl<'a> Qemu<'a> {
    /// A guest with one queue pair that connects to `socket`.
    pub fn new(name: &'a str, socket: &'a Path, mac: &'a str) -> Qemu<'a> {
        Qemu { name, socket, mac, server: false, queue_pairs: 1, device: "", arguments: Vec::new() }
    }

    /// Boots the guest.
    ///
    /// # Errors
    /// When something is missing or it does not boot in time.
    pub fn start(&self) -> Result<LinuxGuest> {
        self.launch()?.wait()
    }

    /// Starts the guest without waiting for it, so that several can boot at the same time.
    ///
    /// # Errors
    /// When something is missing.
    pub fn launch(&self) -> Result<Booting> {
        let queues = self.queue_pairs;
        let server = if self.server { ",server=on,wait=off" } else { ",reconnect=1" };
        let extra = if self.device.is_empty() { String::new() } else { format!(",{}", self.device) };
        let multi = if queues > 1 { ",mq=on" } else { "" };
        let modules = [NET_MODULES, VLAN_MODULES].concat();
        let mut machine = Machine::new(self.name, &modules);
        machine.cpus = queues;
        machine.arguments = [
            ["-chardev".to_owned(), format!("socket,id=c0,path={}{server}", self.socket.display())],
            ["-netdev".to_owned(), format!("vhost-user,id=n0,chardev=c0,queues={queues}")],
            [
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=n0,mac={}{multi},{NO_MSI_X}{extra}", self.mac),
            ],
        ]
        .concat();
        machine.arguments.extend(self.arguments.iter().cloned());
        machine.launch()
    }
}

/// No MSI-X: QEMU 7.2 without KVM dies on the first interrupt of a vhost-user device that has it (its table of kernel
/// interrupts is never made). Interrupts then come over the device's one line, for all queues.
pub const NO_MSI_X: &str = "vectors=0";

/// An emulated machine with Debian's cloud kernel and our root file system, before its devices.
pub struct Machine<'a> {
    /// Names its transcript.
    pub name: &'a str,
    /// Folder of [`cache`] with its kernel package: `kernel` (cloud flavour) or `kernel-pc` (drivers for emulated devices).
    pub kernel: &'a str,
    /// Kernel modules, in load order.
    pub modules: &'a [&'a str],
    /// What is in its root file system beside busybox.
    pub extras: Extras,
    /// Virtual CPUs.
    pub cpus: u16,
    /// Memory in MiB, shared with the back-ends.
    pub memory_mib: u32,
    /// Further arguments of the VMM: the devices.
    pub arguments: Vec<String>,
}

impl<'a> Machine<'a> {
    /// One CPU, 320 MiB, no devices.
    pub fn new(name: &'a str, modules: &'a [&'a str]) -> Machine<'a> {
        Machine {
            name,
            kernel: "kernel",
            modules,
            extras: Extras::default(),
            cpus: 1,
            memory_mib: 320,
            arguments: Vec::new(),
        }
    }

    /// Starts the machine without waiting for it, so that several can boot at the same time.
    ///
    /// # Errors
    /// When something is missing.
    pub fn launch(&self) -> Result<Booting> {
        let kernel = cache().join(self.kernel);
        let image = fs::read_dir(kernel.join("boot"))
            .map_err(|e| {
                Failure::from(e).while_doing(&format!("{} (scripts/install-test-deps)", kernel.display()))
            })?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-")))
            .ok_or_else(|| Failure::new("the unpacked kernel package has no kernel"))?;
        let initramfs = scratch::folder().join(format!("qemu-{}-{}.cpio", self.kernel, self.modules.len()));
        if !initramfs.exists() {
            guest_image::write(
                &initramfs,
                &guest_image::find_modules(&kernel.join("lib/modules"), self.modules)?,
                &self.extras,
            )?;
        }
        let memory = self.memory_mib;
        let mut command = command("qemu-system-x86_64");
        command
            .args([
                "-machine",
                "q35,accel=tcg,memory-backend=m",
                "-cpu",
                "max",
                "-display",
                "none",
                "-nodefaults",
            ])
            .args(["-object", &format!("memory-backend-memfd,id=m,share=on,size={memory}M")])
            .args(["-m", &format!("{memory}M")])
            .args(["-smp", &self.cpus.to_string(), "-no-reboot", "-serial", "stdio", "-monitor", "none"])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(initramfs)
            .args([
                "-append",
                "console=ttyS0 quiet loglevel=1 net.ifnames=0 panic=-1 mitigations=off no_timer_check",
            ])
            .args(&self.arguments);
        Ok(Booting { console: Console::spawn(self.name, &mut command)?, seconds: BOOT_S })
    }
}

/// A guest on its way up.
pub struct Booting {
    /// The process.
    pub console: Console,
    /// How long it may take, in seconds.
    pub seconds: u64,
}

impl Booting {
    /// Waits until it takes commands.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait(self) -> Result<LinuxGuest> {
        LinuxGuest::boot(self.console, self.seconds)
    }
}
