//! stdout for data, stderr for everything else; both may be closed at any moment.

use std::io::Write as _;

use super::exit::Failure;
use crate::api::text::printable;

/// Writes data.
///
/// # Errors
/// [`Failure::OutputClosed`]: nobody reads it any more.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    if cfg!(test) {
        // The test harness holds back only what the macro writes.
        print!("{text}");
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|_| Failure::OutputClosed)
}

/// Says something to the person at the terminal. Whatever comes from outside goes through [`printable`] before.
pub(super) fn say(text: &str) {
    if cfg!(test) {
        return eprint!("{text}");
    }
    let mut err = std::io::stderr().lock();
    let _nobody_listens = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Says what went wrong.
pub(super) fn complain(text: &str) {
    say(&format!("phased: {}\n", printable(text).trim_end()));
}
