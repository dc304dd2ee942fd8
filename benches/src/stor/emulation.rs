//! The same disk in a QEMU guest through `avio_stor` and through QEMU's own emulated SCSI adapters, as the original measured itself.
//!
//! The guest's processor is emulated, too (no hardware virtualization is asked for), which blurs the comparison: what the
//! guest's driver and kernel take is most of the time. Owns the guests, their disks' loads and the arithmetic; figures are kept
//! as lines of text.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avio_tests::console::Console;
use avio_tests::daemon::Daemon;
use avio_tests::disk_guest::SCSI_MODULES;
use avio_tests::guest_image::Extras;
use avio_tests::qemu::{Machine, NO_MSI_X};
use avio_tests::storage::{Adapter, Storage};
use avio_tests::{Failure, Result, scratch};
use serde_json::Value;

use super::options::Options;
use super::stand::Disks;
use crate::beside::machine::Machine as Host;
use crate::beside::spread::spread;
use crate::beside::{TARGET_CORE, process};

/// Drivers of disks in Debian's kernel for emulated machines, in load order; the adapters' own behind.
const DRIVERS: &[&str] = &[
    "crct10dif_common",
    "crct10dif_generic",
    "crc-t10dif",
    "crc64",
    "crc64_rocksoft_generic",
    "crc64-rocksoft",
    "t10-pi",
    "sd_mod",
    "virtio_scsi",
    "scsi_transport_sas",
    "mptbase",
    "mptscsih",
    "mptsas",
    "scsi_transport_spi",
    "sym53c8xx",
];
/// Windows of each load, in turn over the adapters.
const ROUNDS: usize = 5;
/// Length of one, seconds, and what fio is left alone before it.
const WINDOW_S: u64 = 1;
const SETTLE_S: u64 = 1;
/// Requests in flight: as many as the emulated adapters make use of.
const DEPTH: u32 = 16;
/// Memory of a guest: fio brings 90 MiB of libraries, which are there twice while they are unpacked.
const MEMORY_MIB: u32 = 768;
/// How long fio may take.
const FIO_S: u64 = 60;

/// An adapter of a guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hba {
    Avio,
    Emulated(&'static str),
}

impl Hba {
    fn name(self) -> &'static str {
        match self {
            Self::Avio => "avio_stor",
            Self::Emulated(model) => model,
        }
    }
}

/// One guest and the processes that serve it; all but one are stopped.
struct Guest {
    hba: Hba,
    linux: avio_tests::linux_guest::LinuxGuest,
    daemon: Option<Daemon<Storage>>,
}

/// One window.
#[derive(Clone, Copy)]
struct Reading {
    iops: f64,
    cpu_per_gib: f64,
}

/// Lines: what, and value.
///
/// # Errors
/// When a guest does not start.
pub fn measure(host: &Host, options: &Options) -> Result<Vec<(String, String)>> {
    let mut disks = Disks::default();
    let mut guests = Vec::new();
    for hba in [Hba::Avio, Hba::Emulated("mptsas1068"), Hba::Emulated("lsi53c895a")] {
        eprintln!("   starting a guest with {}", hba.name());
        let disk = disks.make(options, super::rows::Backing::ZramFile)?;
        guests.push(start(hba, &disk)?);
    }
    let mut lines = Vec::new();
    for (block, rw) in [(4, "randrw"), (8, "randrw")] {
        host.ensure_wanted()?;
        let mut readings: Vec<Vec<Reading>> = guests.iter().map(|_| Vec::new()).collect();
        for round in 1..=ROUNDS {
            for (guest, readings) in guests.iter_mut().zip(&mut readings) {
                let reading = guest.reading(block, rw).map_err(|f| f.while_doing(guest.hba.name()))?;
                eprintln!(
                    "   {round}/{ROUNDS} {rw} {block} KiB {:<12} {:6.0} IOPS, {:.2} CPU-s per GiB",
                    guest.hba.name(),
                    reading.iops,
                    reading.cpu_per_gib
                );
                readings.push(reading);
            }
        }
        let of = |i: usize, what: fn(&Reading) -> f64| {
            spread(readings[i].iter().map(what)).map_or(0.0, |spread| spread.median)
        };
        let values: Vec<String> = guests
            .iter()
            .enumerate()
            .map(|(i, guest)| {
                let (iops, cpu) = (of(i, |r| r.iops), of(i, |r| r.cpu_per_gib));
                let against = match i {
                    0 => String::new(),
                    _ => format!(
                        " (avio_stor {:.2}x the rate, {:.2}x the CPU)",
                        of(0, |r| r.iops) / iops,
                        of(0, |r| r.cpu_per_gib) / cpu
                    ),
                };
                format!("{} {iops:.0} IOPS, {cpu:.1} CPU-s per GiB{against}", guest.hba.name())
            })
            .collect();
        lines.push((
            format!(
                "QEMU guest with an emulated processor (TCG, which blurs it), file on zram, 70/30 {block} KiB, QD{DEPTH}, CPU of QEMU and \
                 daemon, {ROUNDS} windows"
            ),
            values.join("; "),
        ));
    }
    Ok(lines)
}

fn start(hba: Hba, disk: &Path) -> Result<Guest> {
    let modules = [SCSI_MODULES, DRIVERS].concat();
    let mut machine = Machine::new(hba.name(), &modules);
    machine.kernel = "kernel-pc";
    machine.memory_mib = MEMORY_MIB;
    machine.extras = Extras::default();
    machine.extras.program("/usr/bin/fio");
    let mut daemon = None;
    machine.arguments = match hba {
        Hba::Avio => {
            let adapter = Adapter::new("g", "avio_stor").disk(
                0,
                &format!("file:{}", disk.display()),
                "cache = \"writeback\"\nblock_size = 4096",
            );
            let head = format!("[workers]\ncores = [{TARGET_CORE}]\n");
            let started =
                Daemon::start_in(scratch::folder().join("emulation"), Storage::one(adapter).head(&head))?;
            let socket: PathBuf = started.stor_socket("g")?;
            daemon = Some(started);
            vec![
                "-chardev".into(),
                format!("socket,id=c0,path={}", socket.display()),
                "-device".into(),
                format!("vhost-user-scsi-pci,chardev=c0,num_queues=1,{NO_MSI_X}"),
            ]
        }
        Hba::Emulated(model) => vec![
            "-device".into(),
            format!("{model},id=h"),
            "-drive".into(),
            format!("if=none,id=d0,format=raw,cache=none,aio=io_uring,file={}", disk.display()),
            "-device".into(),
            // Linux leaves SAS devices without an address alone.
            "scsi-hd,drive=d0,bus=h.0,wwn=0x5000c50000000001,port_wwn=0x5000c50000000002".into(),
        ],
    };
    let mut linux = machine.launch()?.wait()?;
    linux.wait_disks("sd*", 1, 30)?;
    let mut guest = Guest { hba, linux, daemon };
    guest.each(process::stop)?;
    Ok(guest)
}

impl Guest {
    fn each(&mut self, what: impl Fn(&Console) -> Result) -> Result {
        what(self.linux.console())?;
        if let Some(daemon) = &mut self.daemon {
            what(daemon.console()?)?;
        }
        Ok(())
    }

    fn ran_ns(&mut self) -> Result<u64> {
        let mut pids = vec![self.linux.console().pid()];
        if let Some(daemon) = &mut self.daemon {
            pids.push(daemon.console()?.pid());
        }
        let mut sum = 0;
        for pid in pids {
            sum += process::sum_since(&process::ByThread::new(), &process::by_thread(pid)?).ran_ns;
        }
        Ok(sum)
    }

    fn reading(&mut self, block_kib: u32, rw: &str) -> Result<Reading> {
        self.each(process::resume)?;
        let command = format!(
            "rm -f /tmp/end; (fio --name=w --filename=/dev/sda --ioengine=libaio --direct=1 --rw={rw} --rwmixread=70 --bs={block_kib}k --iodepth={DEPTH} \
             --time_based --runtime={} --norandommap --zero_buffers --thread --eta=never --output-format=json --output=/tmp/f; \
             echo $? >/tmp/end) & true",
            SETTLE_S + WINDOW_S + 1
        );
        self.linux.run(&command)?;
        // Loading fio takes an emulated processor a second.
        std::thread::sleep(Duration::from_secs(SETTLE_S));
        let (before, start) = (self.ran_ns()?, Instant::now());
        std::thread::sleep(Duration::from_secs(WINDOW_S));
        let cpu_share = (self.ran_ns()? - before) as f64 / start.elapsed().as_nanos() as f64;
        let end = "while ! [ -e /tmp/end ]; do usleep 50000; done; cat /tmp/f; (exit $(cat /tmp/end))";
        let (status, said) = self.linux.run_for(FIO_S, end)?;
        self.each(process::stop)?;
        let json: Value = said
            .find('{')
            .and_then(|at| serde_json::from_str(&said[at..=said.rfind('}')?]).ok())
            .ok_or_else(|| Failure::new(format!("fio in the guest, status {status}: {said}")))?;
        let job = &json["jobs"][0];
        let iops = ["read", "write"].iter().filter_map(|d| job[d]["iops"].as_f64()).sum::<f64>();
        if iops <= 0.0 {
            return Err(Failure::new(format!("fio in the guest did nothing: {said}")));
        }
        let per_gib = f64::from(1 << 20) / f64::from(block_kib);
        Ok(Reading { iops, cpu_per_gib: cpu_share / iops * per_gib })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A stopped process does not hear anything else, its end included.
        drop(self.each(process::resume));
    }
}
