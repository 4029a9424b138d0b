//! The connection to a host is cut at random moments of a deploy: it succeeds, nothing runs twice, no byte of output is lost.

use serde_json::json;

use crate::fixture::{Dice, Project, World, times};

const STEPS: &str = r#"
  local env = { HERE = "@ROOT@/" .. host.id }
  host:sh { 'echo "$PHASED_RUN 1" >>"$HERE/trace"; echo one; echo uno >&2', env = env }
  host:sh { 'echo "$PHASED_RUN 2" >>"$HERE/trace"; for i in 1 2 3 4 5; do echo "two $i"; sleep 0.05; done', env = env }
  host:sh { 'echo "$PHASED_RUN 3" >>"$HERE/trace"; echo "$PHASED_REVISION" >"$HERE/revision"; echo three', env = env }"#;

#[test]
fn a_deploy_whose_connection_is_cut_anywhere_succeeds_and_each_step_ran_once() {
    let mut dice = Dice::new("cuts");
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(STEPS));
    let commit = world.repo.push("cut");
    daemon.deploy().is("succeeded");
    daemon.idle();
    for n in 0..times(8, 100) {
        let run = daemon.press_with(&json!({ "redeploy": true }));
        run.until("it rolls", |run| run["state"] != "queued" && run["state"] != "testing");
        let after = dice.span(700);
        std::thread::sleep(after);
        world.sshd.cut();
        let ended = run.wait().is("succeeded");
        let told = format!("cut {n} after {after:?}");
        let trace = std::fs::read_to_string(world.host("h1").join("trace")).unwrap();
        let ran: Vec<&str> = trace.lines().filter_map(|line| line.strip_prefix(&run.id)).collect();
        assert_eq!(ran, [" 1", " 2", " 3"], "{told}");
        let printed = ended.printed();
        let lines = |step: &str| printed.get(&format!("production#1/h1/deploy/-/{step}")).cloned().unwrap_or_default();
        assert_eq!(lines("sh#1 out"), ["one"], "{told}");
        assert_eq!(lines("sh#1 err"), ["uno"], "{told}");
        assert_eq!(lines("sh#2 out"), ["two 1", "two 2", "two 3", "two 4", "two 5"], "{told}");
        assert_eq!(lines("sh#3 out"), ["three"], "{told}");
        assert_eq!(world.revision("h1").as_deref(), Some(&*commit), "{told}");
        daemon.idle();
    }
}
