//! One AF_XDP socket: one queue of a device, as an intake and an outlet over one UMEM.
//!
//! The UMEM is a memfd of our own; its first half is for receiving and goes round through fill and receive ring (the intake's), the second half is
//! for sending and goes round through transmit and completion ring (the outlet's). So the two halves share nothing but the descriptor.
//!
//! A device that is zero-copy and says that it sums (Documentation/networking/xsk-tx-metadata.rst) is told in front of a frame where its checksum goes. In copy mode
//! the kernel would do it in a pass of its own, so there the switch does while it copies. For receiving the kernel has no such metadata.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use avio_host::frame_memory::FrameMemory;
use avio_host::inject;
use avio_proto::mem::{GuestSlice, RegionHint};
use avio_proto::ring::{Batch, CHAINS_MAX, ChainArena, Collector, Undelivered};

use super::rings::{Desc, Gauge, Offsets, Ring};
use super::sys;
use super::watch::XskWatch;
use crate::port::wire::{Intake, OUT_PIECES_MAX, OutFrame, Outlet};

const AF_XDP: i32 = 44;
pub(super) const SOL_XDP: i32 = 283;
const XDP_MMAP_OFFSETS: i32 = 1;
const XDP_RX_RING: i32 = 2;
const XDP_TX_RING: i32 = 3;
const XDP_UMEM_REG: i32 = 4;
const XDP_UMEM_FILL_RING: i32 = 5;
const XDP_UMEM_COMPLETION_RING: i32 = 6;
const XDP_OPTIONS: i32 = 8;
/// Linux 6.17; frames that one system call may send in copy mode, 32 without.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
const PAGE_OFFSETS: [i64; 4] = [0, 0x8000_0000, 0x1_0000_0000, 0x1_8000_0000];

const BIND_COPY: u16 = 1 << 1;
const BIND_NEED_WAKEUP: u16 = 1 << 3;
/// Linux 6.6.
const BIND_USE_SG: u16 = 1 << 4;
const OPTION_ZERO_COPY: u32 = 1;
/// `XDP_UMEM_TX_METADATA_LEN` (Linux 6.11): what lies in front of each frame to send may be metadata.
const UMEM_TX_METADATA_LEN: u32 = 1 << 2;
/// `XDP_TXMD_FLAGS_CHECKSUM` of `struct xsk_tx_metadata`.
const METADATA_CHECKSUM: u64 = 1 << 1;
/// Room for metadata: of its own cache line, so that frames begin on one. The structure's first fields are all that is read unless its flags say otherwise.
const METADATA_LEN: usize = 64;

/// Bytes of a chunk of the UMEM: a page, the largest there is; a frame with the kernel's headroom of 256 bytes and an MTU of up to 3,500 fits
/// one.
const CHUNK: usize = 4096;
/// Longest frame that is sure to fit one chunk.
const SINGLE_MAX: usize = CHUNK - 256;
/// Entries of each ring, and chunks of each half: 1.3 ms of 64-byte frames at 1.5 Mpps.
pub(super) const ENTRIES: u32 = 2048;
/// Chunks of a frame from the wire, at most; the kernel's own limit is 17 (MAX_SKB_FRAGS).
const RX_PIECES_MAX: usize = 20;
/// System calls to get one batch out. In copy mode one sends 32 frames (or what XDP_MAX_TX_SKB_BUDGET says).
const KICKS_MAX: u32 = 8;
/// Fewer frames than this are few for a batch.
const SPARSE: usize = 16;
/// How long the receive ring is left alone after a batch of few, in copy mode, where the kernel hands over frame by frame: looked at for each one, lines
/// of the ring go back and forth between its core and ours, and every turn has one frame. A frame waits for it only if it comes so soon after
/// another. Network cards hold back their interrupts for longer.
const PAUSE: Duration = Duration::from_micros(5);
/// Completions that are waited for before they are looked at.
const REAP_BELOW: usize = 256;

/// How a socket is to be bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Not zero-copy, although the driver may say it can.
    pub copy: bool,
    /// Largest frame of the device, in bytes.
    pub frame_len_max: usize,
    /// Prefer busy polling (Linux 5.11) where the device is zero-copy, for workers that never sleep.
    pub busy_poll: bool,
    /// Leave checksums to the device where it is zero-copy: it says that it can.
    pub checksums: bool,
    /// In copy mode as well, where the kernel then has them filled in: for tests.
    pub checksums_copied: bool,
}

/// What was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XskInfo {
    /// The device reads and writes the UMEM itself.
    pub zero_copy: bool,
    /// Frames in several chunks.
    pub multi_buffer: bool,
    /// Preferred busy polling.
    pub busy_poll: bool,
    /// Entries of each of its rings.
    pub ring_size: u32,
    /// The kernel says when it wants a system call. Linux has that since 5.4, and it is always asked for.
    pub need_wakeup: bool,
    /// The outlet takes [`Outlet::sum`].
    pub checksums: bool,
}

/// Why there is no socket on a queue.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The device has no queue of that number.
    #[error("there is no such queue")]
    NoQueue,
    /// Frames of the device do not fit, and the kernel cannot split them.
    #[error("frames of {0} bytes need a kernel with multi-buffer AF_XDP (6.6); lower the MTU to 3,500")]
    TooLong(usize),
    /// The kernel counts the memory of frames against the limit of locked memory, unless we have CAP_IPC_LOCK.
    #[error(
        "{0} MiB of memory for frames exceed the limit of locked memory; raise it (`LimitMEMLOCK=infinity` in the unit, `ulimit -l`), or give the daemon CAP_IPC_LOCK"
    )]
    Locked(usize),
    /// What the system says.
    #[error("{0}")]
    Io(#[from] io::Error),
}

struct Socket {
    fd: OwnedFd,
    memory: FrameMemory,
    busy_poll: bool,
}

/// The two halves, what was negotiated, and what the watchdog looks at.
pub type OpenXsk = (Box<dyn Intake>, Box<dyn Outlet>, XskInfo, XskWatch);

/// Opens a socket on queue `queue` of interface number `ifindex`. Helper thread: a driver may reset its rings for it. The watch has the descriptor
/// for [`super::Attached::add`].
///
/// # Errors
/// [`XskError`].
pub fn open_xsk(ifindex: u32, queue: u32, wanted: Wanted) -> Result<OpenXsk, XskError> {
    let fd = sys::socket(AF_XDP, 0)?;
    let memory = FrameMemory::new("avio-umem", 2 * ENTRIES as usize * CHUNK)?;
    let (base, len) = memory.mapped();
    // `struct xdp_umem_reg`: address, length, chunk size, headroom, flags, room for metadata.
    let mut umem = [0; 32];
    umem[..8].copy_from_slice(&(base as u64).to_ne_bytes());
    umem[8..16].copy_from_slice(&(len as u64).to_ne_bytes());
    umem[16..20].copy_from_slice(&(CHUNK as u32).to_ne_bytes());
    let has_metadata = wanted.checksums && {
        let mut umem = umem;
        umem[24..28].copy_from_slice(&UMEM_TX_METADATA_LEN.to_ne_bytes());
        // More than the kernel takes stands for a kernel that does not know of it.
        let len = if inject::happens("uplink::tx_metadata_refused") { 256 } else { METADATA_LEN };
        umem[28..32].copy_from_slice(&(len as u32).to_ne_bytes());
        // An older kernel refuses the flag: the switch fills checksums in.
        sys::set_option(fd.as_fd(), SOL_XDP, XDP_UMEM_REG, &umem).is_ok()
    };
    if !has_metadata {
        let is_limit = |error: &io::Error| error.raw_os_error() == Some(libc::ENOBUFS);
        sys::set_option(fd.as_fd(), SOL_XDP, XDP_UMEM_REG, &umem)
            .map_err(|error| if is_limit(&error) { XskError::Locked(len >> 20) } else { error.into() })?;
    }
    for ring in [XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING] {
        sys::set_option(fd.as_fd(), SOL_XDP, ring, &ENTRIES.to_ne_bytes())?;
    }
    // Only for copy mode, only where the kernel has it; nothing depends on it.
    let _ = sys::set_option(fd.as_fd(), SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &256u32.to_ne_bytes());
    let offsets = offsets(&fd)?;
    let ring =
        |which: usize, len: usize| Ring::new(fd.as_fd(), PAGE_OFFSETS[which], offsets[which], ENTRIES, len);
    let (receive, transmit, mut fill, completion) = (ring(0, 16)?, ring(1, 16)?, ring(2, 8)?, ring(3, 8)?);
    for chunk in 0..u64::from(ENTRIES) {
        fill.put_addr(chunk * CHUNK as u64);
    }
    fill.publish();
    // Mapped before the socket is bound: until Linux 6.4 `mmap` refuses the rings of one that is (EBUSY).
    let gauge = |which: usize| Gauge::new(fd.as_fd(), PAGE_OFFSETS[which], offsets[which]);
    let watch = XskWatch::new(fd.try_clone()?, [gauge(0)?, gauge(1)?, gauge(2)?, gauge(3)?]);
    let multi_buffer = bind(&fd, ifindex, queue, wanted)?;
    let mut options = [0; 4];
    let got = sys::get_option(fd.as_fd(), SOL_XDP, XDP_OPTIONS, &mut options)?;
    let zero_copy = got == 4 && u32::from_ne_bytes(options) & OPTION_ZERO_COPY != 0;
    // Copying, the kernel's receiving half runs where the interrupt is; busy polling would only bring it into each look of ours.
    let busy_poll = wanted.busy_poll && zero_copy && prefer_busy_poll(&fd).is_ok();
    let socket = Arc::new(Socket { fd, memory, busy_poll });
    let intake = XskIntake {
        socket: Arc::clone(&socket),
        receive,
        fill,
        taken: Vec::with_capacity(taken_max()),
        pause: if zero_copy { Duration::ZERO } else { PAUSE },
        resume_at: None,
    };
    let free = (u64::from(ENTRIES)..2 * u64::from(ENTRIES)).map(|chunk| chunk * CHUNK as u64).collect();
    let outlet = XskOutlet {
        socket,
        transmit,
        completion,
        free,
        reserved: Vec::with_capacity(taken_max()),
        front: if has_metadata { METADATA_LEN } else { 0 },
        last: (0, 0),
        multi_buffer,
    };
    let info = XskInfo {
        zero_copy,
        multi_buffer,
        busy_poll,
        ring_size: ENTRIES,
        need_wakeup: true,
        checksums: has_metadata && (zero_copy || wanted.checksums_copied),
    };
    Ok((Box::new(intake), Box::new(outlet), info, watch))
}

fn taken_max() -> usize {
    CHAINS_MAX * RX_PIECES_MAX
}

/// Binds the socket; returns whether frames may come in several chunks.
fn bind(fd: &OwnedFd, ifindex: u32, queue: u32, wanted: Wanted) -> Result<bool, XskError> {
    let attempt = |flags: u16| {
        // `struct sockaddr_xdp`: family, flags, interface, queue, descriptor of a shared UMEM.
        let mut address = [0; 16];
        address[..2].copy_from_slice(&(AF_XDP as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&flags.to_ne_bytes());
        address[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        address[8..12].copy_from_slice(&queue.to_ne_bytes());
        sys::bind(fd.as_fd(), &address)
    };
    // Without either, the kernel takes zero-copy where the driver has it and copies where not.
    let flags = BIND_NEED_WAKEUP | if wanted.copy { BIND_COPY } else { 0 };
    let long = wanted.frame_len_max > SINGLE_MAX;
    let outcome = if long { attempt(flags | BIND_USE_SG) } else { attempt(flags) };
    match outcome {
        Ok(()) => Ok(long),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && long => {
            // An old kernel, or no such queue: without the flag we know.
            match attempt(flags) {
                Ok(()) => Err(XskError::TooLong(wanted.frame_len_max)),
                Err(_) => Err(XskError::NoQueue),
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(XskError::NoQueue),
        Err(error) => Err(error.into()),
    }
}

/// The kernel then leaves the device's interrupts off while we poll.
fn prefer_busy_poll(fd: &OwnedFd) -> io::Result<()> {
    const SO_BUSY_POLL: i32 = 46;
    const SO_PREFER_BUSY_POLL: i32 = 69;
    const SO_BUSY_POLL_BUDGET: i32 = 70;
    for (name, value) in [(SO_PREFER_BUSY_POLL, 1i32), (SO_BUSY_POLL, 20), (SO_BUSY_POLL_BUDGET, 64)] {
        sys::set_option(fd.as_fd(), libc::SOL_SOCKET, name, &value.to_ne_bytes())?;
    }
    Ok(())
}

/// Where the four rings' parts lie (`struct xdp_mmap_offsets`).
fn offsets(fd: &OwnedFd) -> io::Result<[Offsets; 4]> {
    let mut bytes = [0; 128];
    if sys::get_option(fd.as_fd(), SOL_XDP, XDP_MMAP_OFFSETS, &mut bytes)? != bytes.len() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than 5.4"));
    }
    let word = |i: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
        u64::from_ne_bytes(word) as usize
    };
    Ok(std::array::from_fn(|ring| Offsets {
        producer: word(4 * ring),
        consumer: word(4 * ring + 1),
        desc: word(4 * ring + 2),
        flags: word(4 * ring + 3),
    }))
}

/// The receiving half.
struct XskIntake {
    socket: Arc<Socket>,
    receive: Ring,
    fill: Ring,
    /// Chunks of the last batch.
    taken: Vec<u64>,
    /// How long the ring is left alone after a batch of few frames; zero: not at all.
    pause: Duration,
    /// Until when it is now.
    resume_at: Option<Instant>,
}

impl Intake for XskIntake {
    fn take<'a>(&'a mut self, arena: &'a mut ChainArena, max: usize) -> io::Result<Batch<'a>> {
        let mut ready = self.receive.ready();
        if ready == 0 && (self.socket.busy_poll || self.fill.needs_wakeup()) {
            sys::kick_receive(self.socket.fd.as_fd());
            ready = self.receive.ready();
        }
        let mut frames = Collector::new(arena, self.socket.memory.table());
        let (mut used, mut count) = (0, 0);
        let mut pieces = [(0, 0); RX_PIECES_MAX];
        while count < max && used < ready {
            let mut len = 0;
            let mut whole = false;
            while used + (len as u32) < ready && len < RX_PIECES_MAX {
                let desc = self.receive.desc(used + len as u32);
                pieces[len] = (desc.addr, desc.len);
                len += 1;
                if !desc.continued {
                    whole = true;
                    break;
                }
            }
            if !whole && len < RX_PIECES_MAX {
                // The rest of the frame is still to come.
                break;
            }
            for &(addr, _) in &pieces[..len] {
                self.taken.push(addr & !(CHUNK as u64 - 1));
            }
            used += len as u32;
            if !whole || !frames.push(pieces[..len].iter().copied(), None) {
                continue;
            }
            count += 1;
        }
        self.receive.consume(used);
        if self.pause > Duration::ZERO && (1..SPARSE).contains(&count) {
            self.resume_at = Some(Instant::now() + self.pause);
        }
        if count == 0 && used > 0 {
            // Nothing that anybody will call `done` for.
            refill(&mut self.taken, &mut self.fill);
        }
        Ok(frames.finish())
    }

    fn is_empty(&mut self) -> bool {
        if let Some(at) = self.resume_at {
            if Instant::now() < at {
                return true;
            }
            self.resume_at = None;
        }
        self.receive.ready() == 0 && !self.socket.busy_poll && !self.fill.needs_wakeup()
    }

    fn done(&mut self) {
        refill(&mut self.taken, &mut self.fill);
    }

    fn wait_fd(&self) -> io::Result<OwnedFd> {
        self.socket.fd.try_clone()
    }

    fn arm(&mut self) -> bool {
        self.resume_at = None;
        fence(Ordering::SeqCst);
        if self.fill.needs_wakeup() {
            sys::kick_receive(self.socket.fd.as_fd());
        }
        self.receive.ready() > 0
    }
}

/// Gives the chunks of a batch back. The fill ring has room for all chunks that there are.
fn refill(taken: &mut Vec<u64>, fill: &mut Ring) {
    for &addr in &*taken {
        fill.put_addr(addr);
    }
    taken.clear();
    fill.publish();
}

/// The sending half.
struct XskOutlet {
    socket: Arc<Socket>,
    transmit: Ring,
    completion: Ring,
    free: Vec<u64>,
    /// Chunks put since the last commit, for taking them back.
    reserved: Vec<u64>,
    /// Bytes in front of what is sent of a chunk, for metadata.
    front: usize,
    /// Of the last frame: its first chunk, and how many it has.
    last: (u64, u32),
    multi_buffer: bool,
}

impl Outlet for XskOutlet {
    fn reserve(&mut self, len: usize) -> Result<OutFrame<'_>, Undelivered> {
        let room = CHUNK - self.front;
        let count = len.div_ceil(room).max(1);
        if count > 1 && !self.multi_buffer || count > OUT_PIECES_MAX {
            return Err(Undelivered::TooLong);
        }
        if self.free.len() < REAP_BELOW {
            self.reap();
        }
        if self.free.len() < count || (self.transmit.room() as usize) < count {
            return Err(Undelivered::NoBuffer);
        }
        let table = self.socket.memory.table();
        let mut hint = RegionHint::default();
        let whole = table.slice(&mut hint, 0, CHUNK).ok_or(Undelivered::NoBuffer)?;
        let mut frame: OutFrame<'_> = [GuestSlice::sub(&whole, 0, 0); OUT_PIECES_MAX];
        let mut left = len;
        for piece in &mut frame[..count] {
            let addr = self.free.pop().unwrap_or_default();
            let part = left.min(room);
            left -= part;
            let at = addr + self.front as u64;
            *piece = table.slice(&mut hint, at, part).ok_or(Undelivered::NoBuffer)?;
            self.transmit.put_desc(Desc { addr: at, len: part as u32, continued: left > 0 });
            self.reserved.push(addr);
        }
        self.last = (self.reserved[self.reserved.len() - count], count as u32);
        Ok(frame)
    }

    fn sum(&mut self, start: u16, offset: u16) {
        let (chunk, pieces) = self.last;
        // `struct xsk_tx_metadata`: flags, then where summing begins and where behind that the sum goes.
        let mut metadata = [0; 16];
        metadata[..8].copy_from_slice(&METADATA_CHECKSUM.to_ne_bytes());
        metadata[8..10].copy_from_slice(&start.to_ne_bytes());
        metadata[10..12].copy_from_slice(&offset.to_ne_bytes());
        let table = self.socket.memory.table();
        if let Some(room) = table.slice(&mut RegionHint::default(), chunk, metadata.len()) {
            room.copy_from(&metadata);
            self.transmit.mark_metadata(pieces);
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        self.transmit.publish();
        self.reserved.clear();
        let outcome = self.kick();
        self.reap();
        outcome
    }

    fn rollback(&mut self) {
        self.transmit.take_back(self.reserved.len() as u32);
        self.free.append(&mut self.reserved);
    }
}

impl XskOutlet {
    /// Chunks that the kernel has sent are free again.
    fn reap(&mut self) {
        let ready = self.completion.ready();
        for ahead in 0..ready {
            self.free.push(self.completion.addr(ahead) & !(CHUNK as u64 - 1));
        }
        if ready > 0 {
            self.completion.consume(ready);
        }
    }

    /// Has the kernel send what is in the transmit ring, if it waits to be told.
    fn kick(&mut self) -> io::Result<()> {
        for _ in 0..KICKS_MAX {
            if !self.transmit.needs_wakeup() {
                return Ok(());
            }
            match sys::kick_send(self.socket.fd.as_fd()) {
                Ok(()) => {}
                // There is more than one call sends, or the device is full: it goes out with the next batch at the latest.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS)) => {}
                // The link is down; control learns of it and takes the lane away.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENETDOWN)) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.transmit.is_drained() {
                return Ok(());
            }
            self.reap();
        }
        Ok(())
    }
}
