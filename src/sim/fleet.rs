//! The machines: which release each serves, what runs on it, and what goes wrong there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    check,
    outside::{Outside, State},
    scenario::{self, Behaviour, HostFault},
    shell::{Request, Shell, Wire},
};
use crate::model::{
    health::{Fact, Sight},
    pipeline::Check,
};

/// Whether a machine can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Well,
    /// Nobody listens.
    Refuses,
    /// Nothing comes back.
    Hangs,
}

/// A connection on which nothing comes back is given up after so long.
const KEPT: Duration = Duration::from_secs(30);
/// From TERM to the end of a command that minds it.
const TERM: Duration = Duration::from_millis(40);

/// A machine.
pub(super) struct Machine {
    /// Its own id, which another machine at its address has not.
    pub(super) id: String,
    pub(super) reach: Reach,
    /// Changes with every fault, so that the end of an older one changes nothing.
    fault: u32,
    /// The release it serves; `None` = nothing, or a half of something.
    pub(super) serves: Option<String>,
    /// It has served something.
    pub(super) served: bool,
    /// Since when.
    pub(super) since: Duration,
    /// It is out of service on purpose.
    pub(super) drained: bool,
    /// What it runs is ill for a reason of its own.
    pub(super) ill: bool,
    /// Its next command does not end.
    hangs: bool,
    /// Nothing can be put in the place of what it runs.
    clings: bool,
    /// Its provider has ended it.
    pub(super) gone: bool,
    pub(super) commands: BTreeMap<String, Command>,
    epochs: BTreeMap<String, u64>,
    wires: Vec<Weak<Wire>>,
}

/// A command that a machine has heard of.
pub(super) struct Command {
    /// `PHASED_*`.
    pub(super) variables: BTreeMap<String, String>,
    pub(super) command: String,
    pub(super) state: CommandState,
    began: Duration,
    output: Vec<u8>,
    /// Who waits for its end.
    waits: Vec<(Arc<Shell>, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CommandState {
    Runs,
    /// By what, with which code, after so long.
    Ended(&'static str, u32, Duration),
    /// It went with the machine's power.
    Rebooted,
    /// It may never begin.
    Void,
}

impl Command {
    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// What is said of it.
    fn verdict(&self, from: u64) -> Vec<u8> {
        match &self.state {
            CommandState::Runs => Vec::new(),
            CommandState::Void => b"X void\n".to_vec(),
            CommandState::Rebooted => b"X rebooted\n".to_vec(),
            CommandState::Ended(why, code, took) => {
                let mut said = Vec::new();
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                if let Some(rest) = self.output.get(from..).filter(|rest| !rest.is_empty()) {
                    said.extend_from_slice(format!("O 1 {from} {}\n", rest.len()).as_bytes());
                    said.extend_from_slice(rest);
                }
                said.extend_from_slice(format!("X {why} {code} {}\n", took.as_millis() / 10).as_bytes());
                said
            }
        }
    }
}

impl Machine {
    pub(super) fn new(id: &str) -> Self {
        Machine {
            id: format!("machine-{id}"),
            reach: Reach::Well,
            fault: 0,
            serves: None,
            served: false,
            since: Duration::ZERO,
            drained: false,
            ill: false,
            hangs: false,
            clings: false,
            gone: false,
            commands: BTreeMap::new(),
            epochs: BTreeMap::new(),
            wires: Vec::new(),
        }
    }

    /// Commands that run now.
    pub(super) fn running(&self) -> impl Iterator<Item = &Command> {
        self.commands.values().filter(|command| command.state == CommandState::Runs)
    }

    /// Nothing that ran is there any more.
    pub(super) fn lose_power(&mut self) {
        for command in self.commands.values_mut().filter(|command| command.state == CommandState::Runs) {
            command.state = CommandState::Rebooted;
            command.waits.clear();
        }
    }

    fn live_wires(&mut self) -> Vec<Arc<Wire>> {
        self.wires.retain(|wire| wire.strong_count() > 0);
        self.wires.iter().filter_map(Weak::upgrade).collect()
    }
}

/// How a command goes.
struct Way {
    takes: Duration,
    code: u32,
}

impl State {
    /// How a command goes, as its release is.
    fn way(&mut self, machine: Option<&str>, command: &Command) -> Way {
        let host = machine.and_then(scenario::number);
        let clings = machine.and_then(|id| self.machines.get(id)).is_some_and(|machine| machine.clings);
        let is = self.behaviour(command.variable("RELEASE"));
        let fails = match (command.command.as_str(), is) {
            ("deploy", _) if clings => true,
            ("test", Some(Behaviour::TestsFail))
            | ("migrate", Some(Behaviour::BeforeFails))
            | ("deploy", Some(Behaviour::DeployFails(None)))
            | ("verify", Some(Behaviour::VerifyFails)) => true,
            ("prepare", Some(Behaviour::PrepareFails(on))) | ("deploy", Some(Behaviour::DeployFails(Some(on)))) => {
                host == Some(on)
            }
            _ => false,
        };
        let most = if self.random.one_in(20) { 20_000 } else { 1_500 };
        Way { takes: Duration::from_millis(self.random.between(5, most)), code: u32::from(fails) }
    }

    /// Whether what a machine serves answers as it should.
    pub(super) fn healthy(&self, id: &str, now: Duration) -> bool {
        let Some(machine) = self.machines.get(id) else { return false };
        let Some(serves) = &machine.serves else { return false };
        let host = scenario::number(id);
        let served = now.saturating_sub(machine.since);
        let well = match self.behaviour(serves) {
            None => false,
            Some(Behaviour::Unhealthy(on)) => on.is_some() && on != host,
            Some(Behaviour::NoWayBackUnhealthy | Behaviour::Clings(_)) => false,
            Some(Behaviour::SickensAfter(span)) => served < span,
            // Up for two seconds, down for one.
            Some(Behaviour::Flaps(span)) => served >= span || served.as_millis() % 3_000 < 2_000,
            Some(_) => true,
        };
        well && !machine.ill && !machine.gone
    }
}

impl Outside {
    /// Whether `machine` can be reached.
    pub(super) fn reach(&self, machine: Option<&str>) -> Reach {
        let state = self.state();
        match machine {
            None => Reach::Well,
            Some(id) => state.machines.get(id).map_or(Reach::Refuses, |machine| machine.reach),
        }
    }

    /// Who `machine` says it is.
    pub(super) fn identity(&self, machine: Option<&str>) -> (String, &'static str) {
        let state = self.state();
        (state.machine(machine).map_or_else(String::new, |machine| machine.id.clone()), "deploy")
    }

    pub(super) fn connected(&self, wire: &Arc<Wire>) {
        if let Some(machine) = self.state().machine_mut(wire.machine.as_deref()) {
            machine.live_wires();
            machine.wires.push(Arc::downgrade(wire));
        }
    }

    /// What a probe sees.
    pub(super) fn look(&self, machine: Option<&str>, check: &str) -> Vec<u8> {
        let (state, now) = (self.state(), self.clock().elapsed());
        let Some(id) = machine else { return Vec::new() };
        let serves = state.machines.get(id).and_then(|machine| machine.serves.clone()).unwrap_or_default();
        match check {
            "version" if state.behaviour(&serves) == Some(Behaviour::WrongVersion) => b"0123456789ab".to_vec(),
            "version" => serves.into_bytes(),
            _ if state.healthy(id, now) => b"200".to_vec(),
            _ => b"503".to_vec(),
        }
    }

    /// A machine is asked about a command.
    pub(super) fn asked(&self, shell: &Arc<Shell>, machine: Option<&str>, request: Request) {
        if request.verb == "left" {
            return shell.say(b"X left 0 0\n", b"");
        }
        let now = self.clock().elapsed();
        let mut state = self.state();
        let Some(of) = state.machine_mut(machine) else { return };
        if let Some(command) = of.commands.get_mut(&request.token) {
            if command.state != CommandState::Runs {
                let said = command.verdict(request.from);
                drop(state);
                return shell.say(&said, b"");
            }
            command.waits.push((Arc::clone(shell), request.from));
            if request.verb == "stop" {
                let (outside, machine, token) = (self.clone(), machine.map(str::to_owned), request.token.clone());
                self.clock().after(TERM, move || outside.ends(machine.as_deref(), &token, "stop", 143));
            }
            return;
        }
        let command = Command {
            variables: request.variables,
            command: request.command,
            state: CommandState::Runs,
            began: now,
            output: Vec::new(),
            waits: vec![(Arc::clone(shell), request.from)],
        };
        if request.verb != "start" {
            let command = Command { state: CommandState::Void, waits: Vec::new(), ..command };
            let said = command.verdict(0);
            of.commands.insert(request.token, command);
            drop(state);
            return shell.say(&said, b"");
        }
        if !request.epoch_of.is_empty() {
            let seen = of.epochs.entry(request.epoch_of).or_insert(0);
            if *seen > request.epoch {
                let said = format!("X refused stale_epoch {seen}\n");
                drop(state);
                return shell.say(said.as_bytes(), format!("{}\n", request.mark).as_bytes());
            }
            *seen = request.epoch;
        }
        let hangs = machine.is_some() && std::mem::take(&mut of.hangs);
        let way = state.way(machine, &command);
        let takes = if hangs || way.takes >= request.limit { request.limit } else { way.takes };
        let (why, code) = if takes == request.limit { ("timeout", 143) } else { ("exit", way.code) };
        state.tell(now, &format!("{}: {} begins", machine.unwrap_or("here"), command.line()));
        check::begins(&mut state, now, machine, &request.token, &command);
        if let Some(id) = machine {
            state.takes_effect(id, &command, now, false);
        }
        if let Some(of) = state.machine_mut(machine) {
            of.commands.insert(request.token.clone(), command);
        }
        drop(state);
        let (outside, machine, token) = (self.clone(), machine.map(str::to_owned), request.token);
        self.clock().after(takes, move || outside.ends(machine.as_deref(), &token, why, code));
    }

    /// A command ends.
    fn ends(&self, machine: Option<&str>, token: &str, why: &'static str, code: u32) {
        let now = self.clock().elapsed();
        let mut state = self.state();
        let Some(command) = state.machine_mut(machine).and_then(|of| of.commands.get_mut(token)) else { return };
        if command.state != CommandState::Runs {
            return;
        }
        command.state = CommandState::Ended(why, code, now.saturating_sub(command.began));
        command.output = format!("{} {why} {code}\n", command.command).into_bytes();
        let waits = std::mem::take(&mut command.waits);
        let said: Vec<_> = waits.into_iter().map(|(shell, from)| (shell, command.verdict(from))).collect();
        let line = command.line();
        let done = (code == 0).then(|| (command.command.clone(), command.variables.clone()));
        state.tell(now, &format!("{}: {line} ends: {why} {code}", machine.unwrap_or("here")));
        if let (Some(id), Some((command, variables))) = (machine, done) {
            let command = Command {
                variables,
                command,
                state: CommandState::Runs,
                began: now,
                output: Vec::new(),
                waits: Vec::new(),
            };
            state.takes_effect(id, &command, now, true);
        }
        drop(state);
        for (shell, said) in said {
            shell.say(&said, b"");
        }
    }

    /// A fault begins, and ends after its time.
    pub(super) fn befall(&self, host: u32, what: HostFault, lasts: Duration) {
        let now = self.clock().elapsed();
        let mut state = self.state();
        let id = format!("h{host}");
        state.tell(now, &format!("{id}: {what:?}"));
        if what == HostFault::Joins {
            let n = scenario::newcomer(host, u32::try_from(state.machines.len()).unwrap_or(0));
            let id = format!("h{n}");
            state.machines.insert(id.clone(), Machine::new(&id));
            state.listed.push(scenario::host(n));
            return;
        }
        let id = id.as_str();
        state.disturbed.insert(id.to_owned());
        if matches!(what, HostFault::Reboots | HostFault::Gone) {
            state.rebooted.insert(id.to_owned());
        }
        let Some(machine) = state.machines.get_mut(id) else { return };
        if machine.gone {
            return;
        }
        machine.fault += 1;
        let fault = machine.fault;
        let wires = machine.live_wires();
        let (mut cut, mut over) = (false, true);
        match what {
            HostFault::Refuses => (machine.reach, cut) = (Reach::Refuses, true),
            HostFault::Hangs => machine.reach = Reach::Hangs,
            HostFault::Cut => (cut, over) = (true, false),
            HostFault::Reboots => {
                (machine.reach, cut) = (Reach::Refuses, true);
                for command in machine.commands.values_mut().filter(|command| command.state == CommandState::Runs) {
                    command.state = CommandState::Rebooted;
                    command.waits.clear();
                    if matches!(command.command.as_str(), "stop" | "deploy") {
                        // Half of it is there.
                        machine.serves = None;
                    }
                }
                machine.since = now;
            }
            HostFault::CommandHangs => (machine.hangs, over) = (true, false),
            HostFault::Ill => machine.ill = true,
            HostFault::Gone => {
                (machine.reach, machine.gone, cut, over) = (Reach::Refuses, true, true, false);
                for command in machine.commands.values_mut() {
                    command.state = CommandState::Rebooted;
                    command.waits.clear();
                }
                state.listed.retain(|host| host.id.as_str() != id);
            }
            HostFault::Joins => {}
        }
        drop(state);
        if cut {
            wires.iter().for_each(|wire| wire.cut());
        }
        if what == HostFault::Hangs {
            let (outside, id) = (self.clone(), id.to_owned());
            self.clock().after(KEPT, move || outside.gives_up(&id, fault));
        }
        if over {
            let (outside, id) = (self.clone(), id.to_owned());
            self.clock().after(lasts, move || outside.recovers(&id, fault));
        }
    }

    fn gives_up(&self, id: &str, fault: u32) {
        let wires = match self.state().machines.get_mut(id) {
            Some(machine) if machine.fault == fault && machine.reach == Reach::Hangs => machine.live_wires(),
            _ => return,
        };
        wires.iter().for_each(|wire| wire.cut());
    }

    fn recovers(&self, id: &str, fault: u32) {
        let now = self.clock().elapsed();
        let mut state = self.state();
        let Some(machine) = state.machines.get_mut(id).filter(|machine| machine.fault == fault) else { return };
        (machine.reach, machine.ill) = (Reach::Well, false);
        let wires = machine.live_wires();
        state.tell(now, &format!("{id} is well again"));
        drop(state);
        wires.iter().for_each(|wire| wire.heal());
    }
}

impl Command {
    /// What it is, in one line.
    pub(super) fn line(&self) -> String {
        let release = self.variable("RELEASE");
        format!("{} {} of {}", self.command, release, self.variable("DEPLOYMENT"))
    }
}

impl State {
    /// What a command does to its machine: when it begins, and when it has gone well.
    fn takes_effect(&mut self, id: &str, command: &Command, now: Duration, over: bool) {
        let release = command.variable("RELEASE").to_owned();
        let clings = scenario::number(id).is_some_and(|n| self.behaviour(&release) == Some(Behaviour::Clings(n)));
        let Some(machine) = self.machines.get_mut(id) else { return };
        match (command.command.as_str(), over) {
            ("stop" | "deploy", false) => machine.serves = None,
            ("deploy", true) => {
                (machine.serves, machine.served, machine.since) = (Some(release), true, now);
                machine.clings |= clings;
            }
            ("drain", _) => machine.drained = true,
            ("undrain", true) => machine.drained = false,
            _ => {}
        }
    }
}

/// What an answer means to a watch.
pub(super) fn sight(check: &Check, answer: &str) -> Sight {
    match check {
        Check::Version(_) if answer.is_empty() => {
            Sight { good: false, seen: "it says no version".to_owned(), fact: None }
        }
        Check::Version(_) => {
            Sight { good: true, seen: answer.to_owned(), fact: Some(Fact::Version(answer.to_owned())) }
        }
        _ => Sight { good: answer == "200", seen: answer.to_owned(), fact: None },
    }
}
