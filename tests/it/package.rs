//! The packages on machines with a real systemd: what `apt install` brings, and what becomes of work under way when it is upgraded,
//! downgraded, killed, hung, rebooted, removed and purged.
//!
//! The debs and rpms are made of the binary that all tests run, by `scripts/package`. Every test boots machines of its own.

mod credentials;
mod faults;
mod lifecycle;
mod lint;
mod quick_start;
mod rpm;
mod site;
mod upgrade;
