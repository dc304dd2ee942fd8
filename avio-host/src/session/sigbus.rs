//! SIGBUS inside guest memory: a VMM that truncates its shared file must not kill the daemon (DESIGN section 6).
//!
//! Owns the process's SIGBUS handler and a fixed table of watched ranges that the handler can read without a lock. The
//! handler puts anonymous memory under the faulting address, marks the range as failed and writes an eventfd, so that the
//! control thread ends the session. A fault anywhere else takes the way it would have taken without this file.

#![expect(unsafe_code, reason = "a signal handler and a mapping over a faulting page (DESIGN section 6)")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// Ranges watched at once: a thousand guests with 16 regions each. 24 bytes each, untouched pages cost nothing.
const SLOTS: usize = 16_384;
/// How much is replaced at a fault, at least, in bytes: large enough that a burst ends after few faults, small enough to be
/// quick inside a handler. Larger pages are replaced whole.
const WINDOW_LEN: usize = 2 << 20;

struct Slot {
    /// Taken by a `Watch`.
    used: AtomicBool,
    /// First address; 0 while the slot is not in force.
    start: AtomicUsize,
    len: AtomicUsize,
    page_len: AtomicUsize,
    failed: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        used: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page_len: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
    }
}; SLOTS];
/// No slot at or above this one was ever used.
static HIGH: AtomicUsize = AtomicUsize::new(0);
/// The eventfd the handler writes; -1 before it is there.
static ALARM: AtomicI32 = AtomicI32::new(-1);

struct Installed {
    alarm: OwnedFd,
    previous: libc::sigaction,
}

static INSTALLED: OnceLock<Result<Installed, String>> = OnceLock::new();

/// A watched range; dropping it ends the watch.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    pub(super) fn has_failed(&self) -> bool {
        TABLE[self.slot].failed.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let slot = &TABLE[self.slot];
        slot.start.store(0, Ordering::SeqCst);
        slot.failed.store(false, Ordering::SeqCst);
        slot.used.store(false, Ordering::SeqCst);
    }
}

/// Watches `len` bytes at `start`, both multiples of `page_len`.
pub(super) fn watch(start: usize, len: usize, page_len: usize) -> Result<Watch, String> {
    installed()?;
    for (i, slot) in TABLE.iter().enumerate() {
        if slot.used.load(Ordering::Relaxed) || slot.used.swap(true, Ordering::SeqCst) {
            continue;
        }
        HIGH.fetch_max(i + 1, Ordering::SeqCst);
        slot.failed.store(false, Ordering::SeqCst);
        slot.len.store(len, Ordering::SeqCst);
        slot.page_len.store(page_len, Ordering::SeqCst);
        slot.start.store(start, Ordering::SeqCst);
        return Ok(Watch { slot: i });
    }
    Err(format!("more than {SLOTS} memory regions in this daemon"))
}

/// Becomes readable whenever a range has failed. Never read it dry: every event loop that watches it (edge-triggered) must
/// see each write.
pub(super) fn alarm() -> io::Result<BorrowedFd<'static>> {
    use std::os::fd::AsFd;
    installed().map(|i| i.alarm.as_fd()).map_err(io::Error::other)
}

fn installed() -> Result<&'static Installed, String> {
    let installed = INSTALLED.get_or_init(|| {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let alarm = rustix::event::eventfd(0, flags).map_err(|e| format!("eventfd for SIGBUS: {e}"))?;
        ALARM.store(alarm.as_raw_fd(), Ordering::SeqCst);
        // SAFETY: all-zero bytes are a valid `sigaction`; `handler` has the signature that SA_SIGINFO asks for and calls
        // only what is safe in a signal handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut previous: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            if libc::sigaction(libc::SIGBUS, &action, &mut previous) != 0 {
                return Err(format!("SIGBUS handler: {}", io::Error::last_os_error()));
            }
            Ok(Installed { alarm, previous })
        }
    });
    installed.as_ref().map_err(Clone::clone)
}

/// Runs on whichever thread touched the missing page. Only atomics and system calls; keeps errno.
extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, and for SIGBUS its address field is set; errno is this thread's own.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    if !replace(address) {
        give_up(signal);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros under a watched address; false if it is none of ours, or cannot be done.
fn replace(address: usize) -> bool {
    for slot in &TABLE[..HIGH.load(Ordering::SeqCst).min(SLOTS)] {
        let start = slot.start.load(Ordering::SeqCst);
        let len = slot.len.load(Ordering::SeqCst);
        if start == 0 || address.wrapping_sub(start) >= len {
            continue;
        }
        let window = slot.page_len.load(Ordering::SeqCst).max(WINDOW_LEN);
        let at = address & !(window - 1);
        let from = at.max(start);
        let to = at.saturating_add(window).min(start + len);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: `from..to` lies inside a mapping that its `Watch` keeps in place, so nothing but guest memory is
        // replaced; `mmap` is a plain system call.
        let new = unsafe {
            libc::mmap(from as *mut libc::c_void, to - from, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if new == libc::MAP_FAILED {
            return false;
        }
        slot.failed.store(true, Ordering::SeqCst);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of our own; a failing write (the counter is full) means that the alarm is up already.
        unsafe { libc::write(ALARM.load(Ordering::SeqCst), one.as_ptr().cast(), one.len()) };
        return true;
    }
    false
}

/// Hands the signal to whoever had it before: the instruction faults again on return.
fn give_up(signal: libc::c_int) {
    let previous = match INSTALLED.get() {
        Some(Ok(installed)) => &raw const installed.previous,
        _ => ptr::null(),
    };
    // SAFETY: `previous` is null or points to what `sigaction` filled in, in a static; setting the default action is always
    // allowed.
    unsafe {
        if previous.is_null() {
            libc::signal(signal, libc::SIG_DFL);
        } else {
            libc::sigaction(signal, previous, ptr::null_mut());
        }
    }
}
