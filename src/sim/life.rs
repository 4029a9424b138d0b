//! A simulation from its beginning to its end: the engine over simulated adapters, one life of the daemon after the other.
//!
//! The runtime has one thread. Whenever that has nothing to do it asks the clock for what is due next, so time goes on only then; and
//! the order in which tasks are woken is that in which things happened. A life ends by dropping the runtime with every task in it: like
//! SIGKILL, no code of ours runs. What remains is the disk, and everything outside.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    task::{Poll, Waker},
    time::Duration,
};

use super::{
    check,
    clock::DiskTime,
    forge::Repository,
    index::{OnDisk, ScarceIndex},
    outside::{Life, Outside},
    ports::{Lookups, MemoryBlobs, MemoryOutputs, Nowhere, Room},
    program,
    random::Random,
    scenario::{Crash, Does, Person, Scenario},
    shell::{Looks, Ways},
};
use crate::{
    engine::{
        Conductor, Fleets, Views,
        handle::{ChangeAsk, Engine, FreezeAsk, LeaseAsk, Start},
        world::{Limits, Retention, World},
    },
    journal::{
        ControlLeases, ControlLog, DataDisk, RunJournals, SimulatedDisk,
        line::{self, First},
        records_after,
    },
    lifecycle::{Tasks, locks::locked, stall::Stalls},
    model::{
        event::Record,
        ids::{RunId, Seq},
        pipeline::Environment,
        run::RunState,
    },
    ports::{
        control::Control,
        journal::{Feed, Journals as _},
        program::Loaded,
        signals::Listening,
    },
    time::Clock,
};

/// After the last event of a scenario it is watched for at least so long: hosts converge, letters are tried again.
const GRACE: Duration = Duration::from_secs(300);
/// A simulation that is not over by then is not going to be.
const HORIZON: Duration = Duration::from_secs(14 * 86_400);
/// How often it is looked whether all is over.
const LOOK: Duration = Duration::from_secs(20);
const DATA: &str = "/simulated/journal";

/// What came of a simulation.
#[derive(Debug)]
pub struct Played {
    /// What happened, for people; empty unless it was asked for.
    pub story: Vec<String>,
    /// Every journal on disk at the end, byte by byte.
    pub journals: BTreeMap<PathBuf, Vec<u8>>,
    /// How the runs ended, and why.
    pub ends: Vec<(RunState, String)>,
    /// How often the daemon died.
    pub deaths: u32,
    /// How many things happened.
    pub events: u64,
}

/// Something was that must not be.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Broken {
    /// Which seed, when, and what.
    pub what: String,
    /// What happened until then; empty unless it was asked for.
    pub story: Vec<String>,
}

/// How a life ended.
enum End {
    Died,
    Over,
    Broken(String),
}

/// What outlives the daemon on its own machine.
#[derive(Clone)]
struct Machine {
    disk: SimulatedDisk,
    blobs: MemoryBlobs,
    index: OnDisk,
    outputs: MemoryOutputs,
}

/// Hears of records as the views do.
struct Ear {
    outside: Outside,
    views: Views,
}

impl Feed for Ear {
    fn synced(&self, run: &RunId, records: Vec<(Seq, u32, Record)>) {
        self.views.synced(run, records.clone());
        self.outside.heard(run, &records);
    }
}

fn journal(run: &RunId) -> PathBuf {
    Path::new(DATA).join("runs").join(run.as_str()).join("journal")
}

/// Reads what is on disk for certain of a run's journal.
fn reader(machine: &Machine) -> super::outside::Reader {
    let machine = machine.clone();
    Arc::new(move |run, after| records_after(&machine.blobs, &machine.disk.durable(&journal(run)), after))
}

/// Plays `scenario` to its end; with `tells` it can be read afterwards what happened.
///
/// # Errors
/// What must not be, and was.
pub fn play(scenario: &Scenario, tells: bool) -> Result<Played, Broken> {
    let outside = Outside::new(scenario.clone(), tells);
    let broken = |what: String| Broken { what, story: outside.story() };
    let mut crashes = scenario.crashes.iter().copied();
    let mut crash = crashes.next();
    let disk = SimulatedDisk::new(scenario.seed, &Path::new(DATA).join("runs"), calls(crash));
    let mut machine =
        Machine { disk, blobs: MemoryBlobs::default(), index: OnDisk::default(), outputs: MemoryOutputs::default() };
    let mut random = Random::of(scenario.seed, "daemon");
    outside.begin();
    loop {
        match live(&outside, &machine, &mut random) {
            Ok(End::Over) => break,
            Ok(End::Broken(what)) => return Err(broken(what)),
            Err(error) => return Err(broken(format!("seed {}: the daemon does not start: {error}", scenario.seed))),
            Ok(End::Died) => {
                let Some(Crash { power, away, .. }) = crash else {
                    return Err(broken("it died of nothing".to_owned()));
                };
                crash = crashes.next();
                outside.dies(power, away);
                if power {
                    machine.disk = machine.disk.back(calls(crash));
                    machine.index = OnDisk::default();
                    machine.outputs.lose(&mut random);
                } else {
                    machine.disk = machine.disk.again(calls(crash));
                }
                let back = outside.clock().elapsed() + away;
                outside.clock().at(back, || {});
                // Everybody else goes on meanwhile.
                while outside.clock().elapsed() < back && outside.clock().go_on() {}
                if power {
                    outside.clock().reboot();
                }
            }
        }
    }
    let now = outside.clock().elapsed();
    check::over(&mut outside.state(), now);
    if let Some(what) = outside.broken() {
        return Err(broken(what));
    }
    let state = outside.state();
    let ends = state.runs.values().filter_map(|followed| {
        let (state, cause, _) = followed.run.end.as_ref()?;
        Some((*state, cause.as_ref().map(|cause| cause.code.clone()).unwrap_or_default()))
    });
    let ends = ends.collect();
    let deaths = state.deaths;
    drop(state);
    let (story, journals, events) = (outside.story(), machine.disk.contents(), outside.clock().moved());
    Ok(Played { story, journals, ends, deaths, events })
}

fn calls(crash: Option<Crash>) -> u64 {
    crash.map_or(u64::MAX, |crash| crash.call)
}

/// One life of the daemon.
fn live(outside: &Outside, machine: &Machine, random: &mut Random) -> std::io::Result<End> {
    let life = Life::default();
    let root: Arc<Mutex<Option<Waker>>> = Arc::default();
    let (clock, woken) = (outside.clock().clone(), Arc::clone(&root));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .on_thread_park(move || {
            clock.go_on();
            // Somebody always has to look, or the thread would sleep for ever.
            let waker = locked(&woken).clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        })
        .build()?;
    outside.state().reader = Some(reader(machine));
    let started = start(outside, machine, &life, random);
    let ended = match started {
        // It died while it was starting.
        Err(_) if !machine.disk.has_power() => Ok(End::Died),
        Err(error) => Err(error),
        Ok((conductor, control, loaded)) => {
            let ended = runtime.block_on(watch(outside, machine, &root, &conductor, &*control, loaded));
            if let Ok(End::Over) = ended {
                runtime.block_on(seen(outside, &conductor));
            }
            ended
        }
    };
    life.end();
    drop(runtime);
    ended
}

type Parts = (Conductor, Arc<dyn Control>, Vec<Loaded>);

fn start(outside: &Outside, machine: &Machine, life: &Life, random: &mut Random) -> std::io::Result<Parts> {
    let scenario = outside.state().scenario.clone();
    let clock: Arc<dyn Clock> = Arc::new(outside.clock().clone());
    let index = Arc::new(ScarceIndex::of(Arc::clone(&machine.index), outside.clone()));
    let views = Views::in_order(index.clone(), format!("{:x}", clock.now().wall_ms));
    let ear = Arc::new(Ear { outside: outside.clone(), views: views.clone() });
    let data = Arc::new(DataDisk::simulated(Path::new("/simulated")));
    let room = Room::of(Some(outside.clone()));
    let blobs = Arc::new(machine.blobs.clone());
    let time = |purpose: &str, random: &mut Random| {
        let random = Mutex::new(Random::of(random.next(), purpose));
        Arc::new(DiskTime { clock: outside.clock().clone(), random, room: Arc::clone(&room) })
    };
    let journals = RunJournals::simulated(
        Path::new(DATA).join("runs"),
        blobs.clone(),
        ear,
        Arc::clone(&data),
        &machine.disk,
        time("runs", random),
    )?;
    let journals = Arc::new(journals);
    // What was on disk is there still.
    let there = journals.runs()?;
    let gone: Vec<RunId> = outside.state().runs.keys().filter(|run| !there.contains(run)).cloned().collect();
    for run in gone {
        let now = outside.clock().elapsed();
        check::found(&mut outside.state(), now, &run, 0);
    }
    for run in there {
        let found = line::scan(&machine.disk.peek(&journal(&run)), First::One);
        let now = outside.clock().elapsed();
        if let Some(damage) = found.damage {
            outside.state().breaks(now, &format!("the journal of run {run} is damaged: {damage}"));
        }
        check::found(&mut outside.state(), now, &run, found.lines.len());
        outside.catch_up(&run);
    }
    let control: Arc<dyn Control> = Arc::new(ControlLog::simulated(
        Path::new(DATA),
        Arc::clone(&clock),
        data,
        &machine.disk,
        time("control", random),
    )?);
    for run in outside.unfinished() {
        if control.get(&format!("run/{run}")).is_none() {
            let now = outside.clock().elapsed();
            outside.state().breaks(now, &format!("control has forgotten run {run}, and its end is not on disk"));
        }
    }
    let loaded = |of: super::scenario::Project| {
        let super::scenario::Project { name, pipeline, .. } = of;
        Loaded { name, code: program::code(), pipeline, secrets: Vec::new() }
    };
    let loaded: Vec<Loaded> = scenario.projects.into_iter().map(loaded).collect();
    let numbers = Mutex::new(Random::of(random.next(), "ids"));
    let world = Arc::new(World {
        clock: Arc::clone(&clock),
        tasks: Tasks::in_order(),
        journals,
        leases: Arc::new(ControlLeases::new(Arc::clone(&control), clock)),
        control: Arc::clone(&control),
        blobs,
        index,
        storage: room,
        archive: Arc::new(Nowhere),
        outputs: Arc::new(machine.outputs.clone()),
        links: Arc::new(Ways { outside: outside.clone(), life: life.clone() }),
        programs: program::programs(outside, loaded.clone()),
        forge: Arc::new(Repository(outside.clone())),
        hooks: BTreeMap::new(),
        http: Arc::new(Nowhere),
        mail: Arc::new(Nowhere),
        probe: Arc::new(Looks(outside.clone())),
        discovery: Arc::new(Lookups(outside.clone())),
        signer: Arc::new(crate::signal::Ed25519),
        listening: Listening::default(),
        fleets: Fleets::default(),
        secrets: Arc::new(Nowhere),
        limits: Limits {
            converge: Duration::from_secs(60),
            retention: Retention { runs: usize::MAX, quota: u64::MAX, ..Limits::default().retention },
            ..Limits::default()
        },
        controller: Arc::from("simulated"),
        hands: Arc::new(Nowhere),
        random: Arc::new(move |bytes| {
            let mut numbers = locked(&numbers);
            bytes.iter_mut().for_each(|byte| *byte = u8::try_from(numbers.below(256)).unwrap_or(0));
        }),
        data_dir: PathBuf::from("/simulated"),
        stalls: Stalls::default(),
        binary: PathBuf::from("/simulated/phased"),
        version: "0",
    });
    Ok((Conductor::new(world, views), control, loaded))
}

/// Until it dies, or all is over, or something is that must not be.
async fn watch(
    outside: &Outside,
    machine: &Machine,
    root: &Mutex<Option<Waker>>,
    conductor: &Conductor,
    control: &dyn Control,
    loaded: Vec<Loaded>,
) -> std::io::Result<End> {
    let last = outside.state().scenario.last();
    let people = outside.state().scenario.people.clone();
    let mut work = std::pin::pin!(async {
        conductor.start(loaded, &|_, _| {}).await?;
        let done = outside.clock().elapsed();
        for person in people.into_iter().filter(|person| person.at >= done || outside.state().deaths > 0) {
            let now = outside.clock().elapsed();
            if person.at > now {
                outside.clock().sleep(person.at.saturating_sub(now)).await;
                press(outside, conductor, &person).await;
            }
        }
        std::future::pending::<std::io::Result<()>>().await
    });
    let mut looked = Duration::ZERO;
    let mut quiet_since = None;
    std::future::poll_fn(|context| {
        *locked(root) = Some(context.waker().clone());
        if !machine.disk.has_power() {
            return Poll::Ready(Ok(End::Died));
        }
        if let Some(what) = outside.broken() {
            return Poll::Ready(Ok(End::Broken(what)));
        }
        let now = outside.clock().elapsed();
        if now >= looked + LOOK {
            looked = now;
            let mut quiet = now > last && control.scan("run/").is_empty() && control.scan("outbox/").is_empty();
            if quiet {
                // Control says that they are over: then that is on disk.
                quiet = outside.are_over();
            }
            let since = *quiet_since.get_or_insert(now);
            match quiet {
                true if now >= since + GRACE => return Poll::Ready(Ok(End::Over)),
                true => {}
                false => quiet_since = None,
            }
            if now > HORIZON {
                let seed = outside.state().scenario.seed;
                return Poll::Ready(Ok(End::Broken(format!("seed {seed}: it does not end"))));
            }
        }
        match work.as_mut().poll(context) {
            Poll::Ready(Err(error)) if machine.disk.has_power() => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    })
    .await
}

/// What people see at the end is what the journals say.
async fn seen(outside: &Outside, conductor: &Conductor) {
    let now = outside.clock().elapsed();
    let ends = outside.state().ends();
    for (run, end) in ends {
        let seen = Engine::run(conductor, run.as_str()).await;
        let state = seen.as_ref().map(|view| view.state).ok();
        if state != Some(end) {
            outside.state().breaks(now, &format!("run {run} ended {end:?}, and people see {state:?}"));
        }
    }
}

/// A person does something; what comes of it they see.
async fn press(outside: &Outside, conductor: &Conductor, person: &Person) {
    let Person { place, does, .. } = *person;
    let now = outside.clock().elapsed();
    let (project, environment) = {
        let mut state = outside.state();
        state.tell(now, &format!("a person: {does:?} at {place:?}"));
        let named = |e: &Environment| e.name.to_string();
        let Some(environment) = state.scenario.environment(place).map(named) else { return };
        (state.scenario.projects.get(place.0).map_or_else(String::new, |of| of.name.to_string()), environment)
    };
    let until = now + does.lasts();
    let until_ms = outside.clock().wall_ms(until);
    let verb = match does {
        Does::Start | Does::RetryBad => {
            let start = Start { retry_bad: does == Does::RetryBad, ..Start::default() };
            let _seen = Engine::start(conductor, &project, start, "ann").await;
            return;
        }
        Does::Stop | Does::StopNow => {
            let _seen = conductor.stop_project(&project, does == Does::StopNow, None, "ann").await;
            return;
        }
        Does::Hold(_) => {
            let ask = LeaseAsk { until_ms, ..LeaseAsk::default() };
            if conductor.hold_lease(&project, &environment, ask, "ann").await.is_ok() {
                outside.keep(place, until, true);
            }
            return;
        }
        Does::Freeze(_) => {
            let ask = FreezeAsk { until_ms: Some(until_ms), ..FreezeAsk::default() };
            if conductor.set_freeze(&project, &environment, ask, "ann").await.is_ok() {
                outside.keep(place, until, false);
            }
            return;
        }
        Does::Pause => "pause",
        Does::Resume => "resume",
        Does::Promote => "promote",
        Does::Rollback => "rollback",
    };
    let ask = ChangeAsk { verb: verb.to_owned(), ..ChangeAsk::default() };
    let _seen = conductor.change(&project, &environment, ask, "ann").await;
}
