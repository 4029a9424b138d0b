//! The real binary against real peers: OpenSSH hosts on loopback, git repositories, HTTP servers.
//!
//! Needs root (every project's commands run as a user of their own), `sshd`, `ssh-keygen`, `git`, `python3`, `systemd-nspawn`, `debootstrap`, `nginx`, `caddy`, `podman`, `prometheus`, `logrotate` and `ansible-inventory`; what is missing is named by
//! the first test that needs it. Every test has a world of its own: a directory, a daemon, an sshd, repositories.

#![allow(clippy::disallowed_methods, reason = "tests wait on conditions with the system's clock")]

mod fixture;

mod alarms;
mod artifacts;
mod backup;
mod checks;
mod containers;
mod crash;
mod demo;
mod discovery;
mod disk;
mod doors;
mod dry_run;
mod durable;
mod environments;
mod failures;
mod front;
mod health;
mod host_keys;
mod hosts;
mod init;
mod jobs;
mod leftovers;
mod maintenance;
mod names;
mod output;
mod package;
mod peers;
mod plans;
mod poll;
mod push;
mod queue;
mod reach;
mod retention;
mod rollouts;
mod secrets;
mod service;
mod signals;
mod stages;
mod steps;
mod tokens;
mod trust;
mod units;
mod webhook;
