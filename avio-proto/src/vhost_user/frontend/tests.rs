//! The two machines against each other, and the front-end against bytes laid out by hand.

use super::*;
use crate::vhost_user::backend::{Action, Backend, DeviceSpec, Event as DeviceEvent};
use crate::vhost_user::features::{CONFIG, IMPLEMENTED, MQ, REPLY_ACK};
use crate::vhost_user::message::Header;
use crate::vhost_user::{FrameReader, Outgoing};
use crate::virtio::features::{NET_MRG_RXBUF, VERSION_1};

const WANTED: Wanted = Wanted {
    features: VERSION_1 | NET_MRG_RXBUF,
    protocol_features: IMPLEMENTED,
    rings_start_enabled: false,
};

fn arrive(sent: Outgoing) -> Message {
    let mut reader = FrameReader::new();
    let (head, rest) = sent.bytes.split_at(12);
    match reader.push(head, sent.fds).unwrap() {
        Some(message) => message,
        None => reader.push(rest, Vec::new()).unwrap().unwrap(),
    }
}

struct Pair {
    front: Frontend,
    back: Backend,
    device: Vec<String>,
}

impl Pair {
    fn new(wanted: Wanted, spec: DeviceSpec) -> Self {
        Self { front: Frontend::new(wanted), back: Backend::new(spec), device: Vec::new() }
    }

    /// Carries messages both ways until nothing moves.
    fn run(&mut self) {
        loop {
            while let Some(action) = self.back.next_action() {
                match action {
                    Action::Send(message) => self.front.receive(arrive(message)).unwrap(),
                    Action::Event(DeviceEvent::RingStart(start)) => {
                        self.device.push(format!("start {}", start.index));
                    }
                    Action::Event(event) => self.device.push(format!("{event:?}")),
                    Action::Refused(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            match self.front.next_outgoing() {
                Some(message) => self.back.receive(arrive(message)).unwrap(),
                None => return,
            }
        }
    }

    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.front.next_event()).map(|event| format!("{event:?}")).collect()
    }
}

fn spec() -> DeviceSpec {
    DeviceSpec {
        features: VERSION_1 | NET_MRG_RXBUF,
        protocol_features: IMPLEMENTED,
        queue_max: 6,
        config: vec![1, 2, 3],
        ..DeviceSpec::default()
    }
}

#[test]
fn handshake() {
    let mut pair = Pair::new(WANTED, spec());
    pair.run();
    assert!(pair.front.is_idle());
    let negotiated = pair.front.negotiated();
    assert_eq!(negotiated.features, WANTED.features);
    assert_eq!(negotiated.protocol_features, IMPLEMENTED);
    assert_eq!((negotiated.queue_max, negotiated.slots_max), (6, 509));
    assert_eq!(pair.events().len(), 2, "ready, and SET_FEATURES acknowledged");
    let acked = WANTED.features | VHOST_USER_PROTOCOL_FEATURES;
    assert_eq!(pair.device, ["Connected".to_string(), format!("Features({acked})")]);
}

#[test]
fn handshake_with_less() {
    let wanted = Wanted { protocol_features: MQ | CONFIG, rings_start_enabled: true, ..WANTED };
    let mut pair = Pair::new(wanted, DeviceSpec { protocol_features: CONFIG | REPLY_ACK, ..spec() });
    pair.run();
    assert_eq!(pair.front.negotiated().protocol_features, CONFIG);
    assert_eq!(pair.front.negotiated().queue_max, 1);
    assert_eq!(pair.device[1], format!("Features({})", WANTED.features), "without bit 30");
}

#[test]
fn questions_and_acknowledgements() {
    let mut pair = Pair::new(WANTED, spec());
    pair.run();
    pair.events();
    pair.front.get_config(1, 4);
    pair.front.get_vring_base(5);
    pair.front.set_mtu(1500);
    pair.front.set_status(7);
    pair.front.get_status();
    pair.front.send_rarp([2, 0, 0, 0, 0, 1]);
    pair.run();
    assert_eq!(
        pair.events(),
        [
            "Config([2, 3, 0, 0])",
            "Base { index: 5, base: 0 }",
            "Acked { request: NET_SET_MTU, ok: false }",
            "Acked { request: SET_STATUS, ok: true }",
            "Status(7)",
            "Acked { request: SEND_RARP, ok: true }",
        ]
    );
    assert_eq!(pair.device.last().unwrap(), "Announce([2, 0, 0, 0, 0, 1])");
}

/// SET_OWNER and GET_FEATURES, then the reply, as the specification's figures give them (little-endian).
#[test]
#[cfg(target_endian = "little")]
fn first_bytes_of_a_session() {
    let mut front = Frontend::new(WANTED);
    assert_eq!(front.next_outgoing().unwrap().bytes, [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(front.next_outgoing().unwrap().bytes, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(front.next_outgoing().is_none());
    // Offers VERSION_1 (32) and nothing of vhost-user's.
    let reply = [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    front.receive(arrive(Outgoing { bytes: reply.to_vec(), fds: Vec::new() })).unwrap();
    let sent = front.next_outgoing().unwrap().bytes;
    assert_eq!(sent, [2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert!(matches!(front.next_event(), Some(Event::Ready(n)) if n.features == VERSION_1));
}

#[test]
fn replies_that_nobody_asked_for() {
    let reply = |request: Request, flags, payload: &[u8]| {
        let header = Header { request: request.0, flags, size: payload.len() as u32 };
        arrive(Outgoing { bytes: [&header.encode()[..], payload].concat(), fds: Vec::new() })
    };
    let wrong = [
        (reply(Request::GET_STATUS, 5, &[0; 8]), FrontendError::Unexpected(Request::GET_STATUS)),
        (reply(Request::GET_FEATURES, 1, &[0; 8]), FrontendError::Unexpected(Request::GET_FEATURES)),
        (reply(Request::GET_FEATURES, 5, &[0; 7]), FrontendError::Malformed(Request::GET_FEATURES)),
    ];
    for (message, error) in wrong {
        assert_eq!(Frontend::new(WANTED).receive(message), Err(error));
    }
}
