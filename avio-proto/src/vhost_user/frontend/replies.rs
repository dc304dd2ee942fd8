//! What the front-end does with each reply: the handshake's next step, or an event for the caller.
//!
//! Owns the matching of replies to requests, which the protocol leaves to their order. Called by `Frontend::receive` only.

use super::{Event, Frontend, FrontendError};
use crate::vhost_user::features;
use crate::vhost_user::message::{Message, Request};
use crate::vhost_user::payload::{Config, InflightArea, VringState, decode_u64};
use crate::virtio::features::VHOST_USER_PROTOCOL_FEATURES;

/// A reply that is still to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) request: Request,
    /// An acknowledgement (u64, 0 is success) instead of the request's own reply.
    pub(super) ack: bool,
}

impl Frontend {
    pub(super) fn take_reply(&mut self, mut message: Message) -> Result<(), FrontendError> {
        let request = message.request;
        let malformed = || FrontendError::Malformed(request);
        let expected = self
            .expected
            .front()
            .copied()
            .filter(|e| e.request == request && message.is_reply())
            .ok_or(FrontendError::Unexpected(request))?;
        self.expected.pop_front();
        let bytes = message.payload.as_slice();
        if expected.ack {
            let ok = decode_u64(bytes).map_err(|_| malformed())? == 0;
            self.events.push_back(Event::Acked { request, ok });
            return Ok(());
        }
        match request {
            Request::GET_FEATURES => self.offered(decode_u64(bytes).map_err(|_| malformed())?),
            Request::GET_PROTOCOL_FEATURES => {
                self.protocol_offered(decode_u64(bytes).map_err(|_| malformed())?);
            }
            Request::GET_QUEUE_NUM => {
                self.negotiated.queue_max = decode_u64(bytes).map_err(|_| malformed())?;
                self.after_protocol();
            }
            Request::GET_MAX_MEM_SLOTS => {
                self.negotiated.slots_max = decode_u64(bytes).map_err(|_| malformed())?;
                self.after_protocol();
            }
            Request::GET_VRING_BASE => {
                let state = VringState::decode(bytes).map_err(|_| malformed())?;
                self.events.push_back(Event::Base { index: state.index, base: state.num });
            }
            Request::GET_CONFIG => {
                let bytes = if bytes.is_empty() {
                    Vec::new()
                } else {
                    Config::decode(bytes).map_err(|_| malformed())?.bytes
                };
                self.events.push_back(Event::Config(bytes));
            }
            Request::GET_INFLIGHT_FD => {
                let area = InflightArea::decode(bytes).map_err(|_| malformed())?;
                let fd = message.fds.pop().ok_or_else(malformed)?;
                self.events.push_back(Event::Inflight(area, fd));
            }
            Request::GET_STATUS => {
                let status = decode_u64(bytes).map_err(|_| malformed())?;
                self.events.push_back(Event::Status(status as u8));
            }
            Request::SET_LOG_BASE => self.events.push_back(Event::LogSet),
            _ => return Err(FrontendError::Unexpected(request)),
        }
        Ok(())
    }

    fn offered(&mut self, offered: u64) {
        self.offered = offered;
        if offered & VHOST_USER_PROTOCOL_FEATURES == 0 {
            self.finish();
        } else {
            self.ask(Request::GET_PROTOCOL_FEATURES, &[], Vec::new());
        }
    }

    fn protocol_offered(&mut self, offered: u64) {
        let acked = offered & self.wanted.protocol_features & features::IMPLEMENTED;
        // Sent before REPLY_ACK is in force, so it is never acknowledged itself.
        self.tell(Request::SET_PROTOCOL_FEATURES, &acked.to_ne_bytes(), Vec::new());
        self.negotiated.protocol_features = acked;
        if acked & features::MQ != 0 {
            self.ask(Request::GET_QUEUE_NUM, &[], Vec::new());
        }
        if acked & features::CONFIGURE_MEM_SLOTS != 0 {
            self.ask(Request::GET_MAX_MEM_SLOTS, &[], Vec::new());
        }
        self.after_protocol();
    }

    /// Ends the handshake once no question of it is open.
    fn after_protocol(&mut self) {
        if self.expected.is_empty() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.set_features(self.offered & self.wanted.features);
        self.events.push_back(Event::Ready(self.negotiated));
    }
}
