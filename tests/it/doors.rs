//! The doors of environments: who is let in when, and what those are told who wait.

mod freezes;
mod groups;
mod leases;
mod tags;
mod when;

use serde_json::Value;

use crate::fixture::{Project, Run, World};

const LEASE: &str = "/v1/projects/shop/environments/production/lease";
const FREEZE: &str = "/v1/projects/shop/environments/production/freeze";

/// On each host something waits to be let go.
fn gated() -> Project {
    Project::new("shop").hosts(&["h1", "h2"]).deploy_after(GATED)
}

const GATED: &str = r#"host:sh { 'until [ -e "$GO" ]; do sleep 0.05; done', env = { GO = "@ROOT@/../tested/go" } }"#;

/// Lets it go.
fn go(world: &World) {
    std::fs::write(world.path("tested/go"), "").unwrap();
}

/// Waits until the run waits at a door for this, and says what it says.
#[track_caller]
fn waits(run: &Run, code: &str) -> Value {
    let there = |view: &Value| view["waiting"]["code"] == code;
    let view = run.until(&format!("it waits for {code}"), there);
    let deployment = view["deployments"].as_array().unwrap().last().unwrap();
    assert_eq!((&deployment["state"], &deployment["waiting"]), (&Value::from("planned"), &view["waiting"]));
    view["waiting"].clone()
}
