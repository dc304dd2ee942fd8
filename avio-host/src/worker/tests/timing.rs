//! What a worker costs when idle, how fast it wakes, and that no wake-up gets lost.
//!
//! Bounds hold on a machine that is busy with other things: figures are CPU time or medians, and a timing may be tried again.

use super::*;

/// Times a measurement of elapsed time may be repeated when the machine was busy.
const TRIES: usize = 10;

/// CPU time of the worker during `elapsed`.
fn cpu_during(worker: &Worker<Command>, elapsed: Duration, mut meanwhile: impl FnMut()) -> f64 {
    let (before, start) = (ask(worker, Command::CpuTime), Instant::now());
    while start.elapsed() < elapsed {
        meanwhile();
    }
    let used = ask(worker, Command::CpuTime) - before;
    used.as_secs_f64() / start.elapsed().as_secs_f64()
}

#[test]
fn sixty_four_idle_sources_cost_nothing() {
    let worker = worker(WorkerOptions::default());
    let rings: Vec<_> = (0..64).map(|_| Arc::new(FakeRing::new())).collect();
    for ring in &rings {
        add(&worker, ring);
    }
    for ring in &rings {
        ring.publish();
    }
    until("all are armed again", || {
        rings.iter().all(|ring| ring.is_drained() && ring.wants_kicks.load(Ordering::Relaxed))
    });
    let before = worker.stats().totals();
    let share =
        cpu_during(&worker, Duration::from_secs(1), || std::thread::sleep(Duration::from_millis(100)));
    let idle = worker.stats().totals().since(&before);
    println!("64 idle sources: {:.4} % of a core, {} sleeps", share * 100.0, idle.sleeps);
    assert!(share < 0.01, "{share}");
    assert_eq!(idle.polls, 0, "nothing armed is polled");
    // One for each question about the CPU time, and the end of what was going on before.
    assert!(idle.sleeps <= 4, "{idle:?}");
    worker.stop();
}

#[test]
fn kickless_sources_cost_little_when_idle() {
    let worker = worker(WorkerOptions::default());
    let rings: Vec<_> = (0..16).map(|_| Arc::new(FakeRing::new())).collect();
    for ring in &rings {
        add_kickless(&worker, ring);
    }
    let share =
        cpu_during(&worker, Duration::from_secs(1), || std::thread::sleep(Duration::from_millis(100)));
    println!("16 kickless idle sources: {:.2} % of a core", share * 100.0);
    assert!(share < 0.05, "{share}");
    rings[3].publish();
    until("it is found without a kick", || rings[3].is_drained());
    worker.stop();
}

#[test]
fn a_trickle_is_not_spun_for() {
    let worker = worker(WorkerOptions::default());
    let ring = Arc::new(FakeRing::new());
    add(&worker, &ring);
    let share = cpu_during(&worker, Duration::from_secs(1), || {
        ring.publish();
        std::thread::sleep(Duration::from_millis(1));
    });
    println!("1,000 items a second: {:.2} % of a core", share * 100.0);
    assert!(share < 0.10, "{share}");
    worker.stop();
}

#[test]
fn the_first_item_after_idle_is_taken_at_once() {
    let worker = worker(WorkerOptions::default());
    let rings: Vec<_> = (0..16).map(|_| Arc::new(FakeRing::new())).collect();
    for ring in &rings {
        add(&worker, ring);
    }
    let mut median_us = f64::MAX;
    for _ in 0..TRIES {
        let mut latencies_ns: Vec<u64> = (0..100)
            .map(|round| {
                let ring = &rings[round % rings.len()];
                until("it sleeps", || ring.wants_kicks.load(Ordering::Relaxed));
                std::thread::sleep(Duration::from_micros(500));
                assert!(ring.publish(), "an idle ring wants a kick");
                until("it is taken", || ring.is_drained());
                ring.latency_ns.load(Ordering::Relaxed)
            })
            .collect();
        latencies_ns.sort_unstable();
        median_us = median_us.min(latencies_ns[50] as f64 / 1_000.0);
        if median_us < 100.0 {
            break;
        }
    }
    println!("first item after idle: median {median_us:.1} us, wake-up cost {:?}", crate::wait::wake_cost());
    assert!(median_us < 100.0, "{median_us} us");
    worker.stop();
}

#[test]
fn no_wake_up_is_lost_between_a_driver_and_a_worker_that_keeps_arming() {
    const DURATION: Duration = Duration::from_millis(1_500);
    for mode in [PollMode::Never, PollMode::Adaptive] {
        let worker = worker(options(mode, 1));
        let ring = Arc::new(FakeRing::new());
        let token = add(&worker, &ring);
        let (mut rounds, mut kicks) = (0u64, 0u64);
        let start = Instant::now();
        while start.elapsed() < DURATION {
            // An item right after the last one was taken hits the arming; pauses sweep over what comes after it.
            for _ in 0..rounds % 3 * (rounds / 3 % 100) {
                std::hint::spin_loop();
            }
            ring.arm_pause.store(rounds % 8 * 4, Ordering::Relaxed);
            kicks += u64::from(ring.publish());
            // Watched without a system call for a while, so that the next item can come within nanoseconds.
            for _ in 0..10_000 {
                if ring.is_drained() {
                    break;
                }
                std::hint::spin_loop();
            }
            until("the item is taken", || ring.is_drained());
            rounds += 1;
            if rounds.is_multiple_of(64) {
                // And the same for the command channel.
                ask(&worker, Command::CpuTime);
            }
        }
        let totals = worker.stats().totals();
        println!("{mode:?}: {rounds} rounds, {kicks} kicks, {} armings found work", totals.armings_in_vain);
        assert_eq!(totals.items, rounds);
        assert!(kicks > 0 && totals.armings > 0);
        worker.send(Command::Remove(token)).unwrap();
        worker.stop();
    }
}

#[test]
fn a_kick_storm_starves_nobody() {
    let worker = worker(WorkerOptions::default());
    let (noisy, quiet) = (Arc::new(FakeRing::new()), Arc::new(FakeRing::new()));
    add(&worker, &noisy);
    add(&worker, &quiet);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                noisy.kick.signal();
            }
        });
        for _ in 0..200 {
            quiet.publish();
            until("the quiet one is served", || quiet.is_drained());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(worker.stats().totals().items, 200);
    until("the storm over, it sleeps", || {
        let before = worker.stats().totals().sleeps;
        std::thread::sleep(Duration::from_millis(20));
        noisy.wants_kicks.load(Ordering::Relaxed) && worker.stats().totals().sleeps == before
    });
    worker.stop();
}
