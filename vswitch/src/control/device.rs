//! What a guest port is as a virtio network device: the features and the configuration space that vhost-user offers.
//!
//! Pure functions of the definition; control asks when a front-end connects, so a changed key takes effect then.

use avio_proto::config::NetworkConfig;
use avio_proto::vhost_user::backend::DeviceSpec;
use avio_proto::vhost_user::features as protocol;
use avio_proto::virtio::features as virtio;

/// Checksum and segmentation offloads, both directions; `offloads = false` leaves them out.
const OFFLOADS: u64 = virtio::NET_CSUM
    | virtio::NET_GUEST_CSUM
    | virtio::NET_GUEST_TSO4
    | virtio::NET_GUEST_TSO6
    | virtio::NET_GUEST_ECN
    | virtio::NET_GUEST_USO4
    | virtio::NET_GUEST_USO6
    | virtio::NET_HOST_TSO4
    | virtio::NET_HOST_TSO6
    | virtio::NET_HOST_ECN
    | virtio::NET_HOST_USO;

/// VIRTIO_NET_S_LINK_UP in the configuration space (virtio 1.3 §5.1.4).
const STATUS_LINK_UP: u16 = 1;
/// `speed` and `duplex` "unknown": there is no wire (virtio 1.3 §5.1.4).
const SPEED_UNKNOWN: u32 = u32::MAX;
const DUPLEX_UNKNOWN: u8 = 0xff;

/// Number of rings of a port: receive and transmit per pair, and the control queue.
pub(super) fn rings_count(queue_pairs: u16) -> u16 {
    2 * queue_pairs + 1
}

/// The index of the control queue among the rings, if the *back-end* serves it: QEMU, cloud-hypervisor and DPDK keep it
/// to themselves and do not ack CTRL_VQ to us; User-Mode Linux has none, so its guest's is ours (virtio 1.3 §5.1.2).
pub(super) fn control_ring(features: u64, queue_pairs: u16) -> Option<u16> {
    if features & virtio::NET_CTRL_VQ == 0 {
        None
    } else if features & virtio::NET_MQ == 0 {
        Some(2)
    } else {
        Some(2 * queue_pairs)
    }
}

/// What is offered to the front-end of `guest`'s interface.
pub(super) fn device_spec(guest: &str, network: &NetworkConfig) -> DeviceSpec {
    let mut features = virtio::VERSION_1
        | virtio::RING_INDIRECT_DESC
        | virtio::RING_EVENT_IDX
        | virtio::NET_MAC
        | virtio::NET_MTU
        | virtio::NET_STATUS
        | virtio::NET_CTRL_VQ
        | virtio::NET_GUEST_ANNOUNCE;
    let optional = [
        (network.offloads, OFFLOADS),
        (network.mergeable, virtio::NET_MRG_RXBUF),
        (network.packed, virtio::RING_PACKED),
        (network.in_order, virtio::IN_ORDER),
        (network.queue_pairs > 1, virtio::NET_MQ),
    ];
    for (wanted, bits) in optional {
        if wanted {
            features |= bits;
        }
    }
    let protocol_features = protocol::MQ
        | protocol::LOG_SHMFD
        | protocol::RARP
        | protocol::REPLY_ACK
        | protocol::NET_MTU
        | protocol::BACKEND_REQ
        | protocol::CONFIG
        | protocol::RESET_DEVICE
        | protocol::CONFIGURE_MEM_SLOTS
        | protocol::STATUS;
    DeviceSpec {
        features,
        features_tolerated: 0,
        protocol_features,
        queue_max: rings_count(network.queue_pairs),
        config: config_space(guest, network),
        mtu_max: network.mtu,
    }
}

/// `struct virtio_net_config` up to `duplex` (virtio 1.3 §5.1.4), little-endian.
fn config_space(guest: &str, network: &NetworkConfig) -> Vec<u8> {
    let mut config = network.mac_of(guest).0.to_vec();
    config.extend(STATUS_LINK_UP.to_le_bytes());
    config.extend(network.queue_pairs.to_le_bytes());
    config.extend(network.mtu.to_le_bytes());
    config.extend(SPEED_UNKNOWN.to_le_bytes());
    config.push(DUPLEX_UNKNOWN);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(extra: &str) -> NetworkConfig {
        let text = format!("device = 5\nvswitch = \"v\"\nport = 1\nmac = \"1e:29:8c:88:a5:eb\"\n{extra}");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn configuration_space_is_that_of_the_standard() {
        let spec = device_spec("g", &network("queue_pairs = 4\nmtu = 9000"));
        let want = [0x1e, 0x29, 0x8c, 0x88, 0xa5, 0xeb, 1, 0, 4, 0, 0x28, 0x23, 255, 255, 255, 255, 255];
        assert_eq!(spec.config, want);
        assert_eq!(spec.queue_max, 9);
        assert_ne!(spec.features & virtio::NET_MQ, 0);
    }

    #[test]
    fn switches_of_the_definition_take_features_away() {
        let all = device_spec("g", &network("")).features;
        assert_eq!(all & virtio::NET_MQ, 0);
        let off = "offloads = false\nmergeable = false\npacked = false\nin_order = false";
        let few = device_spec("g", &network(off)).features;
        assert_eq!(all & !few, OFFLOADS | virtio::NET_MRG_RXBUF | virtio::RING_PACKED | virtio::IN_ORDER);
    }

    #[test]
    fn the_control_queue_is_where_the_driver_looks_for_it() {
        assert_eq!(control_ring(virtio::NET_MQ, 4), None);
        assert_eq!(control_ring(virtio::NET_CTRL_VQ, 4), Some(2));
        assert_eq!(control_ring(virtio::NET_CTRL_VQ | virtio::NET_MQ, 4), Some(8));
    }
}
