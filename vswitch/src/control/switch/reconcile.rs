//! Bringing the running switch in line with a configuration (DESIGN section 8): idempotent, nothing half done.
//!
//! Sockets come first, because they are what can fail: if one cannot be opened, those opened before are closed again and
//! everything stays as it was. Then definitions change live, and what is gone leaves with its session.

use std::collections::BTreeMap;
use std::time::Instant;

use avio_host::session::EndpointId;
use avio_proto::config::{Config, NetworkAdaptor, NetworkConfig};

use super::{Owner, Switch};
use crate::control::device::device_spec;
use crate::control::interface::{Interface, InterfaceKey};
use crate::control::sockets::{endpoint_spec, same_socket, socket_path};

impl Switch {
    /// Takes over `config`. Returns what changed, a line each.
    ///
    /// # Errors
    /// What was refused, a line each; nothing has changed then.
    pub(in crate::control) fn reconcile(&mut self, config: Config) -> Result<Vec<String>, Vec<String>> {
        let wanted = wanted(&config);
        let mut opened: Vec<(InterfaceKey, EndpointId)> = Vec::new();
        let mut errors = self.uplinks.check(&config);
        for (key, network) in &wanted {
            let in_use = self.interfaces.get(key).is_some_and(|interface| {
                interface.endpoint.is_some()
                    && (interface.is_connected() || same_socket(&interface.socket, network))
            });
            if in_use {
                continue;
            }
            // The same path under other rules: the old socket must go before the new one can be made.
            if let Some(endpoint) =
                self.interfaces.get_mut(key).and_then(|interface| interface.endpoint.take())
            {
                self.close(endpoint);
            }
            match self.open(key, network) {
                Ok(endpoint) => opened.push((key.clone(), endpoint)),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            for (_, endpoint) in opened {
                self.close(endpoint);
            }
            self.reopen_sockets();
            return Err(errors);
        }
        let mut changes = self.vswitch_changes(&config);
        let gone: Vec<InterfaceKey> =
            self.interfaces.keys().filter(|key| !wanted.contains_key(key)).cloned().collect();
        for key in gone {
            changes.push(format!("{key}: removed"));
            self.remove(&key);
        }
        self.config = config;
        changes.extend(self.uplinks.reconcile(&self.config, &mut self.fabric));
        let mut opened: BTreeMap<InterfaceKey, EndpointId> = opened.into_iter().collect();
        for (key, network) in wanted {
            let endpoint = opened.remove(&key);
            match self.interfaces.get_mut(&key) {
                None => {
                    if let Some(line) = self.define(key, network, endpoint) {
                        changes.push(line);
                    }
                }
                Some(interface) => {
                    if interface.network != network {
                        changes.push(format!("{key}: changed"));
                        interface.redefine(network);
                    }
                    if let Some(endpoint) = endpoint {
                        interface.attach(endpoint);
                        self.owners.insert(endpoint, Owner::Interface(key));
                    } else if let Some(endpoint) = interface.endpoint {
                        self.sessions.set_device(endpoint, device_spec(&key.guest, &interface.network));
                    }
                }
            }
        }
        changes.extend(self.taps.reconcile(&self.config, &mut self.fabric, Instant::now()));
        self.fabric.touch();
        self.link_status.touch();
        Ok(changes)
    }

    /// Opens the sockets of interfaces that have none: after a refused reconciliation, or when a session has ended whose
    /// definition now asks for another socket.
    pub(super) fn reopen_sockets(&mut self) {
        let stale: Vec<InterfaceKey> = self
            .interfaces
            .values()
            .filter(|interface| {
                !interface.is_connected()
                    && (interface.endpoint.is_none() || !same_socket(&interface.socket, &interface.network))
            })
            .map(|interface| interface.key.clone())
            .collect();
        for key in stale {
            let Some(interface) = self.interfaces.get_mut(&key) else { continue };
            let network = interface.network.clone();
            if let Some(endpoint) = interface.endpoint.take() {
                self.close(endpoint);
            }
            match self.open(&key, &network) {
                Ok(endpoint) => {
                    if let Some(interface) = self.interfaces.get_mut(&key) {
                        interface.attach(endpoint);
                    }
                    self.owners.insert(endpoint, Owner::Interface(key));
                }
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    fn open(&mut self, key: &InterfaceKey, network: &NetworkConfig) -> Result<EndpointId, String> {
        let path = socket_path(&self.run_dir, &key.guest, network);
        // A path of the operator's own choice must be there; the daemon's own directories are made.
        if network.socket.is_none()
            && let Some(directory) = path.parent()
            && let Err(error) = std::fs::create_dir_all(directory)
        {
            return Err(format!("{key}: {}: cannot be made: {error}; check --run-dir", directory.display()));
        }
        let spec =
            endpoint_spec(&self.run_dir, &key.guest, network).map_err(|error| format!("{key}: {error}"))?;
        self.sessions.add(spec).map_err(|error| format!("{key}: {error}"))
    }

    /// Closes a socket that no session is on.
    fn close(&mut self, endpoint: EndpointId) {
        self.owners.remove(&endpoint);
        self.sessions.remove(endpoint);
    }

    fn define(
        &mut self,
        key: InterfaceKey,
        network: NetworkConfig,
        endpoint: Option<EndpointId>,
    ) -> Option<String> {
        let index = match self.fabric.take_index() {
            Some(index) => index,
            None => {
                if let Some(endpoint) = endpoint {
                    self.close(endpoint);
                }
                return Some(format!("{key}: left out: the daemon has no more port indices"));
            }
        };
        let line = format!("{key}: added, port {} of {}", network.port, network.vswitch);
        let mut interface = Interface::new(key.clone(), network, index, self.fabric.workers().len());
        if let Some(endpoint) = endpoint {
            interface.attach(endpoint);
            self.owners.insert(endpoint, Owner::Interface(key.clone()));
        }
        self.interfaces.insert(key, interface);
        Some(line)
    }

    fn remove(&mut self, key: &InterfaceKey) {
        let Some(interface) = self.interfaces.remove(key) else { return };
        let Some(endpoint) = interface.endpoint else { return self.fabric.give_index(interface.index) };
        if interface.is_connected() {
            self.owners.insert(endpoint, Owner::Leaving(Box::new(interface)));
            self.sessions.remove(endpoint);
        } else {
            self.close(endpoint);
            self.fabric.give_index(interface.index);
        }
    }

    fn vswitch_changes(&self, config: &Config) -> Vec<String> {
        let mut changes = Vec::new();
        for new in &config.vswitches {
            let name = &new.settings.name;
            match self.config.vswitch(name) {
                None => changes.push(format!("vswitch {name}: added")),
                Some(old) if old.settings.enabled != new.settings.enabled => {
                    let verb = if new.settings.enabled { "booted" } else { "halted" };
                    changes.push(format!("vswitch {name}: {verb}"));
                }
                Some(old) if old.settings != new.settings => changes.push(format!("vswitch {name}: changed")),
                Some(_) => {}
            }
        }
        let gone = self.config.vswitches.iter().filter(|old| config.vswitch(&old.settings.name).is_none());
        changes.extend(gone.map(|old| format!("vswitch {}: removed", old.settings.name)));
        changes
    }
}

/// The interfaces that are vhost-user devices; `lan` interfaces are TAP ports (`taps`).
fn wanted(config: &Config) -> BTreeMap<InterfaceKey, NetworkConfig> {
    config
        .networks()
        .filter(|(_, network)| network.adaptor == NetworkAdaptor::AvioLan)
        .map(|(guest, network)| {
            let key = InterfaceKey { guest: guest.to_owned(), bus: network.bus, device: network.device };
            (key, network.clone())
        })
        .collect()
}
