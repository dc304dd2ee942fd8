//! Devices that were taken away from the workers, until they are closed.
//!
//! Closing a packet or AF_XDP socket waits until the whole kernel is past it, tens of milliseconds for each; a failover would wait for that, too. So what comes back from the
//! workers is kept until all of it has, and a helper thread closes it then. Before that the device's queues and its program are taken, and it cannot be
//! opened anew.

use std::sync::{Arc, Weak};

use avio_host::blocking::{Helpers, Reply, answered};

use super::Answer;
use super::device::Device;
use crate::port::wire::{IntakeStopped, Lane, WireSource};
use crate::table::PortIndex;

/// One of them.
struct Closing {
    name: String,
    port: PortIndex,
    /// Numbers of the sources, and the lanes, that some worker may still have.
    sources_out: Vec<u16>,
    lanes_out: Vec<Weak<Lane>>,
    /// What has come back.
    sources: Vec<WireSource>,
    lanes: Vec<Arc<Lane>>,
    /// Goes last; `None`: a helper has it all.
    device: Option<Device>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Closings(Vec<Closing>);

impl Closings {
    /// The device `name` of `port`: its sources and lanes have been asked back.
    pub(super) fn add(
        &mut self,
        name: &str,
        port: PortIndex,
        sources: Vec<u16>,
        lanes: &[Arc<Lane>],
        device: Device,
    ) {
        self.0.push(Closing {
            name: name.to_owned(),
            port,
            sources_out: sources,
            lanes_out: lanes.iter().map(Arc::downgrade).collect(),
            sources: Vec::new(),
            lanes: Vec::new(),
            device: Some(device),
        });
    }

    /// The device `name`, which was opened for `port` and which nobody wants any more.
    pub(super) fn unwanted(&mut self, name: &str, port: PortIndex, device: Device) {
        self.add(name, port, Vec::new(), &[], device);
    }

    /// A source has come back.
    pub(super) fn source(&mut self, stopped: IntakeStopped) {
        let IntakeStopped { port, lane, source } = stopped;
        let of = self.0.iter_mut().find(|one| one.port == port && one.sources_out.contains(&lane));
        let Some(of) = of else { return };
        of.sources_out.retain(|number| *number != lane);
        of.sources.extend(source.map(|source| *source));
    }

    /// A lane has come back.
    pub(super) fn lane(&mut self, lane: Arc<Lane>) {
        let is_it = |out: &Weak<Lane>| std::ptr::eq(out.as_ptr(), Arc::as_ptr(&lane));
        let Some(of) = self.0.iter_mut().find(|one| one.lanes_out.iter().any(is_it)) else { return };
        of.lanes_out.retain(|out| !is_it(out));
        of.lanes.push(lane);
    }

    /// Has helpers close what has come back as a whole.
    pub(super) fn turn(&mut self, helpers: &Helpers, reply: &Reply<Answer>) {
        for one in &mut self.0 {
            if !one.sources_out.is_empty() || !one.lanes_out.is_empty() {
                continue;
            }
            let Some(device) = one.device.take() else { continue };
            let (sources, lanes) = (std::mem::take(&mut one.sources), std::mem::take(&mut one.lanes));
            let (name, port, reply) = (one.name.clone(), one.port, reply.clone());
            helpers.run(move || {
                let closed = answered(|| {
                    drop((sources, lanes));
                    drop(device);
                    Ok(())
                });
                if let Err(why) = closed {
                    tracing::error!("{name}: not closed: {why}");
                }
                reply.send(Answer::Closed { name, port });
            });
        }
    }

    /// A helper has closed one.
    pub(super) fn closed(&mut self, name: &str, port: PortIndex) {
        self.0.retain(|one| one.device.is_some() || one.name != name || one.port != port);
    }

    /// Whether the device `name` is among them.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|one| one.name == name)
    }
}
