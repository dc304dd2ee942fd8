//! What is compared: switches, and the modes of the one that has several.

use serde::{Deserialize, Serialize};

/// A program that switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `avio-vswitchd`.
    Avio,
    /// Another build of it (`--against`).
    Other,
    /// OVS-DPDK.
    Ovs,
    /// DPDK testpmd over `net_vhost`.
    Testpmd,
}

impl Family {
    /// As `--targets` names it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Avio => "avio",
            Family::Other => "other",
            Family::Ovs => "ovs",
            Family::Testpmd => "testpmd",
        }
    }
}

/// A family in one of its modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// As shipped: forwarding by address, anti-spoofing on, all counters; `poll = "always"`.
    Avio,
    /// The same, another build.
    AvioOther,
    /// Learning addresses.
    OvsNormal,
    /// One flow per port straight to its partner: no addresses at all.
    OvsFlow,
    /// Learning, and each port may send from its own address only: what we do.
    OvsMac,
    /// What comes in on a port leaves by its partner, unread.
    Testpmd,
}

impl Target {
    /// Which program.
    pub fn family(self) -> Family {
        match self {
            Target::Avio => Family::Avio,
            Target::AvioOther => Family::Other,
            Target::OvsNormal | Target::OvsFlow | Target::OvsMac => Family::Ovs,
            Target::Testpmd => Family::Testpmd,
        }
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Target::Avio => "avio-vswitchd",
            Target::AvioOther => "the other build",
            Target::OvsNormal => "OVS-DPDK NORMAL",
            Target::OvsFlow => "OVS-DPDK explicit flow",
            Target::OvsMac => "OVS-DPDK NORMAL, source MACs",
            Target::Testpmd => "testpmd vhost io",
        }
    }
}
