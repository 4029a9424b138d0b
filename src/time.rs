//! Clocks, stamps, durations and time zones: the only place that reads a clock.
//!
//! Elapsed time within one boot is counted by `CLOCK_BOOTTIME` (it runs while the machine sleeps and nobody can set it);
//! across a boot the wall clock is all there is, and then it never counts backwards.

mod clock;
mod span;
mod zone;

pub use clock::{Clock, Stamp, SystemClock, rfc3339, within};
pub use span::{Span, SpanError};
pub use zone::zone;
