//! The options of `avio net`: the letters of Integrity VM's hpvmnet, and long names for them.

use std::str::FromStr;

use avio_proto::config::VlanId;
use clap::{ArgAction, ArgGroup, Args};

/// Options of `avio net`.
#[derive(Debug, Clone, Default, Args)]
#[command(
    disable_help_flag = true,
    disable_version_flag = true,
    version,
    group(ArgGroup::new("action").args(["create", "delete", "boot", "halt", "restart", "reload", "change", "set_port"])),
    group(ArgGroup::new("which").args(["name", "number"])),
    after_help = "Without an action, shows all virtual switches, or one and its ports.\n\
        Files are the truth: actions edit vswitches.toml and guests/*.toml, then the daemon reloads them.\n\
        -M prints `vswitch:NAME:NUMBER:STATE:MODE:UPLINK:MAC:IP:MAX_PORTS:CONFIGURED_PORTS` and, with -S, -s or -A,\n\
        `port:VSWITCH:NUMBER:STATE:ADAPTOR:VLANID:RESERVED,..:ACTIVE:MAC` and `counters:VSWITCH:PORT:` with the eleven\n\
        counters in the order of -A."
)]
pub struct NetArgs {
    /// The virtual switch of that name.
    #[arg(short = 'S', value_name = "NAME")]
    pub name: Option<String>,
    /// The virtual switch of that number.
    #[arg(short = 's', value_name = "NUMBER")]
    pub number: Option<u32>,
    /// Only port N, or `all`.
    #[arg(short = 'p', value_name = "N|all")]
    pub port: Option<PortChoice>,
    /// Show the AVIO statistics of the ports.
    #[arg(short = 'A', long = "statistics")]
    pub statistics: bool,
    /// Clear the statistics (with -A: after showing them).
    #[arg(short = 'Z', long = "clear", conflicts_with = "action")]
    pub clear: bool,
    /// Show more: addresses, features, sockets, discards by reason.
    #[arg(short = 'V', long = "verbose")]
    pub verbose: bool,
    /// Print for machines: fields separated by colons.
    #[arg(short = 'M', long = "machine", conflicts_with = "json")]
    pub machine: bool,
    /// Show again every SECONDS, until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "action",
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub watch: Option<u32>,
    /// Create the virtual switch of -S.
    #[arg(short = 'c', long = "create", requires = "name")]
    pub create: bool,
    /// Delete the virtual switch.
    #[arg(short = 'd', long = "delete", requires = "which")]
    pub delete: bool,
    /// Boot the virtual switch.
    #[arg(short = 'b', long = "boot", requires = "which")]
    pub boot: bool,
    /// Halt the virtual switch.
    #[arg(short = 'h', long = "halt", requires = "which")]
    pub halt: bool,
    /// Restart the virtual switch: it forgets what it has learned; guests stay connected.
    #[arg(short = 'r', long = "restart", requires = "which")]
    pub restart: bool,
    /// Have the daemon read the files again, after you edited them; prints what changed.
    #[arg(long = "reload")]
    pub reload: bool,
    /// Change the virtual switch: its name (-N), its uplink (-n).
    #[arg(short = 'C', long = "change", requires = "which")]
    pub change: bool,
    /// New name, with -C.
    #[arg(short = 'N', value_name = "NEW_NAME", requires = "change")]
    pub new_name: Option<String>,
    /// Uplink, with -c or -C: a network device or an aggregate, `none` for a local switch.
    #[arg(short = 'n', value_name = "UPLINK")]
    pub uplink: Option<String>,
    /// Set a port's VLAN: an id or `none`; several ids make a trunk (an extension).
    #[arg(short = 'u', value_name = "portid:P:vlanid:V", requires = "which")]
    pub set_port: Option<PortVlan>,
    /// Do not ask for confirmation.
    #[arg(short = 'Q', visible_short_alias = 'F', long = "quiet")]
    pub quiet: bool,
    /// Print the version.
    #[arg(short = 'v', long = "version", action = ArgAction::Version)]
    pub version: Option<bool>,
    /// Print help.
    #[arg(long = "help", action = ArgAction::Help)]
    pub help: Option<bool>,
}

/// What `-p` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChoice {
    /// Every configured port.
    All,
    /// One.
    One(u32),
}

impl FromStr for PortChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(PortChoice::All),
            _ => text
                .parse()
                .map(PortChoice::One)
                .map_err(|_| format!("`{text}` is not a port; give its number or `all`")),
        }
    }
}

/// What `-u` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortVlan {
    /// The port.
    pub port: u32,
    /// Its VLANs: none, one (untagged), or several (a trunk).
    pub vlans: Vec<VlanId>,
}

impl FromStr for PortVlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape =
            || format!("`{text}` is not a port setting; write portid:P:vlanid:V, V a VLAN id or `none`");
        let (port, vlans) =
            text.strip_prefix("portid:").and_then(|rest| rest.split_once(":vlanid:")).ok_or_else(shape)?;
        let port = port.parse().map_err(|_| format!("`{port}` is not a port number (portid:P:vlanid:V)"))?;
        let vlans = match vlans {
            "none" => Vec::new(),
            ids => ids
                .split(',')
                .map(|id| id.parse().map_err(|error| format!("vlanid: {error}, or `none`")))
                .collect::<Result<_, String>>()?,
        };
        Ok(PortVlan { port, vlans })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_settings() {
        let parse = |text: &str| text.parse::<PortVlan>();
        assert_eq!(
            parse("portid:3:vlanid:120"),
            Ok(PortVlan { port: 3, vlans: vec![VlanId::new(120).unwrap()] })
        );
        assert_eq!(parse("portid:3:vlanid:none"), Ok(PortVlan { port: 3, vlans: vec![] }));
        assert_eq!(parse("portid:3:vlanid:10,20").unwrap().vlans.len(), 2);
        assert_eq!(
            parse("portid:3:vlanid:4095").unwrap_err(),
            "vlanid: `4095` is not a VLAN id; give a number from 1 to 4094, or `none`"
        );
        assert_eq!(parse("portid:x:vlanid:1").unwrap_err(), "`x` is not a port number (portid:P:vlanid:V)");
        assert_eq!(
            parse("3:120").unwrap_err(),
            "`3:120` is not a port setting; write portid:P:vlanid:V, V a VLAN id or `none`"
        );
    }
}
