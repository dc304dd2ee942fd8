//! Socket files: who may connect, what is in the way, and connecting again.

use super::rig::net_device;
use crate::blocking::Helpers;
use crate::session::{Access, EndpointId, EndpointSpec, Event, Role, Sessions, SocketError};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("avio-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn sock(&self) -> PathBuf {
        self.0.join("net-0-5.sock")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn spec(path: &Path, role: Role) -> EndpointSpec {
    EndpointSpec { name: "guest1 net-0-5".into(), path: path.to_owned(), role, device: net_device() }
}

fn server(path: &Path) -> EndpointSpec {
    spec(path, Role::Server(Access::default()))
}

fn sessions() -> Sessions {
    Sessions::new(Helpers::new(1).unwrap()).unwrap()
}

fn expect(sessions: &mut Sessions, want: &str) -> EndpointId {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        sessions.on_ready();
        if let Some((id, event)) = sessions.next_event() {
            let got = match event {
                Event::Connected => "Connected",
                Event::Disconnected => "Disconnected",
                _ => "other",
            };
            assert_eq!(got, want);
            return id;
        }
        assert!(Instant::now() < deadline, "no {want}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn owner_and_mode_are_right_and_the_file_goes_with_the_endpoint() {
    let dir = Dir::new("mode");
    let mut sessions = sessions();
    let access = Access { uid: None, gid: Some(rustix::process::getgid().as_raw()), perm: Some(0o640) };
    let id = sessions.add(spec(&dir.sock(), Role::Server(access))).unwrap();
    let meta = std::fs::metadata(dir.sock()).unwrap();
    assert_eq!((meta.permissions().mode() & 0o777, meta.gid()), (0o640, access.gid.unwrap()));
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "no second name is left");
    sessions.remove(id);
    assert!(!dir.sock().exists());
    sessions.add(server(&dir.sock())).unwrap();
    assert_eq!(std::fs::metadata(dir.sock()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_in_the_way() {
    let dir = Dir::new("way");
    let mut sessions = sessions();
    let error = |sessions: &mut Sessions| sessions.add(server(&dir.sock())).unwrap_err();
    std::fs::write(dir.sock(), "").unwrap();
    assert!(matches!(error(&mut sessions), SocketError::NotASocket(_)));
    std::fs::remove_file(dir.sock()).unwrap();
    let alive = UnixListener::bind(dir.sock()).unwrap();
    assert!(matches!(error(&mut sessions), SocketError::InUse(_)));
    // Left over from a process that was killed.
    drop(alive);
    assert!(dir.sock().exists());
    let id = sessions.add(server(&dir.sock())).unwrap();
    let _front = UnixStream::connect(dir.sock()).unwrap();
    assert_eq!(expect(&mut sessions, "Connected"), id);
    assert!(matches!(
        sessions.add(server(&dir.0.join("missing/net.sock"))).unwrap_err(),
        SocketError::System { .. }
    ));
    assert!(matches!(
        sessions.add(server(&dir.0.join("x".repeat(120)))).unwrap_err(),
        SocketError::TooLong(_)
    ));
}

#[test]
fn one_front_end_at_a_time_and_the_next_one_waits() {
    let dir = Dir::new("next");
    let mut sessions = sessions();
    sessions.add(server(&dir.sock())).unwrap();
    let first = UnixStream::connect(dir.sock()).unwrap();
    let _second = UnixStream::connect(dir.sock()).unwrap();
    expect(&mut sessions, "Connected");
    for _ in 0..10 {
        sessions.on_ready();
        assert!(sessions.next_event().is_none());
    }
    drop(first);
    expect(&mut sessions, "Disconnected");
    expect(&mut sessions, "Connected");
}

#[test]
fn a_client_connects_when_the_front_end_listens_and_again_when_it_has_gone() {
    let dir = Dir::new("client");
    let mut sessions = sessions();
    let id = sessions.add(spec(&dir.sock(), Role::Client)).unwrap();
    sessions.on_ready();
    assert!(sessions.next_event().is_none() && !sessions.is_connected(id));
    let front = UnixListener::bind(dir.sock()).unwrap();
    expect(&mut sessions, "Connected");
    assert!(sessions.is_connected(id));
    drop(front.accept().unwrap());
    expect(&mut sessions, "Disconnected");
    expect(&mut sessions, "Connected");
    sessions.remove(id);
    expect(&mut sessions, "Disconnected");
    assert!(dir.sock().exists(), "the front-end's socket is not ours to remove");
}

#[test]
fn hundreds_of_sessions() {
    let dir = Dir::new("many");
    let mut sessions = sessions();
    let paths: Vec<PathBuf> = (0..200).map(|i| dir.0.join(format!("{i}.sock"))).collect();
    for path in &paths {
        sessions.add(server(path)).unwrap();
    }
    let fronts: Vec<UnixStream> = paths.iter().map(|path| UnixStream::connect(path).unwrap()).collect();
    let connected: std::collections::BTreeSet<_> =
        fronts.iter().map(|_| expect(&mut sessions, "Connected")).collect();
    assert_eq!(connected.len(), 200);
    drop(fronts);
    for _ in 0..200 {
        expect(&mut sessions, "Disconnected");
    }
}
