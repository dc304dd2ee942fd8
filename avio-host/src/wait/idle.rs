//! How long an empty source is polled before it is armed.
//!
//! Called by the worker loop with its coarse clock. Knows nothing of file descriptors or rings.

use std::time::Duration;

use avio_proto::config::PollMode;

use crate::wait::wake_cost;

/// Share of the newest gap in the running mean: 1/8, so that some ten packets of a new load change the decision.
const MEAN_SHIFT: u32 = 3;
/// A gap counts as at most this many spin budgets. After an hour's silence a new load must be believed within a dozen
/// packets, so the hour may not weigh more than a gap that is merely too long to spin for.
const GAP_CEILING_SPINS: u64 = 4;

/// The decision of one worker: mode and the two durations it weighs.
#[derive(Debug, Clone, Copy)]
pub struct IdlePolicy {
    mode: PollMode,
    spin_ns: u64,
    wake_cost_ns: u64,
}

impl IdlePolicy {
    /// Policy for `mode` (always: every source is polled for ever and the worker never sleeps; adaptive; never: a source is
    /// armed as soon as empty) with at most `spin_us` microseconds of spinning per source. Measures the wake-up cost when it is
    /// the first of the process (about a millisecond).
    pub fn new(mode: PollMode, spin_us: u32) -> Self {
        Self::with_wake_cost(mode, spin_us, wake_cost())
    }

    fn with_wake_cost(mode: PollMode, spin_us: u32, wake_cost: Duration) -> Self {
        let wake_cost_ns = u64::try_from(wake_cost.as_nanos()).unwrap_or(u64::MAX);
        Self { mode, spin_ns: u64::from(spin_us) * 1_000, wake_cost_ns }
    }

    /// Whether this worker ever arms and sleeps.
    pub(crate) fn sleeps(&self) -> bool {
        self.mode != PollMode::Always
    }

    /// Whether a source that was drained is armed without looking at it once more.
    pub(crate) fn arms_at_once(&self) -> bool {
        self.mode == PollMode::Never
    }

    /// How long a source with these past gaps is polled while empty, ns.
    ///
    /// Work that usually comes within the configured spin is waited for that long. Work that usually comes later is
    /// waited for as long as a wake-up costs: whoever rents for the price of buying never pays more than twice.
    #[inline]
    fn budget_ns(&self, source: &SourceIdle) -> u64 {
        match self.mode {
            PollMode::Always => u64::MAX,
            PollMode::Never => 0,
            PollMode::Adaptive if source.mean_gap_ns <= self.spin_ns => self.spin_ns,
            PollMode::Adaptive => self.wake_cost_ns.min(self.spin_ns),
        }
    }
}

/// What one source remembers of its own idling. Times are ns of the worker's coarse clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SourceIdle {
    /// Last poll that found work.
    worked_ns: u64,
    /// Since when it has been polled in vain (also set when a kick activates it).
    empty_since_ns: u64,
    /// Running mean of the time from becoming empty to the next work.
    mean_gap_ns: u64,
    /// The last poll found nothing.
    empty: bool,
}

impl SourceIdle {
    /// A source made active at `now_ns`: expected to have traffic until it shows otherwise.
    pub(crate) fn new(now_ns: u64) -> Self {
        Self { worked_ns: now_ns, empty_since_ns: now_ns, mean_gap_ns: 0, empty: false }
    }

    /// Polled and found work.
    #[inline]
    pub(crate) fn worked(&mut self, policy: &IdlePolicy, now_ns: u64) {
        if self.empty {
            let gap_ns = now_ns.saturating_sub(self.worked_ns).min(policy.spin_ns * GAP_CEILING_SPINS);
            self.mean_gap_ns = self.mean_gap_ns - (self.mean_gap_ns >> MEAN_SHIFT) + (gap_ns >> MEAN_SHIFT);
            self.empty = false;
        }
        self.worked_ns = now_ns;
    }

    /// Polled in vain. Returns whether the spin budget is used up.
    #[inline]
    pub(crate) fn found_empty(&mut self, policy: &IdlePolicy, now_ns: u64) -> bool {
        if !self.empty {
            self.empty = true;
            self.empty_since_ns = now_ns;
        }
        now_ns.saturating_sub(self.empty_since_ns) >= policy.budget_ns(self)
    }

    /// A kick, or a look after arming, says that there is work: polled again from `now_ns` on.
    pub(crate) fn activated(&mut self, now_ns: u64) {
        self.empty_since_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN_NS: u64 = 50_000;
    const COST_NS: u64 = 10_000;

    fn policy(mode: PollMode) -> IdlePolicy {
        IdlePolicy::with_wake_cost(mode, 50, Duration::from_nanos(COST_NS))
    }

    /// Work arrives every `gap_ns`, `times` times; returns the budget that is left to the source, and the clock.
    fn run(
        source: &mut SourceIdle,
        policy: &IdlePolicy,
        mut now_ns: u64,
        gap_ns: u64,
        times: u32,
    ) -> (u64, u64) {
        for _ in 0..times {
            source.found_empty(policy, now_ns);
            now_ns += gap_ns;
            source.worked(policy, now_ns);
        }
        (policy.budget_ns(source), now_ns)
    }

    #[test]
    fn short_gaps_are_spun_for_and_long_ones_are_not() {
        let policy = policy(PollMode::Adaptive);
        let mut source = SourceIdle::new(0);
        assert_eq!(policy.budget_ns(&source), SPIN_NS, "a new source gets the benefit of the doubt");
        let (budget_ns, now_ns) = run(&mut source, &policy, 0, 1_000_000, 8);
        assert_eq!(budget_ns, COST_NS, "a packet per millisecond is not worth spinning for");
        let (budget_ns, _) = run(&mut source, &policy, now_ns, 5_000, 20);
        assert_eq!(budget_ns, SPIN_NS, "a new load is believed within 20 packets");
    }

    #[test]
    fn an_hour_of_silence_weighs_no_more_than_four_spins() {
        let policy = policy(PollMode::Adaptive);
        let mut source = SourceIdle::new(0);
        run(&mut source, &policy, 0, 3_600_000_000_000, 1);
        assert_eq!(source.mean_gap_ns, SPIN_NS * 4 / 8);
    }

    #[test]
    fn budget_is_counted_from_the_first_empty_poll_or_the_activation() {
        let policy = policy(PollMode::Adaptive);
        let mut source = SourceIdle::new(0);
        source.worked(&policy, 1_000);
        assert!(!source.found_empty(&policy, 9_000));
        assert!(!source.found_empty(&policy, 9_000 + SPIN_NS - 1));
        assert!(source.found_empty(&policy, 9_000 + SPIN_NS));
        source.activated(200_000);
        assert!(!source.found_empty(&policy, 200_000 + SPIN_NS - 1));
        assert!(source.found_empty(&policy, 200_000 + SPIN_NS));
    }

    #[test]
    fn always_never_arms_and_never_arms_at_once() {
        let mut source = SourceIdle::new(0);
        assert!(!source.found_empty(&policy(PollMode::Always), u64::MAX - 1));
        let mut source = SourceIdle::new(0);
        assert!(source.found_empty(&policy(PollMode::Never), 0));
        assert!(policy(PollMode::Never).arms_at_once() && !policy(PollMode::Always).sleeps());
    }
}
