//! The guest's SCSI hosts and devices as its `/sys` shows them, and which of them a name means.
//!
//! Reads links and small files below two folders (`/sys` and `/dev`, others in tests); sends nothing to a device.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Failure;
use crate::arguments::Qualifier;

/// Vendor in the INQUIRY data of AVIO's logical units, as the kernel shows it.
const VENDOR: &str = "AVIO";

/// Where to look.
#[derive(Clone, Debug)]
pub struct Tree {
    sys: PathBuf,
    dev: PathBuf,
}

/// A SCSI host of the guest: an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its number in the guest.
    pub number: u32,
    /// Vendor and device id, if it sits on a PCI bus.
    pub pci: Option<(String, String)>,
    /// Its place on the guest's bus.
    pub path: String,
}

/// A logical unit as the guest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// Its place: host, channel, target, logical unit.
    pub place: (u32, u32, u32, u64),
    /// Its folder in `/sys`.
    pub folder: PathBuf,
    /// The node that commands go to.
    pub node: PathBuf,
    /// Its block device, if it has one.
    pub block: Option<PathBuf>,
}

impl Lun {
    /// `2:0:22:0`.
    pub fn address(&self) -> String {
        let (host, channel, target, lun) = self.place;
        format!("{host}:{channel}:{target}:{lun}")
    }

    /// The device that its users know it by.
    pub fn dsf(&self) -> &Path {
        self.block.as_ref().unwrap_or(&self.node)
    }

    /// Its target.
    pub fn target(&self) -> u32 {
        self.place.2
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }
}

impl Tree {
    /// The host that `-D` means: `host2`, or a device (also through a link like `/dev/gvsd2`) of one of its logical units.
    pub fn host(&self, name: &str) -> Result<Host, Failure> {
        let number = match name.strip_prefix("host").and_then(|digits| digits.parse().ok()) {
            Some(number) => number,
            None => place_of(&self.device_folder(name)?).ok_or_else(|| not_scsi(name))?.0,
        };
        let link = self.sys.join(format!("class/scsi_host/host{number}/device"));
        let folder = fs::canonicalize(&link).map_err(|_| {
            Failure::Refused(format!("-D {name}: there is no SCSI host {number}; {}", self.adapters()))
        })?;
        let parent = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
        // .../0000:00:03.0/virtio1/host2, or .../platform/virtio-uml.0/virtio0/host0
        let bus_device = parent(&parent(&folder));
        let path = bus_device.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let id = |file: &str| fs::read_to_string(bus_device.join(file)).map(|text| text.trim().to_owned());
        // A virtio device has files of these names, too; a PCI device has an address with colons and a point.
        let pci = match (id("vendor"), id("device")) {
            (Ok(vendor), Ok(device)) if path.contains(':') && path.contains('.') => Some((vendor, device)),
            _ => None,
        };
        Ok(Host { number, pci, path })
    }

    /// All of AVIO's logical units of a host, by target.
    pub fn luns(&self, host: u32) -> Vec<Lun> {
        let mut luns: Vec<Lun> = self.all_luns().into_iter().filter(|lun| lun.place.0 == host).collect();
        luns.sort_by_key(|lun| lun.place);
        luns
    }

    fn all_luns(&self) -> Vec<Lun> {
        let Ok(entries) = fs::read_dir(self.sys.join("class/scsi_device")) else { return Vec::new() };
        entries.flatten().filter_map(|entry| self.lun(&entry.path().join("device"))).collect()
    }

    /// The logical unit whose folder `link` leads to, if it is one of AVIO's.
    fn lun(&self, link: &Path) -> Option<Lun> {
        let folder = fs::canonicalize(link).ok()?;
        let place = place_of(&folder)?;
        if fs::read_to_string(folder.join("vendor")).ok()?.trim() != VENDOR {
            return None;
        }
        let child = |kind: &str| {
            let entry = fs::read_dir(folder.join(kind)).ok()?.flatten().next()?;
            Some(self.dev.join(entry.file_name()))
        };
        let block = child("block");
        // A guest without the sg module sends commands through the disk itself.
        let node = child("scsi_generic").or_else(|| block.clone())?;
        Some(Lun { place, folder, node, block })
    }

    /// The logical units of `luns` that the qualifiers mean, each once, by target.
    pub fn select(&self, luns: &[Lun], qualifiers: &[Qualifier]) -> Result<Vec<Lun>, Failure> {
        let mut chosen = Vec::new();
        for qualifier in qualifiers {
            match qualifier {
                Qualifier::All | Qualifier::Luns => chosen.extend_from_slice(luns),
                Qualifier::Target(target) => {
                    let before = chosen.len();
                    chosen.extend(luns.iter().filter(|lun| lun.target() == *target).cloned());
                    if chosen.len() == before {
                        let known: Vec<String> = luns.iter().map(|lun| lun.target().to_string()).collect();
                        return Err(Failure::Refused(format!(
                            "-q tgt={target}: the adapter has no such target; it has {}",
                            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                        )));
                    }
                }
                Qualifier::Device(name) => {
                    let place = place_of(&self.device_folder(name)?).ok_or_else(|| not_scsi(name))?;
                    let found = luns.iter().find(|lun| lun.place == place).ok_or_else(|| {
                        let (host, ..) = place;
                        Failure::Refused(format!("{name} is not behind this adapter but behind host{host}"))
                    })?;
                    chosen.push(found.clone());
                }
            }
        }
        chosen.sort_by_key(|lun| lun.place);
        chosen.dedup();
        Ok(chosen)
    }

    /// The SCSI device in `/sys` that a device node is of.
    fn device_folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = if name.contains('/') { PathBuf::from(name) } else { self.dev.join(name) };
        let real = fs::canonicalize(&path)
            .map_err(|e| Failure::Refused(format!("{}: {e}; {}", path.display(), self.adapters())))?;
        let node = real.file_name().unwrap_or_default();
        for class in ["scsi_generic", "block"] {
            let entry = self.sys.join("class").join(class).join(node);
            if let Ok(folder) = fs::canonicalize(entry.join("device")) {
                return Ok(folder);
            }
            if entry.join("partition").exists() {
                let whole = fs::canonicalize(&entry)
                    .ok()
                    .and_then(|path| Some(self.dev.join(path.parent()?.file_name()?).display().to_string()));
                return Err(Failure::Refused(format!(
                    "{name} is a partition; name the whole disk{}",
                    whole.map(|disk| format!(", {disk}")).unwrap_or_default()
                )));
            }
        }
        Err(not_scsi(name))
    }

    /// For refusals: which adapters there are.
    fn adapters(&self) -> String {
        let mut hosts: Vec<u32> = self.all_luns().iter().map(|lun| lun.place.0).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let names: Vec<String> = hosts.iter().map(|host| format!("host{host}")).collect();
        match names.as_slice() {
            [] => "this guest has no AVIO storage adapter with logical units".to_owned(),
            names => format!("AVIO storage adapters here: {}", names.join(", ")),
        }
    }
}

fn not_scsi(name: &str) -> Failure {
    Failure::Refused(format!(
        "{name} is no SCSI device; name a disk (/dev/sda), a drive (/dev/sr0) or an sg node (/dev/sg0)"
    ))
}

/// Host, channel, target and logical unit from the last part of a device's path: `2:0:22:0`.
fn place_of(folder: &Path) -> Option<(u32, u32, u32, u64)> {
    let name = folder.file_name()?.to_str()?;
    let mut parts = name.split(':');
    let place = (
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    );
    parts.next().is_none().then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A guest with an AVIO adapter (host 2: a disk at target 0, a drive at 22) and a disk of another vendor (host 0).
    fn guest(name: &str) -> Tree {
        let root = std::env::temp_dir().join(format!("gvsdmgr-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let (sys, dev) = (root.join("sys"), root.join("dev"));
        fs::create_dir_all(&dev).unwrap();
        for class in ["scsi_host/host0", "scsi_host/host2", "scsi_device", "scsi_generic", "block"] {
            fs::create_dir_all(sys.join("class").join(class)).unwrap();
        }
        let hosts = [("devices/0000:00:1f.2/ata1/host0", 0), ("devices/0000:00:03.0/virtio1/host2", 2)];
        for (folder, number) in hosts {
            let folder = sys.join(folder);
            fs::create_dir_all(&folder).unwrap();
            symlink(&folder, sys.join(format!("class/scsi_host/host{number}/device"))).unwrap();
            let bus = folder.parent().unwrap().parent().unwrap();
            fs::write(bus.join("vendor"), "0x1af4\n").unwrap();
            fs::write(bus.join("device"), "0x1048\n").unwrap();
        }
        for (host, place, vendor, sg, block) in [
            (hosts[0].0, "0:0:0:0", "ATA     ", "sg0", "sda"),
            (hosts[1].0, "2:0:22:0", "AVIO    ", "sg2", "sr0"),
            (hosts[1].0, "2:0:0:0", "AVIO    ", "sg1", "sdb"),
        ] {
            let folder = sys.join(host).join(place);
            fs::create_dir_all(folder.join("scsi_generic").join(sg)).unwrap();
            fs::create_dir_all(folder.join("block").join(block)).unwrap();
            fs::write(folder.join("vendor"), vendor).unwrap();
            for (class, node) in [("scsi_generic", sg), ("block", block)] {
                symlink(&folder, folder.join(class).join(node).join("device")).unwrap();
                symlink(folder.join(class).join(node), sys.join("class").join(class).join(node)).unwrap();
                fs::write(dev.join(node), "").unwrap();
            }
            fs::create_dir_all(sys.join("class/scsi_device").join(place)).unwrap();
            symlink(&folder, sys.join("class/scsi_device").join(place).join("device")).unwrap();
        }
        let part = sys.join(hosts[1].0).join("2:0:0:0/block/sdb/sdb1");
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("partition"), "1\n").unwrap();
        symlink(&part, sys.join("class/block/sdb1")).unwrap();
        fs::write(dev.join("sdb1"), "").unwrap();
        symlink(dev.join("sg2"), dev.join("gvsd2")).unwrap();
        Tree { sys, dev }
    }

    fn said<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        match result.unwrap_err() {
            Failure::Refused(line) | Failure::Usage(line) => line,
        }
    }

    #[test]
    fn an_adapter_is_found_by_host_node_and_link() {
        let tree = guest("names");
        for name in ["host2", "sdb", "sg2", "gvsd2"] {
            let host = tree.host(name).unwrap();
            assert_eq!((host.number, host.path.as_str()), (2, "0000:00:03.0"), "{name}");
            assert_eq!(host.pci, Some(("0x1af4".into(), "0x1048".into())));
        }
        let link = tree.dev.join("gvsd2").display().to_string();
        assert_eq!(tree.host(&link).unwrap().number, 2);
        assert!(said(tree.host("host7")).ends_with("AVIO storage adapters here: host2"));
        assert!(said(tree.host("sdx")).contains("AVIO storage adapters here: host2"));
    }

    #[test]
    fn logical_units_are_selected_once_each_and_only_ours() {
        let tree = guest("select");
        let luns = tree.luns(2);
        assert_eq!(luns.iter().map(Lun::target).collect::<Vec<_>>(), [0, 22]);
        assert_eq!(
            (luns[1].address().as_str(), luns[1].node.file_name().unwrap()),
            ("2:0:22:0", "sg2".as_ref())
        );
        assert!(tree.luns(0).is_empty(), "another vendor's disk");
        let device = |name: &str| Qualifier::Device(name.to_owned());
        let chosen = tree.select(&luns, &[device("sr0"), Qualifier::Target(0), device("sg2")]).unwrap();
        assert_eq!(chosen, luns);
        assert_eq!(tree.select(&luns, &[Qualifier::Luns, Qualifier::All]).unwrap(), luns);
        assert_eq!(
            said(tree.select(&luns, &[Qualifier::Target(1)])),
            "-q tgt=1: the adapter has no such target; it has 0, 22"
        );
        assert_eq!(
            said(tree.select(&luns, &[device("sda")])),
            "sda is not behind this adapter but behind host0"
        );
        assert!(
            said(tree.select(&luns, &[device("sdb1")])).contains("is a partition; name the whole disk, ")
        );
    }
}
