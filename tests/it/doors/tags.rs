//! Tags that start runs, and environments that only they open.

use serde_json::json;

use crate::fixture::{Project, World, eventually};

fn tagged(source: &str) -> Project {
    let project = Project::new("shop").source(&format!(r#"tags = "v*"{source}"#));
    let project = project.environment("staging").hosts(&["s1"]).environment("production").hosts(&["p1"]);
    project.keys(r#"when = { tag = "v*" }"#)
}

#[test]
fn a_new_tag_is_found_by_asking_and_opens_production() {
    let world = World::new();
    world.project(&tagged(r#", poll = "1s""#));
    let commit = world.repo.push("one");
    world.repo.tag("v1.0");
    let daemon = world.start();
    // The tag was there before: it is old.
    let first = daemon.nth_run(1).wait().is("succeeded");
    assert_eq!(first.view["closed"]["when"], "tag v*");
    assert!(world.hosts_have(&["s1"], &commit) && world.touched("p1").is_empty());
    eventually("the tags were looked at", || {
        let control = std::fs::read(world.path("data/journal/control")).unwrap();
        String::from_utf8_lossy(&control).contains(r#""tags/shop""#).then_some(())
    });
    world.repo.tag("v1.1");
    world.repo.tag("x1.1");
    let second = daemon.nth_run(2).wait().is("succeeded");
    assert_eq!((&second.view["release"]["tag"], &second.view["trigger"]), (&json!("v1.1"), &json!("poll")));
    assert!(world.hosts_have(&["p1"], &commit));
    assert_eq!(world.touched("s1").len(), 2, "staging has it already");

    // One that came while nobody was there, on a commit that is on no branch.
    daemon.kill();
    let commit = world.repo.commit(&[("a", "b")], "off the branch");
    world.repo.tag("v1.2");
    let daemon = world.start();
    let third = daemon.nth_run(3).wait().is("succeeded");
    assert_eq!((&third.view["release"]["tag"], &third.view["closed"]), (&json!("v1.2"), &json!(null)));
    assert!(world.hosts_have(&["s1", "p1"], &commit));
    assert_eq!(daemon.runs().len(), 3);
}

#[test]
fn a_pushed_tag_is_told_by_the_forge_once() {
    let (world, daemon) = World::with(&tagged("").webhook());
    let commit = world.repo.push("one");
    crate::webhook::tell(&daemon, &commit).wait().is("succeeded");
    let sha = world.repo.tag("v2");
    let told = crate::webhook::push_tag(&daemon, "v2", &sha).is(202).json();
    let run = daemon.run(told["run"].as_str().unwrap());
    assert_eq!(run.wait().is("succeeded").view["release"]["tag"], "v2");
    assert!(world.hosts_have(&["s1", "p1"], &commit));
    assert_eq!(crate::webhook::push_tag(&daemon, "v2", &sha).is(200).json()["run"], run.id.as_str());
    let other = crate::webhook::push_tag(&daemon, "x2", &sha).is(200).text();
    assert!(other.contains("refs/tags/x2 is not the branch main and matches none of v*"), "{other}");
    assert_eq!(daemon.runs().len(), 2);
}

#[test]
fn only_tags_that_match_need_not_be_on_the_branch() {
    let (world, daemon) = World::with(&tagged(""));
    let main = world.repo.push("one");
    let aside = world.repo.commit(&[("a", "b")], "off the branch");
    world.repo.tag("v3");
    world.repo.tag("x3");
    let refused = daemon.api.post("/v1/projects/shop/start", &json!({ "ref": "x3" }));
    assert_eq!(refused.problem(), (422, "ref_not_allowed".to_owned()));
    assert!(refused.text().contains("push a tag that matches"), "{}", refused.text());
    let by_hash = daemon.api.post("/v1/projects/shop/start", &json!({ "ref": aside }));
    assert_eq!(by_hash.problem(), (422, "ref_not_allowed".to_owned()));
    daemon.press_with(&json!({ "ref": "v3" })).wait().is("succeeded");
    assert!(world.hosts_have(&["s1", "p1"], &aside));
    daemon.idle();
    daemon.press_with(&json!({ "ref": main })).wait().is("succeeded");
    assert!(world.hosts_have(&["s1"], &main) && world.hosts_have(&["p1"], &aside));
}
