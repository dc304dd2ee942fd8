//! Front-ends come and go, and their rings go to workers and are asked back; control queues.
//!
//! Called on the control thread with what happens at sessions. A ring belongs to the fabric from its start until it is released; only then is
//! the front-end answered.

use std::time::Instant;

use avio_host::session::{EndpointId, Event as SessionEvent, RingStart};
use avio_proto::config::MacAddr;

use super::{Owner, Switch, Watch};
use crate::control::interface::{Interface, StopRing};

impl Switch {
    /// The kick of a control queue was readable.
    pub(in crate::control) fn on_control_kick(&mut self, endpoint: EndpointId, now: Instant) {
        let Some(interface) = self.interface_of(endpoint) else { return };
        let name = interface.key.to_string();
        match interface.serve_control() {
            Ok(false) => {}
            Ok(true) => self.kicked.push(endpoint),
            Err(error) => self.log(now, &name, &format!("control queue stopped: {error}")),
        }
        self.end_if_held(endpoint);
    }

    /// Ends the session whose front-end made a notification of ours block.
    pub(super) fn end_if_held(&mut self, endpoint: EndpointId) {
        if self.interface_of(endpoint).is_some_and(Interface::take_held) {
            self.sessions.hold(endpoint);
        }
    }

    pub(super) fn on_session_event(&mut self, endpoint: EndpointId, event: SessionEvent, now: Instant) {
        match event {
            SessionEvent::Connected => self.on_connected(endpoint, now),
            SessionEvent::Features(features) => {
                if let Some(interface) = self.interface_of(endpoint) {
                    interface.features = Some(features);
                }
            }
            SessionEvent::Mtu(mtu) => {
                if let Some(interface) = self.interface_of(endpoint) {
                    let name = interface.key.to_string();
                    self.note(now, &name, &format!("the guest's MTU is {mtu}"));
                }
            }
            SessionEvent::Announce(mac) => self.on_announce(endpoint, MacAddr(mac), now),
            SessionEvent::RingStart(start) => self.on_ring_start(endpoint, *start, now),
            SessionEvent::RingStop { index } => self.on_ring_stop(endpoint, index, now),
            SessionEvent::Disconnected => self.on_disconnected(endpoint, now),
        }
    }

    fn on_connected(&mut self, endpoint: EndpointId, now: Instant) {
        let Some(Owner::Interface(key)) = self.owners.get(&endpoint) else { return };
        let key = key.clone();
        let Some(interface) = self.interfaces.get(&key) else { return };
        let (vswitch, port) = (&interface.network.vswitch, interface.network.port);
        let rival = self.interfaces.values().find(|other| {
            other.key != key
                && other.is_connected()
                && other.network.vswitch == *vswitch
                && other.network.port == port
        });
        if let Some(rival) = rival {
            let line = format!(
                "port {port} of vswitch {vswitch} is in use by {}; one guest at a time can be active on it",
                rival.key
            );
            self.log(now, &key.to_string(), &line);
            self.sessions.disconnect(endpoint);
            return;
        }
        if let Some(interface) = self.interfaces.get_mut(&key) {
            interface.connect();
            let line = format!(
                "front-end connected, port {} of {}",
                interface.network.port, interface.network.vswitch
            );
            self.fabric.touch();
            self.note(now, &key.to_string(), &line);
        }
    }

    fn on_disconnected(&mut self, endpoint: EndpointId, now: Instant) {
        match self.owners.get(&endpoint) {
            Some(Owner::Interface(key)) => {
                if let Some(interface) = self.interfaces.get_mut(key)
                    && interface.is_connected()
                {
                    interface.disconnect();
                    self.link_status.touch();
                    self.fabric.learner.forget_port(interface.index);
                    self.fabric.touch();
                    let name = key.to_string();
                    self.note(now, &name, "front-end disconnected");
                    self.reopen_sockets();
                }
            }
            Some(Owner::Leaving(interface)) => {
                self.fabric.give_index(interface.index);
                self.owners.remove(&endpoint);
            }
            None => {}
        }
    }

    fn on_ring_start(&mut self, endpoint: EndpointId, start: RingStart, now: Instant) {
        let index = start.index;
        if index == 0
            && let Some(Owner::Interface(key)) = self.owners.get(&endpoint)
        {
            self.link_status.started(key);
        }
        let Some((interface, fabric)) = self.interface_and_fabric(endpoint) else { return };
        match interface.start_ring(start, fabric) {
            Ok(Some(kick)) => self.watches.push(Watch::Add(kick, endpoint)),
            Ok(None) => {}
            Err(error) => {
                let name = interface.key.to_string();
                self.log(now, &name, &format!("ring {index} cannot start: {error}"));
            }
        }
    }

    fn on_ring_stop(&mut self, endpoint: EndpointId, index: u16, now: Instant) {
        // A ring that was to start in this very turn must have started before it can be asked back.
        if self.fabric.is_changed(now) {
            self.publish(now);
        }
        let Some((interface, fabric)) = self.interface_and_fabric(endpoint) else {
            // The session ended before it was let in: no ring of it ever ran.
            self.sessions.ring_stopped(endpoint, index, 0);
            return;
        };
        match interface.stop_ring(index, fabric) {
            StopRing::Later => {}
            StopRing::Stopped { base, unwatch } => {
                self.watches.extend(unwatch.map(Watch::Remove));
                self.sessions.ring_stopped(endpoint, index, base);
            }
        }
    }

    /// The guest has moved here (SEND_RARP). Its address is static in every table, so this switch has nothing to learn; who
    /// is behind a trusted port or a bridge in a guest has, so it is broadcast. VMMs say it a few times; one that says it for
    /// ever gets as many out as a log takes lines.
    fn on_announce(&mut self, endpoint: EndpointId, mac: MacAddr, now: Instant) {
        if self.announced.check(endpoint, now).is_none() {
            return;
        }
        let Some((interface, fabric)) = self.interface_and_fabric(endpoint) else { return };
        fabric.announce(interface.index, mac);
        let name = interface.key.to_string();
        self.note(now, &name, &format!("announced itself as {mac}"));
    }
}
