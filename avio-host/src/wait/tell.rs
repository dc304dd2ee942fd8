//! Writing to a descriptor of the front-end's without ever being held by it.
//!
//! `O_NONBLOCK` belongs to the open file, and the front-end has the same one: it may clear the flag, fill the counter, and
//! whoever notifies it next sleeps in `write` for ever, with every barrier and every other guest behind him. No call
//! writes to an eventfd without that risk. So a writer says in a word of its own that it is writing, and a guard thread
//! interrupts one that does not come back. [`tell`] then reports it, and the caller does not write there again.
//!
//! Workers and the control thread call [`tell`]; it costs two stores beside the system call. Nothing here knows rings.

#![expect(unsafe_code, reason = "a signal handler that does nothing, and a signal to one thread of ours")]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Between two looks while somebody writes. A write takes microseconds; one that is seen in two looks is held.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Between two looks while nobody does: ten wake-ups a second cost nothing, and a first offence is over in a quarter second.
const LOOK_EVERY_IDLE: Duration = Duration::from_millis(200);
/// Ignored by default and used by nothing else here: a stray one does no harm.
const INTERRUPT: libc::c_int = libc::SIGURG;

/// One thread that writes. Odd: it is in a write.
struct Writer {
    thread: libc::pid_t,
    writes: AtomicU64,
}

/// All of them, with what the guard saw last.
static WRITERS: Mutex<Vec<(Weak<Writer>, u64)>> = Mutex::new(Vec::new());
/// Whether the guard runs.
static GUARD: OnceLock<bool> = OnceLock::new();

thread_local! {
    static ME: Arc<Writer> = register();
}

/// Adds one to the eventfd, or a few bytes to the pipe, `fd`. `false`: the write was held and had to be interrupted; do not
/// write there again. A counter or pipe that is full has told already. Any thread.
#[must_use = "a descriptor that held its writer must not be written again"]
pub fn tell(fd: &OwnedFd) -> bool {
    ME.with(|me| {
        // Single writer: plain loads and stores. Release, so that the guard does not see the end before the beginning.
        let begun = me.writes.load(Ordering::Relaxed).wrapping_add(1);
        me.writes.store(begun, Ordering::Release);
        let written = rustix::io::write(fd, &1u64.to_ne_bytes());
        me.writes.store(begun.wrapping_add(1), Ordering::Release);
        // Without a wait there is nothing to interrupt.
        written != Err(rustix::io::Errno::INTR)
    })
}

fn register() -> Arc<Writer> {
    // SAFETY: a plain system call without arguments.
    let thread = unsafe { libc::gettid() };
    let writer = Arc::new(Writer { thread, writes: AtomicU64::new(0) });
    WRITERS.lock().unwrap_or_else(PoisonError::into_inner).push((Arc::downgrade(&writer), 0));
    if !*GUARD.get_or_init(start_guard) {
        tracing::error!("no guard against descriptors that hold their writer: out of threads");
    }
    writer
}

fn start_guard() -> bool {
    // SAFETY: all-zero bytes are a valid `sigaction`; the handler does nothing, so it may run anywhere. Without SA_RESTART,
    // because the interrupted call is to return.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        if libc::sigaction(INTERRUPT, &action, std::ptr::null_mut()) != 0 {
            return false;
        }
    }
    let guard = || {
        loop {
            std::thread::sleep(if look() { LOOK_EVERY } else { LOOK_EVERY_IDLE });
        }
    };
    std::thread::Builder::new().name("write-guard".into()).spawn(guard).is_ok()
}

/// Interrupts writers that are in the same write as at the last look. Returns whether anybody has written since.
fn look() -> bool {
    let mut busy = false;
    WRITERS.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|(writer, seen)| {
        let Some(writer) = writer.upgrade() else { return false };
        let writes = writer.writes.load(Ordering::Acquire);
        busy |= writes % 2 == 1 || writes != *seen;
        if writes % 2 == 1 && writes == *seen {
            // SAFETY: plain system calls. If the thread has come back or ended meanwhile, a signal that does nothing reaches
            // a thread of ours, or nobody.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), writer.thread, INTERRUPT) };
        }
        *seen = writes;
        true
    });
    busy
}

extern "C" fn nothing(_signal: libc::c_int) {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::time::Instant;

    #[test]
    fn a_counter_is_raised() {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        assert!(tell(&fd) && tell(&fd));
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 2);
    }

    #[test]
    fn a_full_counter_has_told_already() {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(tell(&fd));
    }

    #[test]
    fn nobody_is_held_by_a_front_end_that_cleared_the_flag() {
        // The flag is shared: clearing it on a duplicate clears it for all.
        let eventfd = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&pipe, 4096).unwrap();
        (0..512).for_each(|_| assert_eq!(rustix::io::write(&pipe, &[0; 8]), Ok(8)));
        for fd in [eventfd, pipe] {
            let (done, ended) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let began = Instant::now();
                let _ = done.send((tell(&fd), began.elapsed()));
            });
            let (told, held) =
                ended.recv_timeout(Duration::from_secs(20)).expect("the writer is held for ever");
            assert!(!told);
            assert!(held >= LOOK_EVERY, "interrupted after {held:?}: what if it had only been slow?");
        }
    }
}
