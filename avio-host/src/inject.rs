//! Panics and mishaps on demand: the hidden test hook of DESIGN section 6.
//!
//! The data path calls [`point`] at each of its steps; a test names a step and an occurrence, in the environment of a daemon
//! (`AVIO_TEST_PANIC=step:nth`, several separated by commas) or by [`arm`] in its own process, and that call panics. Where something
//! happens that no test can bring about, [`happens`] says so instead. Nobody else uses it; when off, a point is one relaxed load.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Any injection is armed.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Steps to panic at, with the occurrences left until then.
static STEPS: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());

/// Panics here if this is the occurrence of `step` that a test asked for.
#[inline]
pub fn point(step: &str) {
    if ARMED.load(Ordering::Relaxed) {
        reached(step);
    }
}

/// Whether what `step` stands for is to happen here: this is the occurrence that a test asked for.
#[inline]
#[must_use]
pub fn happens(step: &str) -> bool {
    ARMED.load(Ordering::Relaxed) && is_due(step)
}

/// Makes the `nth` next call of `point(step)` (1: the very next) panic, once.
pub fn arm(step: &str, nth: u64) {
    let mut steps = STEPS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    steps.push((step.to_owned(), nth.max(1)));
    ARMED.store(true, Ordering::Relaxed);
}

/// Arms what `AVIO_TEST_PANIC` asks for; called once by a daemon's `main`. `Err` is the part that is not `step:nth`.
pub fn arm_from_environment() -> Result<(), String> {
    std::env::var("AVIO_TEST_PANIC").map_or(Ok(()), |list| arm_list(&list))
}

fn arm_list(list: &str) -> Result<(), String> {
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (step, nth) = part.rsplit_once(':').ok_or(part)?;
        arm(step, nth.parse().map_err(|_| part)?);
    }
    Ok(())
}

#[cold]
fn reached(step: &str) {
    if is_due(step) {
        panic!("injected at step {step}");
    }
}

/// Counts an occurrence of `step`; true for the one that was asked for.
#[cold]
fn is_due(step: &str) -> bool {
    let mut steps = STEPS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(at) = steps.iter().position(|(name, _)| name == step) else { return false };
    steps[at].1 -= 1;
    let is_due = steps[at].1 == 0;
    if is_due {
        steps.swap_remove(at);
        ARMED.store(!steps.is_empty(), Ordering::Relaxed);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(step: &'static str) -> bool {
        std::panic::catch_unwind(|| point(step)).is_err()
    }

    #[test]
    fn the_nth_occurrence_panics_once() {
        arm("inject::test", 3);
        let outcome: Vec<bool> = (0..5).map(|_| panics("inject::test")).collect();
        assert_eq!(outcome, [false, false, true, false, false]);
    }

    #[test]
    fn the_nth_occurrence_happens_once() {
        arm("inject::mishap", 2);
        let outcome: Vec<bool> = (0..4).map(|_| happens("inject::mishap")).collect();
        assert_eq!(outcome, [false, true, false, false]);
    }

    #[test]
    fn the_environment_names_several_steps() {
        assert_eq!(arm_list("inject::a:1,inject::b:2"), Ok(()));
        assert!(panics("inject::a") && !panics("inject::b") && panics("inject::b"));
        assert_eq!(arm_list("inject::c"), Err("inject::c".into()));
        assert_eq!(arm_list("inject::c:soon"), Err("inject::c:soon".into()));
    }
}
