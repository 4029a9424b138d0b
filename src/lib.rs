//! phased: a daemon that gives a fleet of plain Linux servers continuous deployment. This page is its architecture: where things
//! are, what holds everywhere, and what is deliberately absent. What users see is in README.md and `docs/`.
//!
//! # Bird's-eye view
//!
//! A push (webhook, poll) or a person (API, CLI) asks for a **run**. The run checks out one commit, calls the Lua functions of its
//! project for each test stage and then, environment by environment, for each host. Those functions ask for **steps**: commands here or
//! over SSH, files, requests. Each request and each outcome is an **event** in the run's journal before it has a consequence.
//!
//! State is never stored, it is folded: `next(state, event)` is one pure function, the same code live and after a crash, and
//! `decide(&state, now)` says, as purely, what is to be done next. All else is either an adapter that does such an action
//! behind a trait, or a view for people that is folded from the same events.
//!
//! ```text
//!  curl, CLI, forges
//!        │ HTTP (socket, TCP)                          one daemon, one process
//!  ┌─────▼──────┐  start, stop   ┌────────────┐ begins ┌───────────────────────┐  calls    ┌────────────────┐
//!  │ API tasks  ├───────────────▶│ conductor  ├───────▶│ owner, one task a run ├──────────▶│ Lua thread,    │
//!  │ (api/)     │                │ queue task │        │ append ▸ fold ▸ decide│◀──────────┤ one a run      │
//!  └─────▲──────┘                └─┬────▲─────┘        └─┬──────▲──────────┬───┘  requests │ a VM per call  │
//!        │ documents, events       │    │ new head       │      │ outcomes │ records       └────────────────┘
//!        │                         │  poll tasks         │ ┌────┴───────┐  │
//!        │               control   │  (one a project)    └▶│ step tasks ├──┼──▶ hosts: one SSH session each
//!        │               records   │                       └────────────┘  │    here: `sh` as the job user
//!        │                         ▼                    wait for their     ▼
//!        │                 ┌───────────────┐  Begin    ┌───────────────────────┐
//!        │                 │ control       │           │ journals of runs      │
//!        │                 │ writer thread │           │ writer thread         │  group commit: write, sync, acknowledge
//!        │                 └───────┬───────┘           └───────────┬───────────┘
//!        │                         │ outbox/…                      │ only what is on disk
//!        │                 ┌───────▼───────┐           ┌───────────▼───────────┐
//!        │                 │ outbox task   ├─▶ people  │ views thread ▸ sled   │
//!        │                 └───────────────┘           └───────────┬───────────┘
//!        └─────────────────────────────────────────────────────────┘
//! ```
//! An arrow is a bounded queue or a plain call; nobody locks somebody else's state. The owner waits for nothing: whatever takes
//! time is a task that sends it a message in the end. The one thing everybody waits for is the disk, in [`ports::journal::Ticket`].
//!
//! # Where things are, in reading order
//!
//! | folder | what |
//! |---|---|
//! | [`time`], [`lifecycle`], [`telemetry`], [`whole`], [`dice`] | clocks and durations; named tasks and their end; the daemon's own log; files that are whole or not there; chance that can be had again |
//! | [`model`] | ids, releases, hosts, pipelines, events, `next`, `decide`: start here, this is what phased *is* |
//! | [`ports`] | what the engine needs from the world, as traits |
//! | [`config`] | `phased.toml`, secrets as files |
//! | [`journal`] | the truth: append-only files, group commit, the control log and its compaction, leases, output of commands, what a full or failed disk does, LOCK, backups |
//! | [`store`], [`blobs`] | the index in sled, which may be lost; content by hash, streamed where it is large |
//! | [`lua`] | the registry of everything Lua may write, the loader and its errors, the boxed VM, the driver of calls and their replay |
//! | [`exec`], [`ssh`] | links: a channel to `sh`, here or on a host |
//! | [`forge`], [`http`], [`probe`], [`alert`] | git and webhooks; requests; looks at a host's health; mail (the probes of alarms are Lua: `plugins/`) |
//! | [`signal`] | Ed25519: keys, signatures of signals and answers |
//! | [`discovery`] | what discovery needs that is not Lua: DNS, EC2, signed tokens; the rest is in `plugins/discovery` |
//! | [`engine`] | the conductor, the owner of a run, actions, steps, the command protocol, recovery, maintenance, retention, views |
//! | [`api`] | the HTTP API; one file per noun under `routes/` |
//! | [`service`] | what systemd and the daemon tell each other: readiness, the watchdog, sockets, limits |
//! | [`cli`], [`daemon`], [`app`] | the command line; into the background; the wiring, where `App::start` is the start script, and what is done without a daemon: check, init, doctor, restore, rebuild |
//! | [`sim`] | the same engine in a simulated world, from a seed: virtual time, hosts, faults, crashes, and what must hold |
//! | [`demo`] | `phased demo`: a repository, the real daemon, and hosts that are SSH servers in this process |
//!
//! Beside `src/`: `plugins/` are the shipped Lua plugins, built in; they use the public Lua API and nothing else. `packaging/` holds the
//! configuration and the example that `phased init` writes, and what the deb and the rpm are made of (`scripts/package`).
//!
//! # Invariants
//!
//! Architecture invariant: a layer imports only from those above it in the table; adapters never import each other, and the engine
//! imports no adapter. `tests/layers.rs` enforces it, and that a library is named in one place only: `sled` in `store`, `russh` in
//! `ssh`, `mlua` in `lua`, `axum` in `api`, `reqwest` in `http`, `lettre` in `alert`, `aws_*` and `hickory_resolver` in `discovery` (but for the cryptography of `aws_lc_rs`, also in `signal`).
//!
//! Architecture invariant: nothing reads a clock outside [`time`] and nothing spawns outside [`lifecycle`]. [`model`] does no IO and
//! never awaits. [`engine`] has no statics. Together they let the same engine run in a simulation.
//!
//! Architecture invariant: no effect without a synced `Begin`. A step task waits until its record is on disk, then acts; an answer of the
//! API that promises something is sent after the sync. Views may be behind the disk and are never ahead of it.
//!
//! Architecture invariant: there is no state beside the journals. The index can be deleted at any time (`phased rebuild`); no derived
//! fact is ever written into a journal.
//!
//! Architecture invariant: after a failed write or sync nothing is tried again and nothing further is acknowledged: the daemon says so
//! (`degraded`) and changes nothing. A write that finds no room is no such failure: what it left is cut off, and it waits.
//!
//! Architecture invariant: after a crash no Rust is replayed: the journal is folded and decided on. What is replayed are open calls, in
//! fresh VMs, by the answers their journal holds; a replay has no effect, and one that asks for something else ends the run.
//!
//! Architecture invariant: nothing begins on a machine before its own id is on disk, so that none is ever taken for another.
//!
//! Architecture invariant: nothing of ours is sent to a server before its host key is known to be that of the host's id: from a file, from the
//! host's record, by an authority, or, where the project says so, because it was the first one. No key is ever learnt over another.
//!
//! Architecture invariant: no Lua value crosses a thread or a call. A call gets plain data and gives plain data; Lua reaches neither
//! files nor the network but by asking for a step.
//!
//! Architecture invariant: liveness of a command is a lock its processes hold, in its first half second a process and the moment that
//! began, never a process id alone. Nothing of a command is in an argv, here or on a host.
//!
//! Architecture invariant: code under test has a user of its own. Root switches to it, or the job unit does ([`exec`]), which opens no path
//! as root and believes nothing it is asked: who asks is the kernel's word, who may be switched to is root's. A daemon that has neither runs none and refuses
//! projects that name a secret (`source.webhook` apart), unless `[exec] same_user = true` says on purpose that they may share its own.
//!
//! Architecture invariant: what code under test has made is read by its own user (`phased pack`, the command protocol), never by the
//! daemon: no link, device or race in a checkout leads anywhere that code does not get by itself.
//!
//! Architecture invariant: no request reaches a route but through `api/gate.rs`, and what is not known there to need less needs `admin`.
//!
//! Not there at all: a database server, an agent on hosts, SFTP, a host key that belongs to an address, async Lua, `unsafe`, a state kept as a boolean.
//!
//! # Glossary
//!
//! One word per idea, the same in code, Lua, JSON, CLI and documents.
//!
//! | word | meaning |
//! |---|---|
//! | project | one deployable system, described by one Lua file |
//! | release | the immutable thing that ships: a project at one commit, with the artifacts its first green run stored |
//! | artifact | a directory tree, file or value that a test stage stored with the release |
//! | build | a release's number among those of its commit: `.2` and so on are made when the tests run again |
//! | run | one press of the button: a release goes through the stages, then the environments; its `trigger` says who pressed |
//! | stage | a named group of tests on the integration server (the daemon's machine): `setup`, `run`, `cleanup` |
//! | environment | a named set of hosts with its own rules |
//! | deployment | one attempt to put a release on one environment; its id is `<run>.<n>` |
//! | rollout | how a deployment goes over its hosts: `max_parallel`, `max_failures`, `max_unreachable` |
//! | host | a deploy target, identified by its id, never by its address |
//! | realm | an environment of a project, as what a host's id is one host in |
//! | bastion, hop | an SSH server on the way to hosts; its place on that way |
//! | call | one Lua function called for one purpose, `production#1/web1/deploy`, in a VM of its own; `....undo` undoes it |
//! | replay | bringing a fresh VM to where its call's journal ends |
//! | diverge | to ask, in a replay, for something else than the journal holds |
//! | step | one effect with a journaled result: a command, an upload, a request, a sleep; its key is `<call>/<branch>/<verb>#<n>` |
//! | attempt, token | one try of a step; the token names it on the machine it runs on, so that it cannot run twice |
//! | journal | the append-only file of one run's events; the truth |
//! | control | the append-only key-value log of what outlives a run: requests, leases, tokens, the outbox |
//! | epoch | a number that grows with every owner of a run; older ones are refused |
//! | lease | exclusive right to deploy to an environment; environments of one `group` share another |
//! | freeze | a time in which nothing new is deployed to an environment |
//! | door | where a run waits for an environment: for its lease, or for the end of a freeze |
//! | view | a document for people, folded from synced events, kept in the index |
//! | signal, receiver | a signed order of one daemon to another, which deploys by rules of its own; that other daemon |
//! | link | a way to open channels to a machine, local or SSH |
//! | job user, job unit | who a project's local commands are; the systemd unit that starts one channel of them as that user |
//! | cause | why something ended or waits: `{code, message, ...}` |
//! | alarm | cause (a probe), alert (a channel) and action, all three; watched while a deployment goes on |
//! | measurement, verdict | what a probe found once; what an alarm's measurements mean: pass, fail or inconclusive |
//! | baseline | hosts that still run what was live before, as many as an alarm compares them with |
//! | pulse, beat | a round trip through everything a run needs to go on; what each part lets go of when it is reached |
//! | outbox | messages to people that are not delivered yet |
//! | pinned code | the Lua files a run began with, kept by hash |

pub mod alert;
pub mod api;
pub mod app;
pub mod blobs;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod dice;
pub mod discovery;
pub mod engine;
pub mod exec;
pub mod forge;
pub mod http;
pub mod journal;
pub mod lifecycle;
pub mod lua;
pub mod model;
pub mod ports;
pub mod probe;
pub mod service;
pub mod signal;
pub mod sim;
pub mod ssh;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod time;
pub mod whole;
