//! A front-end in a test's hands: a socket pair with [`Sessions`] on one end, raw messages on the other, and a device that
//! does as it is told.

use crate::blocking::Helpers;
use crate::session::stream::{Received, Stream, send};
use crate::session::{DeviceSpec, EndpointId, EndpointSpec, Event, RingStart, Role, Sessions};
use avio_proto::vhost_user::features::IMPLEMENTED;
use avio_proto::vhost_user::payload::{MemoryRegion, VringAddr, VringFd, VringState, decode_u64};
use avio_proto::vhost_user::{Message, Outgoing, Request};
use avio_proto::virtio::features as virtio;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The front-end's address of guest address 0.
pub const USER: u64 = 0x7f00_0000_0000;
/// Length of the guest's memory in bytes.
pub const MEM_LEN: u64 = 1 << 20;

/// A message to send: request, payload, descriptors.
pub struct Say {
    pub request: Request,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

pub fn say(request: Request, payload: impl Into<Vec<u8>>, fds: Vec<OwnedFd>) -> Say {
    Say { request, flags: 0, payload: payload.into(), fds }
}

pub fn ask(request: Request) -> Say {
    say(request, [], vec![])
}

pub fn number(request: Request, value: u64) -> Say {
    say(request, value.to_ne_bytes(), vec![])
}

pub fn state(request: Request, index: u32, num: u32) -> Say {
    say(request, VringState { index, num }.encode(), vec![])
}

pub fn ring_fd(request: Request, index: u32) -> Say {
    say(request, VringFd { index, has_fd: true }.encode(), vec![event_fd()])
}

/// Where ring `index` lies in the test guest's memory.
pub fn addr_of(index: u32) -> VringAddr {
    let at = USER + u64::from(index) * 0x4000;
    VringAddr { index, flags: 0, desc: at, avail: at + 0x1000, used: at + 0x2000, log: at - USER + 0x2000 }
}

pub fn ring_addr(index: u32) -> Say {
    say(Request::SET_VRING_ADDR, addr_of(index).encode(), vec![])
}

pub fn event_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

pub fn memory_file(len: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

pub fn whole_memory() -> MemoryRegion {
    MemoryRegion { guest_base: 0, len: MEM_LEN, user_base: USER, mmap_offset: 0 }
}

pub fn mem_table() -> Say {
    mem_table_of(memory_file(MEM_LEN))
}

pub fn mem_table_of(fd: OwnedFd) -> Say {
    say(Request::SET_MEM_TABLE, MemoryRegion::encode_table(&[whole_memory()]), vec![fd])
}

pub const NET_FEATURES: u64 =
    virtio::VERSION_1 | virtio::RING_PACKED | virtio::RING_EVENT_IDX | virtio::NET_MRG_RXBUF | virtio::NET_MQ;

pub fn net_device() -> DeviceSpec {
    DeviceSpec {
        features: NET_FEATURES,
        protocol_features: IMPLEMENTED,
        queue_max: 4,
        config: (0..24).collect(),
        mtu_max: 9000,
        ..DeviceSpec::default()
    }
}

pub struct Rig {
    pub sessions: Sessions,
    pub id: EndpointId,
    pub front: Option<Stream>,
    poll: Poll,
    /// Rings that the device runs, with everything it was given.
    pub running: BTreeMap<u16, RingStart>,
    /// What the device was told, in order.
    pub told: Vec<String>,
    /// Base that the device reports for every ring it stops.
    pub base: u32,
    /// False: RingStop is only noted in `stopping`.
    pub stops_at_once: bool,
    pub stopping: Vec<u16>,
    pub connected: bool,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(net_device())
    }

    pub fn with(device: DeviceSpec) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sessions = Sessions::new(Helpers::new(1).unwrap()).unwrap();
        let poll = Poll::new().unwrap();
        poll.registry().register(&mut SourceFd(&sessions.as_raw_fd()), Token(0), Interest::READABLE).unwrap();
        let path = PathBuf::from("/socketpair");
        let role = Role::Client;
        let id = sessions.add_connected(EndpointSpec { name: "test".into(), path, role, device }, ours);
        let front = Some(Stream::new(theirs).unwrap());
        let (running, told, stopping) = Default::default();
        let mut rig = Self {
            sessions,
            id,
            front,
            poll,
            running,
            told,
            base: 0,
            stops_at_once: true,
            stopping,
            connected: false,
        };
        rig.drain();
        rig
    }

    pub fn send(&mut self, say: Say) {
        let bytes = Outgoing::new(say.request.0, say.flags, &say.payload, vec![]).bytes;
        self.send_raw(&bytes, &say.fds);
    }

    pub fn send_raw(&mut self, bytes: &[u8], fds: &[OwnedFd]) {
        let mut sent = 0;
        let deadline = Instant::now() + PATIENCE;
        while sent < bytes.len() {
            // A back-end that has hung up already is what some tests expect.
            let Some(front) = &self.front else { return };
            let socket = front.socket_fd();
            match send(socket, &bytes[sent..], if sent == 0 { fds } else { &[] }) {
                Ok(n) => sent += n,
                Err(rustix::io::Errno::AGAIN) => self.turn(),
                Err(_) => return,
            }
            assert!(Instant::now() < deadline, "the back-end does not read");
        }
    }

    /// One turn of the control thread's loop.
    pub fn turn(&mut self) {
        let mut events = Events::with_capacity(4);
        self.poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        if !events.is_empty() {
            self.sessions.on_ready();
        }
        self.drain();
    }

    pub fn drain_now(&mut self) {
        self.drain();
    }

    fn drain(&mut self) {
        while let Some((id, event)) = self.sessions.next_event() {
            assert_eq!(id, self.id);
            match event {
                Event::RingStart(start) => {
                    self.told.push(format!("start {}", start.index));
                    let size = usize::from(start.setup.size);
                    assert!(start.memory.user_slice(start.setup.desc_user, 16 * size).is_some());
                    assert!(self.running.insert(start.index, *start).is_none(), "started twice");
                }
                Event::RingStop { index } => {
                    self.told.push(format!("stop {index}"));
                    assert!(self.running.contains_key(&index), "stopped without a start");
                    if self.stops_at_once {
                        self.stop(index);
                    } else {
                        self.stopping.push(index);
                    }
                }
                Event::Connected => self.connected = true,
                Event::Disconnected => {
                    assert!(self.running.is_empty(), "rings run after the end");
                    self.connected = false;
                }
                other => self.told.push(format!("{other:?}")),
            }
        }
    }

    /// The device finishes a ring.
    pub fn stop(&mut self, index: u16) {
        self.running.remove(&index).unwrap();
        self.sessions.ring_stopped(self.id, index, self.base);
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}; told {:?}", self.told);
            self.turn();
        }
    }

    /// The next message from the back-end.
    pub fn reply(&mut self) -> Message {
        let mut got = None;
        self.until("a reply comes", |rig| {
            match rig.front.as_mut().unwrap().receive().unwrap() {
                Received::Message(message) => got = Some(message),
                Received::Later => {}
                Received::Gone { .. } => panic!("the session has ended; told {:?}", rig.told),
            }
            got.is_some()
        });
        got.unwrap()
    }

    /// Sends a request and returns its reply's payload.
    pub fn call(&mut self, say: Say) -> Vec<u8> {
        let request = say.request;
        self.send(say);
        let reply = self.reply();
        assert_eq!(reply.request, request);
        assert_eq!(reply.flags, 5, "version 1 and reply, nothing else");
        reply.payload
    }

    pub fn call_number(&mut self, say: Say) -> u64 {
        decode_u64(&self.call(say)).unwrap()
    }

    /// Waits until everything sent so far has been handled, as QEMU 10 does after SET_VRING_ENABLE.
    pub fn barrier(&mut self) {
        self.call(ask(Request::GET_FEATURES));
    }

    pub fn say_all(&mut self, script: Vec<Say>) {
        for say in script {
            let has_reply = has_reply(&say);
            self.send(say);
            if has_reply {
                self.reply();
            }
        }
        self.barrier();
    }

    pub fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    pub fn runs(&self) -> Vec<u16> {
        self.running.keys().copied().collect()
    }

    /// The front-end goes away; waits until the device knows.
    pub fn vanish(&mut self) {
        self.front = None;
        self.until("Disconnected", |rig| !rig.connected);
    }

    /// Waits until the back-end has hung up.
    pub fn expect_end(&mut self) {
        self.until("the session ends", |rig| !rig.connected);
        assert!(self.running.is_empty());
        self.until("the socket is closed", |rig| {
            loop {
                match rig.front.as_mut().unwrap().receive() {
                    Ok(Received::Message(_)) => {}
                    Ok(Received::Later) => break false,
                    Ok(Received::Gone { .. }) | Err(_) => break true,
                }
            }
        });
    }
}

pub fn has_reply(say: &Say) -> bool {
    say.flags & 8 != 0
        || matches!(
            say.request,
            Request::GET_FEATURES
                | Request::GET_PROTOCOL_FEATURES
                | Request::GET_QUEUE_NUM
                | Request::GET_MAX_MEM_SLOTS
                | Request::GET_VRING_BASE
                | Request::GET_CONFIG
                | Request::GET_STATUS
                | Request::GET_INFLIGHT_FD
                | Request::SET_LOG_BASE
        )
}

/// A pipe whose read end tells whether anybody still holds the other.
pub struct Leak(OwnedFd);

impl Leak {
    pub fn new() -> (Self, OwnedFd) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        (Self(read), write)
    }

    pub fn is_closed(&self) -> bool {
        matches!(rustix::io::read(self.0.as_fd(), &mut [0; 1]), Ok(0))
    }
}
