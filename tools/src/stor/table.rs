//! Adapters and LUNs as tables.

use avio_proto::control::{AdapterReport, LunReport, StorageReply};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// One heading and one table for each adapter.
pub(super) fn render(reply: &StorageReply) -> String {
    if reply.adapters.is_empty() {
        return "no storage adapters are defined\n".to_owned();
    }
    reply.adapters.iter().map(adapter).collect::<Vec<_>>().join("\n")
}

fn adapter(adapter: &AdapterReport) -> String {
    let AdapterReport { guest, bus, device, adaptor, state, queues, kicks, notifications_sent, .. } = adapter;
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "Tgt", "Device", "State", "Size", "Reads", "Writes", "Errors", "Queue", "p50 us", "p99 us", "p50 us",
        "p99 us", "Backing",
    ]);
    for lun in &adapter.luns {
        table.add_row(row(lun));
    }
    for column in (0..1).chain(3..12) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let count = adapter.luns.len();
    format!(
        "{guest} {adaptor} {bus},{device}: {state}, {queues} queues, {count} LUNs, {kicks} kicks, \
         {notifications_sent} notifications (latencies: reads, then writes)\n{table}\n"
    )
}

fn row(lun: &LunReport) -> [String; 13] {
    let stats = &lun.stats;
    let us = |value: f64| if value == 0.0 { "-".to_owned() } else { format!("{value:.1}") };
    [
        lun.target.to_string(),
        format!("{:?}", lun.device).to_lowercase(),
        lun.state.clone(),
        size(lun.size_bytes),
        stats.reads.to_string(),
        stats.writes.to_string(),
        stats.errors.to_string(),
        format!("{}/{}", stats.in_flight, stats.in_flight_max),
        us(stats.read_latency_us.p50),
        us(stats.read_latency_us.p99),
        us(stats.write_latency_us.p50),
        us(stats.write_latency_us.p99),
        lun.backing.clone(),
    ]
}

/// A size in the largest unit that leaves a digit in front of the point.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (bytes.max(1).ilog2() / 10).min(4);
    let value = bytes as f64 / (1u64 << (10 * step)) as f64;
    let digits = usize::from(value.fract() != 0.0);
    format!("{value:.digits$} {}", UNITS[step as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use avio_proto::config::LunDevice;
    use avio_proto::control::LunStatistics;

    #[test]
    fn sizes_read_well() {
        let said: Vec<String> = [0, 512, 1024, 1536, 64 << 20, 3 << 40].map(size).to_vec();
        assert_eq!(said, ["0 B", "512 B", "1 KiB", "1.5 KiB", "64 MiB", "3 TiB"]);
    }

    #[test]
    fn a_lun_is_a_line() {
        let lun = LunReport {
            target: 7,
            device: LunDevice::Disk,
            backing: "file:/a.img".into(),
            state: "Online".into(),
            size_bytes: 64 << 20,
            block_size: 512,
            serial: String::new(),
            readonly: false,
            iops: 0,
            bytes_per_s: 0,
            stats: LunStatistics { reads: 12, in_flight_max: 4, ..LunStatistics::default() },
        };
        let adapter = AdapterReport {
            guest: "g1".into(),
            bus: 0,
            device: 4,
            adaptor: "avio_stor".into(),
            state: "Connected".into(),
            queues: 1,
            socket: String::new(),
            kicks: 3,
            notifications_sent: 2,
            notifications_suppressed: 0,
            luns: vec![lun],
        };
        let text = render(&StorageReply { adapters: vec![adapter] });
        assert!(
            text.starts_with("g1 avio_stor 0,4: Connected, 1 queues, 1 LUNs, 3 kicks, 2 notifications"),
            "{text}"
        );
        let words: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            ["7", "disk", "Online", "64", "MiB", "12", "0", "0", "0/4", "-", "-", "-", "-", "file:/a.img"]
        );
    }
}
