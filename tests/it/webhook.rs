//! Webhooks: signed, new, for our branch, and on disk before they are answered.

mod forged;
mod storm;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};

use crate::fixture::{Answer, Api, Daemon, HOOK_SECRET, Project, World};

/// A delivery as GitHub sends it.
struct Hook {
    event: &'static str,
    body: Vec<u8>,
    id: String,
    kind: &'static str,
    signature: Option<String>,
}

/// The value of `X-Hub-Signature-256` for this body.
pub fn sign(body: &[u8], secret: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

impl Hook {
    fn of(event: &'static str, body: &Value) -> Hook {
        let body = body.to_string().into_bytes();
        let signature = Some(sign(&body, HOOK_SECRET));
        Hook { event, body, id: "72d3162e-cc78-11e3-81ab-4c9367dc0958".into(), kind: "application/json", signature }
    }

    /// A push of `after` to `reference`.
    fn push(reference: &str, after: &str) -> Hook {
        let zero = "0".repeat(40);
        let body = json!({
            "ref": reference, "before": zero, "after": after, "deleted": after == zero, "forced": false, "created": false,
            "commits": [], "pusher": { "name": "ada" }, "repository": { "full_name": "acme/shop" },
        });
        Hook::of("push", &body)
    }

    fn id(mut self, id: &str) -> Hook {
        id.clone_into(&mut self.id);
        self
    }

    fn signed(mut self, signature: Option<&str>) -> Hook {
        self.signature = signature.map(str::to_owned);
        self
    }

    fn send(&self, daemon: &Daemon) -> Answer {
        self.send_to(&daemon.tcp(), "/hooks/github/shop")
    }

    fn send_to(&self, api: &Api, path: &str) -> Answer {
        let mut api = api.with("content-type", self.kind).with("x-github-event", self.event);
        api = api.with("x-github-delivery", &self.id);
        if let Some(signature) = &self.signature {
            api = api.with("x-hub-signature-256", signature);
        }
        api.ask("POST", path, &self.body)
    }
}

/// Tells the daemon of a push to `main`, as GitHub does.
pub fn push(daemon: &Daemon, commit: &str) -> Answer {
    Hook::push(MAIN, commit).id(&commit[..20]).send(daemon)
}

/// Tells it of a pushed tag; `sha` is what the tag points at itself.
pub fn push_tag(daemon: &Daemon, tag: &str, sha: &str) -> Answer {
    Hook::push(&format!("refs/tags/{tag}"), sha).id(&format!("{tag}-{}", &sha[..12]).replace('.', "-")).send(daemon)
}

/// The same, which must be accepted; the run.
pub fn tell(daemon: &Daemon, commit: &str) -> crate::fixture::Run {
    let answer = push(daemon, commit).is(202).json();
    daemon.run(answer["run"].as_str().unwrap())
}

fn hooked() -> (World, Daemon) {
    World::with(&Project::new("shop").hosts(&["h1"]).webhook())
}

const MAIN: &str = "refs/heads/main";

#[test]
fn a_signed_push_is_a_run() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let answer = Hook::push(MAIN, &commit).send(&daemon).is(202).json();
    assert_eq!(answer["code"], "accepted");
    let run = daemon.run(answer["run"].as_str().unwrap()).wait().is("succeeded");
    assert_eq!((&run.view["trigger"], &run.view["by"]), (&json!("hook"), &json!("github ada")));
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn an_unsigned_or_badly_signed_push_is_refused() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let other = sign(b"other", HOOK_SECRET);
    let wrong = sign(&Hook::push(MAIN, &commit).body, "wrong");
    for signature in [None, Some(""), Some("sha256="), Some(other.as_str()), Some(wrong.as_str()), Some("sha1=00")] {
        let answer = Hook::push(MAIN, &commit).signed(signature).send(&daemon);
        assert_eq!(answer.problem(), (401, "hook_signature".to_owned()), "{signature:?}");
    }
    assert!(daemon.runs().is_empty());
}

#[test]
fn what_is_not_a_push_to_our_branch_starts_nothing() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let code = |hook: Hook| hook.send(&daemon).is(200).json()["code"].as_str().unwrap().to_owned();
    assert_eq!(code(Hook::of("ping", &json!({ "zen": "Keep it logically awesome.", "hook_id": 1 }))), "pong");
    assert_eq!(code(Hook::push("refs/heads/feature", &commit)), "ignored");
    assert_eq!(code(Hook::push("refs/heads/main2", &commit)), "ignored");
    assert_eq!(code(Hook::push("refs/tags/main", &commit)), "ignored");
    assert_eq!(code(Hook::push(MAIN, &"0".repeat(40))), "ignored");
    assert_eq!(code(Hook::of("issues", &json!({ "action": "opened" }))), "ignored");
    assert!(daemon.runs().is_empty());
}

#[test]
fn the_same_push_again_is_the_same_run() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let first = Hook::push(MAIN, &commit).send(&daemon).is(202).json();
    let again = Hook::push(MAIN, &commit).send(&daemon).is(200).json();
    let replayed = Hook::push(MAIN, &commit).id("another-delivery").send(&daemon).is(200).json();
    assert_eq!((&again["code"], &again["run"]), (&json!("duplicate"), &first["run"]));
    assert_eq!((&replayed["code"], &replayed["run"]), (&json!("duplicate"), &first["run"]));
}

#[test]
fn a_replay_after_a_crash_is_still_the_same_run() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let first = Hook::push(MAIN, &commit).send(&daemon).is(202).json();
    daemon.run(first["run"].as_str().unwrap()).wait().is("succeeded");
    // Another head since, so that only what control kept tells the replay.
    let second = world.repo.push("newer");
    let newer = Hook::push(MAIN, &second).id("newer").send(&daemon).is(202).json();
    daemon.run(newer["run"].as_str().unwrap()).wait().is("succeeded");
    daemon.kill();
    let daemon = world.start();
    let replayed = Hook::push(MAIN, &commit).id("replayed").send(&daemon).is(200).json();
    assert_eq!((&replayed["code"], &replayed["run"]), (&json!("duplicate"), &first["run"]));
    assert!(world.hosts_have(&["h1"], &second));
}

#[test]
fn an_accepted_push_survives_a_crash() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let run = Hook::push(MAIN, &commit).send(&daemon).is(202).json()["run"].as_str().unwrap().to_owned();
    daemon.kill();
    let daemon = world.start();
    let ended = daemon.run(&run).wait();
    // It was queued and runs now, or it had begun and was cut off; it is never forgotten.
    assert!(ended.state() == "succeeded" || ended.code() == "interrupted", "{:#}", ended.view);
}

#[test]
fn a_push_that_is_not_the_head_any_more_is_superseded() {
    let (world, daemon) = hooked();
    let old = world.repo.push("old");
    world.repo.push("new");
    let answer = Hook::push(MAIN, &old).send(&daemon).is(202).json();
    daemon.run(answer["run"].as_str().unwrap()).wait().is("superseded");
    assert!(world.untouched());
}

#[test]
fn a_push_of_a_commit_that_is_not_there_is_superseded() {
    let (world, daemon) = hooked();
    world.repo.push("there");
    let answer = Hook::push(MAIN, &"ab".repeat(20)).send(&daemon).is(202).json();
    daemon.run(answer["run"].as_str().unwrap()).wait().is("superseded");
}

#[test]
fn a_forced_push_back_to_an_older_commit_is_deployed() {
    let (world, daemon) = hooked();
    let old = world.repo.push("old");
    let run = |id: &str, commit: &str| {
        let answer = Hook::push(MAIN, commit).id(id).send(&daemon);
        daemon.run(answer.json()["run"].as_str().unwrap_or_else(|| panic!("{}", answer.text()))).wait()
    };
    run("one", &old).is("succeeded");
    let new = world.repo.push("new");
    run("two", &new).is("succeeded");
    world.repo.reset(&old);
    world.repo.push_as("main");
    // As GitHub sends it: another `before`, so another body and signature.
    let body = json!({ "ref": MAIN, "before": new, "after": old, "deleted": false, "forced": true, "commits": [] });
    let answer = Hook::of("push", &body).id("three").send(&daemon).is(202).json();
    daemon.run(answer["run"].as_str().unwrap()).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &old));
}

#[test]
fn a_form_is_understood_too() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let mut hook = Hook::push(MAIN, &commit);
    let escaped: String = hook.body.iter().map(|b| format!("%{b:02X}")).collect();
    hook.body = format!("payload={escaped}").into_bytes();
    hook.kind = "application/x-www-form-urlencoded";
    hook.signature = Some(sign(&hook.body, HOOK_SECRET));
    assert_eq!(hook.send(&daemon).is(202).json()["code"], "accepted");
}

#[test]
fn a_project_without_a_secret_has_no_hook() {
    let (world, daemon) = World::with(&Project::new("shop"));
    let commit = world.repo.push("pushed");
    let hook = Hook::push(MAIN, &commit);
    assert_eq!(hook.send(&daemon).problem(), (404, "hook_unknown".to_owned()));
    let unknown = |path| hook.send_to(&daemon.tcp(), path).problem();
    assert_eq!(unknown("/hooks/github/nothing"), (404, "hook_unknown".to_owned()));
    assert_eq!(unknown("/hooks/nothing/shop"), (404, "hook_unknown".to_owned()));
}

#[test]
fn a_body_that_is_too_large_is_refused_and_a_large_one_is_not() {
    let (_world, daemon) = hooked();
    let mut hook = Hook::of("ping", &json!({ "zen": "z".repeat(24 << 20), "hook_id": 1 }));
    assert_eq!(hook.send(&daemon).is(200).json()["code"], "pong");
    hook.body = vec![b' '; (25 << 20) + 1];
    assert_eq!(hook.send(&daemon).problem(), (413, "body_too_large".to_owned()));
}

#[test]
fn githubs_published_vector_is_genuine() {
    let (_world, daemon) = hooked();
    let mut hook = Hook::of("ping", &json!({}));
    hook.body = b"Hello, World!".to_vec();
    hook.signature = Some("sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17".to_owned());
    // The signature is right, so what is wrong is said to be the body.
    assert_eq!(hook.send(&daemon).problem(), (400, "hook_body".to_owned()));
}

#[test]
fn deliveries_at_the_same_moment_are_one_run() {
    let (world, daemon) = hooked();
    let commit = world.repo.push("pushed");
    let (api, hooks) = (daemon.tcp(), [Hook::push(MAIN, &commit), Hook::push(MAIN, &commit).id("another-delivery")]);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8)
            .map(|n| (&hooks[n % 2], &api))
            .map(|(hook, api)| scope.spawn(move || hook.send_to(api, "/hooks/github/shop")))
            .collect();
        sent.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // None is accepted where the first poll was faster still.
    assert!(answers.iter().filter(|answer| answer.json()["code"] == "accepted").count() <= 1);
    let run = answers[0].json()["run"].clone();
    assert!(answers.iter().all(|answer| answer.json()["run"] == run));
    daemon.run(run.as_str().unwrap()).wait().is("succeeded");
    assert_eq!(daemon.runs().len(), 1);
}
