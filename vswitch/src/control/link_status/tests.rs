//! Who is told what, and when: with VMMs that are sockets of the test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::{Events, Poll, Token, Waker};
use serde_json::Value;

use super::*;

/// A run directory with VMMs in it.
struct Host {
    run_dir: PathBuf,
    status: LinkStatus,
    poll: Poll,
    told: Receiver<(String, bool)>,
    teller: Sender<(String, bool)>,
    guests: BTreeMap<InterfaceKey, String>,
    now: Instant,
}

fn key(guest: &str) -> InterfaceKey {
    InterfaceKey { guest: guest.to_owned(), bus: 0, device: 5 }
}

impl Host {
    fn new(name: &str) -> Host {
        let run_dir = std::env::temp_dir().join(format!("avio-link-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&run_dir);
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let status = LinkStatus::new(run_dir.clone(), Helpers::new(1).unwrap(), Mailbox::new(waker));
        let (teller, told) = channel();
        Host { run_dir, status, poll, told, teller, guests: BTreeMap::new(), now: Instant::now() }
    }

    /// A guest on `vswitch` whose VMM takes what it is told, or refuses it.
    fn guest(&mut self, name: &str, vswitch: &str, refuses: bool) {
        let folder = self.run_dir.join("guests").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        let (name_of, teller) = (name.to_owned(), self.teller.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = writeln!(stream, "{{\"QMP\": {{}}}}");
                for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                    let call: Value = serde_json::from_str(&line).unwrap();
                    let answer = match (call["execute"].as_str(), refuses) {
                        (Some("set_link"), true) => "{\"error\": {\"desc\": \"no such device\"}}",
                        _ => "{\"return\": {}}",
                    };
                    // Before it answers: whoever has the answer finds this.
                    if let Some(up) = call["arguments"]["up"].as_bool() {
                        teller.send((name_of.clone(), up)).unwrap();
                    }
                    let _ = writeln!(stream, "{answer}");
                }
            }
        });
        self.guests.insert(key(name), vswitch.to_owned());
    }

    /// One turn with these vswitches' wires down, `after_ms` after the last one.
    fn turn(&mut self, after_ms: u64, lost: &[&str]) {
        self.now += Duration::from_millis(after_ms);
        self.status.is_due(self.now);
        let lost = lost.iter().map(|&name| name.to_owned()).collect();
        self.status.turn(&lost, &self.guests, self.now);
    }

    /// The helpers have answered: what the VMMs heard.
    fn answered(&mut self) -> Vec<(String, bool)> {
        self.poll.poll(&mut Events::with_capacity(4), Some(Duration::from_secs(10))).unwrap();
        assert!(self.status.is_due(self.now));
        self.told.try_iter().collect()
    }

    fn heard(name: &str, up: bool) -> (String, bool) {
        (name.to_owned(), up)
    }
}

#[test]
fn guests_see_a_loss_that_lasts() {
    let mut host = Host::new("lasts");
    host.guest("a", "wired", false);
    host.guest("b", "other", false);
    host.turn(0, &[]);
    assert_eq!(host.answered(), [Host::heard("a", true), Host::heard("b", true)]);
    assert_eq!(host.status.shown(&key("a")), Some(GuestLink::Up));
    // Over before it has settled: nobody hears of it.
    host.turn(0, &["wired"]);
    assert_eq!(host.status.next_turn(), Some(host.now + SETTLE));
    host.turn(400, &[]);
    host.turn(10, &["wired"]);
    host.turn(499, &["wired"]);
    assert!(!host.status.is_telling);
    host.turn(1, &["wired"]);
    assert_eq!(host.answered(), [Host::heard("a", false)]);
    assert_eq!(host.status.shown(&key("a")), Some(GuestLink::Down));
    // Nothing more to say, and nothing to wake up for.
    host.turn(1000, &["wired"]);
    assert!(!host.status.is_telling && host.status.next_turn().is_none());
    // Back at once.
    host.turn(1, &[]);
    assert_eq!(host.answered(), [Host::heard("a", true)]);
}

#[test]
fn who_starts_anew_is_told_anew() {
    let mut host = Host::new("anew");
    host.guest("a", "wired", false);
    host.turn(0, &["wired"]);
    assert_eq!(host.answered(), [Host::heard("a", true)]);
    host.turn(600, &["wired"]);
    assert_eq!(host.answered(), [Host::heard("a", false)]);
    host.status.started(&key("a"));
    host.turn(0, &["wired"]);
    // It starts once more before the answer of its last life comes: that one does not hold.
    host.status.started(&key("a"));
    host.turn(0, &["wired"]);
    assert_eq!(host.answered(), [Host::heard("a", false)]);
    assert_eq!(host.status.shown(&key("a")), None);
    host.turn(0, &["wired"]);
    assert_eq!(host.answered(), [Host::heard("a", false)]);
    assert_eq!(host.status.shown(&key("a")), Some(GuestLink::Down));
}

#[test]
fn who_cannot_be_told_is_left_alone_or_asked_again() {
    let mut host = Host::new("again");
    host.guests.insert(key("absent"), "wired".to_owned());
    host.guest("refuses", "wired", true);
    host.turn(0, &[]);
    assert_eq!(host.answered(), [Host::heard("refuses", true)]);
    host.turn(0, &[]);
    assert!(!host.status.is_telling);
    assert_eq!(host.status.next_turn(), Some(host.now + RETRY_AFTER));
    assert_eq!([host.status.shown(&key("absent")), host.status.shown(&key("refuses"))], [None, None]);
    for _ in 0..4 {
        host.turn(5000, &[]);
        assert_eq!(host.answered(), [Host::heard("refuses", true)]);
    }
    assert_eq!(host.status.guests[&key("absent")].absent, ABSENT_MAX);
    // Gone: nothing to come back for.
    host.guests.clear();
    host.turn(0, &[]);
    assert_eq!(host.status.next_turn(), None);
}

#[test]
fn all_of_many_are_told() {
    let mut host = Host::new("many");
    let names: Vec<String> = (0..3 * PER_JOB).map(|number| format!("g{number:02}")).collect();
    names.iter().for_each(|name| host.guest(name, "wired", false));
    let mut heard = Vec::new();
    for _ in 0..3 {
        host.turn(0, &[]);
        heard.extend(host.answered());
    }
    assert_eq!(heard, names.iter().map(|name| Host::heard(name, true)).collect::<Vec<_>>());
}

#[test]
fn a_socket_is_waited_for_and_not_looked_for() {
    let mut host = Host::new("appears");
    host.guest("other", "wired", false);
    std::fs::create_dir_all(host.run_dir.join("guests/late")).unwrap();
    host.guests.insert(key("late"), "wired".to_owned());
    host.turn(0, &[]);
    assert_eq!(host.answered(), [Host::heard("other", true)]);
    // It has none: nothing to wake up for, however long that is so.
    for _ in 0..3 {
        host.turn(60_000, &[]);
        assert!(!host.status.is_telling);
        assert_eq!(host.status.next_turn(), None);
    }
    // What else appears there is nothing to us; its socket is.
    std::fs::write(host.run_dir.join("guests/late/net-0-5.sock"), "").unwrap();
    assert!(!host.status.is_due(host.now));
    host.guest("late", "wired", false);
    assert!(host.status.is_due(host.now));
    host.turn(0, &["wired"]);
    assert_eq!(host.status.next_turn(), Some(host.now + ARRIVED_AFTER));
    host.turn(100, &["wired"]);
    assert_eq!(host.answered(), [Host::heard("late", true)]);
    // Guests that are gone are watched no more; one that starts anew may have another folder.
    let watches = |host: &Host, name: &str| host.status.arrivals.as_ref().unwrap().watches(name);
    host.status.started(&key("late"));
    assert!(!watches(&host, "late") && watches(&host, "other"));
    host.turn(0, &["wired"]);
    assert!(watches(&host, "late"));
    host.guests.remove(&key("other"));
    host.turn(0, &[]);
    assert!(!watches(&host, "other"));
}
