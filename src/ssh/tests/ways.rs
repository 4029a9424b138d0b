//! How hosts are reached: through bastions, and not too many at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::TcpListener, task::JoinSet};

use super::{Learning, Sshd, bare, exec, keygen, realm, refused_port};
use crate::{
    lifecycle::{Tasks, watch},
    model::{
        cause::Cause,
        host::{Host, SecretRef, Ssh},
        host_key::{HostKeys, Learnt, Policy, Realm},
        jump::{Hop, Jump},
    },
    ports::{self, link::LinkError},
    ssh::{SshLimits, SshLinks},
    time::{Clock as _, SystemClock, within},
};

fn hop(port: u16) -> Hop {
    Hop { address: "127.0.0.1".into(), port: Some(port), ..Hop::default() }
}

/// A host behind `bastion`, let in with the same key, and both in one known_hosts.
fn behind(inner: &Sshd, bastion: &Sshd) -> Host {
    let file = |sshd: &Sshd, name: &str| sshd.dir.path().join(name);
    std::fs::copy(file(bastion, "id"), file(inner, "id")).unwrap();
    std::fs::copy(file(bastion, "id.pub"), file(inner, "authorized_keys")).unwrap();
    std::fs::write(file(inner, "known_hosts"), inner.text("known_hosts") + &bastion.text("known_hosts")).unwrap();
    let mut host = inner.host();
    host.ssh.jump = Some(Jump(vec![hop(bastion.port)]));
    host
}

fn refusal(link: Result<Arc<dyn crate::ports::link::Link>, LinkError>) -> LinkError {
    link.err().unwrap_or_else(|| panic!("it let us in"))
}

impl Sshd {
    fn logins(&self) -> usize {
        self.text("log").matches("Accepted publickey").count()
    }
}

#[tokio::test]
async fn a_bastion_and_the_host_behind_it_are_both_checked() {
    let Some(bastion) = Sshd::start("LogLevel VERBOSE").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let own = inner.text("known_hosts");
    let host = behind(&inner, &bastion);
    let links = inner.links();
    // The same file is asked for both; the bastion is not in it yet.
    let both = inner.text("known_hosts");
    std::fs::write(inner.dir.path().join("known_hosts"), &own).unwrap();
    let error = refusal(links.connect(&realm(), &host).await);
    let place = format!("127.0.0.1:{}", bastion.port);
    assert!(
        error.cause.code == "host_key_unknown" && error.cause.message.contains(&format!("the bastion {place}: ")),
        "{error}"
    );
    assert_eq!(error.cause.facts["bastion"], place.as_str());
    assert!(!error.cause.message.contains(&inner.port.to_string()), "it is not the host's fault: {error}");
    assert_eq!(bastion.logins(), 0);
    std::fs::write(inner.dir.path().join("known_hosts"), &both).unwrap();
    let link = inner.links().connect(&realm(), &host).await.unwrap();
    assert_eq!(exec(&*link, "echo through", b"").await.0, b"through\n");
    // The host's own key is checked through it as well.
    std::fs::write(inner.dir.path().join("known_hosts"), bastion.text("known_hosts")).unwrap();
    assert_eq!(refusal(inner.links().connect(&realm(), &host).await).cause.code, "host_key_unknown");
}

#[tokio::test]
async fn hosts_behind_a_bastion_share_its_session_which_is_made_anew_when_it_is_gone() {
    let Some(mut bastion) = Sshd::start("LogLevel VERBOSE\nMaxSessions 1").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let host = behind(&inner, &bastion);
    let links = inner.links();
    let mut made = JoinSet::new();
    for n in 0..20 {
        let (links, mut host) = (links.clone(), host.clone());
        host.id = format!("h{n}").parse().unwrap();
        made.spawn(async move { links.connect(&realm(), &host).await.unwrap() });
    }
    let all = made.join_all().await;
    assert_eq!(bastion.logins(), 1);
    assert_eq!(exec(&*all[7], "echo 7", b"").await.0, b"7\n");
    // It goes down and comes back while they are in use.
    bastion.restart().await;
    let clock = SystemClock::new();
    for _ in 0..200 {
        if all.iter().all(|link| link.is_closed()) {
            break;
        }
        clock.sleep(Duration::from_millis(20)).await;
    }
    assert!(all.iter().all(|link| link.is_closed()));
    let again = links.connect(&realm(), &host).await.unwrap();
    assert_eq!(exec(&*again, "echo again", b"").await.0, b"again\n");
    assert_eq!(bastion.logins(), 1, "the log began anew with it");
    // Its key is to be met anew: nobody goes on through the session that was made with the old one.
    links.let_go("bastion other:22").await;
    assert_eq!(exec(&*again, "echo still", b"").await.0, b"still\n");
    links.let_go(&format!("bastion 127.0.0.1:{}", bastion.port)).await;
    links.connect(&realm(), &host).await.unwrap();
    assert_eq!(bastion.logins(), 2);
}

#[tokio::test]
async fn several_bastions_are_gone_through_one_after_the_other() {
    let Some(first) = Sshd::start("").await else { return };
    let Some(second) = Sshd::start("LogLevel VERBOSE").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let mut host = behind(&inner, &first);
    // The second one has a key, a file and a way of being known of its own.
    std::fs::copy(second.dir.path().join("id"), inner.dir.path().join("second")).unwrap();
    let own = Hop { key: Some(SecretRef { name: "second".into() }), ..hop(second.port) };
    let jump = |second: Hop| Some(Jump(vec![hop(first.port), second]));
    host.ssh.jump = jump(Hop { known_hosts: second.host().ssh.known_hosts, ..own.clone() });
    let link = inner.links().connect(&realm(), &host).await.unwrap();
    assert_eq!(exec(&*link, "echo two", b"").await.0, b"two\n");
    assert_eq!(second.logins(), 1);

    let learning = Arc::new(Learning::default());
    host.ssh.jump = jump(Hop {
        host_keys: Some(HostKeys::Policy(Policy::Tofu)),
        known_hosts: Some("/dev/null".into()),
        ..own.clone()
    });
    let links = inner.links_with(learning.clone(), SshLimits::default());
    links.connect(&realm(), &host).await.unwrap();
    let id = format!("bastion 127.0.0.1:{}", second.port);
    assert_eq!(learning.0.lock().unwrap().keys().collect::<Vec<_>>(), [&realm().host_key(&id)]);

    // The one that does not let us in is named.
    host.ssh.jump = jump(Hop { known_hosts: second.host().ssh.known_hosts, ..hop(second.port) });
    let error = refusal(inner.links().connect(&realm(), &host).await);
    assert!(
        error.cause.code == "auth_failed"
            && error.cause.message.starts_with(&format!("the bastion 127.0.0.1:{}", second.port)),
        "{error}"
    );
    // One that forwards nothing says what to set.
    let Some(closed) = Sshd::start("AllowTcpForwarding no").await else { return };
    let shut = behind(&inner, &closed);
    let error = refusal(inner.links().connect(&realm(), &shut).await);
    assert!(
        error.cause.code == "forwarding_refused" && error.cause.message.contains("the bastion 127.0.0.1"),
        "{error}"
    );
    assert!(!error.cause.message.contains("health.command"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_bastion_costs_its_hosts_one_time_out_and_others_nothing() {
    let Some(sshd) = Sshd::start("").await else { return };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = silent.local_addr().unwrap().port();
    let clock = SystemClock::new();
    let links = sshd.links_with(Arc::new(Learning::default()), SshLimits { sessions: 500, handshakes: 2 });
    let mut host = sshd.host();
    host.ssh.known_hosts = None;
    host.ssh.host_keys = Some(HostKeys::Policy(Policy::Tofu));
    host.ssh.connect_timeout_ms = Some(1500);
    host.ssh.jump = Some(Jump(vec![hop(dead)]));
    let began = clock.now();
    let mut waiting = JoinSet::new();
    for n in 0..30 {
        let (links, mut host) = (links.clone(), host.clone());
        host.id = format!("h{n}").parse().unwrap();
        waiting.spawn(async move { refusal(links.connect(&realm(), &host).await) });
    }
    // Somebody else's host is there at once.
    let other = links.connect(&realm(), &sshd.host()).await.unwrap();
    assert_eq!(exec(&*other, "echo other", b"").await.0, b"other\n");
    assert!(clock.now().since(&began) < Duration::from_millis(1400), "{:?}", clock.now().since(&began));
    for error in waiting.join_all().await {
        let named = format!("the bastion 127.0.0.1:{dead}: ");
        assert!(error.cause.code == "connect_timeout" && error.cause.message.starts_with(&named), "{error}");
    }
    assert!(clock.now().since(&began) < Duration::from_millis(2900), "{:?}", clock.now().since(&began));
    // Who comes when the others are gone is told so as well, as are those that were there.
    let later = clock.now();
    assert_eq!(refusal(links.connect(&realm(), &host).await).cause.code, "connect_timeout");
    assert!(clock.now().since(&later) < Duration::from_millis(1000), "{:?}", clock.now().since(&later));
    // One that refuses is its own error too.
    let (_taken, port) = refused_port();
    host.ssh.jump = Some(Jump(vec![hop(port)]));
    let error = refusal(links.connect(&realm(), &host).await);
    assert!(
        error.cause.code == "unreachable" && error.cause.message.contains(&format!("the bastion 127.0.0.1:{port}")),
        "{error}"
    );
}

/// A server that greets and then says no more, and how many clients have begun a handshake with it: the most at once.
async fn greeter() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (peak, tasks) = (Arc::clone(&most), Tasks::new());
    tasks.clone().spawn("greeter", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
            tasks.spawn("greeted", async move {
                stream.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
                let mut byte = [0];
                // A client that has begun has said something.
                if !matches!(tokio::io::AsyncReadExt::read(&mut stream, &mut byte).await, Ok(1)) {
                    return;
                }
                now.fetch_add(1, Ordering::SeqCst);
                let (mut sink, clock) = (tokio::io::sink(), SystemClock::new());
                let mut gone = std::pin::pin!(tokio::io::copy(&mut stream, &mut sink));
                // Whoever went before it came may not have been heard to go yet.
                tokio::select! {
                    _ = &mut gone => {}
                    () = clock.sleep(Duration::from_millis(50)) => {
                        peak.fetch_max(now.load(Ordering::SeqCst), Ordering::SeqCst);
                        let _until_it_goes = gone.await;
                    }
                }
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (port, most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_more_handshakes_than_there_may_be() {
    let Some(sshd) = Sshd::start("").await else { return };
    let (port, most) = greeter().await;
    let links = sshd.links_with(Arc::new(Learning::default()), SshLimits { sessions: 500, handshakes: 4 });
    let known = sshd.dir.path().join("known_hosts");
    std::fs::write(&known, format!("* {}", sshd.text("hostkey.pub"))).unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..24 {
        let (links, host) = (links.clone(), bare(port, &known, 250));
        waiting.spawn(async move { refusal(links.connect(&realm(), &host).await) });
    }
    for error in waiting.join_all().await {
        assert_eq!(error.cause.code, "connect_timeout", "a wait in line is not the host's: {error}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bastion_is_not_asked_for_more_at_once_than_it_may_be() {
    let Some(bastion) = Sshd::start("").await else { return };
    let (port, most) = greeter().await;
    let links = bastion.links();
    let mut host = bare(port, &bastion.dir.path().join("known_hosts"), 400);
    std::fs::write(bastion.dir.path().join("known_hosts"), format!("* {}", bastion.text("hostkey.pub"))).unwrap();
    host.ssh.user = Some("root".into());
    host.ssh.jump = Some(Jump(vec![Hop { max_handshakes: Some(3), ..hop(bastion.port) }]));
    let mut waiting = JoinSet::new();
    for _ in 0..12 {
        let (links, host) = (links.clone(), host.clone());
        waiting.spawn(async move { refusal(links.connect(&realm(), &host).await) });
    }
    for error in waiting.join_all().await {
        assert_eq!(error.cause.code, "connect_timeout", "{error}");
        assert!(!error.cause.message.starts_with("the bastion"), "it is the host that hangs: {error}");
        assert_eq!(error.cause.facts["through"], format!("127.0.0.1:{}", bastion.port).as_str());
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

/// A server that greets and then says whatever it likes, for as long as it is let; one word for each connection that was ended.
async fn flooder() -> (u16, tokio::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (say, ended) = tokio::sync::mpsc::channel(1);
    Tasks::new().spawn("flooder", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-flood\r\n").await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            say.send(()).await.unwrap();
        }
    });
    (port, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_host_says_holds_up_no_other_behind_the_same_bastion() {
    let Some(bastion) = Sshd::start("LogLevel VERBOSE\nMaxSessions 1").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let host = behind(&inner, &bastion);
    let links = inner.links_with(Arc::new(Learning::default()), SshLimits { sessions: 500, handshakes: 1 });
    let (noisy, good) = (links.connect(&realm(), &host).await.unwrap(), links.connect(&realm(), &host).await.unwrap());
    // Commands that say much and that nobody reads.
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(noisy.open("yes").await.unwrap());
    }
    // A host that is no sshd, while it waits for a turn.
    let turn = links.room.handshake(&SystemClock::new()).await.unwrap();
    let (port, mut ended) = flooder().await;
    let mut flood = host.clone();
    flood.ssh.port = Some(port);
    let mut waiting = JoinSet::new();
    let flooded = links.clone();
    waiting.spawn(async move { refusal(flooded.connect(&realm(), &flood).await) });
    let cut = crate::time::within(&SystemClock::new(), Duration::from_secs(20), ended.recv()).await;
    assert_eq!(cut, Some(Some(())), "it is cut, and it alone");
    for n in 0..20 {
        assert_eq!(exec(&*good, &format!("echo {n}"), b"").await.0, format!("{n}\n").into_bytes());
    }
    drop(turn);
    let error = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(error.cause.code, "connection_lost", "{error}");
    // What keeps to its windows goes on where it was.
    drop(unread.split_off(1));
    let mut some = vec![0; 1 << 20];
    tokio::io::AsyncReadExt::read_exact(&mut unread[0].stdout, &mut some).await.unwrap();
    assert!(some.chunks(2).all(|line| line == b"y\n") && !noisy.is_closed());
    assert_eq!(bastion.logins(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bastion_that_answers_nothing_any_more_is_named_and_given_up() {
    let Some(bastion) = Sshd::start("LogLevel VERBOSE").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let mut host = behind(&inner, &bastion);
    host.ssh.connect_timeout_ms = Some(1000);
    let links = inner.links();
    let link = links.connect(&realm(), &host).await.unwrap();
    bastion.signal(nix::sys::signal::Signal::SIGSTOP);
    let error = refusal(links.connect(&realm(), &host).await);
    let place = format!("127.0.0.1:{}", bastion.port);
    assert_eq!(
        (error.cause.code.as_str(), &error.cause.facts["bastion"]),
        ("connection_lost", &place.into()),
        "{error}"
    );
    bastion.signal(nix::sys::signal::Signal::SIGCONT);
    links.connect(&realm(), &host).await.unwrap();
    assert!(link.open("true").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_more_sessions_than_there_may_be() {
    let Some(sshd) = Sshd::start("").await else { return };
    let clock = Arc::new(SystemClock::new());
    for (of_all, of_environment, most) in [(3, None, 3), (500, Some(2), 2)] {
        let links = sshd.links_with(Arc::new(Learning::default()), SshLimits { sessions: of_all, handshakes: 16 });
        let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut host = sshd.host();
        host.ssh.max_sessions = of_environment;
        let mut all = JoinSet::new();
        for _ in 0..12 {
            let (links, host, now, peak, clock) =
                (links.clone(), host.clone(), now.clone(), peak.clone(), clock.clone());
            all.spawn(async move {
                let link = links.connect(&realm(), &host).await.unwrap();
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                assert_eq!(exec(&*link, "echo in", b"").await.0, b"in\n");
                clock.sleep(Duration::from_millis(50)).await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
        all.join_all().await;
        assert_eq!(peak.load(Ordering::SeqCst), most);
        assert_eq!(*links.waiting().borrow(), 0);
    }
}

/// A disk that says nothing of one id until it is let.
struct Stuck {
    inner: Learning,
    id: String,
    /// Whether it is the first look that waits, or that the key is kept.
    looks: bool,
    waits: watch::Sender<bool>,
    free: watch::Sender<bool>,
}

impl Stuck {
    fn over(id: &str, looks: bool) -> Arc<Stuck> {
        let (waits, free) = (watch::Sender::new(false), watch::Sender::new(false));
        Arc::new(Stuck { inner: Learning::default(), id: id.to_owned(), looks, waits, free })
    }

    async fn wait(&self, id: &str, looks: bool) {
        if id == self.id && looks == self.looks {
            self.waits.send_replace(true);
            self.free.subscribe().wait_for(|free| *free).await.unwrap();
        }
    }
}

#[async_trait::async_trait]
impl ports::host_keys::HostKeys for Stuck {
    async fn known(&self, realm: &Realm, id: &str) -> Result<Option<Learnt>, Cause> {
        self.wait(id, true).await;
        self.inner.known(realm, id).await
    }
    async fn learn(&self, realm: &Realm, id: &str, key: Learnt) -> Result<Learnt, Cause> {
        self.wait(id, false).await;
        self.inner.learn(realm, id, key).await
    }
}

/// A session, which must not take long: nobody has a turn that it waits for.
async fn soon(links: &SshLinks, host: &Host) -> Result<Arc<dyn ports::link::Link>, LinkError> {
    let link = within(&SystemClock::new(), Duration::from_secs(20), links.connect(&realm(), host)).await;
    link.expect("somebody keeps a turn or a place while the disk is waited for")
}

fn named(id: &str, host: &Host) -> Host {
    Host { id: id.parse().unwrap(), ..host.clone() }
}

const ONE: SshLimits = SshLimits { sessions: 2, handshakes: 1 };

#[tokio::test]
async fn a_key_is_kept_in_nobodys_turn_and_who_gives_up_meanwhile_gives_the_place_back() {
    let Some(bastion) = Sshd::start("").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let pinned = behind(&inner, &bastion);
    let one_at_a_time =
        Hop { max_handshakes: Some(1), known_hosts: pinned.ssh.known_hosts.clone(), ..hop(bastion.port) };
    let mut first = named("first", &pinned);
    first.ssh.host_keys = Some(HostKeys::Policy(Policy::Tofu));
    first.ssh.known_hosts = None;
    let pin = HostKeys::Policy(Policy::Pin);
    let jump = Jump(vec![Hop { host_keys: Some(pin), ..one_at_a_time }]);
    let [first, pinned] = [first, pinned].map(|mut host| {
        host.ssh.jump = Some(jump.clone());
        host
    });
    let disk = Stuck::over("first", false);
    let (links, tasks) = (inner.links_with(disk.clone(), ONE), Tasks::new());
    let meets = |host: &Host| {
        let (links, host) = (links.clone(), host.clone());
        tasks.spawn("meets", async move { links.connect(&realm(), &host).await })
    };
    let met = meets(&first);
    disk.waits.subscribe().wait_for(|waits| *waits).await.unwrap();
    // Neither of the one handshake there may be, nor of the bastion's.
    drop(soon(&links, &named("second", &pinned)).await.unwrap());
    disk.free.send_replace(true);
    let link = met.await.unwrap().unwrap();
    assert!(link.learnt().is_some() && disk.inner.len() == 1);
    link.close().await;

    // Of two places one is kept by who waits for the disk; when that gives up both are there again.
    let disk = Stuck::over("first", false);
    let links = inner.links_with(disk.clone(), ONE);
    let of_it = realm();
    let _held = {
        let mut met = std::pin::pin!(links.connect(&of_it, &first));
        let mut waits = disk.waits.subscribe();
        tokio::select! {
            _ = &mut met => panic!("the disk did not wait"),
            _ = waits.wait_for(|waits| *waits) => {}
        }
        soon(&links, &named("second", &pinned)).await.unwrap()
    };
    assert_eq!(disk.inner.len(), 0);
    soon(&links, &named("third", &pinned)).await.unwrap();
}

#[tokio::test]
async fn what_is_known_of_a_bastion_is_looked_up_in_nobodys_turn() {
    let Some(outer) = Sshd::start("").await else { return };
    let Some(inner) = Sshd::start("").await else { return };
    let mut near = behind(&inner, &outer);
    let pinned = Hop { max_handshakes: Some(1), ..hop(outer.port) };
    near.ssh.jump = Some(Jump(vec![pinned.clone()]));
    // A second bastion, met for the first time, behind the one that is asked for one thing at a time.
    let met = Hop { host_keys: Some(HostKeys::Policy(Policy::Tofu)), ..hop(inner.port) };
    let disk = Stuck::over(&met.id(), true);
    let mut far = named("far", &near);
    far.ssh.jump = Some(Jump(vec![pinned, met]));
    let (links, tasks) = (inner.links_with(disk.clone(), SshLimits::default()), Tasks::new());
    let reached = {
        let links = links.clone();
        tasks.spawn("far", async move { links.connect(&realm(), &far).await })
    };
    disk.waits.subscribe().wait_for(|waits| *waits).await.unwrap();
    drop(soon(&links, &near).await.unwrap());
    disk.free.send_replace(true);
    reached.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_is_refused_for_its_key_or_given_up_has_no_turn_any_more() {
    let Some(sshd) = Sshd::start("").await else { return };
    keygen(&sshd.dir.path().join("other"), &["-t", "ed25519"]);
    let own = sshd.text("known_hosts");
    let links = sshd.links_with(Arc::new(Learning::default()), SshLimits { sessions: 1, handshakes: 1 });
    let (port, _greeted) = greeter().await;
    let silent = Host {
        ssh: Ssh { key: sshd.host().ssh.key, ..bare(port, &sshd.dir.path().join("known_hosts"), 300).ssh },
        ..sshd.host()
    };
    for _ in 0..3 {
        sshd.known("127.0.0.1", &sshd.text("other.pub"));
        assert_eq!(refusal(soon(&links, &sshd.host()).await).cause.code, "host_key_changed");
        // It greets and then says nothing more.
        assert_eq!(refusal(soon(&links, &silent).await).cause.code, "connect_timeout");
        std::fs::write(sshd.dir.path().join("known_hosts"), &own).unwrap();
        soon(&links, &sshd.host()).await.unwrap().close().await;
    }
}
