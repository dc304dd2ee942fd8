//! The storage daemon's state as its control interface tells it.

use avio_proto::control::{AdapterReport, LatencyReport, LunReport, LunStatistics};
use avio_proto::scsi::sense::UNIT_ATTENTION;
use hdrhistogram::Histogram;

use super::adapter::{Adapter, AdapterLun};
use crate::lun::Numbers;
use crate::scsi::Media;

/// An adapter with its LUNs.
pub(super) fn adapter(adapter: &Adapter, socket: String) -> AdapterReport {
    let rings = adapter.view().ring_statistics();
    let mut sums = Numbers::default();
    adapter.luns.values().for_each(|entry| sums.add(&entry.numbers()));
    AdapterReport {
        guest: adapter.nexus.guest.clone(),
        bus: adapter.nexus.bus,
        device: adapter.nexus.device,
        adaptor: if adapter.is_blk() { "avio_blk" } else { "avio_stor" }.to_owned(),
        state: if adapter.connected { "Connected" } else { "Disconnected" }.to_owned(),
        queues: adapter.storage.queues,
        socket,
        kicks: rings.kicks,
        notifications_sent: rings.notifications_sent,
        notifications_suppressed: rings.notifications_suppressed,
        stats: statistics(&sums),
        luns: adapter.luns.iter().map(|(&target, entry)| lun(target, entry)).collect(),
    }
}

fn lun(target: u8, entry: &AdapterLun) -> LunReport {
    let state = match entry.lun.unit.media() {
        Media::Ready | Media::Stopped if entry.backing.as_ref().is_some_and(|b| b.is_stuck()) => "Offline",
        // Not there, or a guest's requests at another one are not over.
        Media::Ready | Media::Stopped if entry.backing.is_none() => "Offline",
        Media::Ready | Media::Stopped => "Online",
        Media::Empty => "NoMedia",
        Media::Replaced => "Replaced",
        Media::Offline => "Offline",
    };
    let (iops, bytes_per_s) = entry.qos.limits();
    LunReport {
        target,
        device: entry.config.device,
        backing: entry.config.backing.clone(),
        state: state.to_owned(),
        size_bytes: entry.lun.unit.capacity_bytes(),
        block_size: entry.lun.unit.block_size(),
        serial: entry.serial.clone(),
        readonly: entry.config.readonly || entry.lun.unit.profile().readonly,
        iops,
        bytes_per_s,
        stats: statistics(&entry.numbers()),
    }
}

fn statistics(numbers: &Numbers) -> LunStatistics {
    let io = numbers.statistics();
    let [reads, writes] = numbers.histograms();
    let attentions = io.errors[usize::from(UNIT_ATTENTION)];
    LunStatistics {
        reads: io.reads,
        writes: io.writes,
        read_bytes: io.read_bytes,
        write_bytes: io.write_bytes,
        flushes: io.flushes,
        discards: io.discards,
        errors: io.errors.iter().sum::<u64>() - attentions,
        errors_by_sense_key: io.errors.to_vec(),
        aborts: io.aborts,
        resets: io.resets,
        in_flight: io.depth,
        in_flight_max: io.depth_max,
        read_latency_us: latency(&reads),
        write_latency_us: latency(&writes),
    }
}

fn latency(histogram: &Histogram<u64>) -> LatencyReport {
    let at = |quantile| {
        if histogram.is_empty() { 0.0 } else { histogram.value_at_quantile(quantile) as f64 / 1000.0 }
    };
    LatencyReport { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), p9999: at(0.9999) }
}
