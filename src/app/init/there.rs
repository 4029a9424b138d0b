//! A project's file that is there already: where no host is said, those that it lists are looked at. It may be somebody's own by now.

use std::path::Path;

use super::project::{self, Address, Draft};
use crate::{
    model::{
        host::{Host, Transport},
        host_key::Realm,
        ids::ProjectName,
        pipeline::{Environment, HostSource, Source},
    },
    ports::program::Programs,
};

/// What it says.
pub(super) struct There {
    text: String,
    pub source: Source,
    /// The hosts that it lists and that are reached by SSH.
    pub hosts: Vec<(Realm, Host)>,
    /// Which of its hosts are not looked at here, and what does so.
    pub notes: Vec<String>,
}

impl There {
    /// `None`: no such file is there, or it is not as it must be, which the check says.
    pub fn read(file: &Path, name: &ProjectName, programs: &impl Programs) -> Option<There> {
        let text = std::fs::read_to_string(file).ok()?;
        let loaded = programs.load().ok()?.into_iter().find(|loaded| loaded.name == *name)?;
        let mut there = There { text, source: loaded.pipeline.source, hosts: Vec::new(), notes: Vec::new() };
        loaded.pipeline.environments.iter().for_each(|environment| there.add(name, environment));
        Some(there)
    }

    fn add(&mut self, project: &ProjectName, environment: &Environment) {
        let name = &environment.name;
        for source in &environment.hosts {
            match source {
                HostSource::Static(hosts) => {
                    let hosts = hosts.iter().map(|host| environment.reaching(host.clone()));
                    let hosts = hosts.filter(|host| host.transport == Transport::Ssh);
                    self.hosts.extend(hosts.map(|host| (Realm::new(project, name), host)));
                }
                HostSource::Plugin { name: source, .. } => self.notes.push(format!(
                    "{name} has hosts from {source}, which were not looked at: `phased hosts {project}` lists them and `phased doctor` logs in \
                     to them, once the daemon runs"
                )),
            }
        }
    }

    /// The draft, with the hosts of the file or without any, that the file was written from; `None`: somebody has changed it, or was
    /// told otherwise. `user`: nobody has said one now.
    pub fn drafted(&self, draft: &Draft, user: bool) -> Option<Draft> {
        let mut filled = draft.clone();
        filled.hosts = self.hosts.iter().map(|(_, host)| Address::of(host)).collect();
        let first = self.hosts.first().and_then(|(_, host)| host.ssh.user.clone());
        if let Some(first) = first.filter(|_| user) {
            filled.user = first;
        }
        [draft.clone(), filled].into_iter().find(|draft| project::lua(draft) == self.text)
    }
}
