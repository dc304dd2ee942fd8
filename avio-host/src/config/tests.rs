//! Directories on disk: what is read, what is left alone, what is refused.

use std::fs;
use std::path::PathBuf;

use super::*;

/// A directory under the build's temporary directory, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("avio-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join(GUESTS_DIR)).unwrap();
        Dir(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// The errors of loading it, with the directory's own path cut.
    fn errors(&self) -> String {
        let errors = load(&self.0, &Surroundings::default()).unwrap_err().to_string();
        errors.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_directory_is_read_and_strangers_are_left_alone() {
    let dir = Dir::new("read");
    dir.write("vswitches.toml", "[[vswitch]]\nname = 'vs_site'\n");
    dir.write("guests/guest1.toml", "[[network]]\ndevice = 1\nvswitch = 'vs_site'\nport = 1\n");
    dir.write("guests/guest1.toml~", "not = = toml");
    dir.write("guests/.guest1.toml", "not = = toml");
    dir.write("guests/README", "not = = toml");
    let config = load(&dir.0, &Surroundings::default()).unwrap();
    assert_eq!(config.guests.keys().collect::<Vec<_>>(), ["guest1"]);
    assert_eq!(config.vswitches.len(), 2);
}

#[test]
fn an_empty_directory_is_a_configuration() {
    let dir = Dir::new("empty");
    assert_eq!(load(&dir.0, &Surroundings::default()).unwrap().vswitches.len(), 1);
    fs::remove_dir(dir.0.join(GUESTS_DIR)).unwrap();
    assert!(load(&dir.0, &Surroundings::default()).is_ok());
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let dir = Dir::new("unreadable");
    fs::create_dir(dir.0.join("guests/guest1.toml")).unwrap();
    fs::write(dir.0.join("vswitches.toml"), b"a = 1\n\xff").unwrap();
    assert_eq!(
        dir.errors(),
        "vswitches.toml:2: is not UTF-8 text\nguests/guest1.toml: is not a regular file"
    );
    let missing = load(&dir.0.join("nowhere"), &Surroundings::default()).unwrap_err().to_string();
    assert!(
        missing.ends_with(
            "/nowhere: cannot be read: No such file or directory (os error 2); create it, or name the directory of \
             vswitches.toml with --config"
        ),
        "{missing}"
    );
    assert_eq!(missing.lines().count(), 1);
}

#[test]
fn an_address_of_this_host_is_refused() {
    let dir = Dir::new("hostmac");
    let net = dir.0.join("net");
    for (name, address) in
        [("lo", "00:00:00:00:00:00\n"), ("eth7", "52:54:00:12:34:56\n"), ("ib0", "80:00:02\n")]
    {
        fs::create_dir_all(net.join(name)).unwrap();
        fs::write(net.join(name).join("address"), address).unwrap();
    }
    let host_macs = host::host_macs(&net);
    assert_eq!(host_macs, [("eth7".to_owned(), "52:54:00:12:34:56".parse().unwrap())]);
    dir.write(
        "guests/g.toml",
        "[[network]]\ndevice=1\nvswitch='localnet'\nport=1\nmac='52-54-00-12-34-56'\n",
    );
    let error = load(&dir.0, &Surroundings { host_macs, ..Surroundings::default() }).unwrap_err().to_string();
    assert!(error.ends_with(
        "g.toml:5: mac: 52:54:00:12:34:56 belongs to this host's eth7; give the guest another one"
    ));
}

#[test]
fn check_prints_when_keys_take_effect() {
    let dir = Dir::new("check");
    dir.write("guests/g.toml", "[[network]]\ndevice=1\nvswitch='localnet'\nport=1\nadaptor='lan'\n");
    let capabilities = Capabilities { uplinks: false, tap_ports: false };
    let text = check(&dir.0, &Surroundings { capabilities, ..Surroundings::default() }).unwrap();
    let text = text.replace(&dir.0.display().to_string(), "DIR");
    let wanted = "\
warning: DIR/guests/g.toml:5: adaptor: ports of adaptor lan come with a later release; until then the port stays reserved
DIR: right; 1 vswitches (localnet included), 1 guests with 1 network interfaces

When a changed key takes effect after a reload:
vswitches.toml
  version        live
  workers        on daemon restart
  vswitch        live
  aggregate      live
  uplink         live
vswitches.toml [workers]
  cores          on daemon restart
  poll           on daemon restart
  spin_us        on daemon restart
vswitches.toml [vswitch]
  name           never (makes another object)
  max_ports      live               never below a port that a guest reserves
";
    assert!(text.starts_with(wanted), "{text}");
    assert!(
        text.contains("\n  mac            on reconnect       the guest read it at its start\n"),
        "{text}"
    );
}
