//! Logs of the daemon itself: fields first, then a sentence. To standard error, which may be a terminal, a pipe, a log file ([`file`]) or
//! systemd's journal, which then gets every field by itself ([`journald`]).

pub mod file;
mod harmless;
mod journald;

use std::io::IsTerminal as _;

use harmless::Lines;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One readable line; fields by themselves where standard error is systemd's journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Colours are for people at a terminal.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Installs the process-wide subscriber. `filter` is in `tracing`'s syntax, for example `info,phased::ssh=debug`.
///
/// # Errors
/// The filter's own parse error. A second call changes nothing.
pub fn init(format: Format, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    let text = || {
        tracing_subscriber::fmt::layer()
            .with_writer(|| harmless::stderr(Lines::Text { colours: colours() }))
            .with_target(false)
            .with_ansi(colours())
    };
    let _already_installed = match (format, journald::Journal::of_stderr()) {
        (Format::Text, Some(journal)) => registry.with(journal).try_init(),
        (Format::Text, None) => registry.with(text()).try_init(),
        (Format::Json, _) => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(|| harmless::stderr(Lines::Json)),
            )
            .try_init(),
    };
    Ok(())
}
