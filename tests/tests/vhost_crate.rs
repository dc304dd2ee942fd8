//! A second opinion on vhost-user: rust-vmm's `vhost` crate as the front-end of our sessions, and as the back-end of our
//! front-end machine. Nobody here wrote it, and cloud-hypervisor and the vhost-device daemons use it.

use avio_host::blocking::Helpers;
use avio_host::session::{DeviceSpec, EndpointSpec, Event, Role, Sessions};
use avio_proto::vhost_user::features::{IMPLEMENTED, MQ, REPLY_ACK};
use avio_proto::vhost_user::frontend::{self, Frontend, RingStart, Wanted};
use avio_proto::vhost_user::payload::{MemoryRegion, VringAddr};
use avio_proto::vhost_user::{FrameReader, Outgoing};
use avio_proto::virtio::features::{NET_MRG_RXBUF, VERSION_1};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{self as theirs, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const LEN: u64 = 1 << 20;
const USER: u64 = 0x10_0000_0000;

fn memory() -> OwnedFd {
    let fd = memfd_create("vhost-crate", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, LEN).unwrap();
    fd
}

/// Our session on a thread of its own, with a device that stops rings at base 42. Ends with the connection.
fn our_back_end(socket: UnixStream) -> Receiver<String> {
    let (tell, told) = channel();
    thread::spawn(move || {
        let mut sessions = Sessions::new(Helpers::new(1).unwrap()).unwrap();
        let mut poll = Poll::new().unwrap();
        poll.registry().register(&mut SourceFd(&sessions.as_raw_fd()), Token(0), Interest::READABLE).unwrap();
        let device = DeviceSpec {
            features: VERSION_1 | NET_MRG_RXBUF,
            protocol_features: IMPLEMENTED,
            queue_max: 2,
            config: vec![1, 2, 3, 4],
            mtu_max: 1500,
            ..DeviceSpec::default()
        };
        let (name, path) = ("vhost crate".to_string(), "/socketpair".into());
        sessions.add_connected(EndpointSpec { name, path, role: Role::Client, device }, socket);
        let mut running = Vec::new();
        loop {
            while let Some((id, event)) = sessions.next_event() {
                let line = match event {
                    Event::RingStart(start) => {
                        let line = format!("start {} at {}", start.index, start.setup.base);
                        running.push(start);
                        line
                    }
                    Event::RingStop { index } => {
                        running.retain(|ring| ring.index != index);
                        sessions.ring_stopped(id, index, 42);
                        format!("stop {index}")
                    }
                    Event::Disconnected => return,
                    other => format!("{other:?}"),
                };
                let _ = tell.send(line);
            }
            let mut events = Events::with_capacity(4);
            poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
            sessions.on_ready();
        }
    });
    told
}

#[test]
fn their_front_end_against_our_session() {
    let (ours, socket) = UnixStream::pair().unwrap();
    let told = our_back_end(ours);
    let mut front = theirs::Frontend::from_stream(socket, 2);
    front.set_owner().unwrap();
    let offered = front.get_features().unwrap();
    assert_ne!(offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), 0);
    let protocol = front.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), IMPLEMENTED);
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front.get_queue_num().unwrap(), 2);
    assert_eq!(front.get_max_mem_slots().unwrap(), 509);
    let acked = VERSION_1 | NET_MRG_RXBUF | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    front.set_features(acked).unwrap();
    let memory = memory();
    let region = |at: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: at,
        memory_size: LEN,
        userspace_addr: USER + at,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    front.set_mem_table(&[region(0)]).unwrap();
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    for ring in 0..2 {
        let at = USER + ring as u64 * 0x4000;
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at + 0x2000,
            avail_ring_addr: at + 0x1000,
            log_addr: None,
        };
        front.set_vring_num(ring, 256).unwrap();
        front.set_vring_addr(ring, &config).unwrap();
        front.set_vring_base(ring, 7).unwrap();
        front.set_vring_call(ring, &call).unwrap();
        front.set_vring_err(ring, &call).unwrap();
        front.set_vring_kick(ring, &kick).unwrap();
        front.set_vring_enable(ring, true).unwrap();
    }
    front.add_mem_region(&region(LEN)).unwrap();
    front.remove_mem_region(&region(LEN)).unwrap();
    assert!(front.remove_mem_region(&region(LEN)).is_err(), "no such region any more");
    let flags = VhostUserConfigFlags::WRITABLE;
    assert_eq!(front.get_config(1, 2, flags, &[0; 2]).unwrap().1, [2, 3]);
    assert!(front.set_config(1, flags, &[9]).is_err(), "nothing is writable");
    let asked = VhostUserInflight { num_queues: 2, queue_size: 256, ..Default::default() };
    let (given, file) = front.get_inflight_fd(&asked).unwrap();
    assert_eq!(file.metadata().unwrap().len(), given.mmap_size);
    front.set_inflight_fd(&given, file.as_raw_fd()).unwrap();
    let log = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: memory.as_raw_fd() };
    front.set_log_base(0, Some(log)).unwrap();
    front.set_vring_enable(1, false).unwrap();
    assert_eq!(front.get_vring_base(0).unwrap(), 42);
    assert_eq!(front.get_vring_base(1).unwrap(), 42);
    front.reset_device().unwrap();
    drop(front);
    let told: Vec<String> = told.iter().collect();
    let starts = ["Connected".to_string(), format!("Features({acked})")];
    assert_eq!(told[..2], starts);
    assert_eq!(told[2..4], ["start 0 at 7", "start 1 at 7"]);
    assert_eq!(told.last().unwrap(), "stop 0");
    assert_eq!(told.iter().filter(|l| l.starts_with("start")).count(), 2 * 4, "{told:?}");
    assert_eq!(told.iter().filter(|l| l.starts_with("stop")).count(), 2 * 4, "{told:?}");
}

/// What their back-end understood of our front-end.
#[derive(Default)]
struct Their {
    heard: Vec<String>,
}

type Done<T> = theirs::Result<T>;

impl Their {
    fn hear(&mut self, line: String) -> Done<()> {
        self.heard.push(line);
        Ok(())
    }
}

impl theirs::VhostUserBackendReqHandlerMut for Their {
    fn set_owner(&mut self) -> Done<()> {
        self.hear("owner".into())
    }
    fn reset_owner(&mut self) -> Done<()> {
        Ok(())
    }
    fn reset_device(&mut self) -> Done<()> {
        self.hear("reset".into())
    }
    fn get_features(&mut self) -> Done<u64> {
        Ok(VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }
    fn set_features(&mut self, features: u64) -> Done<()> {
        self.hear(format!("features {features:#x}"))
    }
    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Done<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let user = regions[0].user_addr;
        self.hear(format!("{} regions, {} files, user {user:#x}", regions.len(), files.len()))?;
        Ok(None)
    }
    fn set_vring_num(&mut self, index: u32, num: u32) -> Done<()> {
        self.hear(format!("{index} num {num}"))
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _: u64,
    ) -> Done<()> {
        self.hear(format!("{index} addr {desc:#x} {used:#x} {avail:#x}"))
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Done<()> {
        self.hear(format!("{index} base {base}"))
    }
    fn get_vring_base(&mut self, index: u32) -> Done<VhostUserVringState> {
        Ok(VhostUserVringState::new(index, 55))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Done<()> {
        self.hear(format!("{index} kick {}", fd.is_some()))
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Done<()> {
        self.hear(format!("{index} call {}", fd.is_some()))
    }
    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Done<()> {
        self.hear(format!("{index} err {}", fd.is_some()))
    }
    fn get_protocol_features(&mut self) -> Done<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::from_bits_truncate(IMPLEMENTED))
    }
    fn set_protocol_features(&mut self, features: u64) -> Done<()> {
        self.hear(format!("protocol {features:#x}"))
    }
    fn get_queue_num(&mut self) -> Done<u64> {
        Ok(2)
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Done<()> {
        self.hear(format!("{index} enable {enable}"))
    }
    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Done<Vec<u8>> {
        Ok((offset as u8..(offset + size) as u8).collect())
    }
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Done<()> {
        Ok(())
    }
    fn set_gpu_socket(&mut self, _: theirs::GpuBackend) -> Done<()> {
        Err(theirs::Error::InvalidMessage)
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Done<File> {
        Err(theirs::Error::InvalidMessage)
    }
    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Done<(VhostUserInflight, File)> {
        Ok((VhostUserInflight { mmap_size: LEN, ..*asked }, File::from(memory())))
    }
    fn set_inflight_fd(&mut self, area: &VhostUserInflight, _: File) -> Done<()> {
        self.hear(format!("inflight {}", { area.mmap_size }))
    }
    fn get_max_mem_slots(&mut self) -> Done<u64> {
        Ok(32)
    }
    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Done<Option<vhost::VhostUserMemoryRegionBase>> {
        self.hear(format!("add {:#x}", { region.guest_phys_addr }))?;
        Ok(None)
    }
    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Done<()> {
        self.hear(format!("remove {:#x}", { region.guest_phys_addr }))
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Done<Option<File>> {
        Err(theirs::Error::InvalidMessage)
    }
    fn check_device_state(&mut self) -> Done<()> {
        Err(theirs::Error::InvalidMessage)
    }
    fn get_shmem_config(&mut self) -> Done<VhostUserShMemConfig> {
        Err(theirs::Error::InvalidMessage)
    }
    fn set_log_base(&mut self, log: &VhostUserLog, _: File) -> Done<()> {
        self.hear(format!("log {}", { log.mmap_size }))
    }
}

/// Our front-end machine on a blocking socket.
struct Wire {
    socket: UnixStream,
    reader: FrameReader,
    front: Frontend,
}

impl Wire {
    fn run(&mut self) -> Vec<String> {
        while !self.front.is_idle() {
            while let Some(message) = self.front.next_outgoing() {
                self.send(&message);
            }
            if !self.front.is_idle() {
                self.receive();
            }
        }
        std::iter::from_fn(|| self.front.next_event())
            .filter(|event| !matches!(event, frontend::Event::Acked { ok: true, .. }))
            .map(|event| match event {
                frontend::Event::Inflight(area, _) => format!("inflight {}", area.len),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn send(&self, message: &Outgoing) {
        let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); 256];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let flags = rustix::net::SendFlags::empty();
        let sent =
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(&message.bytes)], &mut control, flags).unwrap();
        assert_eq!(sent, message.bytes.len());
    }

    fn receive(&mut self) {
        loop {
            let mut bytes = vec![0; self.reader.wanted()];
            let mut space = [MaybeUninit::uninit(); 256];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [IoSliceMut::new(&mut bytes)];
            let got =
                rustix::net::recvmsg(&self.socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
            assert!(got.bytes > 0, "their back-end hung up");
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if let Some(message) = self.reader.push(&bytes[..got.bytes], fds).unwrap() {
                return self.front.receive(message).unwrap();
            }
        }
    }
}

#[test]
fn our_front_end_against_their_back_end() {
    let (socket, ours) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let their = Arc::new(Mutex::new(Their::default()));
    let mut handler = theirs::BackendReqHandler::from_stream(socket, Arc::clone(&their));
    let server = thread::spawn(move || while handler.handle_request().is_ok() {});
    let wanted = Wanted {
        features: VERSION_1 | NET_MRG_RXBUF,
        protocol_features: IMPLEMENTED,
        rings_start_enabled: false,
    };
    let mut wire = Wire { socket: ours, reader: FrameReader::new(), front: Frontend::new(wanted) };
    assert!(wire.run()[0].starts_with("Ready"));
    let negotiated = wire.front.negotiated();
    assert_eq!((negotiated.features, negotiated.queue_max, negotiated.slots_max), (VERSION_1, 2, 32));
    assert_eq!(negotiated.protocol_features & (MQ | REPLY_ACK), MQ | REPLY_ACK);
    let region = MemoryRegion { guest_base: 0, len: LEN, user_base: USER, mmap_offset: 0 };
    let second = MemoryRegion { guest_base: LEN, user_base: USER + LEN, ..region };
    let event = || Some(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap());
    let front = &mut wire.front;
    front.set_mem_table(&[region], vec![memory()]);
    front.add_region(&second, memory());
    front.remove_region(&second);
    let addr =
        VringAddr { index: 1, flags: 0, desc: USER, used: USER + 0x2000, avail: USER + 0x1000, log: 0 };
    front.start_ring(RingStart { size: 128, base: 3, addr, kick: event(), call: event(), err: event() });
    front.enable_ring(1, true);
    front.get_config(2, 3);
    front.get_inflight(2, 128);
    front.get_vring_base(1);
    front.reset_device();
    assert_eq!(wire.run(), ["Config([2, 3, 4])", "inflight 1048576", "Base { index: 1, base: 55 }"]);
    drop(wire);
    server.join().unwrap();
    let heard = &their.lock().unwrap().heard;
    let acked = VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let expected = [
        "owner".to_string(),
        format!("protocol {:#x}", negotiated.protocol_features),
        format!("features {acked:#x}"),
        format!("1 regions, 1 files, user {USER:#x}"),
        format!("add {LEN:#x}"),
        format!("remove {LEN:#x}"),
        "1 num 128".into(),
        "1 base 3".into(),
        format!("1 addr {USER:#x} {:#x} {:#x}", USER + 0x2000, USER + 0x1000),
        "1 call true".into(),
        "1 err true".into(),
        "1 kick true".into(),
        "1 enable true".into(),
        "reset".into(),
    ];
    assert_eq!(heard[..], expected);
}
