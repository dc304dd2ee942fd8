//! A disk's worker and its guest on one thread, without sockets: what micro-benchmarks and instruction counts drive.
//!
//! Owns guest memory, both ends of one request ring, and the engine that serves it, with in-flight tracking, counters and limits
//! as a daemon has them. As in [`crate::rig`] no cache line crosses cores, and anything unexpected panics.

#![expect(
    clippy::missing_panics_doc,
    reason = "a benchmark's rig panics on everything that goes wrong, as said above"
)]

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_guest::{GUEST_BASE, GuestMemory, MemfdMapping};
use avio_host::stats::WorkerStats;
use avio_host::wait::{EventFd, Sources, Token};
use avio_host::worker::{ControlWaker, Engine as _, Polled};
use avio_proto::config::BackingSpec;
use avio_proto::mem::{GuestSlice, Mapping, RegionHint};
use avio_proto::ring::{DriverLayout, DriverRing, Inflight, Used};
use avio_proto::virtio::blk;
use avio_proto::virtio::scsi::{CDB_LEN, CommandRequest, CommandResponse, Lun as Address};
use avio_storage::adapter::{AdapterId, AdapterKind, AdapterView, TARGETS_MAX, Target};
use avio_storage::backing::{Backing, Io, OpenOptions};
use avio_storage::lun::{Lun, LunId, LunStats, Overlap, Qos, QueueStats};
use avio_storage::scsi::{DeviceKind, LogicalUnit, NexusName, Profile, SavedState};
use avio_storage::serve::{Command, Engine, Events, QueueSpec, Role};
use avio_storage::uring::Capabilities;

use crate::ends::ends;
use crate::rig::RING_SIZE;

/// Requests per round: what a busy guest makes available at once.
pub const BATCH: usize = 32;
/// Bytes of a request's data.
const BLOCK: u32 = 4096;
/// Bytes of the disk.
const DISK_LEN: u64 = 16 << 20;
/// Bytes for a slot's head and response: lines of their own.
const HEAD_STRIDE: u64 = 256;
/// Where in them the response is.
const RESPONSE_AT: u64 = 128;
/// Room for the in-flight log of either kind of ring.
const INFLIGHT_LEN: u64 = 64 << 10;

/// What is behind the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `null:`.
    Null,
    /// `memory:`.
    Memory,
    /// A file on tmpfs, whose I/O is complete when it has been submitted: the worker's part of a file's I/O, and no waiting.
    File,
}

/// What a rig is built for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// `avio_blk` or `avio_stor`.
    pub adapter: AdapterKind,
    /// Acked virtio feature bits of the ring.
    pub features: u64,
    /// What is behind the disk.
    pub store: Store,
    /// Writes instead of reads.
    pub writes: bool,
    /// Disks of the adapter, at least 1; requests are for all of them in turn. An `avio_blk` has one.
    pub luns: u8,
}

/// See the module.
pub struct StorageRig {
    shape: Shape,
    engine: Engine,
    sources: Sources,
    token: Token,
    driver: DriverRing,
    memory: GuestMemory,
    heads_at: u64,
    data_at: u64,
    used: Vec<Used>,
    /// The disk that the next request is for.
    next_lun: u8,
    /// A file of ours on tmpfs.
    file: Option<PathBuf>,
}

impl StorageRig {
    /// Builds it: its disks, one ring.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let features = shape.features;
        let rings = DriverLayout::bytes_needed(RING_SIZE, features).next_multiple_of(4096);
        let (heads_at, heads) = (GUEST_BASE + rings, BATCH as u64 * HEAD_STRIDE);
        let data_at = heads_at + heads.next_multiple_of(4096);
        let len = data_at - GUEST_BASE + BATCH as u64 * u64::from(BLOCK);
        let memory = GuestMemory::new("bench", len as usize).expect("guest memory");
        let (driver, ring, setup) = ends(&memory, features);
        let log: Arc<dyn Mapping> =
            Arc::new(MemfdMapping::new("bench-inflight", INFLIGHT_LEN as usize).expect("in-flight region"));
        let inflight = Inflight::new(&log, 0, INFLIGHT_LEN, &setup).expect("in-flight log");

        let (events, _) = Events::new(ControlWaker::new().expect("eventfd"));
        let own = EventFd::new().expect("eventfd");
        let mut sources = Sources::new(&own, Arc::new(WorkerStats::default())).expect("epoll set");
        let capabilities = Capabilities { defer_taskrun: true, registered_files: true, fixed_buffers: false };
        let mut engine = Engine::new(0, 1, events, Io::new(capabilities), Instant::now());
        let (backing, file) = shape.store.make();
        let stats = Arc::new(QueueStats::default());
        let view = view(&shape, &backing, Arc::clone(&stats));
        engine.command(&mut sources, Command::SetAdapter(Arc::new(view)));
        let (index, role) = match shape.adapter {
            AdapterKind::Blk => (0, Role::BlkRequest),
            AdapterKind::Scsi => (2, Role::ScsiRequest),
        };
        let queue = QueueSpec {
            adapter: AdapterId(0),
            index,
            role,
            ring,
            size: RING_SIZE,
            kick: None,
            call: None,
            inflight: Some(inflight),
            durable: false,
            events_missed: false,
            pin: false,
            stats,
        };
        engine.command(&mut sources, Command::AddQueue(Box::new(queue)));
        let token = sources.active()[0];
        engine.disarm(token);
        let used = vec![Used::default(); usize::from(RING_SIZE)];
        let mut rig = Self {
            shape,
            engine,
            sources,
            token,
            driver,
            memory,
            heads_at,
            data_at,
            used,
            next_lun: 0,
            file,
        };
        (0..BATCH as u64).for_each(|i| rig.write_head(i));
        rig
    }

    fn slice(&self, at: u64, len: usize) -> GuestSlice<'_> {
        self.memory.table().slice(&mut RegionHint::default(), at, len).expect("guest memory")
    }

    /// Where request `i`'s head, response and data are, and how long the first two are.
    fn place(&self, i: u64) -> [(u64, u32); 3] {
        let head = self.heads_at + i * HEAD_STRIDE;
        let (head_len, response_len) = match self.shape.adapter {
            AdapterKind::Blk => (blk::RequestHeader::LEN, 1),
            AdapterKind::Scsi => (CommandRequest::LEN, CommandResponse::LEN),
        };
        [
            (head, head_len as u32),
            (head + RESPONSE_AT, response_len as u32),
            (self.data_at + i * u64::from(BLOCK), BLOCK),
        ]
    }

    /// Each request has a place of its own on the disk.
    fn write_head(&mut self, i: u64) {
        let target = self.next_lun;
        self.next_lun = (target + 1) % self.shape.luns;
        let offset = i * 37 % (DISK_LEN / u64::from(BLOCK)) * u64::from(BLOCK);
        let (at, len) = self.place(i)[0];
        let head = self.slice(at, len as usize);
        match self.shape.adapter {
            AdapterKind::Blk => {
                let kind = if self.shape.writes { blk::T_OUT } else { blk::T_IN };
                head.copy_from(&blk::RequestHeader { kind, sector: offset / 512 }.to_bytes());
            }
            AdapterKind::Scsi => {
                // READ(10), WRITE(10) (SBC-3 5.8, 5.31).
                let mut cdb = [0; CDB_LEN];
                cdb[0] = if self.shape.writes { 0x2a } else { 0x28 };
                cdb[2..6].copy_from_slice(&((offset / 512) as u32).to_be_bytes());
                cdb[7..9].copy_from_slice(&((BLOCK / 512) as u16).to_be_bytes());
                let lun = Address::target(target).encode();
                head.copy_from(&CommandRequest { lun, id: i, cdb, ..CommandRequest::default() }.to_bytes());
            }
        }
    }

    /// The guest makes [`BATCH`] requests available.
    pub fn offer(&mut self) {
        for i in 0..BATCH as u64 {
            if self.shape.luns > 1 {
                self.write_head(i);
            }
            let [head, response, data] = self.place(i);
            // What must not be good is in the way of what is.
            let front = (response.1 as usize).min(CommandResponse::HEAD_LEN);
            self.slice(response.0, front).copy_from(&[u8::MAX; CommandResponse::HEAD_LEN][..front]);
            let added = match (self.shape.writes, self.shape.adapter) {
                (true, _) => self.driver.add(&[head, data], &[response]),
                // A block request ends with its status (§5.2.6), a SCSI response comes before the data (§5.6.6.1).
                (false, AdapterKind::Blk) => self.driver.add(&[head], &[data, response]),
                (false, AdapterKind::Scsi) => self.driver.add(&[head], &[response, data]),
            };
            added.expect("room in the ring");
        }
        self.driver.publish();
    }

    /// The worker's part: turns until all that was offered is taken. Where the kernel completes at once, one takes only a part of it. Returns how many
    /// requests they took.
    #[inline(never)]
    pub fn serve(&mut self) -> usize {
        let mut taken = 0;
        while taken < BATCH {
            taken += self.turn();
        }
        taken
    }

    /// A turn, and for a file what has completed.
    fn turn(&mut self) -> usize {
        self.engine.poll_kernel(&mut self.sources);
        let polled = self.engine.poll(self.token, 64);
        self.engine.turn_end(&mut self.sources);
        if self.shape.store == Store::File {
            self.engine.poll_kernel(&mut self.sources);
        }
        match polled {
            Polled::Worked { items, .. } if items > 0 => items,
            other => panic!("the ring was polled: {other:?}"),
        }
    }

    /// The guest takes back what is done; checks that everything is, and well.
    pub fn collect(&mut self) {
        let count = self.driver.poll_used(&mut self.used);
        assert_eq!(count, BATCH, "every request comes back");
        for i in 0..BATCH as u64 {
            let (at, len) = self.place(i)[1];
            let mut response = [0; CommandResponse::LEN];
            self.slice(at, len as usize).copy_to(&mut response[..len as usize]);
            // Of a SCSI response the last byte of the head is what the transport says, and the one before the status.
            let good = match self.shape.adapter {
                AdapterKind::Blk => response[0] == blk::S_OK,
                AdapterKind::Scsi => response[10..12] == [0, 0],
            };
            assert!(good, "request {i} was answered with {:?}", &response[..12]);
        }
    }

    /// Time that the worker's part takes in `rounds` rounds; two clock readings (50 ns) per round are in it.
    pub fn time(&mut self, rounds: u64) -> Duration {
        let mut inside = Duration::ZERO;
        for _ in 0..rounds {
            self.offer();
            let start = Instant::now();
            self.serve();
            inside += start.elapsed();
            self.collect();
        }
        inside
    }
}

impl Store {
    fn make(self) -> (BackingSpec, Option<PathBuf>) {
        match self {
            Self::Null => (BackingSpec::Null(DISK_LEN), None),
            Self::Memory => (BackingSpec::Memory(DISK_LEN), None),
            Self::File => {
                let path = PathBuf::from(format!("/dev/shm/avio-bench-rig-{}", std::process::id()));
                File::create(&path).and_then(|file| file.set_len(DISK_LEN)).expect("a file on tmpfs");
                (BackingSpec::File(path.clone()), Some(path))
            }
        }
    }
}

/// The adapter, as control would present it.
fn view(shape: &Shape, spec: &BackingSpec, stats: Arc<QueueStats>) -> AdapterView {
    let nexus = NexusName { guest: "bench".into(), bus: 0, device: 1 };
    let mut targets = vec![None; TARGETS_MAX];
    for (number, place) in (0..shape.luns).zip(&mut targets) {
        *place = Some(Arc::new(target(number, spec, &nexus)));
    }
    AdapterView {
        id: AdapterId(0),
        name: "bench".into(),
        kind: shape.adapter,
        nexus,
        queues: vec![stats; 3],
        targets: targets.into_boxed_slice(),
    }
}

/// One of its disks.
fn target(number: u8, spec: &BackingSpec, nexus: &NexusName) -> Target {
    let options =
        OpenOptions { readonly: false, block_size: Some(512), writes_through: Some(false), dvd: false };
    let backing = Backing::open(spec, &options).expect("a backing");
    let limits = *backing.limits();
    let profile = Profile {
        kind: DeviceKind::Disk,
        serial: "BENCH".into(),
        identity: "BENCH".into(),
        block_size: limits.block_size,
        physical_block_size: limits.physical_block_size,
        readonly: limits.readonly,
        volatile_cache: limits.volatile_cache,
        rotational: limits.rotational,
        unmaps: limits.discards,
        unmapped_is_zero: limits.discards_read_zeroes,
    };
    // One that has been there: no unit attention is in the way of the first command.
    let saved = SavedState { succeeds: true, ..SavedState::default() };
    let unit = LogicalUnit::new(profile, DISK_LEN / u64::from(limits.block_size), saved);
    Target {
        number,
        nexus: unit.attach(nexus),
        lun: Arc::new(Lun {
            id: LunId(number.into()),
            name: "bench".into(),
            unit,
            overlap: Overlap::default(),
        }),
        at_once: backing.at_once(),
        backing: Some(backing),
        readonly: false,
        stats: LunStats::new(1),
        cleared: Arc::default(),
        qos: Arc::new(Qos::default()),
        timeout: Duration::from_secs(30),
        serial: [0; blk::SERIAL_LEN],
    }
}

impl Drop for StorageRig {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            drop(std::fs::remove_file(file));
        }
    }
}
