//! The numbers of a LUN and of a ring: written by workers, one cell per worker, summed by whoever asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use avio_host::stats::{CacheLine, Cell64};
use avio_proto::scsi::vendor;
use hdrhistogram::Histogram;

/// Sense keys.
const KEYS: usize = vendor::SENSE_KEYS;
/// Steps between two powers of two: latencies are right to an eighth.
const STEPS: usize = 8;
/// Buckets up to 2^40 ns, eighteen minutes.
const BUCKETS: usize = 38 * STEPS;

/// Latencies as a worker counts them: logarithmic, with eight linear steps between powers of two.
#[derive(Debug)]
struct Latencies(Box<[Cell64]>);

impl Default for Latencies {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| Cell64::new()).collect())
    }
}

impl Latencies {
    fn record(&self, ns: u64) {
        self.0[bucket(ns)].add(1);
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(STEPS as u64);
    let power = ns.ilog2() as usize;
    let step = (ns >> (power - 3)) as usize & (STEPS - 1);
    ((power - 3) * STEPS + step).min(BUCKETS - 1)
}

/// The largest latency that falls into a bucket, ns.
fn ceiling(bucket: usize) -> u64 {
    let (power, step) = (bucket / STEPS + 3, (bucket % STEPS) as u64);
    ((STEPS as u64 + step + 1) << (power - 3)) - 1
}

/// What one worker counted at one LUN. What a request that is answered at once looks at stands in the first line: where many
/// LUNs are busy, each line more is fetched anew for each request.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LunCell {
    begun: Cell64,
    ended: Cell64,
    depth_max: Cell64,
    read_bytes: Cell64,
    write_bytes: Cell64,
    /// Reads and writes that began and ended within a turn: they took no time that was measured.
    reads_at_once: Cell64,
    writes_at_once: Cell64,
    /// The LUN has limits. Written by control.
    limited: AtomicBool,
    /// Reads and writes that took longer.
    reads: Cell64,
    writes: Cell64,
    flushes: Cell64,
    discards: Cell64,
    aborts: Cell64,
    resets: Cell64,
    refused: Cell64,
    errors: [Cell64; KEYS],
    read_latency: Latencies,
    write_latency: Latencies,
}

/// What a request was, for the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard or zeroing.
    Discard,
    /// Anything else.
    Other,
}

impl LunCell {
    /// Whether there are limits to ask: they stand in another line.
    #[inline]
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// A request has begun.
    #[inline]
    pub fn began(&self) {
        self.begun.add(1);
        let depth = self.begun.get().wrapping_sub(self.ended.get());
        if depth > self.depth_max.get() {
            self.depth_max.set(depth);
        }
    }

    /// A request has ended well.
    #[inline]
    pub fn good(&self, class: Class, bytes: u64, ns: u64) {
        self.ended.add(1);
        match class {
            Class::Read => {
                self.reads.add(1);
                self.read_bytes.add(bytes);
                self.read_latency.record(ns);
            }
            Class::Write => {
                self.writes.add(1);
                self.write_bytes.add(bytes);
                self.write_latency.record(ns);
            }
            Class::Flush => self.flushes.add(1),
            Class::Discard => self.discards.add(1),
            Class::Other => {}
        }
    }

    /// `count` reads, or `count` writes, of `bytes` bytes together have begun and ended well, one after the other, within a turn.
    #[inline]
    pub fn good_at_once(&self, write: bool, count: u64, bytes: u64) {
        let depth = self.begun.get().wrapping_sub(self.ended.get()) + 1;
        if depth > self.depth_max.get() {
            self.depth_max.set(depth);
        }
        let (requests, moved) = match write {
            true => (&self.writes_at_once, &self.write_bytes),
            false => (&self.reads_at_once, &self.read_bytes),
        };
        requests.add(count);
        moved.add(bytes);
    }

    /// A request that had begun has ended with this sense key.
    pub fn failed(&self, key: u8) {
        self.ended.add(1);
        self.refused(key);
    }

    /// A request was refused with this sense key before it began.
    pub fn refused(&self, key: u8) {
        self.errors[usize::from(key) % KEYS].add(1);
    }

    /// A request of a replaced LUN was refused (SEMANTICS 2.4, "open failures").
    pub fn replaced(&self) {
        self.refused.add(1);
    }

    /// A request that had begun was aborted.
    pub fn aborted(&self) {
        self.ended.add(1);
        self.aborts.add(1);
    }

    /// The LUN was reset.
    pub fn reset(&self) {
        self.resets.add(1);
    }
}

/// All workers' cells of one LUN. Clones are the same cells.
#[derive(Clone, Debug)]
pub struct LunStats(Arc<[CacheLine<LunCell>]>);

impl LunStats {
    /// Cells for `workers` workers, all 0.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| CacheLine::default()).collect())
    }

    /// The cell of worker `worker`; only that worker may write it.
    #[inline]
    #[must_use]
    pub fn cell(&self, worker: usize) -> &LunCell {
        &self.0[worker]
    }

    /// Workers ask the limits from their next request on, or no more. Control, after the limits were set.
    pub fn set_limited(&self, limited: bool) {
        self.0.iter().for_each(|cell| cell.limited.store(limited, Ordering::Relaxed));
    }

    /// Highest depths start over at the present ones. Control: a worker that has a higher one at this moment may win or lose,
    /// and says it again with its next request.
    pub fn clear_depth_max(&self) {
        for cell in &*self.0 {
            cell.depth_max.set(cell.begun.get().wrapping_sub(cell.ended.get()));
        }
    }

    /// The sums over all workers now. Any thread.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        let mut sum = Numbers::default();
        for cell in &*self.0 {
            let mut add = |i: usize, value: u64| sum.values[i] = sum.values[i].wrapping_add(value);
            let cells = [
                &cell.reads,
                &cell.writes,
                &cell.read_bytes,
                &cell.write_bytes,
                &cell.flushes,
                &cell.discards,
                &cell.aborts,
                &cell.resets,
                &cell.refused,
            ];
            cells.iter().enumerate().for_each(|(i, cell)| add(i, cell.get()));
            let at_once = [cell.reads_at_once.get(), cell.writes_at_once.get()];
            at_once.iter().enumerate().for_each(|(i, &count)| add(i, count));
            sum.depth += cell.begun.get().wrapping_sub(cell.ended.get());
            sum.depth_max += cell.depth_max.get();
            sum.errors.iter_mut().zip(&cell.errors).for_each(|(sum, cell)| *sum += cell.get());
            let pairs =
                [(&mut sum.read_buckets, &cell.read_latency), (&mut sum.write_buckets, &cell.write_latency)];
            for ((sums, latencies), at_once) in pairs.into_iter().zip(at_once) {
                sums.resize(BUCKETS, 0);
                sums[bucket(0)] += at_once;
                sums.iter_mut().zip(&latencies.0).for_each(|(sum, cell)| *sum += cell.get());
            }
        }
        sum
    }
}

/// A LUN's numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Reads, writes, bytes read, bytes written, flushes, discards, aborts, resets, refusals of a replaced LUN.
    values: [u64; 9],
    /// Requests under way.
    pub depth: u64,
    /// Most at a time, each worker's own.
    pub depth_max: u64,
    /// Failures by sense key.
    pub errors: [u64; KEYS],
    read_buckets: Vec<u64>,
    write_buckets: Vec<u64>,
}

impl Numbers {
    /// What was counted since `baseline`, which is how numbers are cleared. Depths stay.
    #[must_use]
    pub fn since(&self, baseline: &Self) -> Self {
        let mut result = self.clone();
        let less = |to: &mut [u64], from: &[u64]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = to.wrapping_sub(*from));
        };
        less(&mut result.values, &baseline.values);
        less(&mut result.errors, &baseline.errors);
        less(&mut result.read_buckets, &baseline.read_buckets);
        less(&mut result.write_buckets, &baseline.write_buckets);
        result
    }

    /// The sum of two LUNs.
    pub fn add(&mut self, other: &Self) {
        let more = |to: &mut Vec<u64>, from: &[u64]| {
            to.resize(to.len().max(from.len()), 0);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = to.wrapping_add(*from));
        };
        self.values.iter_mut().zip(other.values).for_each(|(to, from)| *to = to.wrapping_add(from));
        self.errors.iter_mut().zip(other.errors).for_each(|(to, from)| *to = to.wrapping_add(from));
        more(&mut self.read_buckets, &other.read_buckets);
        more(&mut self.write_buckets, &other.write_buckets);
        self.depth += other.depth;
        self.depth_max += other.depth_max;
    }

    /// As the guest reads them.
    #[must_use]
    pub fn statistics(&self) -> vendor::IoStatistics {
        let [reads, writes, read_bytes, write_bytes, flushes, discards, aborts, resets, refusals] =
            self.values;
        vendor::IoStatistics {
            reads,
            writes,
            read_bytes,
            write_bytes,
            flushes,
            discards,
            aborts,
            resets,
            queue_full: 0,
            replaced_refusals: refusals,
            depth: self.depth,
            depth_max: self.depth_max,
            read_latency: percentiles(&self.read_buckets),
            write_latency: percentiles(&self.write_buckets),
            errors: self.errors,
        }
    }

    /// Latencies of reads and of writes, ns.
    #[must_use]
    pub fn histograms(&self) -> [Histogram<u64>; 2] {
        [histogram(&self.read_buckets), histogram(&self.write_buckets)]
    }
}

fn histogram(buckets: &[u64]) -> Histogram<u64> {
    // Bounds that are always valid: 1 ns to 2^41 ns, two digits.
    let mut histogram =
        Histogram::new_with_bounds(1, 1 << 41, 2).unwrap_or_else(|_| unreachable!("fixed bounds"));
    for (bucket, &count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        histogram.saturating_record_n(ceiling(bucket), count);
    }
    histogram
}

fn percentiles(buckets: &[u64]) -> vendor::Latency {
    let histogram = histogram(buckets);
    let at = |quantile| if histogram.is_empty() { 0 } else { histogram.value_at_quantile(quantile) };
    vendor::Latency { p50_ns: at(0.5), p99_ns: at(0.99), p999_ns: at(0.999) }
}

/// The numbers of one ring; written by the worker that serves it.
#[derive(Debug, Default)]
pub struct QueueStats {
    kicks: Cell64,
    notified: Cell64,
    suppressed: Cell64,
    /// What they were when they were last cleared. Locked for the length of a copy, never on the way of a read or write.
    cleared: Mutex<vendor::RingStatistics>,
}

impl QueueStats {
    /// The guest woke us for it.
    pub fn kicked(&self) {
        self.kicks.add(1);
    }

    /// The guest was notified of a publication.
    pub fn notified(&self) {
        self.notified.add(1);
    }

    /// The guest did not want to be.
    pub fn suppressed(&self) {
        self.suppressed.add(1);
    }

    /// They start over. Any thread.
    pub fn clear(&self) {
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner) = self.counted();
    }

    /// As the guest reads them: since they were cleared.
    #[must_use]
    pub fn statistics(&self) -> vendor::RingStatistics {
        // The baseline first: one that is set in between would be ahead of the counts.
        let before = *self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.counted();
        vendor::RingStatistics {
            kicks: now.kicks.wrapping_sub(before.kicks),
            notifications_sent: now.notifications_sent.wrapping_sub(before.notifications_sent),
            notifications_suppressed: now
                .notifications_suppressed
                .wrapping_sub(before.notifications_suppressed),
        }
    }

    fn counted(&self) -> vendor::RingStatistics {
        vendor::RingStatistics {
            kicks: self.kicks.get(),
            notifications_sent: self.notified.get(),
            notifications_suppressed: self.suppressed.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_counts_from_when_it_was_cleared() {
        let ring = QueueStats::default();
        ring.kicked();
        ring.notified();
        ring.suppressed();
        ring.clear();
        assert_eq!(ring.statistics(), vendor::RingStatistics::default());
        ring.kicked();
        let now = ring.statistics();
        assert_eq!((now.kicks, now.notifications_sent, now.notifications_suppressed), (1, 0, 0));
    }

    #[test]
    fn buckets_follow_each_other_and_hold_what_they_say() {
        let mut last = 0;
        for ns in (8..100_000).chain([1 << 30, (1 << 39) + 12345]) {
            let bucket = bucket(ns);
            assert!(bucket >= last && ceiling(bucket) >= ns, "{ns}");
            assert!(ceiling(bucket) <= ns + ns / 8, "{ns} to an eighth");
            last = bucket;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_answered_at_once_counts_like_the_rest() {
        let stats = LunStats::new(1);
        let cell = stats.cell(0);
        cell.began();
        cell.good_at_once(false, 3, 12288);
        cell.good_at_once(true, 1, 512);
        cell.good(Class::Read, 4096, 5000);
        let numbers = stats.numbers();
        let io = numbers.statistics();
        assert_eq!((io.reads, io.read_bytes, io.writes, io.write_bytes), (4, 16384, 1, 512));
        assert_eq!((io.depth, io.depth_max), (0, 2), "one was under way beside them");
        assert_eq!(numbers.histograms().map(|histogram| histogram.len()), [4, 1]);
        assert!(io.read_latency.p50_ns < 10 && io.read_latency.p999_ns >= 5000, "{:?}", io.read_latency);
    }

    #[test]
    fn what_a_request_at_once_counts_stands_in_one_line() {
        let first_line = 0..64 - size_of::<Cell64>();
        assert!(first_line.contains(&std::mem::offset_of!(LunCell, depth_max)));
        assert!(first_line.contains(&std::mem::offset_of!(LunCell, writes_at_once)));
        assert!((0..64).contains(&std::mem::offset_of!(LunCell, limited)));
        assert_eq!(align_of::<CacheLine<LunCell>>() % 64, 0);
    }

    #[test]
    fn taken_is_ended_and_under_way() {
        let stats = LunStats::new(2);
        for i in 0..10 {
            stats.cell(0).began();
            stats.cell(0).good(Class::Read, 4096, 1000 * (i + 1));
        }
        stats.cell(1).began();
        stats.cell(1).began();
        stats.cell(1).failed(3);
        let numbers = stats.numbers();
        let io = numbers.statistics();
        assert_eq!((io.reads, io.read_bytes, io.errors[3], io.depth, io.depth_max), (10, 40960, 1, 1, 3));
        assert!((5000..=5700).contains(&io.read_latency.p50_ns), "{:?}", io.read_latency);
        stats.clear_depth_max();
        assert_eq!(stats.numbers().depth_max, 1, "what is under way now");
        stats.cell(1).began();
        assert_eq!(stats.numbers().depth_max, 2);
        assert_eq!(numbers.since(&numbers).statistics().reads, 0);
        assert_eq!(numbers.since(&numbers).statistics().read_latency.p99_ns, 0);
    }
}
