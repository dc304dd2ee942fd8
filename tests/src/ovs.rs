//! Open vSwitch in a namespace, with its own folder and sockets, and a bond of the far ends of cables.

use crate::aggregate::Cables;
use crate::console::{Console, command};
use crate::failure::eventually;
use crate::wire::run;
use crate::{Result, scratch};

/// See the module.
pub struct Ovs {
    _processes: [Console; 2],
    folder: String,
}

impl Ovs {
    /// Starts it, in active LACP with fast timeouts.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    ///
    /// `bonded`: how many of the cables end in the bond, the first ones.
    pub fn start(cables: &Cables, bonded: usize) -> Result<Ovs> {
        let folder = scratch::folder().join("ovs");
        std::fs::create_dir_all(&folder)?;
        let folder = folder.display().to_string();
        let database = format!("{folder}/conf.db");
        run("ovsdb-tool", &["create", &database, "/usr/share/openvswitch/vswitch.ovsschema"])?;
        let socket = format!("{folder}/db.sock");
        let environment = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| (name, folder.as_str()));
        let mut server = command("ovsdb-server");
        server.envs(environment).args([&database, &format!("--remote=punix:{socket}")]);
        server.arg(format!("--unixctl={folder}/db.ctl"));
        let server = Console::spawn("ovsdb-server", &mut server)?;
        let ovs = |arguments: &[&str]| {
            let database = format!("--db=unix:{socket}");
            let mut all = vec![database.as_str(), "--no-wait"];
            all.extend(arguments);
            run("ovs-vsctl", &all)
        };
        // Its socket is there before it listens at it.
        eventually("ovsdb-server answers", 5, || ovs(&["init"]).is_ok())?;
        let namespace = cables.namespace.clone().unwrap_or_default();
        let mut switch = command("ip");
        switch.envs(environment).args(["netns", "exec", &namespace, "ovs-vswitchd"]);
        switch.args([&format!("unix:{socket}"), &format!("--unixctl={folder}/ctl"), "--disable-system"]);
        let switch = Console::spawn("ovs-vswitchd", &mut switch)?;
        ovs(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        let mut bond = vec!["add-bond", "br0", "bond0"];
        let far: Vec<String> = (0..bonded).map(|n| cables.far(n)).collect();
        bond.extend(far.iter().map(String::as_str));
        bond.extend(["lacp=active", "bond_mode=balance-tcp", "other_config:lacp-time=fast"]);
        ovs(&bond)?;
        Ok(Ovs { _processes: [server, switch], folder })
    }

    /// Adds a device of the namespace to the bridge that the bond is on.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn add_port(&self, name: &str) -> Result {
        let database = format!("--db=unix:{}/db.sock", self.folder);
        run("ovs-vsctl", &[&database, "--no-wait", "add-port", "br0", name]).map(drop)
    }

    /// What it says of LACP.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn lacp(&self) -> Result<String> {
        run("ovs-appctl", &["-t", &format!("{}/ctl", self.folder), "lacp/show"])
    }
}
