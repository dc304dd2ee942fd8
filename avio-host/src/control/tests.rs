//! The server with plain sockets as clients, in one thread.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use mio::{Events, Poll, Token};
use serde_json::{Value, json};

use super::*;

/// An interface with one method per kind of outcome.
struct Fake {
    calls: Vec<String>,
    /// What "Slow" answers, once it is there.
    ready: Option<u32>,
}

impl Interface for Fake {
    fn name(&self) -> &'static str {
        "io.avio.fake"
    }

    fn description(&self) -> &'static str {
        "interface io.avio.fake\nmethod Echo(word: string) -> (word: string)\n"
    }

    fn product(&self) -> (&'static str, &'static str) {
        ("fake", "1.2.3")
    }

    fn call(&mut self, method: &str, given: Value, peer: &Peer) -> Result<Value, VarlinkError> {
        self.calls.push(method.to_owned());
        match method {
            "Echo" => {
                #[derive(serde::Deserialize, serde::Serialize)]
                #[serde(deny_unknown_fields)]
                struct Word {
                    word: String,
                }
                let word: Word = parameters(given)?;
                Ok(json!({ "word": word.word, "pid": peer.pid }))
            }
            "Long" => Ok(json!({ "text": "x".repeat(4 << 20) })),
            "Slow" => self.ready.take().map(|n| json!({ "n": n })).ok_or(VarlinkError::NotYet),
            "No" => Err(VarlinkError::own("Refused", &json!({ "reasons": ["because"] }))),
            _ => Err(VarlinkError::MethodNotFound),
        }
    }
}

struct Bench {
    poll: Poll,
    server: Server,
    fake: Fake,
    path: PathBuf,
}

const FIRST: Token = Token(1000);

impl Bench {
    fn new(name: &str) -> Bench {
        let path = std::env::temp_dir().join(format!("avio-control-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let poll = Poll::new().unwrap();
        let server = Server::bind(&path, Access::default(), poll.registry(), FIRST).unwrap();
        Bench { poll, server, fake: Fake { calls: Vec::new(), ready: None }, path }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Runs the server until `done` or, failing the test, for two seconds.
    fn run_until(&mut self, mut done: impl FnMut() -> bool) {
        let mut events = Events::with_capacity(64);
        for _ in 0..200 {
            if done() {
                return;
            }
            self.poll.poll(&mut events, Some(Duration::from_millis(10))).unwrap();
            for event in &events {
                assert!(self.server.owns(event.token()));
                self.server.ready(event.token(), self.poll.registry(), &mut self.fake);
            }
        }
        panic!("the server did not answer");
    }

    /// What `stream` receives until `count` NULs, or its end.
    fn receive(&mut self, stream: &mut UnixStream, count: usize) -> Vec<u8> {
        let mut received = Vec::new();
        let mut piece = vec![0; 65536];
        self.run_until(|| {
            loop {
                match stream.read(&mut piece) {
                    Ok(0) => return true,
                    Ok(length) => received.extend_from_slice(&piece[..length]),
                    Err(_) => return received.iter().filter(|&&byte| byte == 0).count() >= count,
                }
            }
        });
        received
    }

    fn replies(&mut self, stream: &mut UnixStream, count: usize) -> Vec<Value> {
        let received = self.receive(stream, count);
        received
            .split(|&byte| byte == 0)
            .filter(|message| !message.is_empty())
            .map(|message| serde_json::from_slice(message).unwrap())
            .collect()
    }

    fn ask(&mut self, call: &str) -> Value {
        let mut stream = self.connect();
        stream.write_all(call.as_bytes()).unwrap();
        stream.write_all(&[0]).unwrap();
        self.replies(&mut stream, 1).remove(0)
    }
}

#[test]
fn calls_and_every_kind_of_error() {
    let mut bench = Bench::new("calls");
    let pid = std::process::id();
    let cases = [
        (
            r#"{"method":"io.avio.fake.Echo","parameters":{"word":"w"}}"#.to_owned(),
            json!({"parameters":{"word":"w","pid":pid}}),
        ),
        (
            r#"{"method":"io.avio.fake.Echo","parameters":{"word":"w"},"more":true}"#.to_owned(),
            json!({"parameters":{"word":"w","pid":pid}}),
        ),
        (
            r#"{"method":"io.avio.fake.Echo"}"#.to_owned(),
            json!({"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"word"}}),
        ),
        (
            r#"{"method":"io.avio.fake.Echo","parameters":{"word":"w","x":1}}"#.to_owned(),
            json!({"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"x"}}),
        ),
        (
            r#"{"method":"io.avio.fake.Echo","parameters":[1]}"#.to_owned(),
            json!({"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"parameters"}}),
        ),
        (
            r#"{"method":"io.avio.fake.Nope"}"#.to_owned(),
            json!({"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}),
        ),
        (
            r#"{"method":"io.other.Echo"}"#.to_owned(),
            json!({"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"io.other"}}),
        ),
        (
            r#"{"method":"nodots"}"#.to_owned(),
            json!({"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":""}}),
        ),
        (
            r#"{"method":"io.avio.fake.No"}"#.to_owned(),
            json!({"error":"io.avio.fake.Refused","parameters":{"reasons":["because"]}}),
        ),
        (
            r#"{"method":"org.varlink.service.GetInfo"}"#.to_owned(),
            json!({"parameters":{"vendor":"AVIO","product":"fake","version":"1.2.3","url":"",
                "interfaces":["org.varlink.service","io.avio.fake"]}}),
        ),
        (
            r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.avio.fake"}}"#
                .to_owned(),
            json!({"parameters":{
                "description":"interface io.avio.fake\nmethod Echo(word: string) -> (word: string)\n"}}),
        ),
        (
            r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x"}}"#.to_owned(),
            json!({"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"x"}}),
        ),
        (
            r#"{"method":"org.varlink.service.Nope"}"#.to_owned(),
            json!({"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}),
        ),
    ];
    for (call, wanted) in cases {
        assert_eq!(bench.ask(&call), wanted, "for {call}");
    }
}

#[test]
fn calls_in_a_row_are_answered_in_order_and_oneway_is_not() {
    let mut bench = Bench::new("row");
    let mut stream = bench.connect();
    let mut message = Vec::new();
    for word in ["a", "b", "c"] {
        let oneway = word == "b";
        let call = json!({"method":"io.avio.fake.Echo","parameters":{"word":word},"oneway":oneway});
        message.extend_from_slice(call.to_string().as_bytes());
        message.push(0);
    }
    // Cut anywhere: framing must not depend on how the bytes arrive.
    let (head, tail) = message.split_at(17);
    stream.write_all(head).unwrap();
    bench.run_until(|| true);
    stream.write_all(tail).unwrap();
    let words: Vec<_> =
        bench.replies(&mut stream, 2).iter().map(|reply| reply["parameters"]["word"].clone()).collect();
    assert_eq!(words, ["a", "c"]);
    assert_eq!(bench.fake.calls.len(), 3);
}

#[test]
fn a_long_reply_arrives_whole_and_waits_for_a_slow_reader() {
    let mut bench = Bench::new("long");
    let mut slow = bench.connect();
    let call = b"{\"method\":\"io.avio.fake.Long\"}\0";
    slow.write_all(call).unwrap();
    slow.write_all(call).unwrap();
    // While it does not read, others are served, and its second call is not even run.
    assert_eq!(bench.ask(r#"{"method":"io.avio.fake.Nope"}"#)["error"], "org.varlink.service.MethodNotFound");
    assert_eq!(bench.fake.calls.iter().filter(|method| *method == "Long").count(), 1);
    let replies = bench.replies(&mut slow, 2);
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[1]["parameters"]["text"].as_str().unwrap().len(), 4 << 20);
}

#[test]
fn what_is_no_call_ends_the_connection() {
    let mut bench = Bench::new("nocall");
    for bytes in
        [&b"hello\0"[..], b"\0", b"[]\0", b"{\"method\":5}\0", &[b'x'; connection::CALL_LEN_MAX + 8192]]
    {
        let mut stream = bench.connect();
        // The server may close before all of it is written.
        let mut rest = bytes;
        bench.run_until(|| match stream.write(rest) {
            Ok(count) => {
                rest = &rest[count..];
                rest.is_empty()
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        });
        assert_eq!(bench.receive(&mut stream, 1), b"");
    }
    assert_eq!(bench.fake.calls.len(), 0);
}

#[test]
fn clients_beyond_the_limit_are_refused_and_places_become_free() {
    let mut bench = Bench::new("limit");
    let mut clients: Vec<UnixStream> = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = bench.connect();
        stream.write_all(b"{\"method\":\"io.avio.fake.No\"}\0").unwrap();
        assert_eq!(bench.replies(&mut stream, 1).len(), 1);
        clients.push(stream);
    }
    let mut refused = bench.connect();
    assert_eq!(bench.receive(&mut refused, 1), b"");
    clients.pop();
    bench.run_until(|| true);
    let mut events = Events::with_capacity(8);
    bench.poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
    for event in &events {
        bench.server.ready(event.token(), bench.poll.registry(), &mut bench.fake);
    }
    assert_eq!(bench.ask(r#"{"method":"io.avio.fake.No"}"#)["error"], "io.avio.fake.Refused");
}

#[test]
fn the_socket_is_private_and_the_path_is_guarded() {
    let bench = Bench::new("path");
    assert_eq!(fs::metadata(&bench.path).unwrap().permissions().mode() & 0o777, 0o600);
    let bind = |path: &PathBuf| Server::bind(path, Access::default(), bench.poll.registry(), Token(2000));
    let taken = bind(&bench.path).unwrap_err().to_string();
    assert!(
        taken.ends_with("another daemon listens here; stop it, or give this one its own --run-dir"),
        "{taken}"
    );

    let stale = bench.path.with_extension("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(bind(&stale).is_ok());
    assert!(!stale.exists(), "a server that ends takes its socket away");

    let file = bench.path.with_extension("file");
    fs::write(&file, "").unwrap();
    assert!(
        bind(&file)
            .unwrap_err()
            .to_string()
            .ends_with("is not a socket; remove it, or give another --run-dir")
    );
    fs::remove_file(&file).unwrap();
    let nowhere = PathBuf::from("/nonexistent/x.varlink");
    assert!(
        bind(&nowhere)
            .unwrap_err()
            .to_string()
            .starts_with("/nonexistent/x.varlink: cannot listen: No such file")
    );
}

#[test]
fn a_call_without_an_answer_yet_waits_while_others_are_served() {
    let mut bench = Bench::new("slow");
    let mut slow = bench.connect();
    // The second call of the same client must wait for the first: replies come in order.
    slow.write_all(b"{\"method\":\"io.avio.fake.Slow\"}\0{\"method\":\"io.avio.fake.No\"}\0").unwrap();
    assert_eq!(bench.ask(r#"{"method":"io.avio.fake.No"}"#)["error"], "io.avio.fake.Refused");
    assert_eq!(bench.fake.calls, ["Slow", "No"]);
    bench.server.resume(bench.poll.registry(), &mut bench.fake);
    assert_eq!(bench.fake.calls, ["Slow", "No", "Slow"]);
    bench.fake.ready = Some(7);
    bench.server.resume(bench.poll.registry(), &mut bench.fake);
    let replies = bench.replies(&mut slow, 2);
    assert_eq!(replies[0]["parameters"]["n"], 7);
    assert_eq!(replies[1]["error"], "io.avio.fake.Refused");
}
