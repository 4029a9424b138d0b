//! The known_hosts files that projects name: without its file no host is believed, which nobody wants to hear from the first deployment.

use std::{
    collections::BTreeSet,
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    model::{
        host::{Ssh, Transport},
        pipeline::{Environment, HostSource},
    },
    ports::program::{Diagnostic, Loaded},
    ssh::known_hosts::{self, Who},
};

/// What is wrong with them.
pub(super) fn wrong(config: &Config, loaded: &[Loaded]) -> Vec<Diagnostic> {
    loaded
        .iter()
        .flat_map(|project| named(project).into_iter().filter_map(move |file| look(config, project, &file)))
        .collect()
}

/// Those that a project names.
fn named(project: &Loaded) -> BTreeSet<String> {
    let pipeline = &project.pipeline;
    let mut files: BTreeSet<String> = pipeline.source.known_hosts.iter().cloned().collect();
    for ssh in pipeline.environments.iter().flat_map(ways) {
        let hops = ssh.jump.into_iter().flat_map(|jump| jump.0);
        files.extend(hops.filter_map(|hop| hop.known_hosts).chain(ssh.known_hosts));
    }
    files
}

/// How its hosts are reached, of those that SSH reaches.
fn ways(environment: &Environment) -> Vec<Ssh> {
    let way = |source: &HostSource| match source {
        HostSource::Static(hosts) => {
            let hosts = hosts.iter().map(|host| environment.reaching(host.clone()));
            hosts.filter(|host| host.transport == Transport::Ssh).map(|host| host.ssh).collect()
        }
        HostSource::Plugin { .. } if environment.signal.is_some() => Vec::new(),
        HostSource::Plugin { .. } => vec![environment.ssh.clone()],
    };
    environment.hosts.iter().flat_map(way).collect()
}

fn look(config: &Config, project: &Loaded, file: &str) -> Option<Diagnostic> {
    // It is asked whether it can be read, and not for anybody's key.
    let nobody = Who { id: "", name: "", address: "", port: 22 };
    let message = known_hosts::read(Path::new(file), &nobody).err()?.cause.message;
    let help = match File::open(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => format!(
            "`ssh-keyscan HOST >>{file}`, and compare what it says with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host; or \
             `phased init URL --host HOST`, which asks"
        ),
        Err(_) => format!("the daemon must be able to read it: chmod a+r {file}"),
        Ok(_) => "mend it: nobody is believed by a file that cannot be read to its end".to_owned(),
    };
    let name = format!("projects/{}.lua", project.name);
    let lua = config
        .plugins
        .iter()
        .map(|dir| dir.join(&name))
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(&name));
    let (line, column) = std::fs::read_to_string(&lua).ok().and_then(|text| place(&text, file)).unwrap_or((0, 0));
    Some(Diagnostic {
        file: lua,
        line,
        column,
        length: file.chars().count(),
        code: "known_hosts",
        message,
        help: Some(help),
    })
}

/// Where a text first stands; nowhere when a module that the project requires has it.
fn place(text: &str, wanted: &str) -> Option<(usize, usize)> {
    let before = &text[..text.find(wanted)?];
    let line = before.rsplit('\n').next().unwrap_or_default();
    Some((before.matches('\n').count() + 1, line.chars().count() + 1))
}
