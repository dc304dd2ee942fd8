//! Adapters and LUNs as tables.

use avio_proto::control::{AdapterReport, LatencyReport, LunReport, LunStatistics, StorageReply};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// One heading and one table for each adapter; `verbose`: a block for each LUN instead of a line.
pub(super) fn render(reply: &StorageReply, verbose: bool) -> String {
    if reply.adapters.is_empty() {
        return "no storage adapters are defined\n".to_owned();
    }
    let render = if verbose { blocks } else { adapter };
    reply.adapters.iter().map(render).collect::<Vec<_>>().join("\n")
}

/// Labels and values, one a line.
fn lines(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(label, value)| format!("{label:<25}: {value}\n")).collect()
}

/// Everything about an adapter and each of its LUNs.
fn blocks(adapter: &AdapterReport) -> String {
    let place = format!("{} {},{}", adapter.adaptor, adapter.bus, adapter.device);
    let head = lines(&[
        ("Guest", adapter.guest.clone()),
        ("Adapter", place),
        ("State", adapter.state.clone()),
        ("Request queues", adapter.queues.to_string()),
        ("Socket", adapter.socket.clone()),
        ("Kicks received", adapter.kicks.to_string()),
        ("Notifications sent", adapter.notifications_sent.to_string()),
        ("Notifications suppressed", adapter.notifications_suppressed.to_string()),
    ]) + &numbers(&adapter.stats);
    let luns = adapter.luns.iter().map(|lun| format!("\n{}", block(lun)));
    std::iter::once(head).chain(luns).collect()
}

fn block(lun: &LunReport) -> String {
    lines(&[
        ("Target", lun.target.to_string()),
        ("Device", format!("{:?}", lun.device).to_lowercase()),
        ("State", lun.state.clone()),
        ("Backing", lun.backing.clone()),
        ("Size", format!("{} bytes ({})", lun.size_bytes, size(lun.size_bytes))),
        ("Block size", lun.block_size.to_string()),
        ("Serial number", lun.serial.clone()),
        ("Read-only", if lun.readonly { "yes" } else { "no" }.to_owned()),
        ("Limits", limits(lun)),
    ]) + &numbers(&lun.stats)
}

/// Of a LUN, or the sums of an adapter.
fn numbers(stats: &LunStatistics) -> String {
    lines(&[
        ("Reads", format!("{} ({})", stats.reads, size(stats.read_bytes))),
        ("Writes", format!("{} ({})", stats.writes, size(stats.write_bytes))),
        ("Flushes", stats.flushes.to_string()),
        ("Discards", stats.discards.to_string()),
        ("Aborts", stats.aborts.to_string()),
        ("Resets", stats.resets.to_string()),
        ("Errors", stats.errors.to_string()),
        ("Errors by sense key", sense_keys(&stats.errors_by_sense_key)),
        ("Queue depth", stats.in_flight.to_string()),
        ("Queue depth, highest", stats.in_flight_max.to_string()),
        ("Read latency (us)", latency(&stats.read_latency_us)),
        ("Write latency (us)", latency(&stats.write_latency_us)),
    ])
}

fn limits(lun: &LunReport) -> String {
    let iops = (lun.iops != 0).then(|| format!("{} requests/s", lun.iops));
    let bytes = (lun.bytes_per_s != 0).then(|| format!("{}/s", size(lun.bytes_per_s)));
    let both: Vec<String> = iops.into_iter().chain(bytes).collect();
    if both.is_empty() { "none".to_owned() } else { both.join(", ") }
}

fn latency(of: &LatencyReport) -> String {
    let LatencyReport { p50, p90, p99, p999, p9999 } = of;
    format!("p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, p99.99 {p9999:.1}")
}

/// Those that occurred, with their names (SPC-5 table 49): `not ready 5, unit attention 1`.
fn sense_keys(errors: &[u64]) -> String {
    const NAMES: [&str; 16] = [
        "no sense",
        "recovered error",
        "not ready",
        "medium error",
        "hardware error",
        "illegal request",
        "unit attention",
        "data protect",
        "blank check",
        "vendor specific",
        "copy aborted",
        "aborted command",
        "reserved",
        "volume overflow",
        "miscompare",
        "completed",
    ];
    let counted = errors.iter().zip(NAMES).filter(|(count, _)| **count > 0);
    let words: Vec<String> = counted.map(|(count, name)| format!("{name} {count}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
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
            stats: LunStatistics { reads: 12, ..LunStatistics::default() },
            luns: vec![lun],
        };
        let reply = StorageReply { adapters: vec![adapter] };
        let mut verbose = reply.clone();
        let stats = &mut verbose.adapters[0].luns[0].stats;
        stats.errors_by_sense_key = vec![0, 0, 5, 0, 0, 0, 1];
        stats.read_latency_us = LatencyReport { p50: 1.04, p9999: 20.0, ..LatencyReport::default() };
        verbose.adapters[0].luns[0].bytes_per_s = 1 << 20;
        let text = render(&verbose, true);
        for line in [
            "Notifications sent       : 2",
            "Target                   : 7",
            "Limits                   : 1 MiB/s",
            "Errors by sense key      : not ready 5, unit attention 1",
            "Read latency (us)        : p50 1.0, p90 0.0, p99 0.0, p99.9 0.0, p99.99 20.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let text = render(&reply, false);
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
