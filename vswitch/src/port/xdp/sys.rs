//! The system calls that no safe crate wraps: bpf(2), AF_XDP and packet sockets, the ioctl of ethtool.
//!
//! Each function is one call with its arguments checked by their types; none keeps anything.

#![expect(unsafe_code, reason = "system calls without a safe wrapper (DESIGN section 6)")]

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use avio_proto::mem::Mapping;

use super::packet;

/// Turns a return value below zero into the error.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// bpf(2) with `attr` as its attribute union, which the kernel only reads unless the command says otherwise.
fn bpf(command: u32, attr: &mut [u8]) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is readable and writable for its whole length, which is passed along; pointers inside it are the callers' concern, who
    // keep what they point to alive over the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), attr.len()) })
}

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: u32 = 17;
const BPF_LINK_CREATE: u32 = 28;
/// `BPF_PROG_TYPE_SCHED_CLS` and `BPF_PROG_TYPE_XDP`, and `BPF_XDP` of `enum bpf_attach_type`.
pub(super) const PROG_CLASSIFIER: u32 = 3;
pub(super) const PROG_XDP: u32 = 6;
pub(super) const ATTACH_XDP: u32 = 37;
/// `union bpf_attr` as far as we fill it.
const ATTR_LEN: usize = 128;
/// The same as far as a test run has fields.
const TEST_ATTR_LEN: usize = 80;

pub(super) fn put<const N: usize>(attr: &mut [u8], at: usize, bytes: [u8; N]) {
    attr[at..at + N].copy_from_slice(&bytes);
}

/// A map of `kind` (`enum bpf_map_type`).
pub(super) fn map_create(kind: u32, key_len: u32, value_len: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_LEN];
    for (at, value) in [(0, kind), (4, key_len), (8, value_len), (12, entries)] {
        put(&mut attr, at, value.to_ne_bytes());
    }
    owned(bpf(BPF_MAP_CREATE, &mut attr)?)
}

/// Sets an element; key and value must have the lengths that the map was made with.
pub(super) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = [0; ATTR_LEN];
    put(&mut attr, 0, (map.as_raw_fd() as u32).to_ne_bytes());
    put(&mut attr, 8, (key.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 16, (value.as_ptr() as u64).to_ne_bytes());
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Takes an element out; the key must have the length that the map was made with.
pub(super) fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = [0; ATTR_LEN];
    put(&mut attr, 0, (map.as_raw_fd() as u32).to_ne_bytes());
    put(&mut attr, 8, (key.as_ptr() as u64).to_ne_bytes());
    bpf(BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Loads an XDP program, for interface number `ifindex` alone if that is not 0; on refusal the verifier's words are in the error.
pub(super) fn prog_load(code: &[u64], flags: u32, ifindex: u32) -> io::Result<OwnedFd> {
    load(PROG_XDP, ATTACH_XDP, code, *b"avio_uplink\0\0\0\0\0", |attr| {
        put(attr, 44, flags.to_ne_bytes());
        put(attr, 64, ifindex.to_ne_bytes());
    })
}

fn load(
    kind: u32,
    place: u32,
    code: &[u64],
    name: [u8; 16],
    more: impl FnOnce(&mut [u8; ATTR_LEN]),
) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attr = [0; ATTR_LEN];
    put(&mut attr, 0, kind.to_ne_bytes());
    put(&mut attr, 4, (code.len() as u32).to_ne_bytes());
    put(&mut attr, 8, (code.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 16, (license.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 48, name);
    put(&mut attr, 68, place.to_ne_bytes());
    more(&mut attr);
    bpf(BPF_PROG_LOAD, &mut attr).and_then(owned).or_else(|error| {
        // Once more for the words: what has loops fills any log that is written where nothing is wrong.
        let mut log = vec![0u8; 64 * 1024];
        put(&mut attr, 24, 1u32.to_ne_bytes());
        put(&mut attr, 28, (log.len() as u32).to_ne_bytes());
        put(&mut attr, 32, (log.as_mut_ptr() as u64).to_ne_bytes());
        if let Ok(program) = bpf(BPF_PROG_LOAD, &mut attr).and_then(owned) {
            return Ok(program);
        }
        let text = String::from_utf8_lossy(&log);
        let mut lines = text.trim_end_matches('\0').lines().rev().filter(|line| !line.is_empty());
        // The last line counts instructions.
        let last = lines.find(|line| !line.starts_with("processed ")).unwrap_or("");
        Err(if last.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}: {last}")) })
    })
}

/// An array map of one element of `len` bytes that can be mapped (Linux 5.5).
pub(super) fn frame_map(len: u32) -> io::Result<OwnedFd> {
    const MAP_ARRAY: u32 = 2;
    const MMAPABLE: u32 = 1 << 10;
    let mut attr = [0; ATTR_LEN];
    for (at, value) in [(0, MAP_ARRAY), (4, 4), (8, len), (12, 1), (16, MMAPABLE)] {
        put(&mut attr, at, value.to_ne_bytes());
    }
    owned(bpf(BPF_MAP_CREATE, &mut attr)?)
}

/// Loads a program of `kind` (`enum bpf_prog_type`), called `name`, for `place` (`enum bpf_attach_type`) where its kind has several; on refusal the verifier's words
/// are in the error.
pub(super) fn program_load(kind: u32, place: u32, code: &[u64], name: [u8; 16]) -> io::Result<OwnedFd> {
    load(kind, place, code, name, |_| ())
}

/// Has a program run at the tracepoint `name` as long as the returned descriptor is open.
pub(super) fn raw_tracepoint_open(name: &CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_LEN];
    put(&mut attr, 0, (name.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 8, (program.as_raw_fd() as u32).to_ne_bytes());
    owned(bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr)?)
}

/// Puts this thread into a network namespace of its own.
pub(super) fn leave_network() -> io::Result<()> {
    // SAFETY: no memory is involved, and descriptors stay as they are.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }.into()).map(drop)
}

/// Writes the `len` bytes at `offset` of `mapping`, which lie inside, to a TAP as one frame. Panics if they do not.
#[inline]
pub(super) fn inject(
    tap: BorrowedFd<'_>,
    mapping: &RingMapping,
    offset: usize,
    len: usize,
) -> io::Result<()> {
    // SAFETY: `at` checks that the bytes are inside the mapping, which the borrow keeps; the kernel only reads them.
    let result = unsafe { libc::write(tap.as_raw_fd(), mapping.at(offset, len).cast(), len) };
    check(result as libc::c_long).map(drop)
}

/// Runs a classifier once, over a packet with the `len` bytes at `offset` of `mapping`, which lie inside. Panics if they do not.
#[inline]
pub(super) fn test_run(
    program: BorrowedFd<'_>,
    mapping: &RingMapping,
    offset: usize,
    len: usize,
) -> io::Result<()> {
    let mut attr = [0; TEST_ATTR_LEN];
    put(&mut attr, 0, (program.as_raw_fd() as u32).to_ne_bytes());
    put(&mut attr, 8, (len as u32).to_ne_bytes());
    put(&mut attr, 16, (mapping.at(offset, len) as u64).to_ne_bytes());
    bpf(BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// Attaches a program to an interface at `place` (`enum bpf_attach_type`) by a link: it goes when the returned descriptor does.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    place: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_LEN];
    for (at, value) in [(0, program.as_raw_fd() as u32), (4, ifindex), (8, place), (12, flags)] {
        put(&mut attr, at, value.to_ne_bytes());
    }
    owned(bpf(BPF_LINK_CREATE, &mut attr)?)
}

/// The interface number and the program's number of an attachment; 0: it was taken from its interface.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // `struct bpf_link_info`: type, number, program's number, then, eight bytes aligned, of XDP and traffic control alike the interface number.
    let mut info = [0u8; 64];
    let mut attr = [0; ATTR_LEN];
    put(&mut attr, 0, (link.as_raw_fd() as u32).to_ne_bytes());
    put(&mut attr, 4, (info.len() as u32).to_ne_bytes());
    put(&mut attr, 8, (info.as_mut_ptr() as u64).to_ne_bytes());
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok((word(16), word(8)))
}

/// A new socket, close-on-exec and non-blocking.
pub(super) fn socket(domain: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    owned(unsafe { libc::socket(domain, kind, protocol) }.into())
}

/// Whether the kernel has AF_XDP sockets and we may open one.
///
/// # Errors
/// What the system says.
pub fn xdp_available() -> io::Result<()> {
    socket(libc::AF_XDP, 0).map(drop)
}

/// setsockopt(2) with the bytes of a kernel structure.
pub(super) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let (at, len) = (value.as_ptr().cast::<c_void>(), value.len() as u32);
    // SAFETY: `value` is readable for `len` bytes.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, at, len) }.into()).map(drop)
}

/// getsockopt(2) into `value`; returns how many bytes the kernel wrote.
pub(super) fn get_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as u32;
    let at = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: `value` is writable for `len` bytes.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &mut len) }.into())?;
    Ok(len as usize)
}

/// Attaches a classic BPF program (code, jump if true, jump if false, operand) to a socket.
pub(super) fn set_filter(fd: BorrowedFd<'_>, code: &[(u16, u8, u8, u32)]) -> io::Result<()> {
    let mut filters: Vec<libc::sock_filter> =
        code.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog { len: filters.len() as u16, filter: filters.as_mut_ptr() };
    let (at, len) = ((&raw const program).cast::<c_void>(), size_of::<libc::sock_fprog>() as u32);
    // SAFETY: `program` is a whole `struct sock_fprog` whose filters live until the call returns.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, at, len) };
    check(result.into()).map(drop)
}

/// Whether something can be received now.
pub(super) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one `struct pollfd`.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// bind(2) with the bytes of a socket address.
pub(super) fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let at = address.as_ptr().cast::<libc::sockaddr>();
    // SAFETY: `address` is readable for its length.
    check(unsafe { libc::bind(fd.as_raw_fd(), at, address.len() as u32) }.into()).map(drop)
}

/// Tells the kernel to send what is in the socket's transmit ring.
#[inline]
pub(super) fn kick_send(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no bytes are passed.
    let result =
        unsafe { libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    check(result as libc::c_long).map(drop)
}

/// Tells the kernel to look at the socket's fill ring, and to poll its device where busy polling is on.
#[inline]
pub(super) fn kick_receive(fd: BorrowedFd<'_>) {
    // SAFETY: no bytes are passed.
    unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// Sends one message per range of `memory` (offset, length), in order; returns how many went out. The ranges must lie in `memory`.
pub(super) fn send_ranges(
    fd: BorrowedFd<'_>,
    memory: (*mut u8, usize),
    ranges: &[(usize, usize)],
    scratch: &mut Messages,
) -> io::Result<usize> {
    let count = scratch.fill(memory, ranges);
    // SAFETY: the first `count` headers each name one vector of `scratch`, whose bytes lie in `memory`, which the caller keeps mapped.
    let result = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), scratch.headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT)
    };
    check(result.into()).map(|sent| sent as usize)
}

/// Receives one message into each range of `memory`, as many as there are; returns how many. Lengths and tags are in `scratch`.
pub(super) fn receive_ranges(
    fd: BorrowedFd<'_>,
    memory: (*mut u8, usize),
    ranges: &[(usize, usize)],
    scratch: &mut Messages,
) -> io::Result<usize> {
    let count = scratch.fill(memory, ranges);
    for i in 0..count {
        scratch.headers[i].msg_hdr.msg_control = scratch.controls[i].0.as_mut_ptr().cast();
        scratch.headers[i].msg_hdr.msg_controllen = CONTROL_LEN;
    }
    // SAFETY: as in `send_ranges`; the control buffers are our own and as long as stated.
    let result = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            scratch.headers.as_mut_ptr(),
            count as u32,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    match check(result.into()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other.map(|count| count as usize),
    }
}

/// Room for one control message with `struct tpacket_auxdata`.
const CONTROL_LEN: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL_LEN]);

/// Headers of a batch of messages, made once and used again.
pub(super) struct Messages {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
}

// SAFETY: the pointers are written before each call and used by that call alone.
unsafe impl Send for Messages {}

impl Messages {
    pub(super) fn new(count: usize) -> Self {
        // SAFETY: all-zero is a valid header: no name, no vector, no control.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            headers: vec![header; count],
            vectors: vec![vector; count],
            controls: vec![Control([0; CONTROL_LEN]); count],
        }
    }

    /// One header and vector per range. Panics if a range does not lie in `memory`.
    fn fill(&mut self, memory: (*mut u8, usize), ranges: &[(usize, usize)]) -> usize {
        let count = ranges.len().min(self.headers.len());
        for (i, &(offset, len)) in ranges[..count].iter().enumerate() {
            assert!(offset <= memory.1 && len <= memory.1 - offset, "a range outside its memory");
            let base = memory.0.wrapping_add(offset).cast();
            self.vectors[i] = libc::iovec { iov_base: base, iov_len: len };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_iov = &raw mut self.vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
            header.msg_flags = 0;
        }
        count
    }

    /// Bytes of message `i` of the last call, and whether there were more than its range holds.
    pub(super) fn received(&self, i: usize) -> (usize, bool) {
        let header = &self.headers[i];
        (header.msg_len as usize, header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0)
    }

    /// Tag control information that the kernel took out of message `i` (`struct tpacket_auxdata`, packet(7)).
    pub(super) fn tag(&self, i: usize) -> Option<u16> {
        const HEADER: usize = 16;
        let control = &self.controls[i].0;
        let have = self.headers[i].msg_hdr.msg_controllen;
        let word =
            |at: usize| u32::from_ne_bytes([control[at], control[at + 1], control[at + 2], control[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([control[at], control[at + 1]]);
        // One message only: level and type behind its length, then status, len, snaplen, mac, net, vlan_tci, vlan_tpid.
        let is_aux = have >= HEADER + 20
            && word(8) as i32 == libc::SOL_PACKET
            && word(12) as i32 == libc::PACKET_AUXDATA;
        is_aux.then(|| packet::tag(word(HEADER), half(HEADER + 16), half(HEADER + 18))).flatten()
    }
}

/// Memory mapped from a socket, one of its rings, or from a map.
#[derive(Debug)]
pub(super) struct RingMapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping is shared memory that any thread may reach; `rings` accesses it by atomics and raw copies.
unsafe impl Send for RingMapping {}
// SAFETY: as above.
unsafe impl Sync for RingMapping {}

impl RingMapping {
    /// Maps `len` bytes of the socket at the page offset that names a ring.
    pub(super) fn new(fd: BorrowedFd<'_>, len: usize, offset: i64) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses changes no memory of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { base: base.cast(), len })
        }
    }

    /// The address of the `len` bytes at `offset`, which lie inside. Panics if they do not.
    pub(super) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "outside the ring's mapping");
        self.base.wrapping_add(offset)
    }
}

// SAFETY: mapped readable and writable at this address from `new` until it is dropped.
unsafe impl Mapping for RingMapping {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and nobody holds an address into it without holding `self`.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// `struct ifreq` with a name and a pointer, as ethtool(SIOCETHTOOL) takes it.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    data: *mut c_void,
    rest: [u8; 16],
}

/// ioctl(SIOCETHTOOL) on the interface `name`: `command` begins with the command's number and is long enough for its answer.
pub(super) fn ethtool(name: &str, command: &mut [u8]) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], data: command.as_mut_ptr().cast(), rest: [0; 16] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: no memory is involved.
    let any = owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: `request` is a whole `struct ifreq`; its data points to `command`, which is as long as its command number promises: each
    // caller passes the kernel's structure of that command, filled up with room.
    check(unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut request) }.into()).map(drop)
}
