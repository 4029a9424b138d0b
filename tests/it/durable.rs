//! Kill the daemon at any record of a run: the end is that of a run that was not killed, nothing is executed twice, no byte is lost.
//!
//! `PHASED_CRASH_FULL=1` (scripts/crash) takes every record; otherwise a part of them, other ones each time the run grows.

mod answers;
mod clocks;
mod cuts;
mod divergence;
mod golden;
mod keys;
mod kills;
mod machines;
mod price;
mod steps;
mod undo;

use std::collections::BTreeMap;

use serde_json::json;

use crate::fixture::{Project, Sink, World, eventually, times};

/// Two stages, three hosts, five steps each, of every kind that a crash can cut in another way. Each command writes down that it ran.
fn every_kind(sink: &Sink) -> Project {
    let steps = |on: &str, file: &str, upload: &str| {
        format!(
            r#"{on}:sh {{ [[
                echo "$PHASED_RUN ${{PHASED_HOST_ID:-$PHASED_PHASE}} sh" >>"$TRACE"
                rm -f "$TRACE.written" "$TRACE.uploaded"
                for i in 1 2 3; do echo "line $i"; echo "error $i" >&2; done
              ]], env = {{ TRACE = "{file}" }} }}
              {upload}
              {on}:http "{}"
              {on}:write {{ "{file}.written", content = "written" }}
              {on}:sleep "20ms"
              {on}:sh {{ 'echo "$PHASED_RUN ${{PHASED_HOST_ID:-$PHASED_PHASE}} last" >>"$TRACE"; echo last', env = {{ TRACE = "{file}" }} }}"#,
            sink.url()
        )
    };
    let stage = |name: &str| steps("run", "@TESTED@/trace", &format!(r#"run:exec {{ "echo", "{name}" }}"#));
    let host = steps(
        "host",
        r#"@ROOT@/" .. host.id .. "/trace"#,
        r#"host:upload { "app.txt", to = "@ROOT@/" .. host.id .. "/trace.uploaded" }"#,
    );
    Project::new("shop")
        .stage("unit", &stage("unit"))
        .stage("whole", &stage("whole"))
        .rollout("max_parallel = 3")
        .deploy(&host)
}

/// What can be seen of a run's doing, without its id and times: its end, what it printed by place, what ran.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    end: String,
    stages: Vec<String>,
    hosts: Vec<String>,
    printed: BTreeMap<String, Vec<String>>,
    ran: Vec<String>,
}

fn seen(world: &World, daemon: &crate::fixture::Daemon, id: &str) -> Seen {
    let ended = daemon.run(id).wait();
    let mut ran = Vec::new();
    for place in ["tested", "hosts/h1", "hosts/h2", "hosts/h3"] {
        let trace = std::fs::read_to_string(world.path(place).join("trace")).unwrap_or_default();
        ran.extend(trace.lines().filter_map(|line| line.strip_prefix(id)).map(|line| format!("{place}{line}")));
    }
    ran.sort();
    let stages = ended.view["stages"].as_array().unwrap();
    Seen {
        end: format!("{} {}", ended.state(), ended.message()),
        stages: stages.iter().map(|s| format!("{} {}", s["name"], s["state"])).collect(),
        hosts: ended.hosts(),
        printed: ended.printed(),
        ran,
    }
}

#[test]
fn killed_at_any_record_a_run_ends_as_one_that_was_not() {
    let sink = Sink::start();
    let (world, daemon) = World::with(&every_kind(&sink));
    world.repo.commit(&[("app.txt", "the app")], "an app");
    world.repo.push_as("main");
    let again = json!({ "redeploy": true, "retest": true });
    let press = |daemon: &crate::fixture::Daemon| daemon.press_with(&again).id;
    let whole = press(&daemon);
    let wanted = seen(&world, &daemon, &whole);
    assert!(wanted.end.starts_with("succeeded"), "{wanted:#?}");
    assert_eq!((wanted.ran.len(), wanted.hosts.len()), (10, 3), "{wanted:#?}");
    let count = world.journal(&whole).len();
    assert!(count > 60, "{count}");
    daemon.idle();
    let listed = |daemon: &crate::fixture::Daemon| {
        let all = daemon.api.get("/v1/runs?project=shop&limit=500").is(200).json();
        let all = all["items"].as_array().unwrap();
        all.iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect::<Vec<String>>()
    };
    // One more than is asked for where the daemon found the push by itself first.
    let (step, mut runs) = (times(9, 1), listed(&daemon).len());
    daemon.kill();
    for (n, place) in (1..=count).step_by(step).flat_map(|n| [(n, "before"), (n, "after")]) {
        let daemon = world.start_with(&[("PHASED_KILL", &format!("{place}:{n}"))]);
        // It may die before it answers; what it has on disk by then is done all the same.
        let pressed = daemon.api.with("content-type", "application/json");
        let answer = pressed.try_ask("POST", "/v1/projects/shop/start", again.to_string().as_bytes());
        daemon.dies();
        let daemon = world.start();
        let id = match answer {
            Ok(answer) => answer.is(202).json()["id"].as_str().unwrap().to_owned(),
            Err(_) => eventually("what was on disk is a run", || {
                let all = listed(&daemon);
                (all.len() > runs).then(|| all[0].clone())
            }),
        };
        assert_eq!(seen(&world, &daemon, &id), wanted, "killed {place} record {n}");
        runs += 1;
        assert_eq!(listed(&daemon).len(), runs, "killed {place} record {n}: a run came of nothing");
        daemon.idle();
        daemon.kill();
    }
}
