//! `io.avio.vswitchd`: what the control socket answers (`avio-proto/varlink/io.avio.vswitchd.varlink`).
//!
//! Each method is a view of the switch or a request to it; the files are the truth, so nothing here edits anything.

use std::time::Instant;

use avio_host::config::Capabilities;
use avio_host::control::{Called, Interface, Peer, ReloadOutcome, Reloads, VarlinkError, parameters};
use avio_host::service::Service;
use avio_proto::config::Config;
use avio_proto::control::{
    AggregateParams, AggregatesReply, ClearStatisticsParams, DiscardsReply, FacilityState, INTERFACE,
    INTERFACE_DESCRIPTION, InfoReply, NoSuchVswitchParams, PROTOCOL_VERSION, RefusedParams, ReloadReply,
    RestartParams, ShowParams, ShowReply, WorkersReply, error, method,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::aggregate::Aggregate;

use super::reload::{Found, Reader};
use super::show;
use super::switch::Switch;

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
    /// SIGHUP, or another reading is due: reads the files again, now or behind the reading that is under way.
    pub(super) fn start_reload(&mut self) {
        if self.reloads.ask() {
            self.begin_reload();
        }
    }

    fn begin_reload(&self) {
        self.service.reloading();
        self.reader.start();
    }

    /// A helper may have read the files: brings the switch in line with them. Returns whether clients may be waiting for it.
    pub(super) fn finish_reload(&mut self) -> bool {
        let Some(found) = self.reader.found() else { return false };
        let outcome = self.take_over(found);
        match &outcome {
            Ok(reply) => {
                reply.changes.iter().for_each(|line| tracing::info!("{line}"));
                reply.warnings.iter().for_each(|line| tracing::warn!("{line}"));
            }
            Err(reasons) => reasons.iter().for_each(|line| tracing::error!("configuration refused: {line}")),
        }
        self.service.ready(&summary(&self.switch.config));
        if self.reloads.done(outcome) {
            self.start_reload();
        }
        true
    }

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

    fn reload(&mut self, peer: &Peer) -> Result<Value, VarlinkError> {
        match self.reloads.call(peer.again) {
            Called::Answer(Ok(done)) => reply(&done),
            Called::Answer(Err(reasons)) => {
                Err(VarlinkError::own(error::REFUSED, &RefusedParams { reasons }))
            }
            Called::Wait => Err(VarlinkError::NotYet),
            Called::Begin => {
                self.begin_reload();
                Err(VarlinkError::NotYet)
            }
        }
    }

    fn show(&self, wanted: &ShowParams) -> Result<Value, VarlinkError> {
        let switch = &self.switch;
        let chosen: Vec<_> = switch
            .config
            .vswitches
            .iter()
            .filter(|v| wanted.vswitch.as_ref().is_none_or(|name| *name == v.settings.name))
            .filter(|v| wanted.number.is_none_or(|number| number == v.number))
            .map(|v| {
                let wire = switch.uplinks.report(&v.settings.name);
                show::vswitch(v, &switch.config, &switch.interfaces, &switch.taps, &switch.run_dir, wire)
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
            method::RELOAD => self.reload(peer),
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

/// One line about a configuration.
pub(super) fn summary(config: &Config) -> String {
    format!("{} vswitches, {} guest ports", config.vswitches.len(), config.networks().count())
}

fn reply(value: &impl Serialize) -> Result<Value, VarlinkError> {
    // Our own types always are JSON; if one were not, the caller sees an empty reply rather than a dead daemon.
    Ok(serde_json::to_value(value).unwrap_or_else(|_| json!({})))
}
