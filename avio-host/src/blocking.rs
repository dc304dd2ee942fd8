//! Helper threads: whatever may block, so that the control thread never does (DESIGN section 5).
//!
//! Owns a few threads behind one queue. Sessions hand them mapping, unmapping and file creation; results come back through a
//! [`Mailbox`], which wakes the control thread's event loop. A job must not wait for another job.

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::Waker;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

/// Helper threads of a daemon. Mapping is short; the second thread is there for when one job waits for a disk.
pub const DEFAULT_THREADS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the helper threads; they end when the last handle is dropped and the queue is empty.
#[derive(Clone, Debug)]
pub struct Helpers {
    queue: Sender<Job>,
}

impl Helpers {
    /// Starts `threads` threads (at least 1).
    ///
    /// # Errors
    /// If a thread cannot be created.
    pub fn new(threads: usize) -> io::Result<Self> {
        let (queue, jobs) = unbounded::<Job>();
        for i in 0..threads.max(1) {
            let jobs = jobs.clone();
            thread::Builder::new().name(format!("helper-{i}")).spawn(move || run(&jobs))?;
        }
        Ok(Self { queue })
    }

    /// Runs `job` on a helper thread, in order of arrival; at once on this thread if the helpers are gone. Never blocks
    /// while they are there. Any thread.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(lost) = self.queue.send(Box::new(job)) {
            (lost.into_inner())();
        }
    }
}

fn run(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        // A panic loses that job's answer, not the thread that the other guests need.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a helper job panicked; what it was for does not go on");
        }
    }
}

/// Runs the part of a job whose answer somebody waits for: a panic in it becomes an answer, too, or a session would wait for
/// ever.
///
/// # Errors
/// The job's own, or that it panicked (the panic itself is in the log).
pub fn answered<T>(job: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| Err("a fault of ours, see the log".to_owned()))
}

/// Where results of helper jobs arrive. Owned by the control thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    inbox: Receiver<T>,
    address: Reply<T>,
}

/// The sending end of a [`Mailbox`].
#[derive(Debug)]
pub struct Reply<T> {
    queue: Sender<T>,
    waker: Arc<Waker>,
}

impl<T> Clone for Reply<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<T> Mailbox<T> {
    /// A mailbox whose arrivals make `waker`'s event loop turn.
    #[must_use]
    pub fn new(waker: Arc<Waker>) -> Self {
        let (queue, inbox) = unbounded();
        Self { inbox, address: Reply { queue, waker } }
    }

    /// The sending end, for a job.
    #[must_use]
    pub fn reply(&self) -> Reply<T> {
        self.address.clone()
    }

    /// The next result, if one has arrived.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        self.inbox.try_recv().ok()
    }
}

impl<T> Reply<T> {
    /// Delivers a result; dropped if the mailbox is gone. Any thread.
    pub fn send(&self, result: T) {
        if self.queue.send(result).is_ok() {
            // Failing to wake means that the loop is being torn down.
            let _ = self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    #[test]
    fn a_panic_is_an_answer() {
        assert_eq!(answered(|| Ok(1)), Ok(1));
        assert!(answered::<u8>(|| panic!("expected by the test")).unwrap_err().contains("fault of ours"));
    }

    #[test]
    fn a_result_wakes_the_loop_even_after_a_panic() {
        let mut poll = Poll::new().unwrap();
        let mailbox = Mailbox::new(Arc::new(Waker::new(poll.registry(), Token(7)).unwrap()));
        let helpers = Helpers::new(1).unwrap();
        helpers.run(|| panic!("expected by the test"));
        let reply = mailbox.reply();
        helpers.run(move || reply.send(42));
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert_eq!(events.iter().next().map(|e| e.token()), Some(Token(7)));
        assert_eq!(mailbox.take(), Some(42));
        assert_eq!(mailbox.take(), None);
    }
}
