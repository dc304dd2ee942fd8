//! What a daemon tells its service manager and its log about being ready, reloading, stopping and alive.
//!
//! Called by the control thread. Without `$NOTIFY_SOCKET` only the log lines remain.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager's view of this process.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    /// How often to report being alive; `None`: nobody asked (`WatchdogSec=`).
    watchdog: Option<Duration>,
    last_alive: Option<Instant>,
}

impl Service {
    /// For the daemon `name` (`avio-vswitchd`). Reads `$WATCHDOG_USEC` and `$WATCHDOG_PID`.
    pub fn new(name: &'static str) -> Self {
        // Half the deadline, as sd_watchdog_enabled(3) recommends.
        Self { name, watchdog: sd_notify::watchdog_enabled().map(|deadline| deadline / 2), last_alive: None }
    }

    /// Everything asked for in the configuration is up: `READY=1`, and the log line that contains `ready`. Also ends
    /// [`reloading`](Self::reloading).
    pub fn ready(&self, what: &str) {
        tracing::info!("{} ready: {what}", self.name);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(what))]);
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        tracing::info!("{} reloading its configuration", self.name);
        let now = NotifyState::monotonic_usec_now();
        self.tell(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
    }

    /// A clean stop has begun.
    pub fn stopping(&self) {
        tracing::info!("{} stopping", self.name);
        self.tell(&[NotifyState::Stopping]);
    }

    /// How often [`alive`](Self::alive) is to be called; `None`: never.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Control has gone round its loop, and every worker has passed the barrier made for this purpose. Sends at most one message
    /// per watchdog period, so it may be called more often.
    pub fn alive(&mut self, now: Instant) {
        let Some(period) = self.watchdog else { return };
        if self.last_alive.is_none_or(|last| now.saturating_duration_since(last) >= period) {
            self.last_alive = Some(now);
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(state) {
            tracing::warn!("{}: the service manager's socket ($NOTIFY_SOCKET): {error}", self.name);
        }
    }
}

/// The protocol is one assignment per line.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// Set for the child process of the test below: the environment of this one belongs to all tests.
    const CHILD: &str = "AVIO_TEST_SERVICE_CHILD";

    #[test]
    fn the_service_manager_is_told_in_its_own_words() {
        let name = std::thread::current().name().unwrap().to_owned();
        if std::env::var_os(CHILD).is_some() {
            let mut service = Service::new("avio-test");
            assert_eq!(service.watchdog_period(), Some(Duration::from_secs(1)));
            service.ready("2 vswitches\nand more");
            service.reloading();
            service.stopping();
            let now = Instant::now();
            service.alive(now);
            service.alive(now + Duration::from_millis(999));
            service.alive(now + Duration::from_secs(1));
            return;
        }
        let path = std::env::temp_dir().join(format!("avio-notify-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name])
            .env(CHILD, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "2000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(child.status.success(), "{child:?}");
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        let mut messages = Vec::new();
        while let Ok(len) = socket.recv(&mut buffer) {
            messages.push(String::from_utf8(buffer[..len].to_vec()).unwrap());
        }
        assert_eq!(messages[0], "READY=1\nSTATUS=2 vswitches and more\n");
        assert!(messages[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{messages:?}");
        assert_eq!(messages[2..], ["STOPPING=1\n", "WATCHDOG=1\n", "WATCHDOG=1\n"]);
    }
}
