//! What a worker does: fairness, containment, barriers, modes, order.

use super::*;
use crate::worker::{SpawnError, Workers};
use std::os::unix::process::ExitStatusExt;

#[test]
fn items_are_taken_in_every_mode_with_and_without_a_kick() {
    for mode in [PollMode::Always, PollMode::Adaptive, PollMode::Never] {
        let worker = worker(options(mode, 20));
        let (kicked, kickless) = (Arc::new(FakeRing::new()), Arc::new(FakeRing::new()));
        kicked.publish();
        add(&worker, &kicked);
        add_kickless(&worker, &kickless);
        for round in 0..20 {
            kicked.publish();
            kickless.publish();
            until("both rings are drained", || kicked.is_drained() && kickless.is_drained());
            std::thread::sleep(Duration::from_millis(round % 3));
        }
        let totals = worker.stats().totals();
        assert_eq!(totals.items, 41);
        if mode == PollMode::Always {
            assert_eq!((totals.sleeps, totals.armings), (0, 0), "{mode:?} never waits");
            assert!(!kicked.wants_kicks.load(Ordering::Relaxed));
        } else {
            assert!(totals.sleeps > 0 && totals.armings > 0, "{mode:?} sleeps: {totals:?}");
        }
        assert!(ask(&worker, Command::Told).turn_ends > 0);
        worker.stop();
    }
}

#[test]
fn busy_sources_get_equal_shares_and_take_turns_being_first() {
    let worker = worker(options(PollMode::Adaptive, 50));
    let rings: Vec<_> = (0..3).map(|_| Arc::new(FakeRing::endless())).collect();
    for ring in &rings {
        add(&worker, ring);
    }
    until("there was work", || rings[2].polls.load(Ordering::Relaxed) > ORDER_MAX as u64);
    let order = ask(&worker, Command::Told).order;
    assert_eq!(order.len(), ORDER_MAX);
    for index in 0..3 {
        let polls = order.iter().filter(|&&polled| polled == index).count();
        assert!(polls.abs_diff(ORDER_MAX / 3) <= 2, "source {index} was polled {polls} times of {ORDER_MAX}");
    }
    // Would one source always be first, every poll would be of the same one as three polls before.
    assert!(order.windows(4).any(|polls| polls[0] != polls[3]), "{order:?}");
    worker.stop();
}

#[test]
fn an_armed_source_is_served_beside_one_that_never_stops() {
    let worker = worker(options(PollMode::Adaptive, 20));
    let (busy, seldom) = (Arc::new(FakeRing::endless()), Arc::new(FakeRing::new()));
    add(&worker, &busy);
    add(&worker, &seldom);
    for _ in 0..50 {
        until("it is armed", || seldom.wants_kicks.load(Ordering::Relaxed));
        assert!(seldom.publish());
        until("it is served", || seldom.is_drained());
    }
    let totals = worker.stats().totals();
    assert!(totals.looks > 0);
    assert_eq!(totals.sleeps, totals.wakeups, "it sleeps at most before the first source is there");
    worker.stop();
}

#[test]
fn a_panic_stops_its_source_only() {
    for (step, in_poll) in [("worker::tests::poll", true), ("worker::tests::arm", false)] {
        let worker = worker(options(PollMode::Adaptive, 20));
        let (step_at_poll, step_at_arm) = if in_poll { (Some(step), None) } else { (None, Some(step)) };
        let bad = Arc::new(FakeRing { step: step_at_poll, arm_step: step_at_arm, ..FakeRing::new() });
        let good = Arc::new(FakeRing::new());
        add(&worker, &good);
        let bad_token = add(&worker, &bad);
        inject::arm(step, 1);
        bad.publish();
        until("the engine is told", || ask(&worker, Command::Told).panicked == [bad_token]);
        let polls = bad.polls.load(Ordering::Relaxed);
        for _ in 0..10 {
            bad.kick.signal();
            good.publish();
            until("the other source goes on", || good.is_drained());
        }
        assert_eq!(bad.polls.load(Ordering::Relaxed), polls, "the broken source is left alone");
        assert_eq!(worker.stats().totals().panics, 1);
        worker.send(Command::Remove(bad_token)).unwrap();
        let again = Arc::new(FakeRing::new());
        add(&worker, &again);
        again.publish();
        until("its place is used again", || again.is_drained());
        worker.stop();
    }
}

#[test]
fn a_broken_source_is_not_polled_again_and_can_be_removed() {
    let worker = worker(options(PollMode::Adaptive, 20));
    let ring = Arc::new(FakeRing { broken: AtomicBool::new(true), ..FakeRing::new() });
    let token = add(&worker, &ring);
    until("it is found broken", || worker.stats().totals().broken == 1);
    (0..100).for_each(|_| ring.kick.signal());
    worker.send(Command::Remove(token)).unwrap();
    ask(&worker, Command::Told);
    assert_eq!(ring.polls.load(Ordering::Relaxed), 1);
    assert_eq!(Arc::strong_count(&ring), 1, "the engine has let go of it");
    worker.stop();
}

#[test]
fn a_panic_outside_a_batch_ends_the_process() {
    const CHILD: &str = "AVIO_TEST_WORKER_ABORTS";
    if std::env::var_os(CHILD).is_some() {
        let worker = worker(options(PollMode::Adaptive, 20));
        worker.send(Command::Panic).unwrap();
        std::thread::sleep(PATIENCE);
        return;
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(signal_hook::consts::SIGABRT), "{status}");
}

#[test]
fn a_barrier_waits_for_busy_and_sleeping_workers() {
    let control = ControlWaker::new().unwrap();
    let spawn = || Worker::spawn(FakeEngine::default(), WorkerOptions::default(), control.clone()).unwrap();
    let workers = Workers::new(vec![spawn(), spawn(), spawn()]);
    // The first sleeps without a source, the second with an armed one, the third is always busy.
    let (armed, busy) = (Arc::new(FakeRing::new()), Arc::new(FakeRing::endless()));
    add(&workers[1], &armed);
    add(&workers[2], &busy);
    for round in 0..200 {
        if round % 10 == 0 {
            until("the second sleeps", || armed.wants_kicks.load(Ordering::Relaxed));
        }
        let (reply, answer) = crossbeam_channel::bounded(3);
        for worker in workers.iter() {
            worker.send(Command::Told(reply.clone())).unwrap();
        }
        let barrier = workers.barrier();
        until("all have passed", || barrier.is_done());
        assert_eq!(answer.len(), 3, "commands sent before a barrier are done when it is");
    }
    until("control is woken", || control.drain());
    workers.stop();
}

#[test]
fn a_barrier_is_not_done_while_a_batch_runs() {
    /// Stays in its batch until let go.
    struct Stuck(Arc<AtomicU64>);
    impl Engine for Stuck {
        type Command = ();
        fn command(&mut self, sources: &mut Sources, (): ()) {
            sources.add(None).unwrap();
        }
        fn poll(&mut self, _token: Token, _budget: usize) -> Polled {
            if self.0.load(Ordering::Acquire) == 0 {
                self.0.store(1, Ordering::Release);
                until("it is let go", || self.0.load(Ordering::Acquire) == 2);
            }
            Polled::Idle
        }
        fn arm(&mut self, _token: Token) -> bool {
            false
        }
        fn disarm(&mut self, _token: Token) {}
        fn source_panicked(&mut self, _token: Token) {}
    }
    let (state, control) = (Arc::new(AtomicU64::new(0)), ControlWaker::new().unwrap());
    let worker = Worker::spawn(Stuck(Arc::clone(&state)), WorkerOptions::default(), control.clone()).unwrap();
    let workers = Workers::new(vec![worker]);
    workers[0].send(()).unwrap();
    until("the batch runs", || state.load(Ordering::Acquire) == 1);
    control.drain();
    let barrier = workers.barrier();
    std::thread::sleep(Duration::from_millis(20));
    assert!(!barrier.is_done() && !control.drain());
    state.store(2, Ordering::Release);
    until("control is woken", || control.drain());
    assert!(barrier.is_done());
    let barrier = workers.barrier();
    workers.stop();
    assert!(barrier.is_done(), "a worker that has ended has passed");
}

#[test]
fn a_tick_comes_to_a_worker_that_sleeps_and_to_one_that_works() {
    for ring in [FakeRing::new(), FakeRing::endless()] {
        let tick = Some(Duration::from_millis(5));
        let worker = worker(WorkerOptions { tick, ..WorkerOptions::default() });
        add(&worker, &Arc::new(ring));
        until("it ticked", || ask(&worker, Command::Told).ticks >= 5);
        let before = ask(&worker, Command::Told).ticks;
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(50));
        let ticks = ask(&worker, Command::Told).ticks - before;
        let at_most = start.elapsed().as_millis() as u64 / 5 + 2;
        assert!(ticks <= at_most, "{ticks} ticks, {at_most} at most");
        worker.stop();
    }
}

#[test]
fn a_core_that_is_not_there_is_refused_and_one_that_is_there_taken() {
    let control = ControlWaker::new().unwrap();
    let core = Some(100_000);
    let refused = Worker::spawn(FakeEngine::default(), WorkerOptions { core, ..Default::default() }, control);
    let error = refused.err().unwrap();
    assert!(matches!(error, SpawnError::NoSuchCore { core: 100_000, .. }));
    assert!(
        error.to_string().starts_with("workers.cores: core 100000 is not available; this process may use [")
    );
    let core = core_affinity::get_core_ids().unwrap()[0].id;
    worker(WorkerOptions { core: Some(core), ..Default::default() }).stop();
}

#[test]
fn dropping_a_worker_ends_its_thread() {
    let ring = Arc::new(FakeRing::endless());
    let dropped = worker(options(PollMode::Always, 0));
    add(&dropped, &ring);
    drop(dropped);
    assert_eq!(Arc::strong_count(&ring), 1);
}
