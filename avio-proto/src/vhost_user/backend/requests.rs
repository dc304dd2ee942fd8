//! From a message to a job: sizes, descriptors and values are checked here, before anything changes.
//!
//! Owns the table of requests. Questions are answered at once; everything else becomes a [`Job`] for `Backend::advance`.

use super::memory::{GUEST_LEN_MAX, LOG_LEN_MAX, SLOTS_MAX};
use super::vring::RING_SIZE_MAX;
use super::{Action, Backend, Event, MapPurpose, MapRequest, SessionError};
use crate::mem::Mapping;
use crate::vhost_user::features;
use crate::vhost_user::message::{Message, Request};
use crate::vhost_user::payload::{
    CONFIG_LEN_MAX, Config, InflightArea, LogArea, MemoryRegion, Short, VringAddr, VringFd, VringState,
    decode_u64,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Smallest MTU of IPv4 (RFC 791).
const MTU_MIN: u64 = 68;
/// In-flight region: bytes before a ring's entries, bytes per entry (the larger of the specification's two layouts), and
/// the alignment of each ring's part.
const INFLIGHT_HEAD_LEN: u64 = 32;
const INFLIGHT_ENTRY_LEN: u64 = 32;
const INFLIGHT_ALIGN: u64 = 64;

/// Which rings must stop before a job is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    None,
    One(usize),
    All,
}

impl Halt {
    pub(super) fn concerns(self, index: usize) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => one == index,
            Self::All => true,
        }
    }
}

/// What changes once the rings have stopped.
#[derive(Debug)]
pub(super) enum Work {
    Features(u64),
    MemTable(Vec<MemoryRegion>),
    AddRegion(MemoryRegion),
    RemRegion(MemoryRegion),
    LogBase(LogArea),
    RingSize(usize, u16),
    RingAddr(usize, VringAddr),
    RingBase(usize, u32),
    GetBase(usize),
    RingKick(usize, Option<OwnedFd>),
    RingCall(usize, Option<OwnedFd>),
    RingErr(usize, Option<OwnedFd>),
    RingEnable(usize, bool),
    GetInflight(InflightArea),
    SetInflight(InflightArea),
    DisableAll,
    Reset,
    Status(u8),
}

/// One message on its way.
pub(super) struct Job {
    pub(super) request: Request,
    /// Whether the front-end waits for an acknowledgement.
    pub(super) ack: bool,
    pub(super) halt: Halt,
    pub(super) work: Work,
    /// Ticket of the first mapping or file.
    first_ticket: u64,
    pub(super) mappings: Vec<Option<Arc<dyn Mapping>>>,
    pub(super) file: Option<OwnedFd>,
    /// Answers that have not come yet.
    missing: usize,
    pub(super) failure: Option<String>,
}

impl Job {
    pub(super) fn waits_for_files(&self) -> bool {
        self.missing > 0
    }

    pub(super) fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// True if the ticket was this job's and all answers are there now.
    pub(super) fn take_mapping(&mut self, ticket: u64, outcome: Result<Arc<dyn Mapping>, String>) -> bool {
        let Some(at) = ticket.checked_sub(self.first_ticket).map(|at| at as usize) else { return false };
        let Some(slot) = self.mappings.get_mut(at).filter(|slot| slot.is_none()) else { return false };
        match outcome {
            Ok(mapping) => *slot = Some(mapping),
            Err(reason) => self.failure = Some(reason),
        }
        self.answered()
    }

    /// As [`Self::take_mapping`], for a created file.
    pub(super) fn take_file(&mut self, ticket: u64, outcome: Result<OwnedFd, String>) -> bool {
        if ticket != self.first_ticket || !self.mappings.is_empty() {
            return false;
        }
        match outcome {
            Ok(file) => self.file = Some(file),
            Err(reason) => self.failure = Some(reason),
        }
        self.answered()
    }

    fn answered(&mut self) -> bool {
        self.missing = self.missing.saturating_sub(1);
        self.missing == 0
    }
}

/// Where memory for a job comes from.
struct Source {
    fds: Vec<OwnedFd>,
    /// Offset and length for each descriptor.
    extents: Vec<(u64, u64)>,
    purpose: MapPurpose,
}

impl Backend {
    /// Takes one message; call only while [`Self::wants_message`].
    ///
    /// # Errors
    /// [`SessionError`]; the caller must [`Self::close`]. Descriptors that the message brought are closed.
    pub fn receive(&mut self, mut message: Message) -> Result<(), SessionError> {
        let request = message.request;
        if message.is_reply() {
            return Err(SessionError::StrayReply(request));
        }
        let ack = self.acks(message.needs_reply());
        if let Some(feature) = needed_feature(request)
            && self.spec.protocol_offered() & feature == 0
        {
            return self.refuse_softly(request, ack);
        }
        let fds = std::mem::take(&mut message.fds);
        let bytes = message.payload.as_slice();
        let short = |short: Short| SessionError::Short { request, short };
        let number = || decode_u64(bytes).map_err(short);
        match request {
            Request::GET_FEATURES => self.answer(request, fds, self.spec.offered()),
            Request::GET_PROTOCOL_FEATURES => self.answer(request, fds, self.spec.protocol_offered()),
            Request::GET_QUEUE_NUM => self.answer(request, fds, u64::from(self.spec.queue_max)),
            Request::GET_MAX_MEM_SLOTS => self.answer(request, fds, SLOTS_MAX as u64),
            Request::GET_STATUS => self.answer(request, fds, u64::from(self.status)),
            Request::GET_CONFIG => self.answer_config(fds, Config::decode(bytes).map_err(short)?),
            Request::SET_OWNER => self.done(request, ack, fds),
            Request::SET_PROTOCOL_FEATURES => {
                let acked = number()?;
                self.protocol_features = acked & self.spec.protocol_offered();
                // The message may itself ask for the acknowledgement that it enables.
                let ack = self.acks(message.needs_reply());
                self.done(request, ack, fds)
            }
            // The device has no writable field; the guest must not be able to end its session with a write.
            Request::SET_CONFIG => self.refuse_softly(request, ack),
            Request::SEND_RARP => {
                number()?;
                let mut mac = [0; 6];
                mac.copy_from_slice(&bytes[..6]);
                self.actions.push_back(Action::Event(Event::Announce(mac)));
                self.done(request, ack, fds)
            }
            Request::NET_SET_MTU => {
                let value = number()?;
                if !(MTU_MIN..=u64::from(self.spec.mtu_max)).contains(&value) {
                    let want = "68 up to the port's mtu";
                    return self.refuse(
                        request,
                        ack,
                        SessionError::Value { request, what: "MTU", value, want },
                    );
                }
                self.actions.push_back(Action::Event(Event::Mtu(value as u16)));
                self.done(request, ack, fds)
            }
            Request::SET_BACKEND_REQ_FD => {
                let [fd] = exactly(request, fds)?;
                self.has_channel = true;
                self.actions.push_back(Action::OpenChannel(fd));
                self.done(request, ack, Vec::new())
            }
            Request::SET_LOG_FD => {
                let [fd] = exactly(request, fds)?;
                self.log_fd = Some(fd);
                self.done(request, ack, Vec::new())
            }
            Request::SET_FEATURES => {
                let [] = exactly(request, fds)?;
                let acked = number()?;
                let extra = acked & !(self.spec.offered() | self.spec.features_tolerated);
                if extra != 0 {
                    return Err(SessionError::NotOffered(extra));
                }
                let halt = if self.features == Some(acked) { Halt::None } else { Halt::All };
                self.begin(request, ack, halt, Work::Features(acked), None)
            }
            Request::SET_MEM_TABLE => {
                let regions = MemoryRegion::decode_table(bytes).map_err(short)?;
                if fds.len() != regions.len() {
                    return Err(SessionError::Fds { request, got: fds.len(), want: regions.len() });
                }
                let extents = check_regions(request, &regions, 0)?;
                let source = Source { fds, extents, purpose: MapPurpose::Guest };
                self.begin(request, ack, Halt::All, Work::MemTable(regions), Some(source))
            }
            Request::ADD_MEM_REG => {
                let region = MemoryRegion::decode_single(bytes).map_err(short)?;
                let [fd] = exactly(request, fds)?;
                // QEMU before 8.0 says it once for each queue pair. The rings need not stop for what is there already.
                if self.memory.has(&region) {
                    return self.done(request, ack, Vec::new());
                }
                if self.memory.slot_count() >= SLOTS_MAX {
                    let value = self.memory.slot_count() as u64;
                    let error =
                        SessionError::Value { request, what: "slots in use", value, want: "fewer than 509" };
                    return self.refuse(request, ack, error);
                }
                let extents = check_regions(request, &[region], self.memory.len())?;
                let source = Source { fds: vec![fd], extents, purpose: MapPurpose::Guest };
                self.begin(request, ack, Halt::All, Work::AddRegion(region), Some(source))
            }
            Request::REM_MEM_REG => {
                let region = MemoryRegion::decode_single(bytes).map_err(short)?;
                // "For compatibility with existing incorrect implementations" one descriptor may come: it is closed.
                if fds.len() > 1 {
                    return Err(SessionError::Fds { request, got: fds.len(), want: 0 });
                }
                if self.memory.find(&region).is_none() {
                    return self.refuse(request, ack, SessionError::NoRegion(region.guest_base));
                }
                self.begin(request, ack, Halt::All, Work::RemRegion(region), None)
            }
            Request::SET_LOG_BASE => {
                let area = LogArea::decode(bytes).map_err(short)?;
                let fds = exactly::<1>(request, fds)?.into();
                let extents = vec![check_extent(request, area.mmap_offset, area.len, LOG_LEN_MAX)?];
                let halt = if self.memory.is_logging() { Halt::All } else { Halt::None };
                let source = Source { fds, extents, purpose: MapPurpose::Log };
                self.begin(request, ack, halt, Work::LogBase(area), Some(source))
            }
            Request::GET_INFLIGHT_FD => {
                let [] = exactly(request, fds)?;
                let area = InflightArea::decode(bytes).map_err(short)?;
                self.create_inflight(area)
            }
            Request::SET_INFLIGHT_FD => {
                let area = InflightArea::decode(bytes).map_err(short)?;
                let fds = exactly::<1>(request, fds)?.into();
                if area.queues == 0 || u64::from(area.queues) * INFLIGHT_ALIGN > area.len {
                    let value = u64::from(area.queues);
                    let want = "at least 1, and 64 bytes of region for each";
                    return Err(SessionError::Value { request, what: "queue count", value, want });
                }
                let extents = vec![check_extent(request, area.mmap_offset, area.len, inflight_len_max())?];
                let source = Source { fds, extents, purpose: MapPurpose::Inflight };
                self.begin(request, ack, Halt::All, Work::SetInflight(area), Some(source))
            }
            Request::SET_VRING_NUM
            | Request::SET_VRING_BASE
            | Request::GET_VRING_BASE
            | Request::SET_VRING_ENABLE => {
                let [] = exactly(request, fds)?;
                self.vring_state(request, ack, VringState::decode(bytes).map_err(short)?)
            }
            Request::SET_VRING_ADDR => {
                let [] = exactly(request, fds)?;
                let addr = VringAddr::decode(bytes).map_err(short)?;
                let index = self.ring_index(request, addr.index)?;
                let same = self.rings[index].addr == Some(addr);
                let halt = if same { Halt::None } else { Halt::One(index) };
                self.begin(request, ack, halt, Work::RingAddr(index, addr), None)
            }
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                let vring = VringFd::decode(bytes).map_err(short)?;
                let index = self.ring_index(request, vring.index)?;
                let want = usize::from(vring.has_fd);
                if fds.len() != want {
                    return Err(SessionError::Fds { request, got: fds.len(), want });
                }
                let fd = fds.into_iter().next();
                let work = match request {
                    Request::SET_VRING_KICK => Work::RingKick(index, fd),
                    Request::SET_VRING_CALL => Work::RingCall(index, fd),
                    _ => Work::RingErr(index, fd),
                };
                self.begin(request, ack, Halt::One(index), work, None)
            }
            Request::RESET_OWNER => self.begin(request, ack, Halt::All, Work::DisableAll, None),
            Request::RESET_DEVICE => self.begin(request, ack, Halt::All, Work::Reset, None),
            Request::SET_STATUS => {
                let status = number()?;
                let halt = if status == 0 { Halt::All } else { Halt::None };
                self.begin(request, ack, halt, Work::Status(status as u8), None)
            }
            _ => self.refuse_softly(request, ack),
        }
    }

    fn vring_state(&mut self, request: Request, ack: bool, state: VringState) -> Result<(), SessionError> {
        let index = self.ring_index(request, state.index)?;
        let (halt, work) = match request {
            Request::SET_VRING_NUM => {
                if state.num == 0 || state.num > RING_SIZE_MAX {
                    let value = u64::from(state.num);
                    return Err(SessionError::Value {
                        request,
                        what: "ring size",
                        value,
                        want: "1 to 32768",
                    });
                }
                let same = u32::from(self.rings[index].size) == state.num;
                let halt = if same { Halt::None } else { Halt::One(index) };
                (halt, Work::RingSize(index, state.num as u16))
            }
            Request::SET_VRING_BASE => (Halt::One(index), Work::RingBase(index, state.num)),
            Request::GET_VRING_BASE => (Halt::One(index), Work::GetBase(index)),
            _ => {
                let enable = state.num != 0;
                let same = self.rings[index].enabled(self.features.unwrap_or(0)) == enable;
                let halt = if same { Halt::None } else { Halt::One(index) };
                (halt, Work::RingEnable(index, enable))
            }
        };
        self.begin(request, ack, halt, work, None)
    }

    fn begin(
        &mut self,
        request: Request,
        ack: bool,
        halt: Halt,
        work: Work,
        source: Option<Source>,
    ) -> Result<(), SessionError> {
        debug_assert!(self.job.is_none());
        let first_ticket = self.tickets;
        let mut count = 0;
        if let Some(source) = source {
            for (fd, (offset, len)) in source.fds.into_iter().zip(source.extents) {
                let ticket = first_ticket + count as u64;
                let purpose = source.purpose;
                self.actions.push_back(Action::Map(MapRequest { ticket, fd, offset, len, purpose }));
                count += 1;
            }
        }
        self.tickets += count as u64;
        let mappings = (0..count).map(|_| None).collect();
        let (file, failure) = (None, None);
        self.job =
            Some(Job { request, ack, halt, work, first_ticket, mappings, file, missing: count, failure });
        self.advance()
    }

    fn create_inflight(&mut self, area: InflightArea) -> Result<(), SessionError> {
        let request = Request::GET_INFLIGHT_FD;
        let last = self.rings.len();
        if area.queues == 0 || usize::from(area.queues) > last || u32::from(area.queue_size) > RING_SIZE_MAX {
            let value = u64::from(area.queues);
            let want = "1 to the device's number of rings, each of at most 32768 entries";
            return Err(SessionError::Value { request, what: "queue count", value, want });
        }
        let part = (INFLIGHT_HEAD_LEN + INFLIGHT_ENTRY_LEN * u64::from(area.queue_size))
            .next_multiple_of(INFLIGHT_ALIGN);
        let len = part * u64::from(area.queues);
        let ticket = self.tickets;
        self.tickets += 1;
        self.actions.push_back(Action::Create { ticket, len });
        self.job = Some(Job {
            request,
            ack: false,
            halt: Halt::None,
            work: Work::GetInflight(InflightArea { len, mmap_offset: 0, ..area }),
            first_ticket: ticket,
            mappings: Vec::new(),
            file: None,
            missing: 1,
            failure: None,
        });
        Ok(())
    }

    fn ring_index(&self, request: Request, index: u32) -> Result<usize, SessionError> {
        let at = index as usize;
        let last = self.rings.len() - 1;
        if at > last { Err(SessionError::Index { request, index, last }) } else { Ok(at) }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>, value: u64) -> Result<(), SessionError> {
        let [] = exactly(request, fds)?;
        self.reply(request, &value.to_ne_bytes(), Vec::new());
        Ok(())
    }

    fn done(&mut self, request: Request, ack: bool, fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let [] = exactly(request, fds)?;
        if ack {
            self.reply(request, &0u64.to_ne_bytes(), Vec::new());
        }
        Ok(())
    }

    fn answer_config(&mut self, fds: Vec<OwnedFd>, asked: Config) -> Result<(), SessionError> {
        let request = Request::GET_CONFIG;
        let [] = exactly(request, fds)?;
        let (from, len) = (asked.offset as usize, asked.size as usize);
        if from.saturating_add(len) > CONFIG_LEN_MAX {
            // "On error the back-end replies with a zero length payload."
            self.reply(request, &[], Vec::new());
            return Ok(());
        }
        let bytes = (from..from + len).map(|at| self.spec.config.get(at).copied().unwrap_or(0)).collect();
        self.reply(request, &Config { bytes, ..asked }.encode(), Vec::new());
        Ok(())
    }

    /// Something that is not done here, but harmless to leave out.
    fn refuse_softly(&mut self, request: Request, ack: bool) -> Result<(), SessionError> {
        if ack {
            self.reply(request, &1u64.to_ne_bytes(), Vec::new());
        }
        self.actions.push_back(Action::Refused(SessionError::Unsupported(request)));
        Ok(())
    }
}

/// The protocol feature that a request belongs to. It must have been offered; whether it was acked is not asked, because
/// front-ends that reconnect send requests before they ack again.
fn needed_feature(request: Request) -> Option<u64> {
    Some(match request {
        Request::SET_LOG_BASE | Request::SET_LOG_FD => features::LOG_SHMFD,
        Request::SEND_RARP => features::RARP,
        Request::NET_SET_MTU => features::NET_MTU,
        Request::SET_BACKEND_REQ_FD => features::BACKEND_REQ,
        Request::GET_CONFIG | Request::SET_CONFIG => features::CONFIG,
        Request::GET_INFLIGHT_FD | Request::SET_INFLIGHT_FD => features::INFLIGHT_SHMFD,
        Request::RESET_DEVICE => features::RESET_DEVICE,
        Request::GET_MAX_MEM_SLOTS | Request::ADD_MEM_REG | Request::REM_MEM_REG => {
            features::CONFIGURE_MEM_SLOTS
        }
        Request::GET_STATUS | Request::SET_STATUS => features::STATUS,
        _ => return None,
    })
}

fn exactly<const N: usize>(request: Request, fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], SessionError> {
    let got = fds.len();
    fds.try_into().map_err(|_| SessionError::Fds { request, got, want: N })
}

fn check_extent(request: Request, offset: u64, len: u64, len_max: u64) -> Result<(u64, u64), SessionError> {
    if len == 0 || len > len_max {
        let want = "more than 0 bytes, within the limit for one guest";
        return Err(SessionError::Value { request, what: "length", value: len, want });
    }
    // Mapping rounds up to pages of at most 1 GiB; that must not overflow either.
    if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64 - (1 << 30)) {
        return Err(SessionError::Value {
            request,
            what: "file offset",
            value: offset,
            want: "a position in a file",
        });
    }
    Ok((offset, len))
}

fn check_regions(
    request: Request,
    regions: &[MemoryRegion],
    already: u64,
) -> Result<Vec<(u64, u64)>, SessionError> {
    let mut room = GUEST_LEN_MAX.saturating_sub(already);
    let mut extents = Vec::with_capacity(regions.len());
    for region in regions {
        extents.push(check_extent(request, region.mmap_offset, region.len, room)?);
        room -= region.len;
    }
    Ok(extents)
}

/// The largest region that [`Backend::create_inflight`] would make.
fn inflight_len_max() -> u64 {
    (INFLIGHT_HEAD_LEN + INFLIGHT_ENTRY_LEN * u64::from(RING_SIZE_MAX)).next_multiple_of(INFLIGHT_ALIGN)
        * u64::from(super::QUEUES_MAX)
}
