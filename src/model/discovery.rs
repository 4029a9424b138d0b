//! What sources say of the hosts of an environment: which answers are believed, and what several of them come to together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    cause::Cause,
    host::{Host, Presence, Ssh},
    ids::HostId,
    jump::Jump,
    pipeline::SourceLimits,
    rollout::Budget,
};

/// More disagreements than this are counted, not listed.
const LISTED: usize = 100;

/// Whether an answer may take the place of `last`, the last one that was believed.
///
/// # Errors
/// `min_hosts`, `max_shrink`: more likely the source is wrong than they are gone. `max_growth`: more likely it names what is none of ours.
pub fn believe(
    source: &str,
    last: Option<&[Host]>,
    now: &[Host],
    limits: &SourceLimits,
    usual_shrink: Budget,
) -> Result<(), Cause> {
    let running = now.iter().filter(|host| host.state.is_running()).count();
    let least = limits.min_hosts as usize;
    if running < least {
        let message = format!(
            "{source} found {running} running hosts, and min_hosts says there are at least {least}; mend the source, or lower min_hosts"
        );
        return Err(Cause::new("min_hosts", message).with("found", running).with("min_hosts", least));
    }
    let Some(last) = last else { return Ok(()) };
    let (before, ended) = before_and_ended(last, now);
    let came = running.saturating_sub(before);
    let most = limits.max_growth.map_or_else(|| usual_growth(before), |most| most as usize);
    if before > 0 && came > most {
        let message = format!(
            "{source} had {before} hosts and finds {running} now: {came} have come at once, and max_growth allows {most}. If all of them are \
             to have this, accept what it finds with `phased hosts PROJECT ENVIRONMENT --accept`; else mend the source"
        );
        return Err(Cause::new("max_growth", message)
            .with("before", before)
            .with("found", running)
            .with("max_growth", most));
    }
    // A host that another took the place of is not lost.
    let lost = before.saturating_sub(running + ended);
    let allowed = limits.max_shrink.unwrap_or(usual_shrink).of(before);
    if lost == 0 || lost <= allowed {
        return Ok(());
    }
    let aside = if ended == 0 { String::new() } else { format!(", {ended} reported as ended aside") };
    let message = format!(
        "{source} had {before} hosts and finds {running} now: {lost} are missing{aside}, and max_shrink allows {allowed}. If they are \
         gone for good, accept what it finds with `phased hosts PROJECT ENVIRONMENT --accept`"
    );
    Err(Cause::new("max_shrink", message).with("before", before).with("found", running).with("max_shrink", allowed))
}

/// How many hosts may come at once where nothing is said: what scales by itself begins small, and does not become six times what it was
/// between two looks; a filter that was lost does.
fn usual_growth(before: usize) -> usize {
    before.saturating_mul(5).max(50)
}

/// How many ran before, and how many of these are now said to be stopped or terminated.
fn before_and_ended(last: &[Host], now: &[Host]) -> (usize, usize) {
    let ended: std::collections::BTreeSet<&HostId> =
        now.iter().filter(|host| host.state.has_ended()).map(|host| &host.id).collect();
    let before = last.iter().filter(|host| host.state.is_running());
    let (mut count, mut over) = (0, 0);
    for host in before {
        count += 1;
        over += usize::from(ended.contains(&host.id));
    }
    (count, over)
}

/// What one source says.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// What the source is called.
    pub source: &'a str,
    /// Its hosts, each id once.
    pub hosts: &'a [Host],
}

/// Two sources say different things of one host; the first one's counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Which host.
    pub host: HostId,
    /// `address`, `port`, `labels.role`, ...
    pub field: String,
    /// What counts.
    pub used: String,
    /// Who says so.
    pub from: String,
    /// What does not.
    pub other: String,
    /// Who says that.
    pub other_from: String,
}

/// Why a host that a source names, or named, is not deployed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// What people call it.
    pub name: String,
    /// Where it is, or was.
    pub address: String,
    /// Who says so.
    pub source: String,
    /// `starting`, `stopped`, `terminated`, `same_address` or `not_found`.
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// What the sources come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    /// Those that run, with their own `ssh` values only, by id.
    pub hosts: BTreeMap<HostId, Host>,
    /// Who names each of them, in the order of the sources.
    pub named_by: BTreeMap<HostId, Vec<String>>,
    /// Those that a source names and that are left out.
    pub out: BTreeMap<HostId, Out>,
    /// Where sources disagree; the first hundred.
    pub conflicts: Vec<Conflict>,
    /// All of them.
    pub disagreements: usize,
}

impl Merged {
    /// Whether any source names it, running or not.
    #[must_use]
    pub fn names(&self, id: &HostId) -> bool {
        self.hosts.contains_key(id) || self.out.contains_key(id)
    }
}

/// Brings the sources together: one host for each id. The first source that says something of a host counts, later ones add what it does
/// not say, and a host that anyone says has ended is out. One machine that two sources know by two ids is deployed to once, as the first one's.
/// `usual`: what is under every host's own `ssh` values.
#[must_use]
pub fn merge(said: &[Said<'_>], usual: &Ssh) -> Merged {
    let mut merged = Merged::default();
    for Said { source, hosts } in said {
        for host in *hosts {
            merged.named_by.entry(host.id.clone()).or_default().push((*source).to_owned());
            match merged.hosts.get_mut(&host.id) {
                None => {
                    merged.hosts.insert(host.id.clone(), host.clone());
                }
                Some(known) => {
                    let from = merged.named_by.get(&host.id).and_then(|names| names.first()).cloned();
                    let mut adding = Adding {
                        host: host.id.clone(),
                        from: from.unwrap_or_default(),
                        other_from: source,
                        found: Vec::new(),
                    };
                    adding.add(known, host);
                    merged.disagreements += adding.found.len();
                    let room = LISTED.saturating_sub(merged.conflicts.len());
                    merged.conflicts.extend(adding.found.into_iter().take(room));
                }
            }
        }
    }
    leave_out(&mut merged, said, usual);
    merged
}

fn leave_out(merged: &mut Merged, said: &[Said<'_>], usual: &Ssh) {
    // The state that counts is the worst that anyone reports: a list that says nothing means no more than "I know of it".
    let mut worst: BTreeMap<&HostId, (Presence, &str, Option<&str>)> = BTreeMap::new();
    for Said { source, hosts } in said {
        for host in hosts.iter().filter(|host| !host.state.is_running()) {
            let this = (host.state, *source, host.reason.as_deref());
            let worst = worst.entry(&host.id).or_insert(this);
            if this.0 > worst.0 {
                *worst = this;
            }
        }
    }
    for (id, (state, source, reason)) in worst {
        let Some(host) = merged.hosts.remove(id) else { continue };
        let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
        let message = format!("{source} says it is {}{why}", state.as_str());
        merged.out.insert(id.clone(), out(&host, source, state.as_str(), message));
    }
    let mut places: BTreeMap<Place<'_>, (&HostId, &str)> = BTreeMap::new();
    let mut doubles = Vec::new();
    for Said { source, hosts } in said {
        for host in hosts.iter().filter(|host| merged.hosts.contains_key(&host.id)) {
            let (first, by) = places.entry(place(host, usual)).or_insert((&host.id, source));
            // Two names of one machine within one source are written so on purpose.
            if *first != &host.id && *by != *source && merged.named_by.get(&host.id).is_some_and(|by| by[0] == *source)
            {
                doubles.push((host, *source, (*first).clone(), (*by).to_owned()));
            }
        }
    }
    for (host, source, first, by) in doubles {
        merged.hosts.remove(&host.id);
        let message = format!("it is where {first} of {by} is, at {}: one machine is deployed to once", host.address);
        merged.out.insert(host.id.clone(), out(host, source, "same_address", message));
    }
}

/// One sshd, and one place for the command protocol behind it.
type Place<'a> = (&'a str, u16, Option<&'a Jump>, Option<&'a str>);

fn place<'a>(host: &'a Host, usual: &'a Ssh) -> Place<'a> {
    let own = &host.ssh;
    let port = own.port.or(usual.port).unwrap_or(22);
    // No bastion is no bastion, however that is said.
    let jump = own.jump.as_ref().or(usual.jump.as_ref()).filter(|jump| !jump.0.is_empty());
    (&host.address, port, jump, own.base.as_deref().or(usual.base.as_deref()))
}

fn out(host: &Host, source: &str, code: &str, message: String) -> Out {
    Out {
        name: host.name.clone(),
        address: host.address.clone(),
        source: source.to_owned(),
        code: code.to_owned(),
        message,
    }
}

struct Adding<'s> {
    host: HostId,
    from: String,
    other_from: &'s str,
    found: Vec<Conflict>,
}

impl Adding<'_> {
    fn add(&mut self, known: &mut Host, other: &Host) {
        // A name that is the id was not given.
        if known.name == known.id.as_str() {
            known.name.clone_from(&other.name);
        } else if other.name != other.id.as_str() {
            self.differ("name", &known.name, &other.name);
        }
        self.differ("address", &known.address, &other.address);
        self.value("zone", &mut known.zone, other.zone.as_ref());
        for (label, value) in &other.labels {
            match known.labels.get(label) {
                Some(used) => self.differ(&format!("labels.{label}"), used, value),
                None => {
                    known.labels.insert(label.clone(), value.clone());
                }
            }
        }
        let Ssh { user, port, known_hosts, host_keys, jump, path, base, .. } = &other.ssh;
        if let (Some(used), Some(other)) = (known.ssh.port, port) {
            self.differ("port", &used.to_string(), &other.to_string());
        }
        if let (Some(used), Some(other)) = (&known.ssh.jump, jump) {
            self.differ("jump", &used.to_string(), &other.to_string());
        }
        if let (Some(used), Some(other)) = (&known.ssh.host_keys, host_keys) {
            self.differ("host_keys", &used.to_string(), &other.to_string());
        }
        for (field, used, other) in [
            ("user", &known.ssh.user, user),
            ("known_hosts", &known.ssh.known_hosts, known_hosts),
            ("path", &known.ssh.path, path),
            ("base", &known.ssh.base, base),
        ] {
            if let (Some(used), Some(other)) = (used, other) {
                self.differ(field, used, other);
            }
        }
        known.ssh = other.ssh.overlaid(&known.ssh);
        if known.receiver_key.is_none() {
            known.receiver_key.clone_from(&other.receiver_key);
        }
    }

    fn value(&mut self, field: &str, known: &mut Option<String>, other: Option<&String>) {
        match (known.as_ref(), other) {
            (Some(used), Some(other)) => self.differ(field, used, other),
            (None, Some(other)) => *known = Some(other.clone()),
            (_, None) => {}
        }
    }

    fn differ(&mut self, field: &str, used: &str, other: &str) {
        if used != other {
            self.found.push(Conflict {
                host: self.host.clone(),
                field: field.to_owned(),
                used: used.to_owned(),
                from: self.from.clone(),
                other: other.to_owned(),
                other_from: self.other_from.to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, address: &str) -> Host {
        Host::at(id.parse().unwrap(), address.to_owned())
    }

    fn hosts(n: usize) -> Vec<Host> {
        (0..n).map(|i| host(&format!("h{i}"), &format!("10.0.0.{i}"))).collect()
    }

    #[test]
    fn an_answer_that_lost_too_many_is_not_believed() {
        let limits = SourceLimits { min_hosts: 2, ..SourceLimits::default() };
        let usual = Budget::Percent(30);
        let code = |last: Option<&[Host]>, now: &[Host]| believe("ec2", last, now, &limits, usual).map_err(|c| c.code);
        let forty = hosts(40);
        assert_eq!(code(None, &hosts(2)), Ok(()));
        assert_eq!(code(None, &hosts(1)), Err("min_hosts".to_owned()));
        assert_eq!(code(Some(&forty), &[]), Err("min_hosts".to_owned()));
        assert_eq!(code(Some(&forty), &hosts(28)), Ok(()));
        assert_eq!(code(Some(&forty), &hosts(27)), Err("max_shrink".to_owned()));
        // Others took their place.
        let others: Vec<Host> = (0..40).map(|i| host(&format!("n{i}"), "10.1.0.1")).collect();
        assert_eq!(code(Some(&forty), &others), Ok(()));
        // Reported terminations are no loss; of the others 30 % may be.
        let mut ended = hosts(40);
        ended.iter_mut().skip(10).for_each(|host| host.state = Presence::Terminated);
        assert_eq!(code(Some(&forty), &ended), Ok(()));
        // One that is coming again is not here.
        ended.iter_mut().skip(10).for_each(|host| host.state = Presence::Starting);
        assert_eq!(code(Some(&forty), &ended), Err("max_shrink".to_owned()));
        let strict = SourceLimits { max_shrink: Some(Budget::Percent(0)), ..SourceLimits::default() };
        let refused = believe("ec2", Some(&forty), &hosts(39), &strict, usual).unwrap_err();
        assert!(refused.message.contains("had 40 hosts and finds 39 now: 1 are missing"), "{refused}");
    }

    #[test]
    fn an_answer_with_far_more_than_there_were_is_not_believed() {
        let refused = |before: Option<usize>, now, max_growth| {
            let limits = SourceLimits { max_growth, ..SourceLimits::default() };
            let before = before.map(hosts);
            believe("ec2", before.as_deref(), &hosts(now), &limits, Budget::Percent(30)).err().map(|c| c.message)
        };
        let told = refused(Some(40), 400, None).unwrap();
        assert!(
            told.contains("had 40 hosts and finds 400 now: 360 have come at once, and max_growth allows 200"),
            "{told}"
        );
        // What scales by itself, and what begins.
        for (before, now) in [(Some(40), 240), (Some(3), 53), (Some(1), 50), (Some(0), 900), (None, 900)] {
            assert_eq!(refused(before, now, None), None, "{before:?} {now}");
        }
        assert!(refused(Some(3), 54, None).is_some());
        assert_eq!(refused(Some(40), 400, Some(360)), None);
        assert!(refused(Some(40), 41, Some(0)).is_some());
    }

    #[test]
    fn the_first_source_counts_and_later_ones_add() {
        let mut ours = host("i-1", "10.0.0.1");
        ours.labels.insert("role".into(), "web".into());
        let mut clouds = host("i-1", "54.1.2.3");
        clouds.name = "web-1".into();
        clouds.zone = Some("a".into());
        clouds.labels.extend([("role".into(), "db".into()), ("type".into(), "t3".into())]);
        clouds.ssh.port = Some(2222);
        let merged = merge(
            &[Said { source: "static", hosts: &[ours] }, Said { source: "ec2", hosts: &[clouds] }],
            &Ssh::default(),
        );
        let one = &merged.hosts["i-1"];
        assert_eq!((one.name.as_str(), one.address.as_str(), one.zone.as_deref()), ("web-1", "10.0.0.1", Some("a")));
        assert_eq!((one.labels["role"].as_str(), one.labels["type"].as_str(), one.ssh.port), ("web", "t3", Some(2222)));
        let told: Vec<(&str, &str, &str)> =
            merged.conflicts.iter().map(|c| (c.field.as_str(), c.used.as_str(), c.other.as_str())).collect();
        assert_eq!(told, [("address", "10.0.0.1", "54.1.2.3"), ("labels.role", "web", "db")]);
        assert_eq!(merged.named_by["i-1"], ["static", "ec2"]);
    }

    #[test]
    fn whoever_is_out_is_out_for_a_reason() {
        let mut dead = host("i-2", "10.0.0.2");
        dead.state = Presence::Terminated;
        dead.reason = Some("User initiated".into());
        let cloud = [host("i-1", "10.0.0.1"), dead];
        let list =
            [host("i-2", "10.0.0.2"), host("web1", "10.0.0.1"), host("web9", "10.0.0.9"), host("db9", "10.0.0.9")];
        let merged =
            merge(&[Said { source: "ec2", hosts: &cloud }, Said { source: "static", hosts: &list }], &Ssh::default());
        let ids: Vec<&str> = merged.hosts.keys().map(HostId::as_str).collect();
        assert_eq!(ids, ["db9", "i-1", "web9"], "two names of one machine in one source are meant");
        let names = |id: &str| merged.names(&id.parse().unwrap());
        assert!(names("i-1") && names("i-2") && names("web1") && !names("web2"), "who is out is still there");
        let why = |id: &str| merged.out[id].clone();
        assert_eq!(why("i-2").message, "ec2 says it is terminated: User initiated");
        assert_eq!((why("web1").code.as_str(), why("web1").source.as_str()), ("same_address", "static"));
        assert!(why("web1").message.contains("it is where i-1 of ec2 is"), "{}", why("web1").message);
    }

    #[test]
    fn one_machine_is_found_where_one_source_says_the_port_that_the_other_leaves_out() {
        let (cloud, mut listed) = ([host("i-1", "10.0.0.1")], host("web1", "10.0.0.1"));
        let ids = |port: Option<u16>, usual: Option<u16>, listed: &mut Host| {
            listed.ssh.port = port;
            let list = std::slice::from_ref(&*listed);
            let said = [Said { source: "ec2", hosts: &cloud }, Said { source: "static", hosts: list }];
            merge(&said, &Ssh { port: usual, ..Ssh::default() }).hosts.len()
        };
        assert_eq!(ids(Some(22), None, &mut listed), 1);
        assert_eq!(ids(Some(2222), Some(2222), &mut listed), 1);
        assert_eq!(ids(Some(22), Some(2222), &mut listed), 2, "another sshd");
    }

    #[test]
    fn the_worst_that_anyone_says_of_a_host_counts() {
        let state = |state| [Host { state, ..host("i-1", "10.0.0.1") }];
        let (off, gone) = (state(Presence::Stopped), state(Presence::Terminated));
        let said = [Said { source: "a", hosts: &off }, Said { source: "b", hosts: &gone }];
        let out = merge(&said, &Ssh::default()).out["i-1"].clone();
        assert_eq!((out.code.as_str(), out.source.as_str()), ("terminated", "b"));
    }

    #[test]
    fn many_disagreements_are_counted() {
        let (a, mut b) = (hosts(300), hosts(300));
        b.iter_mut().for_each(|host| host.address.push('9'));
        let merged = merge(&[Said { source: "a", hosts: &a }, Said { source: "b", hosts: &b }], &Ssh::default());
        assert_eq!((merged.conflicts.len(), merged.disagreements, merged.hosts.len()), (100, 300, 300));
    }
}
