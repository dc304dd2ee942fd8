//! Log lines on standard error, for the journal or a terminal.
//!
//! Under the journal a line carries its priority (`<6>`, sd-daemon(3)) and no time, because the journal adds its own;
//! elsewhere it carries seconds since the start and its level. `AVIO_LOG` is a filter such as `info` or `avio_host=debug`.

use std::env;
use std::fmt;
use std::io;
use std::time::Instant;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable with the filter.
pub const FILTER_VARIABLE: &str = "AVIO_LOG";

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `AVIO_LOG` makes no sense.
    #[error("AVIO_LOG: `{value}` is not a filter ({reason}); write for instance `info` or `avio_host=debug`")]
    Filter {
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was started before in this process.
    #[error("logging has already been started")]
    Twice,
}

/// Starts logging for the process; called once, at the start of `main`.
///
/// # Errors
/// [`LogError`].
pub fn init() -> Result<(), LogError> {
    let filter = filter(env::var(FILTER_VARIABLE).ok().as_deref())?;
    let format = Lines { journal: env::var_os("JOURNAL_STREAM").is_some(), started: Instant::now() };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .event_format(format)
        .try_init()
        .map_err(|_| LogError::Twice)
}

fn filter(value: Option<&str>) -> Result<EnvFilter, LogError> {
    let value = value.unwrap_or("info");
    EnvFilter::try_new(value)
        .map_err(|error| LogError::Filter { value: value.to_owned(), reason: error.to_string() })
}

/// How a line looks.
struct Lines {
    journal: bool,
    started: Instant,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(writer, "<{}>", priority(level))?;
        } else {
            write!(writer, "{:>9.3} {level:<5} ", self.started.elapsed().as_secs_f64())?;
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// syslog(3)'s number for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn filters() {
        assert_eq!(filter(None).unwrap().to_string(), "info");
        assert!(filter(Some("avio_host=debug,warn")).is_ok());
        let error = filter(Some("avio=loud")).unwrap_err().to_string();
        assert!(error.starts_with("AVIO_LOG: `avio=loud` is not a filter ("), "{error}");
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_for_the_journal_carry_their_priority() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Lines { journal: true, started: Instant::now() })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("ready");
            tracing::warn!(port = 1, "spoofed");
        });
        assert_eq!(
            String::from_utf8(sink.0.lock().unwrap().clone()).unwrap(),
            "<6>ready\n<4>spoofed port=1\n"
        );
    }
}
