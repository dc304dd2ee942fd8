//! What is compared: programs that serve a disk, in the modes that matter.

use serde::{Deserialize, Serialize};

/// Who serves the disk, or does I/O on it directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Server {
    /// This daemon, `avio_blk`.
    Blk,
    /// This daemon, `avio_stor`.
    Stor,
    /// qemu-storage-daemon with an iothread.
    Qsd,
    /// fio, io_uring, on the bare backing.
    Fio,
}

/// What is not as in most rows: there is one such thing at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Way {
    /// Nothing.
    Plain,
    /// Ours: `pin_memory = true`; fio: fixed buffers and files.
    Pinned,
    /// Ours: `cache = "writethrough"`; fio: `sync=dsync`.
    Through,
    /// fio while the other core is taken, as it is by a guest that polls.
    Crowded,
    /// fio twice at a time, on both cores: what the disk gives to who asks for more.
    Twice,
    /// fio with four times as many requests in flight: likewise.
    Deep,
}

/// LUNs of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Luns {
    /// One.
    One,
    /// 128, I/O on one of them.
    OneOfMany,
    /// 128, I/O on all of them in turn.
    AllOfMany,
}

/// One target of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// Who.
    pub server: Server,
    /// In which way.
    pub way: Way,
    /// `poll = "adaptive"`, as shipped, instead of `"always"`.
    pub is_adaptive: bool,
    /// The guest sleeps on its eventfd instead of polling.
    pub guest_sleeps: bool,
    /// Queues, each with as many requests in flight as the row says.
    pub queues: u16,
    /// LUNs.
    pub luns: Luns,
    /// The build of `--against`.
    pub is_other: bool,
}

impl Target {
    /// `avio_blk`, `poll = "always"`.
    pub const BLK: Self = Self::of(Server::Blk);
    /// `avio_stor`, one LUN, `poll = "always"`.
    pub const STOR: Self = Self::of(Server::Stor);
    /// qemu-storage-daemon.
    pub const QSD: Self = Self::of(Server::Qsd);
    /// fio.
    pub const FIO: Self = Self::of(Server::Fio);

    const fn of(server: Server) -> Self {
        Self {
            server,
            way: Way::Plain,
            is_adaptive: false,
            guest_sleeps: false,
            queues: 1,
            luns: Luns::One,
            is_other: false,
        }
    }

    /// The same, polling adaptively.
    pub const fn adaptive(self) -> Self {
        Self { is_adaptive: true, ..self }
    }

    /// The same with a guest that sleeps.
    pub const fn guest_sleeps(self) -> Self {
        Self { guest_sleeps: true, ..self }
    }

    /// The same in another way.
    pub const fn way(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// The same with so many queues.
    pub const fn queues(self, queues: u16) -> Self {
        Self { queues, ..self }
    }

    /// The same with so many LUNs.
    pub const fn luns(self, luns: Luns) -> Self {
        Self { luns, ..self }
    }

    /// The same of the other build.
    pub const fn other(self) -> Self {
        Self { is_other: true, ..self }
    }

    /// As `--targets` names it.
    pub fn family(self) -> &'static str {
        match self.server {
            Server::Qsd => "qsd",
            Server::Fio => "fio",
            Server::Blk | Server::Stor => "avio",
        }
    }

    /// For tables.
    pub fn name(self) -> String {
        let who = match self.server {
            Server::Blk => "avio_blk",
            Server::Stor => "avio_stor",
            Server::Qsd => "qemu-storage-daemon",
            Server::Fio => "fio io_uring",
        };
        let way = match (self.way, self.server) {
            (Way::Plain, _) => "",
            (Way::Pinned, Server::Fio) => ", fixed",
            (Way::Pinned, _) => ", pin_memory",
            (Way::Through, Server::Fio) => ", dsync",
            (Way::Through, _) => ", writethrough",
            (Way::Crowded, _) => ", other core taken",
            (Way::Twice, _) => ", two jobs",
            (Way::Deep, _) => ", four times the depth",
        };
        let luns = match self.luns {
            Luns::One => "",
            Luns::OneOfMany => ", 128 LUNs, one busy",
            Luns::AllOfMany => ", 128 LUNs, all busy",
        };
        let queues = if self.queues == 1 { String::new() } else { format!(", {} queues", self.queues) };
        format!(
            "{who}{way}{luns}{queues}{}{}{}",
            if self.is_adaptive { ", adaptive" } else { "" },
            if self.guest_sleeps { ", guest sleeps" } else { "" },
            if self.is_other { ", the other build" } else { "" }
        )
    }

    /// Whether it says what the disk gives, and is no peer.
    pub fn is_limit(self) -> bool {
        matches!(self.way, Way::Twice | Way::Deep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_targets_apart() {
        assert_eq!(Target::BLK.name(), "avio_blk");
        let target = Target::STOR.luns(Luns::AllOfMany).queues(2).adaptive().other();
        assert_eq!(target.name(), "avio_stor, 128 LUNs, all busy, 2 queues, adaptive, the other build");
        assert_eq!(Target::FIO.way(Way::Pinned).name(), "fio io_uring, fixed");
        assert_eq!(Target::QSD.guest_sleeps().name(), "qemu-storage-daemon, guest sleeps");
    }
}
