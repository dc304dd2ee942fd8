//! Every key of the files, and when a change of it takes effect.
//!
//! The loader names the nearest of these for a key it does not know, `--check` prints the table, and the daemon
//! reconciles by it. A test holds it against the serde types, so the two cannot drift apart.

use std::fmt;

/// When a changed key takes effect after a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesEffect {
    /// At once, without disturbing the guest.
    Live,
    /// When the guest's front-end connects the next time (the guest's next start); the daemon does not break a
    /// connection for it.
    Reconnect,
    /// When the daemon starts the next time.
    Restart,
    /// Never for the object that has it: the object is removed and another one added.
    Identity,
}

impl fmt::Display for TakesEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TakesEffect::Live => "live",
            TakesEffect::Reconnect => "on reconnect",
            TakesEffect::Restart => "on daemon restart",
            TakesEffect::Identity => "never (makes another object)",
        })
    }
}

/// One key of a section.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// How it is written.
    pub name: &'static str,
    /// When a change takes effect.
    pub effect: TakesEffect,
    /// What else may be said about that; empty if nothing.
    pub note: &'static str,
}

/// A table or an array of tables in a file.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its dotted path, `""` for the top of the file.
    pub path: &'static str,
    /// Its keys, subsections included.
    pub keys: &'static [Key],
}

const fn key(name: &'static str, effect: TakesEffect) -> Key {
    Key { name, effect, note: "" }
}

const fn noted(name: &'static str, effect: TakesEffect, note: &'static str) -> Key {
    Key { name, effect, note }
}

use TakesEffect::{Identity, Live, Reconnect, Restart};

/// `vswitches.toml`.
pub const VSWITCHES_SECTIONS: &[Section] = &[
    Section {
        path: "",
        keys: &[
            key("version", Live),
            key("workers", Restart),
            key("vswitch", Live),
            key("aggregate", Live),
            key("uplink", Live),
        ],
    },
    Section {
        path: "workers",
        keys: &[key("cores", Restart), key("poll", Restart), key("spin_us", Restart)],
    },
    Section {
        path: "vswitch",
        keys: &[
            key("name", Identity),
            noted("max_ports", Live, "never below a port that a guest reserves"),
            key("uplink", Live),
            noted("host_port", Live, "the host's interface goes, or comes without addresses"),
            noted("enabled", Live, "a halted vswitch forwards nothing; guests stay connected"),
        ],
    },
    Section {
        path: "uplink",
        keys: &[
            key("name", Identity),
            key("native_vlan", Live),
            key("allow_slow", Live),
            noted("access", Live, "the device is opened anew"),
            key("host_macs", Live),
            key("gro", Live),
            key("link_status", Live),
        ],
    },
    Section {
        path: "aggregate",
        keys: &[
            key("name", Identity),
            noted("mode", Live, "the protocol starts over"),
            key("balance", Live),
            noted("members", Live, "those that stay keep their state and their flows"),
            key("member", Live),
            key("mac", Live),
            key("min_links", Live),
            key("system_priority", Live),
            key("key", Live),
            key("timeout", Live),
            key("passive", Live),
            key("failback_delay_s", Live),
            key("policy", Live),
            key("poll_interval_ms", Live),
            key("dead_count", Live),
            key("rapid_arp", Live),
            key("rapid_arp_interval_s", Live),
            key("rapid_arp_count", Live),
        ],
    },
    Section {
        path: "aggregate.member",
        keys: &[key("name", Identity), key("priority", Live), key("key", Live), key("cost", Live)],
    },
];

/// `storage.toml`.
pub const STORAGE_SECTIONS: &[Section] = &[
    Section { path: "", keys: &[key("version", Live), key("workers", Restart), key("defaults", Live)] },
    Section {
        path: "workers",
        keys: &[key("cores", Restart), key("poll", Restart), key("spin_us", Restart)],
    },
    Section {
        path: "defaults",
        keys: &[
            key("cache", Reconnect),
            key("timeout_s", Live),
            key("block_size", Reconnect),
            key("iops", Live),
            key("mib_per_s", Live),
        ],
    },
];

/// `guests/NAME.toml`.
pub const GUEST_SECTIONS: &[Section] = &[
    Section {
        path: "",
        keys: &[
            key("version", Live),
            key("name", Identity),
            key("pin_memory", Reconnect),
            key("network", Live),
            key("storage", Live),
        ],
    },
    Section {
        path: "network",
        keys: &[
            noted("bus", Identity, "names the socket"),
            noted("device", Identity, "names the socket"),
            key("adaptor", Identity),
            key("vswitch", Live),
            key("port", Live),
            noted("mac", Reconnect, "the guest read it at its start"),
            key("vlan", Live),
            key("trunk", Live),
            key("ips", Live),
            key("trusted", Live),
            key("strict", Live),
            key("isolated", Live),
            key("mac_limit", Live),
            key("queue_pairs", Reconnect),
            noted("mtu", Reconnect, "the guest negotiated it"),
            key("rate_mbps", Live),
            key("storm_pps", Live),
            key("flood", Live),
            noted("offloads", Reconnect, "the guest negotiated them"),
            noted("mergeable", Reconnect, "the guest negotiated it"),
            noted("packed", Reconnect, "the guest negotiated it"),
            noted("in_order", Reconnect, "the guest negotiated it"),
            noted("tap", Live, "the VMM must be attached to the new one"),
            key("socket", Reconnect),
            key("socket_role", Reconnect),
            noted("socket_owner", Reconnect, "the socket is made anew"),
            noted("socket_group", Reconnect, "the socket is made anew"),
            noted("socket_perm", Reconnect, "the socket is made anew"),
        ],
    },
    Section {
        path: "storage",
        keys: &[
            noted("bus", Identity, "names the socket"),
            noted("device", Identity, "names the socket"),
            key("adaptor", Identity),
            key("queues", Reconnect),
            key("lun", Live),
            key("socket", Reconnect),
            key("socket_role", Reconnect),
            noted("socket_owner", Reconnect, "the socket is made anew"),
            noted("socket_group", Reconnect, "the socket is made anew"),
            noted("socket_perm", Reconnect, "the socket is made anew"),
        ],
    },
    Section {
        path: "storage.lun",
        keys: &[
            key("target", Identity),
            key("device", Identity),
            key("backing", Live),
            key("readonly", Live),
            key("share", Live),
            key("block_size", Reconnect),
            key("serial", Reconnect),
            key("iops", Live),
            key("mib_per_s", Live),
            key("cache", Live),
            key("timeout_s", Live),
        ],
    },
];

/// The section of `sections` with that dotted path.
#[must_use]
pub fn section(sections: &'static [Section], path: &str) -> Option<&'static Section> {
    sections.iter().find(|section| section.path == path)
}
