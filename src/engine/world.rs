//! Everything the engine reaches, in one place.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use super::hosts::fleet::Fleets;
use crate::{
    lifecycle::{Tasks, stall::Stalls},
    ports::{
        backup::Archive,
        blobs::Blobs,
        control::Control,
        discovery::Discovery,
        forge::{Forge, Hooks},
        hands::Hands,
        http::Http,
        index::Index,
        journal::Journals,
        leases::Leases,
        link::Links,
        mail::Mail,
        outputs::Outputs,
        probe::Probe,
        program::Programs,
        secrets::Secrets,
        signals::{Listening, Signer},
        storage::Storage,
    },
    time::Clock,
};

/// Limits of the daemon that are no project's business.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Unread output of one command before it is ended, bytes.
    pub max_output: u64,
    /// How long a cut connection is tried again beyond a step's own deadline.
    pub reconnect: Duration,
    /// Queued runs of one project.
    pub max_queued: usize,
    /// How often hosts are looked for that lack what is live; zero = never.
    pub converge: Duration,
    /// The most bytes of an artifact.
    pub max_artifact: u64,
    /// `PATH` of local commands.
    pub path: String,
    /// How long what has happened is kept.
    pub retention: Retention,
}

/// Which finished runs are kept: each of the first three keeps, the last removes the oldest whatever keeps them.
#[derive(Debug, Clone)]
pub struct Retention {
    /// The newest of each project.
    pub runs: usize,
    /// Younger ones.
    pub age: Duration,
    /// Younger ones that did not succeed.
    pub failed: Duration,
    /// What the data directory may take, bytes.
    pub quota: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_output: 256 * 1024 * 1024,
            reconnect: Duration::from_secs(300),
            max_queued: 1000,
            converge: Duration::ZERO,
            max_artifact: 2 << 30,
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            retention: Retention {
                runs: 200,
                age: Duration::from_secs(30 * 86_400),
                failed: Duration::from_secs(90 * 86_400),
                quota: 10 << 30,
            },
        }
    }
}

/// Fills a buffer with random bytes.
pub type Random = dyn Fn(&mut [u8]) + Send + Sync;

/// The ports, and what else a world has. Handed in by `app`, or by a simulation.
pub struct World {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Tasks.
    pub tasks: Tasks,
    /// The truth about runs.
    pub journals: Arc<dyn Journals>,
    /// The truth about what outlives runs.
    pub control: Arc<dyn Control>,
    /// Environments.
    pub leases: Arc<dyn Leases>,
    /// Artifacts and large values.
    pub blobs: Arc<dyn Blobs>,
    /// What views are read from.
    pub index: Arc<dyn Index>,
    /// The disk under all of these.
    pub storage: Arc<dyn Storage>,
    /// Copies all of it.
    pub archive: Arc<dyn Archive>,
    /// Output of commands.
    pub outputs: Arc<dyn Outputs>,
    /// Ways to machines.
    pub links: Arc<dyn Links>,
    /// Users' code.
    pub programs: Arc<dyn Programs>,
    /// Git.
    pub forge: Arc<dyn Forge>,
    /// Webhook dialects by provider.
    pub hooks: BTreeMap<String, Arc<dyn Hooks>>,
    /// HTTP from here.
    pub http: Arc<dyn Http>,
    /// Mail.
    pub mail: Arc<dyn Mail>,
    /// Health looks.
    pub probe: Arc<dyn Probe>,
    /// Signs and verifies signals.
    pub signer: Arc<dyn Signer>,
    /// To which signals this daemon listens.
    pub listening: Listening,
    /// DNS, EC2 and signed tokens, for discovery.
    pub discovery: Arc<dyn Discovery>,
    /// What is known of the hosts of environments.
    pub fleets: Fleets,
    /// Secrets by name.
    pub secrets: Arc<dyn Secrets>,
    /// Limits.
    pub limits: Limits,
    /// Who writes: the controller's name in every record.
    pub controller: Arc<str>,
    /// Files between the daemon and the users of local commands.
    pub hands: Arc<dyn Hands>,
    /// Randomness for ids and tokens: fills the buffer.
    pub random: Arc<Random>,
    /// Where run directories lie when they are no checkout's; for messages.
    pub data_dir: PathBuf,
    /// Where a part of it stands still, for tests.
    pub stalls: Stalls,
    /// The program that is running: job users pack artifacts with it.
    pub binary: PathBuf,
    /// The address people reach the daemon at, for commands in messages.
    pub version: &'static str,
}

impl World {
    /// A random number.
    #[must_use]
    pub fn random_u128(&self) -> u128 {
        let mut bytes = [0; 16];
        (self.random)(&mut bytes);
        u128::from_le_bytes(bytes)
    }
}
