//! What a worker asks of the data path it runs.
//!
//! Implemented by the daemons, called by the worker loop (`turn`) on the worker's thread only.

use std::time::{Duration, Instant};

use crate::wait::{Sources, Token};

/// What one batch of one source came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    /// There was nothing to do. The source may be armed and the worker may sleep.
    Idle,
    /// There was nothing to do, nor will there be for longer than a wake-up costs, as far as the engine knows: what the guest
    /// waits for is with the kernel. Armed without further looking, unless the worker never sleeps.
    Waiting,
    /// The source made progress, or has work that cannot be done right now (`items` 0, `more` true: the egress is
    /// locked by another worker, say). It is polled again.
    Worked {
        /// Frames or requests taken.
        items: usize,
        /// More was there than the budget allowed, or could be done.
        more: bool,
    },
    /// The source cannot go on (a bad ring). It is not polled again, its kicks are ignored; the engine has counted and
    /// reported it, and removes it from [`Sources`] when control says so.
    Broken,
}

/// A data path as a worker runs it. One value per worker; its methods are called on that worker's thread alone.
///
/// A turn of the worker is: commands, `poll_kernel`, one `poll` of every active source, `turn_end`. Between two turns is a quiescent
/// point: the engine holds no reference into a table or ring that control may take away, and none of its methods is
/// running. No method may block or allocate without bound.
///
/// A panic inside `poll`, `arm` or `disarm` breaks that source only: see [`source_panicked`](Self::source_panicked). A panic
/// in any other method ends the process (DESIGN section 6).
pub trait Engine: Send + 'static {
    /// What control sends: add and remove sources, take over a new table. Replies travel by whatever channel the command
    /// carries, followed by [`ControlWaker::wake`](crate::worker::ControlWaker::wake); the worker itself also wakes control
    /// after it has taken up its commands.
    type Command: Send + 'static;

    /// The first call, on the worker's thread: the place to keep `sources.stats()`.
    fn started(&mut self, sources: &mut Sources) {
        let _ = sources;
    }

    /// Takes up one command, at a quiescent point, in the order sent.
    fn command(&mut self, sources: &mut Sources, command: Self::Command);

    /// Takes up what the kernel has completed since the last turn; returns how many completions. Once a turn, so with
    /// nothing to find it may cost a load or two and no system call. An engine without kernel I/O has none.
    fn poll_kernel(&mut self, sources: &mut Sources) -> usize {
        let _ = sources;
        0
    }

    /// The end of a turn in which nothing was found: no completion, no work at any source. The worker goes on polling, or
    /// sleeps next. An engine whose operations need this core for the kernel's own threads lets them have it here.
    fn turn_in_vain(&mut self) {}

    /// Sleeps until a source is kicked, control announces something, a kernel operation of the engine completes or `timeout`
    /// is over (`None`: no limit); returns how many events there were. An engine with kernel I/O waits for both at once.
    fn wait(&mut self, sources: &mut Sources, timeout: Option<Duration>) -> usize {
        sources.wait(timeout)
    }

    /// Another active source is polled just before this one, so what its poll will look at first may be fetched meanwhile.
    #[inline]
    fn expect(&mut self, token: Token) {
        let _ = token;
    }

    /// Processes at most `budget` items of one active source. Bounded in time as well (DESIGN section 3).
    fn poll(&mut self, token: Token, budget: usize) -> Polled;

    /// Asks the guest to notify, makes a full fence, looks again; returns whether there is work already
    /// ([`wait::arm::arm`](crate::wait::arm::arm) is that algorithm). After `true` the worker calls `disarm` and polls on.
    /// Only called for sources that have a kick fd.
    fn arm(&mut self, token: Token) -> bool;

    /// Asks the guest not to notify: the source is polled from now on. Called before the first `poll` of a new source too.
    fn disarm(&mut self, token: Token);

    /// The end of a turn in which at least one source worked: flush what was staged across sources. Staged work must not
    /// wait for a later turn, because the worker may sleep next.
    fn turn_end(&mut self, sources: &mut Sources) {
        let _ = sources;
    }

    /// Called about every [`WorkerOptions::tick`](crate::worker::WorkerOptions::tick), asleep or not; not at all without one.
    fn tick(&mut self, now: Instant, sources: &mut Sources) {
        let _ = (now, sources);
    }

    /// A batch of `token` panicked, and its guards have been dropped. The source is out of the active list for good; the
    /// engine marks its ring broken (whatever it had half published) and tells control.
    fn source_panicked(&mut self, token: Token);
}
