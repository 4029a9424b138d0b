//! Signals by https.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use super::fleet::{Fleet, Tls, Wants};
use crate::fixture::{Api, eventually};

fn fleet(count: usize, certificate: Option<&'static str>, ca: &'static str) -> Fleet {
    Fleet::new(count, &Wants { tls: Some(Tls { certificate, ca }), ..Wants::default() })
}

/// Somebody on the way who cannot read what goes by: lets everything through until the receiver was asked whether it knows an order, and then
/// of one connection everything but the answer, until it is `cut`.
#[derive(Default)]
struct Cable {
    receiver: OnceLock<(u16, Api)>,
    held: AtomicUsize,
    cut: AtomicBool,
}

impl Cable {
    fn lay() -> (Arc<Cable>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (cable, port) = (Arc::new(Cable::default()), listener.local_addr().unwrap().port());
        let laid = Arc::clone(&cable);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let cable = Arc::clone(&laid);
                std::thread::spawn(move || cable.carry(client));
            }
        });
        (cable, port)
    }

    fn carry(&self, client: TcpStream) {
        let Some((port, api)) = self.receiver.get() else { return };
        let Ok(server) = TcpStream::connect(("127.0.0.1", *port)) else { return };
        let asked = api.get("/v1/signals").json()["taken"]["follow"].as_u64().unwrap_or(0) > 0;
        let holds = asked && self.held.fetch_add(1, Ordering::SeqCst) == 0;
        // The client speaks for the second time once the handshake is over.
        let (greeted, spoke_again) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pass(&client, &server, || {
                    spoke_again.fetch_or(greeted.load(Ordering::SeqCst), Ordering::SeqCst);
                    true
                });
            });
            if holds {
                scope.spawn(|| {
                    while !self.cut.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    for stream in [&client, &server] {
                        let _gone = stream.shutdown(Shutdown::Both);
                    }
                });
            }
            pass(&server, &client, || {
                greeted.store(true, Ordering::SeqCst);
                !(holds && spoke_again.load(Ordering::SeqCst))
            });
        });
    }
}

/// Copies what `from` says to `to`, as far as it `may`.
fn pass(mut from: &TcpStream, mut to: &TcpStream, may: impl Fn() -> bool) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        if may() && to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _gone = to.shutdown(Shutdown::Write);
}

#[test]
fn an_order_that_is_cut_off_after_the_handshake_may_have_been_taken() {
    let (cable, port) = Cable::lay();
    let tls = Some(Tls { certificate: Some("signed.pem"), ca: "ca.pem" });
    let fleet = Fleet::new(1, &Wants { through: Some(port), tls, ..Wants::default() });
    let receiver = &fleet.receivers[0];
    assert!(cable.receiver.set((receiver.port, receiver.daemon().api.clone())).is_ok());
    let revision = fleet.sender.repo.push("one");
    let run = fleet.daemon().press();
    receiver.begun(1);
    cable.cut.store(true, Ordering::SeqCst);
    let ended = run.wait().is("succeeded");
    assert_eq!(ended.hosts(), ["r1:healthy"]);
    eventually("its answer was held back", || (cable.held.load(Ordering::SeqCst) > 1).then_some(()));
    assert_eq!(receiver.deployed(), [revision], "once");
    assert_eq!(receiver.daemon().runs().len(), 1);
}

#[test]
fn signals_go_by_https_to_receivers_whose_certificate_is_trusted() {
    let mut fleet = fleet(2, Some("signed.pem"), "ca.pem");
    let first = fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    assert!(fleet.everywhere(&first));
    // What was under way goes on by https after a restart.
    let second = fleet.sender.repo.push("two");
    fleet.receivers[0].hold(true);
    let run = fleet.daemon().press();
    fleet.receivers[0].begun(2);
    fleet.kill_sender();
    fleet.receivers[0].hold(false);
    fleet.daemon().run(&run.id).wait().is("succeeded");
    assert!(fleet.everywhere(&second));
    assert_eq!(fleet.receivers[0].deployed(), [first, second]);
}

#[test]
fn a_receiver_whose_certificate_is_not_believed_is_sent_nothing_and_the_cause_says_what_to_do() {
    for (certificate, ca, says) in [
        (
            Some("signed.pem"),
            "ec.pem",
            "nobody whom this machine trusts signed its certificate: make this machine trust",
        ),
        (Some("other.pem"), "ca.pem", "its certificate is not for \"127.0.0.1\""),
        (Some("expired.pem"), "ca.pem", "its certificate has expired"),
        (None, "ca.pem", "is it meant to be asked by http://?"),
    ] {
        let fleet = fleet(1, certificate, ca);
        fleet.sender.repo.push("one");
        let ended = fleet.daemon().press().wait().is("failed");
        assert_eq!(ended.hosts(), ["r1:unreachable"], "{certificate:?} {ca}");
        let cause = &ended.host("r1")["cause"];
        assert_eq!(cause["code"], "host_key_certificate", "{certificate:?} {ca}: {cause}");
        let message = cause["message"].as_str().unwrap();
        assert!(message.contains(says) && message.contains("`tls` in its [api]"), "{certificate:?} {ca}: {cause}");
        let signals = fleet.receivers[0].signals();
        assert_eq!((&signals["taken"], &signals["refused"]), (&json!({}), &json!({})), "it heard of nothing");
    }
}
