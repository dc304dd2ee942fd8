//! From a message to a reply: envelopes, `org.varlink.service`, and the daemon's own interface.

use avio_proto::control::{
    Call, GET_INFO, GET_INTERFACE_DESCRIPTION, Reply, SERVICE_INTERFACE, SERVICE_INTERFACE_DESCRIPTION,
    ServiceInfo,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Peer;

/// What a daemon serves. Called on the control thread; must not block.
pub trait Interface {
    /// The interface's name, such as `io.avio.vswitchd`.
    fn name(&self) -> &'static str;

    /// Its description in Varlink's language.
    fn description(&self) -> &'static str;

    /// The program's name and version, for `GetInfo`.
    fn product(&self) -> (&'static str, &'static str);

    /// Does `method` (without the interface's name) for `peer` and returns the reply's parameters, an object.
    ///
    /// # Errors
    /// [`VarlinkError::MethodNotFound`] for a method that there is not, [`VarlinkError::InvalidParameter`] (most easily
    /// from [`parameters`]), or one of the interface's own. [`VarlinkError::NotYet`] if a helper thread is at it: the same call
    /// is made again by [`Server::resume`](super::Server::resume).
    fn call(&mut self, method: &str, parameters: Value, peer: &Peer) -> Result<Value, VarlinkError>;
}

/// Why a method did not do what it was asked.
#[derive(Debug, Clone, PartialEq)]
pub enum VarlinkError {
    /// No error: there is no answer yet. The client waits, the others go on.
    NotYet,
    /// The interface has no such method.
    MethodNotFound,
    /// This parameter is missing, of the wrong type or out of range.
    InvalidParameter(String),
    /// An error of the interface: its name without the interface, and its parameters.
    Own(&'static str, Value),
}

impl VarlinkError {
    /// The interface's error `name` with these parameters.
    #[must_use]
    pub fn own(name: &'static str, parameters: &impl Serialize) -> VarlinkError {
        // A type of ours that is not JSON would be a bug; the caller then still learns which error it was.
        VarlinkError::Own(name, serde_json::to_value(parameters).unwrap_or_else(|_| json!({})))
    }
}

/// A method's parameters as their type.
///
/// # Errors
/// [`VarlinkError::InvalidParameter`] with the parameter's name.
pub fn parameters<T: DeserializeOwned>(value: Value) -> Result<T, VarlinkError> {
    serde_json::from_value(value).map_err(|error| {
        let message = error.to_string();
        // Serde names a field between backquotes where it knows it.
        let name = message.split('`').nth(1).unwrap_or(&message);
        VarlinkError::InvalidParameter(name.to_owned())
    })
}

/// What to do after a message.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// Send this.
    Reply(Reply),
    /// Send nothing: the call was one-way.
    Nothing,
    /// Keep the call and make it again later.
    Hold,
    /// The message is no call; the connection cannot go on.
    Close,
}

/// Answers one message (without its NUL).
pub(super) fn answer(message: &[u8], interface: &mut dyn Interface, peer: &Peer) -> Answer {
    let Ok(call) = serde_json::from_slice::<Call>(message) else { return Answer::Close };
    let parameters = match call.parameters {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(parameters) => parameters,
    };
    let result = if call.upgrade {
        Err(Some(service_error("InvalidParameter", json!({ "parameter": "upgrade" }))))
    } else if parameters.is_object() {
        run(&call.method, parameters, interface, peer)
    } else {
        Err(Some(service_error("InvalidParameter", json!({ "parameter": "parameters" }))))
    };
    match result {
        Err(None) => Answer::Hold,
        _ if call.oneway => Answer::Nothing,
        Ok(parameters) => Answer::Reply(Reply { parameters: Some(parameters), ..Reply::default() }),
        Err(Some(reply)) => Answer::Reply(reply),
    }
}

/// The reply's parameters, or the error; `None`: not yet.
fn run(
    qualified: &str,
    parameters: Value,
    interface: &mut dyn Interface,
    peer: &Peer,
) -> Result<Value, Option<Reply>> {
    let (name, method) = qualified.rsplit_once('.').unwrap_or(("", qualified));
    if name == SERVICE_INTERFACE {
        return service(qualified, parameters, interface).map_err(Some);
    }
    if name != interface.name() {
        return Err(Some(service_error("InterfaceNotFound", json!({ "interface": name }))));
    }
    interface.call(method, parameters, peer).map_err(|error| match error {
        VarlinkError::NotYet => None,
        VarlinkError::MethodNotFound => Some(service_error("MethodNotFound", json!({ "method": method }))),
        VarlinkError::InvalidParameter(parameter) => {
            Some(service_error("InvalidParameter", json!({ "parameter": parameter })))
        }
        VarlinkError::Own(error, parameters) => Some(error_reply(format!("{name}.{error}"), parameters)),
    })
}

/// `org.varlink.service`.
fn service(qualified: &str, parameters: Value, interface: &dyn Interface) -> Result<Value, Reply> {
    match qualified {
        GET_INFO => {
            let (product, version) = interface.product();
            let info = ServiceInfo {
                vendor: "AVIO".into(),
                product: product.into(),
                version: version.into(),
                url: String::new(),
                interfaces: vec![SERVICE_INTERFACE.into(), interface.name().into()],
            };
            serde_json::to_value(info)
                .map_err(|_| service_error("MethodNotImplemented", json!({ "method": qualified })))
        }
        GET_INTERFACE_DESCRIPTION => match parameters.get("interface").and_then(Value::as_str) {
            None => Err(service_error("InvalidParameter", json!({ "parameter": "interface" }))),
            Some(SERVICE_INTERFACE) => Ok(json!({ "description": SERVICE_INTERFACE_DESCRIPTION })),
            Some(name) if name == interface.name() => Ok(json!({ "description": interface.description() })),
            Some(name) => Err(service_error("InterfaceNotFound", json!({ "interface": name }))),
        },
        _ => {
            let method = qualified.rsplit('.').next().unwrap_or(qualified);
            Err(service_error("MethodNotFound", json!({ "method": method })))
        }
    }
}

/// One of the standard errors.
pub(super) fn service_error(name: &str, parameters: Value) -> Reply {
    error_reply(format!("{SERVICE_INTERFACE}.{name}"), parameters)
}

fn error_reply(error: String, parameters: Value) -> Reply {
    Reply { error: Some(error), parameters: Some(parameters), continues: false }
}
