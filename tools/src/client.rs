//! A small blocking Varlink client: one connection, one call at a time.
//!
//! Called by the subcommands. Knows the errors of AVIO's daemons and turns each into one line for an operator.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use avio_proto::control::{
    self, Call, MESSAGE_LEN_MAX, NoSuchVswitchParams, PlaceParams, RefusedParams, Reply,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::Failure;

/// How long a daemon may take to answer: far above what a reload of thousands of ports needs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach {daemon} at {}: {source}; start it, or give its directory with --run-dir", path.display())]
    Connect {
        /// The daemon's program name.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("lost {daemon} at {}: {source}", path.display())]
    Broken {
        /// The daemon's program name.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It answered what we do not understand.
    #[error(
        "{daemon} answered {method} in a way that this command does not understand ({source}); are both of one version?"
    )]
    Answer {
        /// The daemon's program name.
        daemon: &'static str,
        /// The method.
        method: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It said no; a line for each reason.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// It has no such vswitch.
    #[error("there is no vswitch `{}`; there are {}", .0.vswitch, list(&.0.known))]
    NoSuchVswitch(NoSuchVswitchParams),
    /// It answered another error.
    #[error("{daemon} answered {error} {parameters}")]
    Other {
        /// The daemon's program name.
        daemon: &'static str,
        /// The error's name.
        error: String,
        /// The error's parameters.
        parameters: Value,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Refused(error.to_string())
    }
}

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    daemon: &'static str,
    path: PathBuf,
    interface: &'static str,
}

impl Client {
    /// Connects to the switch daemon whose run directory is `run_dir`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn vswitchd(run_dir: &Path) -> Result<Client, ClientError> {
        Self::connect(run_dir.join(control::SOCKET_FILE_NAME), "avio-vswitchd", control::INTERFACE)
    }

    /// Connects to the storage daemon whose run directory is `run_dir`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn stord(run_dir: &Path) -> Result<Client, ClientError> {
        Self::connect(run_dir.join(control::STORD_SOCKET_FILE_NAME), "avio-stord", control::STORD_INTERFACE)
    }

    fn connect(path: PathBuf, daemon: &'static str, interface: &'static str) -> Result<Client, ClientError> {
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Client { stream, daemon, path, interface }),
            Err(source) => Err(ClientError::Connect { daemon, path, source }),
        }
    }

    /// Calls `method` of the daemon's own interface and waits for its answer.
    ///
    /// # Errors
    /// All but [`ClientError::Connect`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<T, ClientError> {
        let method = format!("{}.{method}", self.interface);
        let daemon = self.daemon;
        let answer = |source| ClientError::Answer { daemon, method: method.clone(), source };
        let parameters = Some(serde_json::to_value(parameters).map_err(answer)?);
        let call = Call { method: method.clone(), parameters, oneway: false, more: false, upgrade: false };
        let mut message = serde_json::to_vec(&call).map_err(answer)?;
        message.push(0);
        let bytes = match self.exchange(&message) {
            Ok(bytes) => bytes,
            Err(source) => {
                return Err(ClientError::Broken { daemon: self.daemon, path: self.path.clone(), source });
            }
        };
        let reply: Reply = serde_json::from_slice(&bytes).map_err(answer)?;
        let parameters = reply.parameters.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        match reply.error {
            None => serde_json::from_value(parameters).map_err(answer),
            Some(error) => Err(self.refusal(error, parameters)),
        }
    }

    /// The daemon's error as ours.
    fn refusal(&self, error: String, parameters: Value) -> ClientError {
        let own = error.strip_prefix(self.interface).and_then(|rest| rest.strip_prefix('.'));
        match own {
            Some(control::error::REFUSED) => {
                if let Ok(refused) = serde_json::from_value::<RefusedParams>(parameters.clone()) {
                    return ClientError::Refused(refused.reasons);
                }
            }
            Some(control::error::NO_SUCH_AGGREGATE) => {
                if let Some(name) = parameters.get("aggregate").and_then(|name| name.as_str()) {
                    let line =
                        format!("aggregate {name} is no vswitch's uplink; `avio apa` lists those that are");
                    return ClientError::Refused(vec![line]);
                }
            }
            Some(control::NO_SUCH_LUN) => {
                if let Ok(PlaceParams { place }) = serde_json::from_value(parameters.clone()) {
                    let control::Place { guest, bus, device, target } = place;
                    let line = format!(
                        "{guest} {bus}/{device} target {target}: there is no such LUN; `avio stor` lists those that are"
                    );
                    return ClientError::Refused(vec![line]);
                }
            }
            Some(control::error::NO_SUCH_VSWITCH) => {
                if let Ok(unknown) = serde_json::from_value::<NoSuchVswitchParams>(parameters.clone()) {
                    return ClientError::NoSuchVswitch(unknown);
                }
            }
            _ => {}
        }
        ClientError::Other { daemon: self.daemon, error, parameters }
    }

    /// Sends a message that ends with its NUL and reads one without.
    fn exchange(&mut self, message: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(message)?;
        let mut received = Vec::new();
        let mut piece = [0_u8; 65536];
        loop {
            let count = self.stream.read(&mut piece)?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
            }
            // One call at a time, so nothing follows the NUL.
            if let Some(end) = piece[..count].iter().position(|&byte| byte == 0) {
                received.extend_from_slice(&piece[..end]);
                return Ok(received);
            }
            received.extend_from_slice(&piece[..count]);
            if received.len() > MESSAGE_LEN_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
            }
        }
    }
}
