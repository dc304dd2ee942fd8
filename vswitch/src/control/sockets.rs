//! Where the vhost-user socket of an interface is, and who may connect to it.
//!
//! Owns the naming rule of INTERFACE; the sockets themselves are `avio_host::session`'s.

use std::path::{Path, PathBuf};

use avio_host::session::{EndpointSpec, Role, UnknownAccount};
use avio_proto::config::NetworkConfig;

use super::device::device_spec;

/// `RUN/guests/NAME/net-BUS-DEVICE.sock`, unless the definition names another.
pub(super) fn socket_path(run_dir: &Path, guest: &str, network: &NetworkConfig) -> PathBuf {
    match &network.socket {
        Some(path) => PathBuf::from(path),
        None => run_dir.join("guests").join(guest).join(network.socket_file_name()),
    }
}

/// The socket of `guest`'s interface and the device behind it.
///
/// # Errors
/// [`UnknownAccount`]: `socket_owner` or `socket_group` names nobody.
pub(super) fn endpoint_spec(
    run_dir: &Path,
    guest: &str,
    network: &NetworkConfig,
) -> Result<EndpointSpec, UnknownAccount> {
    let (owner, group) = (network.socket_owner.as_deref(), network.socket_group.as_deref());
    Ok(EndpointSpec {
        name: format!("{guest} net-{}-{}", network.bus, network.device),
        path: socket_path(run_dir, guest, network),
        role: Role::configured(network.socket_role, owner, group, network.socket_perm)?,
        device: device_spec(guest, network),
    })
}

/// Whether a change of definition needs another socket.
pub(super) fn same_socket(a: &NetworkConfig, b: &NetworkConfig) -> bool {
    a.socket == b.socket
        && a.socket_role == b.socket_role
        && a.socket_owner == b.socket_owner
        && a.socket_group == b.socket_group
        && a.socket_perm == b.socket_perm
}
