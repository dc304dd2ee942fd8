//! The control server against Varlink's own client and grammar (crates `varlink`, `varlink_parser`), which nobody here
//! wrote. The interface served is `io.avio.vswitchd` as described, with answers made of the control types.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use avio_host::control::{Access, Interface, Peer, Server, VarlinkError, parameters};
use avio_proto::control::{
    self, ClearStatisticsParams, NoSuchVswitchParams, ReloadReply, SERVICE_INTERFACE_DESCRIPTION, ShowParams,
    ShowReply, method,
};
use mio::{Events, Poll, Token};
use serde_json::{Value, json};
use varlink::{Connection, MethodCall, OrgVarlinkServiceClient, OrgVarlinkServiceInterface};

struct Switch;

impl Interface for Switch {
    fn name(&self) -> &'static str {
        control::INTERFACE
    }

    fn description(&self) -> &'static str {
        control::INTERFACE_DESCRIPTION
    }

    fn product(&self) -> (&'static str, &'static str) {
        ("avio-vswitchd", "0.1.0")
    }

    fn call(&mut self, method: &str, given: Value, peer: &Peer) -> Result<Value, VarlinkError> {
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        match method {
            method::SHOW => {
                let ShowParams { vswitch, .. } = parameters(given)?;
                match vswitch {
                    None => Ok(json!(ShowReply { vswitches: Vec::new() })),
                    Some(vswitch) => {
                        let known = vec!["localnet".to_owned()];
                        let unknown = NoSuchVswitchParams { vswitch, known };
                        Err(VarlinkError::own(control::error::NO_SUCH_VSWITCH, &unknown))
                    }
                }
            }
            method::CLEAR_STATISTICS => parameters::<ClearStatisticsParams>(given).map(|_| json!({})),
            method::RELOAD => Ok(json!(ReloadReply::default())),
            _ => Err(VarlinkError::MethodNotFound),
        }
    }
}

/// Serves until dropped.
struct Running {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn new(name: &str) -> Running {
        let path = std::env::temp_dir().join(format!("avio-varlink-{name}-{}", std::process::id()));
        let mut poll = Poll::new().unwrap();
        let mut server = Server::bind(&path, Access::default(), poll.registry(), Token(7)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(16);
            while !stopped.load(Ordering::Relaxed) {
                poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
                for event in &events {
                    server.ready(event.token(), poll.registry(), &mut Switch);
                }
            }
        });
        Running { path, stop, thread: Some(thread) }
    }

    fn connect(&self) -> Arc<std::sync::RwLock<Connection>> {
        Connection::with_address(&format!("unix:{}", self.path.display())).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn call(
    connection: &Arc<std::sync::RwLock<Connection>>,
    method: &str,
    parameters: Value,
) -> varlink::Result<Value> {
    MethodCall::<Value, Value, varlink::Error>::new(connection.clone(), method.to_owned(), parameters).call()
}

#[test]
fn the_service_describes_itself_in_varlinks_grammar() {
    let running = Running::new("describe");
    let mut service = OrgVarlinkServiceClient::new(running.connect());
    let info = service.get_info().unwrap();
    assert_eq!(info.product, "avio-vswitchd");
    assert_eq!(info.interfaces, ["org.varlink.service", "io.avio.vswitchd"]);
    let description = service.get_interface_description("io.avio.vswitchd").unwrap().description.unwrap();
    let parsed = varlink_parser::IDL::try_from(description.as_str()).unwrap();
    assert_eq!(parsed.name, "io.avio.vswitchd");
    assert_eq!(parsed.method_keys.len(), method::ALL.len());
    assert_eq!(parsed.error_keys.len(), control::error::ALL.len());
    let own = varlink_parser::IDL::try_from(SERVICE_INTERFACE_DESCRIPTION).unwrap();
    assert_eq!(own.name, "org.varlink.service");
}

#[test]
fn calls_and_errors_are_understood() {
    let running = Running::new("calls");
    let connection = running.connect();
    assert_eq!(call(&connection, "io.avio.vswitchd.Show", json!({})).unwrap(), json!({"vswitches": []}));
    // The same connection serves the next call, and one after an error.
    let unknown = call(&connection, "io.avio.vswitchd.Show", json!({"vswitch": "x"})).unwrap_err();
    assert!(unknown.to_string().contains("io.avio.vswitchd.NoSuchVswitch"), "{unknown}");
    let method = call(&connection, "io.avio.vswitchd.Nope", json!({})).unwrap_err();
    assert!(matches!(method.kind(), varlink::ErrorKind::MethodNotFound(name) if name == "Nope"), "{method}");
    let parameter = call(&connection, "io.avio.vswitchd.Show", json!({"vswich": "x"})).unwrap_err();
    assert!(
        matches!(parameter.kind(), varlink::ErrorKind::InvalidParameter(name) if name == "vswich"),
        "{parameter}"
    );
    let interface = call(&connection, "io.avio.stord.Show", json!({})).unwrap_err();
    assert!(
        matches!(interface.kind(), varlink::ErrorKind::InterfaceNotFound(name) if name == "io.avio.stord"),
        "{interface}"
    );
    MethodCall::<Value, Value, varlink::Error>::new(connection.clone(), "io.avio.vswitchd.Reload", json!({}))
        .oneway()
        .unwrap();
    let mut more = MethodCall::<Value, Value, varlink::Error>::new(
        connection.clone(),
        "io.avio.vswitchd.ClearStatistics",
        json!({}),
    );
    let replies: Vec<_> = more.more().unwrap().collect();
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].as_ref().unwrap(), &json!({}));
}
