//! Configuration for a daemon under test: writes `vswitches.toml` and `guests/NAME.toml` as an operator would. Knows the
//! form of the files only; the daemon judges them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// The bus of every port that this harness defines.
const BUS: u8 = 0;

/// The device number of every port that this harness defines.
const DEVICE: u8 = 5;

/// What a daemon under test is to serve.
#[derive(Clone, Default)]
pub struct Config {
    workers: String,
    vswitches: Vec<(String, String)>,
    guests: Vec<Port>,
}

/// One guest with one network port.
#[derive(Clone)]
pub struct Port {
    /// The guest's name.
    pub guest: String,
    /// Its vswitch.
    pub vswitch: String,
    /// Its port number on the vswitch.
    pub number: u16,
    /// Its MAC address.
    pub mac: String,
    /// What the guest sees: `avio_lan` or `lan`.
    pub adaptor: &'static str,
    /// Further lines of its `[[network]]` table.
    pub extra: String,
}

/// The MAC address that this harness gives to port `number`.
pub fn mac_of(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("1e:29:8c:88:{high:02x}:{low:02x}")
}

impl Config {
    /// One vswitch `vs` and, for each of `extras`, a guest `g1`, `g2`... on port 1, 2..., with those lines in its table.
    pub fn one_switch(extras: &[&str]) -> Config {
        let mut config = Config::default().vswitch("vs", "");
        for (number, extra) in (1..).zip(extras) {
            config = config.guest(&format!("g{number}"), "vs", number, extra);
        }
        config
    }

    /// Sets the lines of the `[workers]` table.
    #[must_use]
    pub fn workers(mut self, lines: &str) -> Config {
        self.workers = lines.to_owned();
        self
    }

    /// Adds a vswitch, with further lines of its table.
    #[must_use]
    pub fn vswitch(mut self, name: &str, extra: &str) -> Config {
        self.vswitches.push((name.to_owned(), extra.to_owned()));
        self
    }

    /// Adds a guest with one port, with further lines of its `[[network]]` table.
    #[must_use]
    pub fn guest(mut self, guest: &str, vswitch: &str, number: u16, extra: &str) -> Config {
        let (guest, vswitch, extra) = (guest.to_owned(), vswitch.to_owned(), extra.to_owned());
        self.guests.push(Port { guest, vswitch, number, mac: mac_of(number), adaptor: "avio_lan", extra });
        self
    }

    /// Adds a guest with one port for a NIC that its VMM emulates, with further lines of its `[[network]]` table.
    #[must_use]
    pub fn lan(mut self, guest: &str, vswitch: &str, number: u16, extra: &str) -> Config {
        self = self.guest(guest, vswitch, number, extra);
        if let Some(port) = self.guests.last_mut() {
            port.adaptor = "lan";
        }
        self
    }

    /// The ports, in the order in which they were added.
    pub fn ports(&self) -> &[Port] {
        &self.guests
    }

    /// Writes all files into `folder`, over what is there.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result {
        fs::create_dir_all(folder.join("guests"))?;
        let mut switches = String::new();
        if !self.workers.is_empty() {
            write!(switches, "[workers]\n{}\n\n", self.workers)?;
        }
        for (name, extra) in &self.vswitches {
            write!(switches, "[[vswitch]]\nname = \"{name}\"\n{extra}\n\n")?;
        }
        replace(&folder.join("vswitches.toml"), &switches)?;
        for port in &self.guests {
            replace(&folder.join(format!("guests/{}.toml", port.guest)), &port.text())?;
        }
        Ok(())
    }
}

impl Port {
    /// The guest's file.
    pub fn text(&self) -> String {
        let Port { guest, vswitch, number, mac, adaptor, extra } = self;
        format!(
            "version = 1\nname = \"{guest}\"\n\n[[network]]\nbus = {BUS}\ndevice = {DEVICE}\nadaptor = \"{adaptor}\"\n\
             vswitch = \"{vswitch}\"\nport = {number}\nmac = \"{mac}\"\n{extra}\n"
        )
    }

    /// The TAP of a port made by [`Config::lan`].
    pub fn tap(&self) -> String {
        format!("{}-{BUS}-{DEVICE}", self.guest)
    }

    /// Where the daemon listens for this guest's port, under its run folder.
    pub fn socket(&self, run: &Path) -> PathBuf {
        run.join(format!("guests/{}/net-{BUS}-{DEVICE}.sock", self.guest))
    }
}

/// Replaces a file in one step, as an editor does.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, text: &str) -> Result {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)?;
    Ok(())
}
