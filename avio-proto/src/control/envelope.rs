//! Varlink's envelopes and its `org.varlink.service` interface (varlink.org, "Method Call", "Service").
//!
//! A message is one JSON object ended by a NUL byte. Both ends use these types.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest message of either direction, in bytes without the NUL: a full switch of 4,096 ports fits eight times over,
/// and a stray client cannot make a daemon hold more than this.
pub const MESSAGE_LEN_MAX: usize = 32 << 20;
/// The interface that every Varlink service has.
pub const SERVICE_INTERFACE: &str = "org.varlink.service";
/// Its method that names the service and its interfaces.
pub const GET_INFO: &str = "org.varlink.service.GetInfo";
/// Its method that returns the description of an interface.
pub const GET_INTERFACE_DESCRIPTION: &str = "org.varlink.service.GetInterfaceDescription";
/// Its own description.
pub const SERVICE_INTERFACE_DESCRIPTION: &str = include_str!("../../varlink/org.varlink.service.varlink");

/// A method call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Fully qualified: `interface.Method`.
    pub method: String,
    /// The parameters, an object; left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// No reply is wanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// More than one reply is welcome.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The connection is to change its protocol; no method here can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upgrade: bool,
}

/// A reply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Fully qualified name of the error; left out: success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The reply's or the error's parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Another reply to the same call follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// What `GetInfo` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Who made it.
    pub vendor: String,
    /// What it is called.
    pub product: String,
    /// Its version.
    pub version: String,
    /// Where it is described.
    pub url: String,
    /// The interfaces that it has.
    pub interfaces: Vec<String>,
}
