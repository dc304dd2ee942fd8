//! What is printed: the original's labels in the original's order, and what it had no name for behind them (SEMANTICS 2.5).
//!
//! Pure functions of what the target said; lines end with a line feed.

use std::time::{SystemTime, UNIX_EPOCH};

use avio_proto::scsi::vendor::{
    AdapterInformation, Latency, NONCE_NONE, ReplacementState, Statistics, StoreIdentity, TargetState,
};

use crate::tree::{Host, Lun};

/// Width of the adapter's labels.
const HBA_WIDTH: usize = 25;
/// Width of a logical unit's labels.
const LUN_WIDTH: usize = 21;

fn lines(width: usize, rows: &[(&str, String)]) -> String {
    rows.iter().map(|(label, value)| format!("{label:width$}: {value}\n")).collect()
}

/// An adapter.
pub fn adapter(host: &Host, found: &AdapterInformation) -> String {
    let none = || ("N/A".to_owned(), "N/A".to_owned());
    let (vendor, device) = host.pci.clone().unwrap_or_else(none);
    lines(
        HBA_WIDTH,
        &[
            ("PCI Vendor ID", vendor),
            ("PCI Device ID", device),
            ("State of HBA", "ONLINE".to_owned()),
            ("Hardware Path", host.path.clone()),
            ("Max. IO size", found.max_io_bytes.to_string()),
            ("SCSI host", format!("host{}", host.number)),
            ("Adapter", found.adapter.clone()),
            ("Guest", found.guest.clone()),
            ("Request queues", found.queues.to_string()),
            ("Logical units", found.luns().to_string()),
            ("Target version", found.version.clone()),
        ],
    )
}

/// A logical unit.
pub fn lun(host: &Host, lun: &Lun, found: &ReplacementState) -> String {
    let mut rows = vec![
        ("Lun DSF", lun.dsf().display().to_string()),
        ("VSD LUN Id", format!("0x{:x}", lun.target())),
        ("Lun Hardware path", format!("{}/{}", host.path, lun.address())),
        ("LUN State", state(found.state).to_owned()),
        ("Size", found.new.size_bytes.to_string()),
        ("Serial number", found.new.serial.clone()),
        ("Identity", found.new.identity.clone()),
        ("Backing store", found.new.backing.clone()),
    ];
    if found.nonce != NONCE_NONE {
        rows.push(("Replaced store", store(&found.old)));
    }
    lines(LUN_WIDTH, &rows)
}

/// One store on one line.
pub fn store(store: &StoreIdentity) -> String {
    format!("{} ({} bytes, serial number {})", store.backing, store.size_bytes, store.serial)
}

fn state(state: TargetState) -> &'static str {
    match state {
        TargetState::Online => "ONLINE",
        TargetState::Offline => "OFFLINE",
        TargetState::Replaced => "REPLACED",
        TargetState::NoMedia => "NO_MEDIA",
    }
}

/// The statistics of an adapter or of a logical unit: `name` in the first line says whose.
pub fn statistics(label: &str, name: &str, found: &Statistics) -> String {
    let io = &found.io;
    let mut rows = vec![
        (label, name.to_owned()),
        ("Reads", io.reads.to_string()),
        ("Writes", io.writes.to_string()),
        ("Bytes read", io.read_bytes.to_string()),
        ("Bytes written", io.write_bytes.to_string()),
        ("Flushes", io.flushes.to_string()),
        ("Discards", io.discards.to_string()),
        ("Aborts", io.aborts.to_string()),
        ("Resets", io.resets.to_string()),
        ("Queue full", io.queue_full.to_string()),
        ("Open failures", io.replaced_refusals.to_string()),
        ("Queue depth", io.depth.to_string()),
        ("Queue depth, highest", io.depth_max.to_string()),
        ("Read latency (us)", latency(&io.read_latency)),
        ("Write latency (us)", latency(&io.write_latency)),
        ("Errors", io.errors.iter().sum::<u64>().to_string()),
        ("Errors by sense key", sense_keys(&io.errors)),
    ];
    if let Some(rings) = &found.rings {
        rows.extend([
            ("Kicks received", rings.kicks.to_string()),
            ("Notifications sent", rings.notifications_sent.to_string()),
            ("Notifications suppressed", rings.notifications_suppressed.to_string()),
        ]);
    }
    lines(HBA_WIDTH, &rows)
}

fn latency(latency: &Latency) -> String {
    let us = |ns: u64| ns as f64 / 1000.0;
    let (p50, p99, p999) = (us(latency.p50_ns), us(latency.p99_ns), us(latency.p999_ns));
    format!("p50 {p50:.1}, p99 {p99:.1}, p99.9 {p999:.1}")
}

/// Those that occurred: `02:5 06:1`.
fn sense_keys(errors: &[u64]) -> String {
    let counted = errors.iter().enumerate().filter(|(_, count)| **count > 0);
    let words: Vec<String> = counted.map(|(key, count)| format!("{key:02x}:{count}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// The time now, as `ctime` writes it, in UTC: a static program has no time zones.
pub fn now() -> String {
    date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let weekday = DAYS[(days % 7) as usize];
    let mut year = 1970;
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 0;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday} {} {:2} {hour:02}:{minute:02}:{second:02} {year} UTC", MONTHS[month], days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use avio_proto::scsi::vendor::{IoStatistics, RingStatistics};

    fn host() -> Host {
        Host { number: 2, pci: Some(("0x1af4".into(), "0x1048".into())), path: "0000:00:03.0".into() }
    }

    #[test]
    fn dates_are_those_of_date() {
        assert_eq!(date(0), "Thu Jan  1 00:00:00 1970 UTC");
        assert_eq!(date(1_191_328_532), "Tue Oct  2 12:35:32 2007 UTC");
        assert_eq!(date(1_709_251_199), "Thu Feb 29 23:59:59 2024 UTC");
        assert_eq!(date(4_102_444_799), "Thu Dec 31 23:59:59 2099 UTC");
    }

    #[test]
    fn an_adapter_has_the_originals_lines_first() {
        let found = AdapterInformation {
            bus: 0,
            device: 4,
            max_io_bytes: 1 << 20,
            queues: 1,
            adapter: "avio_stor 0:4".into(),
            guest: "guest1".into(),
            version: "0.1.0".into(),
            targets: [None; 256],
        };
        let text = adapter(&host(), &found);
        let wanted = "PCI Vendor ID            : 0x1af4\n\
                      PCI Device ID            : 0x1048\n\
                      State of HBA             : ONLINE\n\
                      Hardware Path            : 0000:00:03.0\n\
                      Max. IO size             : 1048576\n\
                      SCSI host                : host2\n\
                      Adapter                  : avio_stor 0:4\n\
                      Guest                    : guest1\n\
                      Request queues           : 1\n\
                      Logical units            : 0\n\
                      Target version           : 0.1.0\n";
        assert_eq!(text, wanted);
        let without = adapter(&Host { pci: None, path: "virtio-uml.0".into(), ..host() }, &found);
        assert!(without.starts_with("PCI Vendor ID            : N/A\n"));
    }

    #[test]
    fn a_logical_unit_shows_what_replaced_what() {
        let new = StoreIdentity {
            size_bytes: 1024,
            serial: "S-1".into(),
            identity: "naa.3".into(),
            backing: "file:/b".into(),
        };
        let old =
            StoreIdentity { size_bytes: 512, serial: "S".into(), backing: "file:/a".into(), ..new.clone() };
        let place = (2, 0, 22, 0);
        let one = Lun { place, folder: "/".into(), node: "/dev/sg2".into(), block: Some("/dev/sdb".into()) };
        let found = ReplacementState { state: TargetState::Replaced, nonce: 7, new, old };
        let wanted = "Lun DSF              : /dev/sdb\n\
                      VSD LUN Id           : 0x16\n\
                      Lun Hardware path    : 0000:00:03.0/2:0:22:0\n\
                      LUN State            : REPLACED\n\
                      Size                 : 1024\n\
                      Serial number        : S-1\n\
                      Identity             : naa.3\n\
                      Backing store        : file:/b\n\
                      Replaced store       : file:/a (512 bytes, serial number S)\n";
        assert_eq!(lun(&host(), &one, &found), wanted);
        let normal = ReplacementState { state: TargetState::Online, nonce: NONCE_NONE, ..found };
        assert!(!lun(&host(), &one, &normal).contains("Replaced"));
    }

    #[test]
    fn statistics_are_a_line_each() {
        let mut errors = [0; 16];
        errors[2] = 5;
        errors[6] = 1;
        let io = IoStatistics {
            reads: 3,
            replaced_refusals: 5,
            read_latency: Latency { p50_ns: 1500, p99_ns: 20_000, p999_ns: 20_040 },
            errors,
            ..IoStatistics::default()
        };
        let rings = Some(RingStatistics { kicks: 9, ..RingStatistics::default() });
        let text = statistics("HBA", "host2", &Statistics { io, rings });
        for line in [
            "HBA                      : host2",
            "Reads                    : 3",
            "Open failures            : 5",
            "Read latency (us)        : p50 1.5, p99 20.0, p99.9 20.0",
            "Errors                   : 6",
            "Errors by sense key      : 02:5 06:1",
            "Kicks received           : 9",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!statistics("Lun DSF", "/dev/sda", &Statistics { io, rings: None }).contains("Kicks"));
    }
}
