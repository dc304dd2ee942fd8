//! `io.avio.vswitchd`: what the control socket answers (`avio-proto/varlink/io.avio.vswitchd.varlink`).
//!
//! Each method is a view of the switch or a request to it; the files are the truth, so nothing here edits anything.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use avio_host::config::Capabilities;
use avio_host::control::{Interface, Peer, ReloadOutcome, Reloads, VarlinkError, parameters};
use avio_host::daemon::{self, Watches};
use avio_host::links::ipv4_addresses;
use avio_host::service::Service;
use avio_host::session::{EndpointId, Sessions};
use avio_proto::control::{
    AggregateParams, AggregatesReply, ClearStatisticsParams, DiscardsReply, FacilityState, INTERFACE,
    INTERFACE_DESCRIPTION, InfoReply, NoSuchVswitchParams, PROTOCOL_VERSION, ReloadReply, RestartParams,
    ShowParams, ShowReply, WorkersReply, error, method,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::aggregate::Aggregate;

use super::reload::{Found, Reader};
use super::show;
use super::switch::{Switch, Watch};

/// The daemon's own sources in its event loop: changes of interfaces, frames for control, sockets of VMMs that appear, changes of offloads, and from here on control
/// queues' kicks, by endpoint.
pub(super) const LINKS: usize = 0;
pub(super) const CONTROL_FRAMES: usize = 1;
pub(super) const VMMS: usize = 2;
pub(super) const OFFLOADS: usize = 3;
const KICKS: usize = 4;

/// What this release can do.
pub(super) const CAPABILITIES: Capabilities = Capabilities { uplinks: true, tap_ports: true };

/// The switch with what only the control socket and signals need.
pub(super) struct Daemon {
    pub(super) switch: Switch,
    pub(super) service: Service,
    pub(super) reader: Reader,
    pub(super) reloads: Reloads,
    pub(super) facilities: Vec<FacilityState>,
    pub(super) started: Instant,
}

impl Daemon {
    fn take_over(&mut self, (_, config): Found) -> ReloadOutcome {
        let config = config.map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let mut warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        if config.workers != self.switch.started_with {
            warnings
                .push("[workers] has changed: takes effect when the daemon starts the next time".to_owned());
        }
        let changes = self.switch.reconcile(config)?;
        self.switch.turn(Instant::now());
        Ok(ReloadReply { changes, warnings })
    }

    fn show(&self, wanted: &ShowParams) -> Result<Value, VarlinkError> {
        let switch = &self.switch;
        // The host's own address on the wire; without an answer it is not shown.
        let addresses = ipv4_addresses().unwrap_or_default();
        let chosen: Vec<_> = switch
            .config
            .vswitches
            .iter()
            .filter(|v| wanted.vswitch.as_ref().is_none_or(|name| *name == v.settings.name))
            .filter(|v| wanted.number.is_none_or(|number| number == v.number))
            .map(|v| {
                let wire = switch.uplinks.report(&v.settings.name);
                let uplink = v.settings.uplink.as_deref().and_then(|name| switch.uplinks.index_of(name));
                let ip = uplink.and_then(|index| addresses.get(&index).copied());
                show::vswitch(v, switch, wire, ip)
            })
            .collect();
        let asked = wanted.vswitch.clone().or(wanted.number.map(|number| number.to_string()));
        match asked {
            Some(asked) if chosen.is_empty() => Err(self.no_such_vswitch(asked)),
            _ => reply(&ShowReply { vswitches: chosen }),
        }
    }

    fn no_such_vswitch(&self, vswitch: String) -> VarlinkError {
        let known = self.switch.config.vswitches.iter().map(|v| v.settings.name.clone()).collect();
        VarlinkError::own(error::NO_SUCH_VSWITCH, &NoSuchVswitchParams { vswitch, known })
    }

    fn clear(&mut self, wanted: ClearStatisticsParams) -> Result<Value, VarlinkError> {
        if let Some(name) = &wanted.vswitch
            && self.switch.config.vswitch(name).is_none()
        {
            return Err(self.no_such_vswitch(name.clone()));
        }
        self.switch.uplinks.clear_numbers(wanted.vswitch.as_deref());
        self.switch.taps.clear_numbers(wanted.vswitch.as_deref());
        for interface in self.switch.interfaces.values_mut() {
            if wanted.vswitch.as_ref().is_none_or(|name| *name == interface.network.vswitch) {
                interface.clear_numbers();
            }
        }
        Ok(json!({}))
    }

    fn restart(&mut self, wanted: RestartParams) -> Result<Value, VarlinkError> {
        if self.switch.config.vswitch(&wanted.vswitch).is_none() {
            return Err(self.no_such_vswitch(wanted.vswitch));
        }
        self.switch.restart(&wanted.vswitch);
        Ok(json!({}))
    }

    fn on_aggregate(
        &mut self,
        wanted: AggregateParams,
        what: impl FnOnce(&mut Aggregate, Instant),
    ) -> Result<Value, VarlinkError> {
        let Some(aggregate) = self.switch.uplinks.aggregate_mut(&wanted.aggregate) else {
            return Err(VarlinkError::own(error::NO_SUCH_AGGREGATE, &wanted));
        };
        what(aggregate, Instant::now());
        Ok(json!({}))
    }

    fn info(&self) -> InfoReply {
        let workers = &self.switch.started_with;
        InfoReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_version: PROTOCOL_VERSION,
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            poll: workers.poll,
            spin_us: workers.spin_us,
            worker_cores: workers.placement(),
            facilities: self.facilities.clone(),
        }
    }

    fn workers(&self) -> WorkersReply {
        let cores = self.switch.started_with.placement();
        let workers = self.switch.fabric.workers().iter().zip(cores).enumerate();
        let report = |(index, (worker, core)): (usize, (&avio_host::worker::Worker<_>, _))| {
            show::worker(index, core, &worker.stats().totals())
        };
        WorkersReply { workers: workers.map(report).collect() }
    }
}

impl Interface for Daemon {
    fn name(&self) -> &'static str {
        INTERFACE
    }

    fn description(&self) -> &'static str {
        INTERFACE_DESCRIPTION
    }

    fn product(&self) -> (&'static str, &'static str) {
        ("avio-vswitchd", env!("CARGO_PKG_VERSION"))
    }

    fn call(&mut self, method: &str, params: Value, peer: &Peer) -> Result<Value, VarlinkError> {
        match method {
            method::INFO => reply(&self.info()),
            method::SHOW => self.show(&parameters(params)?),
            method::CLEAR_STATISTICS => self.clear(parameters(params)?),
            method::RELOAD => daemon::Daemon::reload(self, peer.again),
            method::RESTART => self.restart(parameters(params)?),
            method::WORKERS => reply(&self.workers()),
            method::AGGREGATES => reply(&AggregatesReply { aggregates: self.switch.uplinks.aggregates() }),
            method::REBALANCE => self.on_aggregate(parameters(params)?, Aggregate::rebalance),
            method::RESET_AGGREGATE => {
                let wanted: AggregateParams = parameters(params)?;
                self.switch.uplinks.clear_traffic(&wanted.aggregate);
                self.on_aggregate(wanted, Aggregate::reset)
            }
            method::DISCARDS => {
                let reasons = show::discards(&self.switch.interfaces, &self.switch.taps);
                reply(&DiscardsReply { reasons })
            }
            _ => Err(VarlinkError::MethodNotFound),
        }
    }
}

impl daemon::Daemon for Daemon {
    fn service(&mut self) -> &mut Service {
        &mut self.service
    }

    fn sessions(&mut self) -> &mut Sessions {
        &mut self.switch.sessions
    }

    fn reloads(&mut self) -> &mut Reloads {
        &mut self.reloads
    }

    fn begin_reload(&mut self) {
        self.reader.start();
    }

    fn summary(&self) -> String {
        let config = &self.switch.config;
        format!("{} vswitches, {} guest ports", config.vswitches.len(), config.networks().count())
    }

    fn on_helpers(&mut self) {
        while let Some(found) = self.reader.found() {
            let outcome = self.take_over(found);
            self.reloaded(outcome);
        }
    }

    fn on_own(&mut self, number: usize) {
        match number {
            LINKS => self.switch.on_links(),
            // The turn that follows reads them.
            CONTROL_FRAMES | VMMS | OFFLOADS => {}
            kick => self.switch.on_control_kick(EndpointId((kick - KICKS) as u32), Instant::now()),
        }
    }

    fn next_turn(&self, now: Instant) -> Duration {
        self.switch.next_turn(now)
    }

    fn turn(&mut self, now: Instant, watches: &Watches<'_>) {
        self.switch.turn(now);
        for watch in std::mem::take(&mut self.switch.watches) {
            match watch {
                Watch::Add(kick, endpoint) => {
                    if let Err(e) = watches.add(kick, KICKS + endpoint.0 as usize) {
                        tracing::warn!("control queue of endpoint {}: {e}", endpoint.0);
                    }
                }
                Watch::Remove(kick) => watches.remove(kick.as_raw_fd()),
            }
        }
    }
}

fn reply(value: &impl Serialize) -> Result<Value, VarlinkError> {
    // Our own types always are JSON; if one were not, the caller sees an empty reply rather than a dead daemon.
    Ok(serde_json::to_value(value).unwrap_or_else(|_| json!({})))
}
