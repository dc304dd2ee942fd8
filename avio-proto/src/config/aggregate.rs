//! `[[aggregate]]` of `vswitches.toml`: several network devices as one uplink (SEMANTICS 4).

use serde::{Deserialize, Serialize};

use super::MacAddr;

/// Fewest and most members of an aggregate (the original's LACP limit; a member's place fits a byte of the distribution).
pub const MEMBERS_MIN: usize = 2;
/// See [`MEMBERS_MIN`].
pub const MEMBERS_MAX: usize = 32;
/// Shortest and longest `poll_interval_ms` (SEMANTICS 4.4).
pub const POLL_INTERVAL_MS: (u32, u32) = (500, 2_147_000);
/// Longest `failback_delay_s`: an hour.
pub const FAILBACK_DELAY_S_MAX: u32 = 3600;
/// Shortest and longest `rapid_arp_interval_s` (SEMANTICS 4.4).
pub const RAPID_ARP_INTERVAL_S: (u32, u32) = (1, 4);
/// Least and most `rapid_arp_count` (SEMANTICS 4.4).
pub const RAPID_ARP_COUNT: (u32, u32) = (5, 60);
/// Longest rapid series, interval times count, in seconds (SEMANTICS 4.4).
pub const RAPID_ARP_S_MAX: u32 = 60;
/// Most `dead_count`: with the longest interval that is a week.
pub const DEAD_COUNT_MAX: u32 = 255;
/// Least and most `cost` of a member (SEMANTICS 4.4).
pub const COST: (u32, u32) = (1, 100);

/// `[[aggregate]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    /// What `uplink` calls it.
    pub name: String,
    /// How its members work together.
    pub mode: AggregateMode,
    /// How frames are spread over the members.
    #[serde(default)]
    pub balance: Balance,
    /// Network devices, [`MEMBERS_MIN`] to [`MEMBERS_MAX`].
    pub members: Vec<String>,
    /// What is particular about some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub member: Vec<MemberConfig>,
    /// Its own address, local and unicast; left out: that of its first member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Members that must carry traffic, or the aggregate is down.
    #[serde(default = "default_min_links")]
    pub min_links: u32,
    /// LACP: priority of this system, lower is better.
    #[serde(default)]
    pub system_priority: u16,
    /// LACP: administrative key of the ports; left out: the number at the end of the name (`lan900`: 900), else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u16>,
    /// LACP: how often the partner is to send.
    #[serde(default)]
    pub timeout: LacpTimeout,
    /// LACP: only speak to who speaks first.
    #[serde(default)]
    pub passive: bool,
    /// Hot standby and failover group: how long a better member must be up before traffic moves back, in seconds.
    #[serde(default)]
    pub failback_delay_s: u32,
    /// Failover group: what makes a member better.
    #[serde(default)]
    pub policy: MonitorPolicy,
    /// Failover group: time between polling frames, in milliseconds.
    #[serde(default = "default_poll_interval_ms")]
    pub poll_interval_ms: u32,
    /// Failover group: polling frames missed in a row until a member is not ready.
    #[serde(default = "default_dead_count")]
    pub dead_count: u32,
    /// Announce the guests several times after a failover.
    #[serde(default = "super::on")]
    pub rapid_arp: bool,
    /// Time between those announcements, in seconds.
    #[serde(default = "default_rapid_arp_interval_s")]
    pub rapid_arp_interval_s: u32,
    /// How many.
    #[serde(default = "default_rapid_arp_count")]
    pub rapid_arp_count: u32,
}

fn default_min_links() -> u32 {
    1
}

fn default_poll_interval_ms() -> u32 {
    10_000
}

fn default_dead_count() -> u32 {
    3
}

fn default_rapid_arp_interval_s() -> u32 {
    1
}

fn default_rapid_arp_count() -> u32 {
    10
}

impl AggregateConfig {
    /// One with all defaults.
    #[must_use]
    pub fn new(name: &str, mode: AggregateMode, members: Vec<String>) -> Self {
        AggregateConfig {
            name: name.to_owned(),
            mode,
            balance: Balance::default(),
            members,
            member: Vec::new(),
            mac: None,
            min_links: default_min_links(),
            system_priority: 0,
            key: None,
            timeout: LacpTimeout::default(),
            passive: false,
            failback_delay_s: 0,
            policy: MonitorPolicy::default(),
            poll_interval_ms: default_poll_interval_ms(),
            dead_count: default_dead_count(),
            rapid_arp: true,
            rapid_arp_interval_s: default_rapid_arp_interval_s(),
            rapid_arp_count: default_rapid_arp_count(),
        }
    }

    /// What is particular about `member`; defaults if nothing is.
    #[must_use]
    pub fn member(&self, member: &str) -> MemberConfig {
        let found = self.member.iter().find(|particular| particular.name == member);
        found.cloned().unwrap_or_else(|| MemberConfig {
            name: member.to_owned(),
            priority: 0,
            key: None,
            cost: None,
        })
    }

    /// The key of its LACP ports that have none of their own.
    #[must_use]
    pub fn lacp_key(&self) -> u16 {
        let digits = self.name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let number = self.name[self.name.len() - digits..].parse().ok().filter(|number| *number != 0);
        self.key.or(number).unwrap_or(1)
    }

    /// Whether one member at a time carries everything.
    #[must_use]
    pub fn is_one_at_a_time(&self) -> bool {
        self.mode == AggregateMode::LanMonitor || self.balance == Balance::LbHotStandby
    }
}

/// `[[aggregate.member]]`: what is particular about one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Which one.
    pub name: String,
    /// Hot standby and failover group: the highest carries the traffic. LACP: the port priority, lowest first.
    #[serde(default)]
    pub priority: u16,
    /// LACP: its own key, if not that of the aggregate: it is then aggregated only with members of the same key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u16>,
    /// Failover group with `COST_BASED`: divided by the speed, the lowest carries the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u32>,
}

/// How the members of an aggregate work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AggregateMode {
    /// Without a protocol.
    Manual,
    /// IEEE 802.1AX LACP.
    LacpAuto,
    /// A failover group.
    LanMonitor,
    /// Cisco's PAgP: a word that is known, and always refused.
    FecAuto,
}

impl AggregateMode {
    /// The word in files and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            AggregateMode::Manual => "MANUAL",
            AggregateMode::LacpAuto => "LACP_AUTO",
            AggregateMode::LanMonitor => "LAN_MONITOR",
            AggregateMode::FecAuto => "FEC_AUTO",
        }
    }
}

/// How frames are spread over the members of an aggregate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Balance {
    /// By the last octet of the destination MAC: what guests' traffic always got.
    #[default]
    LbMac,
    /// By IP addresses.
    LbIp,
    /// By TCP and UDP ports.
    LbPort,
    /// By the whole flow.
    LbFlow,
    /// One member at a time.
    LbHotStandby,
}

impl Balance {
    /// The word in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Balance::LbMac => "LB_MAC",
            Balance::LbIp => "LB_IP",
            Balance::LbPort => "LB_PORT",
            Balance::LbFlow => "LB_FLOW",
            Balance::LbHotStandby => "LB_HOT_STANDBY",
        }
    }
}

/// How often a LACP partner is to send (IEEE 802.1AX-2014 §6.4.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LacpTimeout {
    /// Every 30 s, and it is gone after 90 s.
    #[default]
    Slow,
    /// Every second, and it is gone after 3 s.
    Fast,
}

/// What makes a member of a failover group better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MonitorPolicy {
    /// The highest priority.
    #[default]
    PriorityBased,
    /// The lowest cost divided by speed, then the highest priority.
    CostBased,
}
