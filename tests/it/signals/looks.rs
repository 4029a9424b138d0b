//! What a receiver says of how it is: what it sees on every host that has what is live, its own or one elsewhere.

use phased::model::signal::{Order, Signal};
use serde_json::Value;

use super::{
    fleet::{Fleet, Wants},
    forged::Forger,
};

/// The answer to the question how `r1` is, whose release is to be of this revision.
fn asked(fleet: &Fleet, forger: &mut Forger, revision: &str) -> Value {
    let order = Order::Look { release: revision[..12].parse().unwrap(), revision: revision.parse().unwrap() };
    let signal = Signal { order, ..forger.signal(1) };
    let answer = forger.send(&fleet.receivers[0], &signal);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["said"].clone()
}

fn tells_how_its_hosts_are(elsewhere: bool) {
    let fleet = Fleet::new(1, &Wants { elsewhere, ..Wants::default() });
    let receiver = &fleet.receivers[0];
    let revision = fleet.sender.repo.push("one");
    assert_eq!(fleet.daemon().deploy().is("succeeded").hosts(), ["r1:healthy"]);
    let mut forger = Forger::of(&fleet, revision.clone());
    let looked = || {
        let text = std::fs::read_to_string(receiver.file("looked")).unwrap();
        text.split_terminator("\n\n").map(str::to_owned).collect::<Vec<String>>()
    };
    let before = looked();
    let told = &before[0];
    assert!(told.contains("PHASED_DEPLOYMENT=") && told.contains("PHASED_STEP=health#1"), "{told}");
    let well = asked(&fleet, &mut forger, &revision);
    assert!(well["looked"] == true && well["wrong"].is_null() && well["unseen"].is_null(), "{well}");
    assert!(
        looked().len() > before.len() && looked().iter().all(|now| now == told),
        "the same, whoever asks: {:?}",
        looked()
    );
    std::fs::write(receiver.file("sick"), &revision).unwrap();
    let ill = asked(&fleet, &mut forger, &revision);
    assert!(ill["wrong"]["code"] == "unhealthy" && ill["looked"] == true, "{ill}");
    std::fs::remove_file(receiver.file("sick")).unwrap();
    assert!(asked(&fleet, &mut forger, &revision)["wrong"].is_null());
    if elsewhere {
        // Nobody gets there: that is not called well.
        std::fs::write(receiver.world.path("sshd/authorized_keys"), "").unwrap();
        let unseen = asked(&fleet, &mut forger, &revision);
        assert!(unseen["unseen"]["code"] == "auth_failed" && unseen["looked"] == false, "{unseen}");
        assert!(unseen["unseen"]["message"].as_str().unwrap().starts_with("h1: "), "{unseen}");
    }
}

#[test]
fn a_receiver_that_deploys_to_itself_tells_how_it_is() {
    tells_how_its_hosts_are(false);
}

#[test]
fn a_receiver_that_deploys_elsewhere_looks_there_and_does_not_call_well_what_it_cannot_see() {
    tells_how_its_hosts_are(true);
}
