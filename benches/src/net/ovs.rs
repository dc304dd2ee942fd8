//! OVS-DPDK as a target, with a database, sockets and logs of its own: no system service is touched.
//!
//! Guests listen, OVS connects (`dpdkvhostuserclient`). Modes are sets of flows on one bridge, so that no mode pays for the
//! idle ports of another. The guests' addresses are entered by hand, as ours are from the definitions: a receiver that never
//! sends is never learned, and NORMAL then floods each frame, also to the bridge's own port, which costs a system call.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use avio_tests::config::mac_of;
use avio_tests::console::{Console, command};
use avio_tests::failure::ensure;
use avio_tests::{Failure, Result, scratch};

use super::SWITCH_CORE;
use super::target::Target;

/// The Debian packages that hold the programs.
const PACKAGES: &str = "openvswitch-switch openvswitch-switch-dpdk";
const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long DPDK may take to start, and a port to appear.
const START_MAX: Duration = Duration::from_secs(30);

/// A running OVS with one bridge.
pub struct Ovs {
    /// The process that switches.
    pub vswitchd: Console,
    _database: Console,
    folder: PathBuf,
    bridge: String,
    port_count: u16,
    mode: Option<Target>,
}

impl Ovs {
    /// Starts one with `port_count` ports for frames of this MTU, with or without TSO between guests. A change of the MTU would
    /// need new buffers beside the old ones, for which there is no memory.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(port_count: u16, tso: bool, mtu: u16) -> Result<Self> {
        for path in [VSWITCHD, SCHEMA] {
            ensure(Path::new(path).exists(), || {
                format!(
                    "{path} is missing: run 'scripts/install-bench-deps' or 'apt-get install --no-install-recommends {PACKAGES}'"
                )
            })?;
        }
        let folder = scratch::folder().join("ovs");
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder)?;
        let conf = folder.join("conf.db");
        let mut create = Command::new("ovsdb-tool");
        quiet(create.arg("create").arg(&conf).arg(SCHEMA))?;
        let mut database = command("ovsdb-server");
        database.arg(&conf).arg(format!("--remote=punix:{}/db.sock", folder.display()));
        let database = Console::spawn("ovsdb", environment(&mut database, &folder))?;
        wait_for(&folder.join("db.sock"))?;
        let bridge = format!("avb{}", std::process::id());
        let mut vswitchd = command(VSWITCHD);
        vswitchd.arg(format!("unix:{}/db.sock", folder.display()));
        vswitchd.arg(format!("--unixctl={}", folder.join("ovs.ctl").display()));
        let setup = [
            "--no-wait".into(),
            "set".into(),
            "Open_vSwitch".into(),
            ".".into(),
            "other_config:dpdk-init=true".into(),
            format!("other_config:pmd-cpu-mask={:#x}", 1 << SWITCH_CORE),
            "other_config:dpdk-lcore-mask=0x1".into(),
            "other_config:dpdk-socket-mem=512".into(),
            "other_config:n-handler-threads=1".into(),
            "other_config:n-revalidator-threads=1".into(),
            format!("other_config:dpdk-extra=--no-pci --in-memory --file-prefix={bridge}"),
            format!("other_config:userspace-tso-enable={tso}"),
        ];
        vsctl(&folder, &setup)?;
        let vswitchd = Console::spawn("ovs", environment(&mut vswitchd, &folder))?;
        let mut ovs = Self { vswitchd, _database: database, folder, bridge, port_count, mode: None };
        ovs.vsctl(&["--timeout=30", "wait-until", "Open_vSwitch", ".", "dpdk_initialized=true"])?;
        ovs.add_ports(mtu)?;
        ovs.add_addresses()?;
        Ok(ovs)
    }

    fn add_ports(&mut self, mtu: u16) -> Result {
        let bridge = self.bridge.clone();
        let mut line = vec!["--timeout=60".into(), "add-br".into(), bridge.clone(), "--".into()];
        line.extend(["set".into(), "bridge".into(), bridge.clone(), "datapath_type=netdev".into()]);
        line.extend(["fail_mode=secure".into()]);
        for port in 0..self.port_count {
            let name = format!("p{port}");
            line.extend(["--".into(), "add-port".into(), bridge.clone(), name.clone(), "--".into()]);
            line.extend(["set".into(), "Interface".into(), name, "type=dpdkvhostuserclient".into()]);
            line.push(format!("options:vhost-server-path={}", self.socket(port).display()));
            line.push(format!("ofport_request={}", port + 1));
            // A few bytes more than the guests' own: OVS counts tags as well.
            line.push(format!("mtu_request={}", if mtu > 1500 { mtu + 100 } else { mtu }));
        }
        vsctl(&self.folder, &line)?;
        wait_for(&self.folder.join(format!("{bridge}.mgmt")))
    }

    /// Enters each guest's address; entries made so do not age.
    fn add_addresses(&self) -> Result {
        for port in 0..self.port_count {
            let mut appctl = Command::new("ovs-appctl");
            appctl.arg("-t").arg(self.folder.join("ovs.ctl")).arg("fdb/add").arg(&self.bridge);
            quiet(environment(
                appctl.args([format!("p{port}"), "0".into(), mac_of(port + 1)]),
                &self.folder,
            ))?;
        }
        Ok(())
    }

    /// Gives the bridge a network device: through AF_XDP, native and copying as veth has it, or by the netdev for any device.
    ///
    /// # Errors
    /// When OVS refuses it.
    pub fn add_wire(&self, device: &str, afxdp: bool) -> Result {
        let mut line = vec!["--timeout=30", "add-port", &self.bridge, device];
        if afxdp {
            line.extend(["--", "set", "Interface", device, "type=afxdp"]);
            line.extend(["options:xdp-mode=native", "options:n_rxq=1"]);
        }
        self.vsctl(&line)
    }

    /// Enters `mac` as being behind `device`.
    ///
    /// # Errors
    /// When OVS refuses it.
    pub fn add_address(&self, device: &str, mac: &str) -> Result {
        self.appctl(&["fdb/add", &self.bridge, device, "0", mac]).map(drop)
    }

    /// Asks the running switch; gives what it says.
    ///
    /// # Errors
    /// When it refuses.
    pub fn appctl(&self, arguments: &[&str]) -> Result<String> {
        let mut appctl = Command::new("ovs-appctl");
        appctl.arg("-t").arg(self.folder.join("ovs.ctl")).args(arguments);
        let output = environment(&mut appctl, &self.folder).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure(output.status.success(), || {
            format!("ovs-appctl {arguments:?}: {}{text}", String::from_utf8_lossy(&output.stderr))
        })?;
        Ok(text)
    }

    /// Where the guest of a port listens.
    pub fn socket(&self, port: u16) -> PathBuf {
        self.folder.join(format!("g{port}.sock"))
    }

    /// Replaces the flows by those of `mode`.
    ///
    /// # Errors
    /// When OVS refuses them.
    pub fn set_mode(&mut self, mode: Target) -> Result {
        if self.mode == Some(mode) {
            return Ok(());
        }
        let ports = 1..=self.port_count;
        let flows: Vec<String> = match mode {
            Target::OvsNormal => vec!["priority=0,actions=NORMAL".into()],
            Target::OvsFlow => {
                ports.map(|p| format!("in_port={p},actions=output:{}", ((p - 1) ^ 1) + 1)).collect()
            }
            _ => ports
                .map(|p| format!("priority=10,in_port={p},dl_src={},actions=NORMAL", mac_of(p)))
                .chain(["priority=0,actions=drop".to_owned()])
                .collect(),
        };
        self.replace_flows(&flows)?;
        self.mode = Some(mode);
        Ok(())
    }

    /// Replaces the flows by these: what comes in by the first name leaves by the second.
    ///
    /// # Errors
    /// When OVS refuses them.
    pub fn set_flows(&mut self, pairs: &[(&str, &str)]) -> Result {
        let flow = |(from, to): &(&str, &str)| format!("in_port={from},actions=output:{to}");
        self.mode = None;
        self.replace_flows(&pairs.iter().map(flow).collect::<Vec<_>>())
    }

    fn replace_flows(&self, flows: &[String]) -> Result {
        let file = self.folder.join("flows");
        fs::write(&file, flows.join("\n") + "\n")?;
        let mut ofctl = Command::new("ovs-ofctl");
        ofctl
            .arg("replace-flows")
            .arg(format!("unix:{}/{}.mgmt", self.folder.display(), self.bridge))
            .arg(file);
        quiet(environment(&mut ofctl, &self.folder))?;
        // The datapath's own flows follow within a round of the revalidator.
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    fn vsctl(&self, arguments: &[&str]) -> Result {
        vsctl(&self.folder, &arguments.iter().map(|&a| a.to_owned()).collect::<Vec<_>>())
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        // Takes the bridge's kernel interface away; a stopped process could not answer.
        drop(crate::beside::process::resume(&self.vswitchd));
        drop(self.vsctl(&["--timeout=5", "del-br", &self.bridge]));
    }
}

fn vsctl(folder: &Path, arguments: &[String]) -> Result {
    let mut vsctl = Command::new("ovs-vsctl");
    vsctl.arg(format!("--db=unix:{}/db.sock", folder.display())).args(arguments);
    quiet(environment(&mut vsctl, folder))
}

fn environment<'c>(command: &'c mut Command, folder: &Path) -> &'c mut Command {
    command.env("OVS_RUNDIR", folder).env("OVS_LOGDIR", folder).env("OVS_DBDIR", folder)
}

/// Runs a command that says something only when it fails.
fn quiet(command: &mut Command) -> Result {
    let output = command.stdin(Stdio::null()).output()?;
    ensure(output.status.success(), || {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("{:?}: {}: {}", command.get_program(), output.status, said.trim())
    })
}

fn wait_for(path: &Path) -> Result {
    let deadline = Instant::now() + START_MAX;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(Failure::new(format!("{} does not appear", path.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
