//! Signals that are not right, through real HTTP: none is taken, each is counted, each can be seen.

use std::collections::BTreeMap;

use phased::{
    model::{
        ids::{Digest, Epoch, RunId},
        signal::{Deploy, Domain, Order, Shipped, Signal, written},
    },
    ports::{secrets::Secret, signals::Signer as _},
    signal::{Ed25519, generate},
};
use serde_json::{Value, json};

use super::fleet::{Fleet, Receiver, Wants};
use crate::fixture::{Answer, Dice, times};

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// Whoever has the sender's key, or another one.
pub(super) struct Forger {
    key: Secret,
    fingerprint: String,
    revision: String,
    nonce: u64,
}

impl Forger {
    /// With the sender's own key.
    pub(super) fn of(fleet: &Fleet, revision: String) -> Forger {
        let key = Secret::new(&std::fs::read(fleet.sender.path("secrets/signals")).unwrap());
        let fingerprint = phased::signal::public_half(&key).unwrap().fingerprint();
        Forger { key, fingerprint, revision, nonce: 0 }
    }

    pub(super) fn send(&self, receiver: &Receiver, signal: &Signal) -> Answer {
        let document = written(signal);
        send(receiver, &document, &self.signature(&document))
    }

    pub(super) fn signal(&mut self, epoch: u64) -> Signal {
        self.nonce += 1;
        let now = now_ms();
        Signal {
            version: 1,
            project: "shop".parse().unwrap(),
            environment: "production".parse().unwrap(),
            audience: "r1".parse().unwrap(),
            nonce: format!("{:032x}", self.nonce),
            issued_at_ms: now,
            not_after_ms: now + 120_000,
            order: Order::Deploy(Box::new(Deploy {
                token: Digest::of(&self.nonce.to_be_bytes()),
                epoch: Epoch(epoch),
                deployment: 1,
                step: "step".to_owned(),
                attempt: 1,
                run: RunId::new(now, u128::from(self.nonce)),
                release: Shipped {
                    id: self.revision[..12].parse().unwrap(),
                    revision: self.revision.parse().unwrap(),
                    tag: None,
                    artifacts: Vec::new(),
                },
                back: false,
                retry_bad: false,
                reason: None,
            })),
        }
    }

    fn signature(&self, document: &[u8]) -> String {
        format!("{} {}", self.fingerprint, Ed25519.sign(&self.key, Domain::Signal, document).unwrap().1)
    }
}

fn send(receiver: &Receiver, document: &[u8], signature: &str) -> Answer {
    let api = receiver.daemon().tcp().with("content-type", "application/json").with("phased-signature", signature);
    api.ask("POST", "/v1/signals", document)
}

/// The code of a refusal, signed or not.
fn code(answer: &Answer) -> String {
    let body = answer.json();
    let code = body["code"].as_str().or_else(|| body["said"]["cause"]["code"].as_str());
    code.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

#[test]
fn an_order_that_comes_after_it_was_told_to_stop_does_nothing() {
    let fleet = Fleet::new(1, &Wants::default());
    let receiver = &fleet.receivers[0];
    let mut forger = Forger::of(&fleet, fleet.sender.repo.push("one"));
    // A slow network: the order is still under way when its sender gives it up.
    let order = forger.signal(u64::MAX >> 12);
    let Order::Deploy(deploy) = &order.order else { unreachable!() };
    let stop = Order::Stop { token: deploy.token.clone(), reason: "given up".to_owned() };
    let answer = forger.send(receiver, &Signal { nonce: "f".repeat(32), order: stop, ..order.clone() });
    assert_eq!(code(&answer), "signal_no_run", "{}", answer.text());
    let answer = forger.send(receiver, &order);
    assert_eq!(code(&answer), "signal_stopped", "{}", answer.text());
    // Another one is nobody's that was stopped.
    let answer = forger.signal(u64::MAX >> 12);
    let answer = forger.send(receiver, &answer);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let run = answer.json()["said"]["run"].as_str().unwrap().to_owned();
    receiver.daemon().run(&run).wait().is("succeeded");
    assert_eq!(receiver.deployed().len(), 1);
}

#[test]
fn what_is_not_right_is_refused_counted_and_visible() {
    let fleet = Fleet::new(1, &Wants::default());
    let receiver = &fleet.receivers[0];
    let revision = fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    let mut forger = Forger::of(&fleet, revision);
    let epoch = u64::MAX >> 12;
    let other = Secret::new(generate("somebody").unwrap().0.as_bytes());
    let mut dice = Dice::new("signals");
    let mut expected = BTreeMap::<String, u64>::new();
    // One that is right, of a newer deployment than the real one's: from here on that is the newest. Then it comes again.
    let right = written(&forger.signal(epoch));
    let signature = forger.signature(&right);
    let answer = send(receiver, &right, &signature);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let run = answer.json()["said"]["run"].as_str().unwrap().to_owned();
    // With the two below and the one after the restart, 10,000 of them.
    for case in 0..times(140, 9_997) {
        let whole = forger.signal(epoch);
        let now = whole.issued_at_ms;
        let sign = |signal: &Signal| {
            let document = written(signal);
            let signature = forger.signature(&document);
            (document, signature)
        };
        let (document, signature, wanted) = match case % 7 {
            0 => {
                let (mut document, signature) = sign(&whole);
                let at = usize::try_from(dice.below(document.len() as u64)).unwrap();
                document[at] ^= 1 << dice.below(8);
                (document, signature, "signal_signature")
            }
            1 => {
                let document = written(&whole);
                let forged = Ed25519.sign(&other, Domain::Signal, &document).unwrap().1;
                (document, format!("{} {forged}", forger.fingerprint), "signal_signature")
            }
            2 => {
                let (document, signature) = sign(&Signal { audience: "r2".parse().unwrap(), ..whole });
                (document, signature, "signal_audience")
            }
            3 => {
                let (issued_at_ms, not_after_ms) = (now - 400_000, now - 280_000);
                let (document, signature) = sign(&Signal { issued_at_ms, not_after_ms, ..whole });
                (document, signature, "signal_expired")
            }
            4 => {
                let old = forger.signal(epoch - 1 - dice.below(1000));
                let document = written(&old);
                let signature = forger.signature(&document);
                (document, signature, "signal_epoch")
            }
            5 => (right.clone(), signature.clone(), "signal_replayed"),
            _ => {
                let (document, signature) = sign(&Signal { project: "billing".parse().unwrap(), ..whole });
                (document, signature, "signal_not_allowed")
            }
        };
        let answer = send(receiver, &document, &signature);
        assert_eq!(code(&answer), wanted, "case {case}: {}", answer.text());
        *expected.entry(wanted.to_owned()).or_default() += 1;
    }
    assert_eq!(answer_of(receiver, "not even a signature"), "signal_signature");
    assert_eq!(answer_of(receiver, ""), "signal_signature");
    *expected.get_mut("signal_signature").unwrap() += 2;
    let signals = receiver.signals();
    assert_eq!(signals["refused"], json!(expected), "each is counted");
    assert_eq!(signals["recent"].as_array().unwrap().len(), 20);
    let said = receiver.daemon().cli(&["signals"]).stdout;
    assert!(expected.iter().all(|(code, n)| said.contains(&format!("{n} {code}"))), "{expected:?}: {said}");
    let log = receiver.daemon().said();
    assert!(log.contains("a signal was refused") && log.contains("signal_epoch"), "it is in the log");
    let status = receiver.daemon().status();
    assert_eq!(status["trouble"][0]["code"], "signals_refused", "{status}");
    // Of all these there came one run, and that one is known by its token, also after a restart.
    let runs: Vec<String> = receiver.daemon().runs().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
    assert!(runs.len() == 2 && runs[0] == run, "{runs:?}");
    let Fleet { mut receivers, .. } = fleet;
    let mut receiver = receivers.remove(0);
    receiver.daemon().run(&run).wait().is("succeeded");
    receiver.kill();
    receiver.start();
    let answer = send(&receiver, &right, &signature);
    assert_eq!(code(&answer), "signal_replayed", "what was taken is on disk");
    // Its own sender asks again, with another nonce: the same run.
    let again: Signal = serde_json::from_slice(&right).unwrap();
    let again = written(&Signal { nonce: "e".repeat(32), ..again });
    let answer = send(&receiver, &again, &forger.signature(&again));
    assert_eq!((answer.status, &answer.json()["said"]["run"]), (200, &Value::from(run.as_str())), "{}", answer.text());
    assert_eq!(receiver.daemon().runs().len(), 2);
}

fn answer_of(receiver: &Receiver, signature: &str) -> String {
    code(&send(receiver, b"{}", signature))
}

#[test]
fn environments_of_one_receiver_have_an_order_of_their_own_each_and_one_queue() {
    let wants = Wants {
        tests: r#"test = { { "wait", run = function(run) run:sh "while [ -e @DIR@/untested ]; do sleep 0.1; done" end } },"#,
        environments: r#"{ "staging", when = "signal", hosts = { phased.localhost }, health = "none",
            deploy = function(host) host:sh 'echo "$PHASED_REVISION" >>"@DIR@/staged"' end }"#,
        ..Wants::default()
    };
    let fleet = Fleet::new(1, &wants);
    let receiver = &fleet.receivers[0];
    let [one, two] = ["one", "two"].map(|text| fleet.sender.repo.push(text));
    std::fs::write(receiver.file("untested"), "").unwrap();
    let mut forger = Forger::of(&fleet, one.clone());
    let mut order = |environment: &str, revision: &String, epoch: u64| {
        forger.revision.clone_from(revision);
        let signal = Signal { environment: environment.parse().unwrap(), ..forger.signal(epoch) };
        let answer = forger.send(receiver, &signal);
        match answer.status {
            202 => Ok(answer.json()["said"]["run"].as_str().unwrap().to_owned()),
            _ => Err(code(&answer)),
        }
    };
    let staged = order("staging", &one, 20).unwrap();
    receiver.daemon().run(&staged).until("it is being tested", |run| run["state"] == "testing");
    // What is newer in one environment says nothing of another.
    let first = order("production", &one, 10).unwrap();
    let newer = order("production", &two, 11).unwrap();
    let late = order("staging", &two, 21).unwrap();
    // Too late, each in its own.
    assert_eq!(order("production", &one, 10), Err("signal_epoch".to_owned()));
    assert_eq!(order("staging", &one, 19), Err("signal_epoch".to_owned()));
    // A newer one takes the place of what waits for the same environment, and nobody else's.
    std::fs::remove_file(receiver.file("untested")).unwrap();
    let superseded = receiver.daemon().run(&first).wait().is("superseded");
    assert!(superseded.message().contains(&newer), "{}", superseded.message());
    let began = |run: &String| {
        let ended = receiver.daemon().run(run).wait().is("succeeded");
        ended.view["started_at"].as_str().unwrap().to_owned()
    };
    let began = [&staged, &newer, &late].map(began);
    assert!(began.is_sorted(), "in the order in which they came: {began:?}");
    let staged = std::fs::read_to_string(receiver.file("staged")).unwrap();
    assert_eq!(staged.lines().collect::<Vec<_>>(), [&one, &two]);
    assert_eq!(receiver.deployed(), [two]);
}

#[test]
fn a_way_back_overtakes_the_order_before_it_that_has_not_got_as_far() {
    let wants = Wants {
        tests: r#"test = { { "wait", run = function(run) run:sh "while [ -e @DIR@/untested ]; do sleep 0.1; done" end } },"#,
        ..Wants::default()
    };
    let fleet = Fleet::new(1, &wants);
    let receiver = &fleet.receivers[0];
    let [one, two] = ["one", "two"].map(|text| fleet.sender.repo.push(text));
    let mut forger = Forger::of(&fleet, one.clone());
    let mut order = |revision: &String, epoch: u64, back: bool| {
        forger.revision.clone_from(revision);
        let mut signal = forger.signal(epoch);
        let Order::Deploy(deploy) = &mut signal.order else { panic!("{signal:?}") };
        deploy.back = back;
        forger.send(receiver, &signal).is(202).json()["said"]["run"].as_str().unwrap().to_owned()
    };
    let good = order(&one, 10, false);
    receiver.daemon().run(&good).wait().is("succeeded");
    std::fs::write(receiver.file("untested"), "").unwrap();
    let forward = order(&two, 11, false);
    receiver.daemon().run(&forward).until("it is being tested", |run| run["state"] == "testing");
    // Its sender has heard nothing of it for long, and goes back.
    let back = order(&one, 12, true);
    receiver.daemon().run(&back).wait().is("succeeded");
    std::fs::remove_file(receiver.file("untested")).unwrap();
    receiver.daemon().run(&forward).wait().is("superseded");
    assert_eq!(receiver.deployed().last(), Some(&one));
}
