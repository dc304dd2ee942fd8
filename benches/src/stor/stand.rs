//! The processes of the current rows: daemons that are alive but stopped, each with its guest connected.
//!
//! Owns who runs: [`Stand::reading`] lets one target run for one window and stops it again. Owns files, loop devices and zram
//! devices that serve as disks, and takes them away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use avio_tests::console::Console;
use avio_tests::daemon::Daemon;
use avio_tests::failure::{ensure, eventually};
use avio_tests::storage::{Adapter, Storage};
use avio_tests::{Failure, Result, scratch};
use avio_tools::iogen::load::JobSpec;
use avio_tools::iogen::options::{DeviceKind, Rings};
use avio_tools::iogen::report::Report;
use avio_tools::iogen::run::Bench;

use super::options::Options;
use super::peers::{self, SIZE};
use super::rows::{Backing, MIX, Row};
use super::target::{Luns, Server, Target, Way};
use super::window::Reading;
use crate::beside::{GUEST_CORE, TARGET_CORE, process};

/// LUNs of the crowded adapter.
const CROWD: usize = 128;
/// Which of them is the busy one, where only one is.
const BUSY: usize = CROWD / 2;
/// Bytes of a file or device that serves as a disk.
const FILE_LEN: u64 = 256 << 20;
/// Bytes of one of many: all of them have as much as one that is alone.
const SHARE: u64 = CROWD as u64;
/// Most requests in flight and longest request of any row: rings are made for them.
const DEPTH_MAX: u16 = 128;
const BLOCK_MAX: u64 = 131_072;

enum Process {
    Avio(Daemon<Storage>),
    Qsd(Console),
}

struct Served {
    // The guest goes first when both are dropped.
    bench: Bench,
    process: Process,
}

/// See the module.
pub struct Stand {
    backing: Backing,
    served: BTreeMap<Target, Served>,
    fio: Vec<Target>,
    /// What fio does its I/O on.
    bare: Option<PathBuf>,
    _disks: Disks,
}

impl Stand {
    /// Whether the row can be measured on these processes.
    pub fn fits(&self, options: &Options, row: &Row) -> bool {
        let mut wanted = row.targets.iter().filter(|target| options.wants_target(target.family()));
        self.backing == row.backing && wanted.all(|&target| self.has(target))
    }

    /// Whether this target runs here.
    pub fn has(&self, target: Target) -> bool {
        self.served.contains_key(&target) || self.fio.contains(&target)
    }

    /// Starts these targets, makes their disks, connects their guests; everything is stopped afterwards.
    ///
    /// # Errors
    /// When a program or a kernel facility is missing, or a guest is refused.
    pub fn start(options: &Options, backing: Backing, targets: &[Target]) -> Result<Self> {
        let mut disks = Disks::default();
        let (mut served, mut fio, mut bare) = (BTreeMap::new(), Vec::new(), None);
        let wanted = targets.iter().filter(|target| options.wants_target(target.family()));
        // A gigabyte of huge pages for each, which the page cache has left in pieces: whoever came last had plain ones.
        if backing == Backing::Memory
            && let Err(e) = fs::write("/proc/sys/vm/compact_memory", "1")
        {
            eprintln!("   memory stays in pieces (/proc/sys/vm/compact_memory: {e})");
        }
        for (number, &target) in wanted.enumerate() {
            eprintln!("   starting {}", target.name());
            let (process, rings, socket) = match target.server {
                Server::Fio => {
                    if bare.is_none() {
                        bare = Some(disks.make(options, backing)?);
                    }
                    fio.push(target);
                    continue;
                }
                Server::Qsd => {
                    let path = match backing {
                        Backing::Null => None,
                        backing => Some(disks.make(options, backing)?),
                    };
                    let (console, socket) =
                        peers::start_qsd(&format!("qsd-{number}"), backing, path.as_deref(), target.queues)?;
                    (Process::Qsd(console), Rings::default(), socket)
                }
                Server::Blk | Server::Stor => {
                    let name = format!("stord-{number}");
                    start_avio(options, &name, backing, target, &mut disks)?
                }
            };
            let one_of_many = target.luns == Luns::OneOfMany;
            let rings = Rings {
                wait: target.guest_sleeps,
                connect_timeout: Duration::from_secs(5),
                inflight: target.family() == "avio",
                targets: if one_of_many { vec![BUSY as u8] } else { Vec::new() },
                ..rings
            };
            let spec = JobSpec {
                block: BLOCK_MAX,
                iodepth: DEPTH_MAX,
                count: target.queues,
                sockets: vec![socket],
                ..JobSpec::default()
            };
            let mut bench = Bench::connect(vec![spec], &rings, vec![GUEST_CORE]).map_err(Failure::new)?;
            if backing == Backing::Memory && target.family() == "avio" {
                // The others' files are written, too, before they are read.
                bench.change(|job| drop(job.set_rw("write", 0)));
                bench.run(|_| {}).map_err(Failure::new)?;
            }
            let mut one = Served { bench, process };
            process::stop(one.process.console()?)?;
            served.insert(target, one);
        }
        Ok(Self { backing, served, fio, bare, _disks: disks })
    }

    /// Lets `target` run for one `window` of `row`.
    ///
    /// # Errors
    /// When a process is gone or a request fails.
    pub fn reading(&mut self, row: &Row, target: Target, window: Duration) -> Result<Reading> {
        let load = row.load;
        if target.server == Server::Fio {
            let path = self.bare.as_deref().ok_or_else(|| Failure::new("fio has no disk"))?;
            return peers::fio(row.backing, load, target, path, window);
        }
        let served = self.served.get_mut(&target).ok_or_else(|| Failure::new("the target does not run"))?;
        served.bench.change(|job| {
            // Names and mix are those of the rows, which fio takes, too.
            drop(job.set_rw(load.rw, MIX));
            (job.block, job.iodepth) = (load.block, load.depth);
            (job.runtime, job.time_based) = (Some(window), true);
            job.ramp = Duration::from_millis(80);
        });
        process::resume(served.process.console()?)?;
        let pid = served.process.console()?.pid();
        let (before, start) = (process::by_thread(pid)?, Instant::now());
        let measured = served.bench.run(|_| {});
        let after = process::by_thread(pid)?;
        let elapsed_ns = start.elapsed().as_nanos() as f64;
        process::stop(served.process.console()?)?;
        let measured = measured.map_err(Failure::new)?;
        let (all, busiest) = (process::sum_since(&before, &after), process::busiest_since(&before, &after));
        let waited_ms = measured.waited_ms;
        // Where the kernel does the I/O, its threads are what a worker waits for, as qemu-storage-daemon's threads wait for one
        // another on a file in memory: part of the work, no disturbance.
        let threaded =
            row.backing.is_kernels() || (target.server == Server::Qsd && row.backing == Backing::Memory);
        let target_waited = if threaded { 0.0 } else { busiest.waited_ns as f64 / elapsed_ns };
        // The threads of a loop device take the guest's core, too, if it is the one that is left.
        let guest_waited = if row.backing.is_loop() { 0.0 } else { waited_ms * 1e6 / elapsed_ns };
        let report = Report::new(served.bench.jobs(), measured.clone());
        if let Some(complaint) = report.complaint() {
            return Err(Failure::new(complaint));
        }
        let job = measured.jobs.first().ok_or_else(|| Failure::new("no job ran"))?;
        let count: u64 = job.window.done.iter().sum();
        let iops = count as f64 / job.window.seconds;
        let main = usize::from(job.window.done[0] == 0);
        let s = job.tally.latency[main].summary();
        let thousands = count.max(1) as f64 / 1e3;
        Ok(Reading {
            iops,
            latency_us: [s.p50_us, s.p99_us, s.p999_us],
            cpu: all.ran_ns as f64 / elapsed_ns / iops * 1e6,
            kicks: job.window.kicks as f64 / thousands,
            signals: job.window.signals as f64 / thousands,
            waited_share: target_waited.max(guest_waited),
        })
    }
}

fn start_avio(
    options: &Options,
    name: &str,
    backing: Backing,
    target: Target,
    disks: &mut Disks,
) -> Result<(Process, Rings, PathBuf)> {
    let scsi = target.server == Server::Stor;
    // A file's cache is as the row says: the others compare writes that are not durable yet.
    let cache = match (backing.is_file(), target.way) {
        (true, Way::Through) => "cache = \"writethrough\"",
        (true, _) => "cache = \"writeback\"",
        _ => "",
    };
    // Smaller blocks than the disk's would go through the page cache.
    let block = if backing == Backing::ZramFile { "block_size = 4096" } else { "" };
    let extra = &format!("{cache}\n{block}");
    let mut adapter = Adapter::new("g", if scsi { "avio_stor" } else { "avio_blk" })
        .lines(&format!("queues = {}", target.queues))
        .head(if target.way == Way::Pinned { "pin_memory = true" } else { "" });
    for number in 0..if target.luns == Luns::One { 1 } else { CROWD } {
        // The only one that is busy has as much to read from as one that is alone.
        let is_whole = target.luns == Luns::One || (target.luns == Luns::OneOfMany && number == BUSY);
        let share = if is_whole { 1 } else { SHARE };
        let of_kernel = |disks: &mut Disks| disks.make_of(options, backing, FILE_LEN / share);
        let spec = match backing {
            Backing::Null => format!("null:{SIZE}"),
            Backing::Memory => format!("memory:{}", SIZE / share),
            backing if backing.is_file() => format!("file:{}", of_kernel(disks)?.display()),
            _ => format!("disk:{}", of_kernel(disks)?.display()),
        };
        adapter = adapter.disk(number, &spec, extra);
    }
    let poll = if target.is_adaptive { "adaptive" } else { "always" };
    let head = format!("[workers]\ncores = [{TARGET_CORE}]\npoll = \"{poll}\"\n");
    let other = options.against.as_ref().filter(|_| target.is_other);
    let binary = other.map(|folder| folder.join("avio-stord"));
    let folder = scratch::folder().join(name);
    // A guest that is new: one that was there before would have to approve another backing.
    let _ = std::fs::remove_dir_all(folder.join("state"));
    let daemon = Daemon::start_as(binary, folder, Storage::one(adapter).head(&head))?;
    let socket = daemon.stor_socket("g")?;
    let device = if scsi { DeviceKind::Scsi } else { DeviceKind::Blk };
    Ok((Process::Avio(daemon), Rings { device, ..Rings::default() }, socket))
}

impl Process {
    fn console(&mut self) -> Result<&mut Console> {
        match self {
            Process::Avio(daemon) => daemon.console(),
            Process::Qsd(console) => Ok(console),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A stopped process does not hear anything else, its end included.
        if let Ok(console) = self.process.console() {
            drop(process::resume(console));
        }
    }
}

/// Disks that were made, to be taken away.
#[derive(Default)]
pub(super) struct Disks {
    files: Vec<PathBuf>,
    loops: Vec<String>,
    mounts: Vec<PathBuf>,
    zrams: Vec<u32>,
}

impl Disks {
    /// A disk of its own for one target: claims of two daemons on one would exclude each other.
    pub(super) fn make(&mut self, options: &Options, backing: Backing) -> Result<PathBuf> {
        self.make_of(options, backing, if backing == Backing::Memory { SIZE } else { FILE_LEN })
    }

    /// The same with so many bytes.
    fn make_of(&mut self, options: &Options, backing: Backing, len: u64) -> Result<PathBuf> {
        match backing {
            Backing::Null => Err(Failure::new("null has no path")),
            Backing::Memory => self.file(Path::new("/dev/shm"), len),
            Backing::File => self.file(&options.disks, len),
            Backing::Loop(block) => {
                let file = self.file(&options.disks, len)?;
                let mut losetup = Command::new("losetup");
                losetup.args(["--find", "--show", "--direct-io=on", "--sector-size", &block.to_string()]);
                let device = output(losetup.arg(&file))?;
                self.loops.push(device.clone());
                Ok(device.into())
            }
            Backing::Zram => {
                let path = self.zram(len)?;
                fill(&path, len, "/dev/zero")?;
                Ok(path)
            }
            Backing::ZramFile => {
                let device = self.zram(len * 3 / 2)?;
                output(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device))?;
                let folder = scratch::folder().join(format!("zram-{}", self.mounts.len()));
                fs::create_dir_all(&folder)?;
                output(Command::new("mount").arg(&device).arg(&folder))?;
                self.mounts.push(folder.clone());
                let path = folder.join("disk");
                fill(&path, len, "/dev/zero")?;
                Ok(path)
            }
        }
    }

    /// A new device, kept in the memory of this machine.
    fn zram(&mut self, len: u64) -> Result<PathBuf> {
        let number: u32 = fs::read_to_string("/sys/class/zram-control/hot_add")?.trim().parse()?;
        self.zrams.push(number);
        fs::write(format!("/sys/block/zram{number}/disksize"), len.to_string())?;
        Ok(PathBuf::from(format!("/dev/zram{number}")))
    }

    fn file(&mut self, folder: &Path, len: u64) -> Result<PathBuf> {
        let path = folder.join(format!("avio-bench-stor-{}-{}", std::process::id(), self.files.len()));
        self.files.push(path.clone());
        fill(&path, len, "/dev/urandom")?;
        Ok(path)
    }
}

/// Writes all of a file or device, so that reads meet data and writes meet space.
fn fill(path: &Path, len: u64, from: &str) -> Result {
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "conv=fsync,notrunc", "status=none"]);
    dd.arg(format!("if={from}")).arg(format!("of={}", path.display())).arg(format!("count={}", len >> 20));
    output(&mut dd).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| Failure::new(format!("{name}: {e}")))?;
    ensure(output.status.success(), || {
        format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Drop for Disks {
    fn drop(&mut self) {
        for device in &self.loops {
            drop(Command::new("losetup").args(["--detach", device]).status());
        }
        // Who had files or devices open may still be on its way out.
        for folder in &self.mounts {
            let umount = || Command::new("umount").arg(folder).output().is_ok_and(|o| o.status.success());
            drop(eventually("umount", 5, umount));
        }
        for number in &self.zrams {
            let remove = || fs::write("/sys/class/zram-control/hot_remove", number.to_string()).is_ok();
            drop(eventually("hot_remove", 5, remove));
        }
        for file in &self.files {
            drop(fs::remove_file(file));
        }
    }
}
