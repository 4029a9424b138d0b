//! The packages on machines with a real systemd: what `apt install` brings, and what becomes of work under way when it is upgraded,
//! downgraded, killed, hung, rebooted, removed and purged.
//!
//! The debs and rpms are made by `scripts/package`, of the binary that all tests run; `scripts/test-package` gives those that are made already.
//! Every test boots machines of its own.

mod credentials;
mod faults;
mod lifecycle;
mod lint;
mod quick_start;
mod rpm;
mod site;
mod upgrade;
