//! One network interface of a guest: its definition, its rings, its numbers.
//!
//! Owns what lasts as long as the definition does ([`PortState`], the counters' baseline) and what lasts as long as a
//! session (rings, acked features). Turns a session's events into work for the [`Fabric`]; it never sees a socket and
//! never blocks.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use avio_host::session::{EndpointId, RingStart};
use avio_host::wait::tell;
use avio_proto::config::NetworkConfig;
use avio_proto::ring::{DeviceRing, RingError};

use super::control_queue::{ControlQueue, Served};
use super::device::control_ring;
use super::fabric::Fabric;
use crate::port::PortKind;
use crate::port::guest::{GuestPort, RxQueue, Snapshot, TxQueue};
use crate::table::{PortIndex, PortSpec, PortState};

/// Names an interface: guest, bus, device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct InterfaceKey {
    /// The guest.
    pub guest: String,
    /// Bus of the interface.
    pub bus: u8,
    /// Device of the interface.
    pub device: u8,
}

impl std::fmt::Display for InterfaceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} net {}:{}", self.guest, self.bus, self.device)
    }
}

/// Where a started ring is.
enum Place {
    /// A receive ring, in the table.
    Rx(Arc<RxQueue>),
    /// A transmit ring, with this worker.
    Tx(usize),
    /// The control queue, here.
    Control(Box<ControlQueue>),
    /// It could not be started; nothing runs.
    Refused,
    /// Asked back, not yet returned.
    Stopping,
}

struct Ring {
    place: Place,
    /// As SET_VRING_BASE gave it: the answer for a ring that never ran.
    base: u32,
    /// Tells the guest's VMM that the ring is broken (SET_VRING_ERR).
    err: Option<OwnedFd>,
}

/// See the module.
pub(super) struct Interface {
    pub(super) key: InterfaceKey,
    /// The definition.
    pub(super) network: NetworkConfig,
    /// Its socket, and the definition that the socket was opened by.
    pub(super) endpoint: Option<EndpointId>,
    pub(super) socket: NetworkConfig,
    /// The definition when the front-end connected; what it negotiated comes from here.
    connected: Option<NetworkConfig>,
    pub(super) spec: Arc<PortSpec>,
    pub(super) state: Arc<PortState>,
    pub(super) index: PortIndex,
    /// Acked by the guest's driver; `None`: no driver yet.
    pub(super) features: Option<u64>,
    rings: Vec<Option<Ring>>,
    baseline: Snapshot,
    /// The front-end made a notification of ours block: its session is to be ended.
    held: bool,
}

impl Interface {
    /// A definition that nobody is connected to. `workers` is how many there are.
    pub(super) fn new(key: InterfaceKey, network: NetworkConfig, index: PortIndex, workers: usize) -> Self {
        let spec = Arc::new(PortSpec::from_config(&key.guest, &network));
        // Steering memory for the most pairs a later definition may allow: 4 KiB.
        let state = Arc::new(PortState::new(workers, avio_proto::config::QUEUE_PAIRS_MAX));
        Self {
            key,
            endpoint: None,
            socket: network.clone(),
            network,
            connected: None,
            spec,
            state,
            index,
            features: None,
            rings: Vec::new(),
            baseline: Snapshot::default(),
            held: false,
        }
    }

    /// Whether the front-end made a notification block since this was last asked.
    pub(super) fn take_held(&mut self) -> bool {
        std::mem::take(&mut self.held)
    }

    /// Whether a front-end is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.is_some()
    }

    /// Its socket is open, by the definition as it is now.
    pub(super) fn attach(&mut self, endpoint: EndpointId) {
        self.endpoint = Some(endpoint);
        self.socket = self.network.clone();
    }

    /// Takes over a changed definition. What the guest has negotiated stays until it reconnects.
    pub(super) fn redefine(&mut self, network: NetworkConfig) {
        self.network = network;
        let mut effective = self.network.clone();
        if let Some(connected) = &self.connected {
            effective.mac = connected.mac;
            effective.mtu = connected.mtu;
            effective.queue_pairs = connected.queue_pairs;
        }
        self.spec = Arc::new(PortSpec::from_config(&self.key.guest, &effective));
    }

    /// A front-end has connected and sees the definition as it is now.
    pub(super) fn connect(&mut self) {
        self.connected = Some(self.network.clone());
        self.spec = Arc::new(PortSpec::from_config(&self.key.guest, &self.network));
        self.features = None;
        self.rings.clear();
    }

    /// The front-end is gone and all rings have stopped.
    pub(super) fn disconnect(&mut self) {
        self.connected = None;
        self.features = None;
        self.rings.clear();
        let network = self.network.clone();
        self.redefine(network);
    }

    /// Queue pairs that the guest has enabled for receiving.
    pub(super) fn enabled_pairs(&self) -> u16 {
        self.rings.iter().flatten().filter(|ring| matches!(ring.place, Place::Rx(_))).count() as u16
    }

    /// The port for the next table.
    pub(super) fn port_kind(&self) -> PortKind {
        let pairs = self.rings.len().div_ceil(2);
        let rx = (0..pairs).map(|pair| match self.rings.get(2 * pair) {
            Some(Some(Ring { place: Place::Rx(queue), .. })) => Some(Arc::clone(queue)),
            _ => None,
        });
        PortKind::Guest(GuestPort { rx: rx.collect() })
    }

    /// Runs a ring. Returns the kick to watch if it is the control queue.
    ///
    /// # Errors
    /// [`RingError`]: the ring cannot run as the front-end set it up. It counts as started until it is stopped.
    pub(super) fn start_ring(
        &mut self,
        start: RingStart,
        fabric: &mut Fabric,
    ) -> Result<Option<RawFd>, RingError> {
        let RingStart { index, setup, memory, kick, call, err, features, .. } = start;
        let pairs = self.connected.as_ref().unwrap_or(&self.network).queue_pairs;
        let at = usize::from(index);
        if self.rings.len() <= at {
            self.rings.resize_with(at + 1, || None);
        }
        let base = setup.base;
        let (place, outcome) = match DeviceRing::new(memory, &setup) {
            Err(error) => (Place::Refused, Err(error)),
            Ok(ring) if control_ring(features, pairs) == Some(index) => {
                let queue = Box::new(ControlQueue::new(ring, kick, call, pairs));
                let kick = queue.kick();
                (Place::Control(queue), Ok(kick))
            }
            Ok(_) if index >= 2 * pairs => (Place::Refused, Ok(None)),
            Ok(ring) if index % 2 == 0 => {
                fabric.touch();
                (Place::Rx(RxQueue::new(ring, features, call)), Ok(None))
            }
            Ok(ring) => {
                let queue = TxQueue::new(ring, self.index, index / 2, features, kick, call);
                (Place::Tx(fabric.start_tx(queue)), Ok(None))
            }
        };
        if outcome.is_err() {
            self.held |= !signal(err.as_ref());
        }
        self.rings[at] = Some(Ring { place, base, err });
        outcome
    }

    /// Stops a ring. Returns its base if it has stopped already, and the kick that is no longer to be watched; else the
    /// fabric releases it later. The fabric must be flushed.
    pub(super) fn stop_ring(&mut self, index: u16, fabric: &mut Fabric) -> StopRing {
        let Some(Some(ring)) = self.rings.get_mut(usize::from(index)) else {
            return StopRing::Stopped { base: 0, unwatch: None };
        };
        let pair = index / 2;
        match std::mem::replace(&mut ring.place, Place::Stopping) {
            Place::Rx(queue) => {
                fabric.stop_rx(self.index, pair, queue);
                StopRing::Later
            }
            Place::Tx(worker) => {
                fabric.stop_tx(worker, self.index, pair);
                StopRing::Later
            }
            Place::Stopping => StopRing::Later,
            Place::Control(queue) => {
                let (base, unwatch) = queue.stop();
                self.rings[usize::from(index)] = None;
                StopRing::Stopped { base, unwatch }
            }
            Place::Refused => {
                let base = ring.base;
                self.rings[usize::from(index)] = None;
                StopRing::Stopped { base, unwatch: None }
            }
        }
    }

    /// A ring has come back from the fabric. Returns what to answer as its base.
    pub(super) fn ring_released(&mut self, index: u16, base: Option<u32>) -> u32 {
        let ring = self.rings.get_mut(usize::from(index)).and_then(Option::take);
        base.or(ring.map(|ring| ring.base)).unwrap_or(0)
    }

    /// The guest kicked its control queue. Returns whether to come back at once.
    pub(super) fn serve_control(&mut self) -> Result<bool, RingError> {
        let control = self.rings.iter_mut().flatten().find_map(|ring| match &mut ring.place {
            Place::Control(queue) => Some((queue, &ring.err)),
            _ => None,
        });
        let Some((queue, err)) = control else { return Ok(false) };
        let served = queue.serve();
        self.held |= match served {
            Ok(served) => served == Served::Held,
            Err(_) => !signal(err.as_ref()),
        };
        served.map(|served| served == Served::Some)
    }

    /// A worker found the ring broken: its VMM is told.
    pub(super) fn ring_broken(&mut self, index: u16) {
        if let Some(Some(ring)) = self.rings.get(usize::from(index)) {
            self.held |= !signal(ring.err.as_ref());
        }
    }

    /// The numbers since they were last cleared.
    pub(super) fn numbers(&self) -> Snapshot {
        self.state.stats.snapshot().since(&self.baseline)
    }

    /// Counts from here.
    pub(super) fn clear_numbers(&mut self) {
        self.baseline = self.state.stats.snapshot();
    }
}

/// What became of a ring that was to stop.
pub(super) enum StopRing {
    /// It has stopped.
    Stopped {
        /// What GET_VRING_BASE answers.
        base: u32,
        /// Its kick, if control watched it.
        unwatch: Option<OwnedFd>,
    },
    /// The fabric gives it back later.
    Later,
}

/// Writes to an error eventfd; a full one has told already. `false`: the front-end held the writer.
fn signal(err: Option<&OwnedFd>) -> bool {
    err.is_none_or(tell)
}
