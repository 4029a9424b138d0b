//! How hosts are reached: through bastions, and not too many at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::TcpListener, task::JoinSet};

use super::{Learning, Sshd, bare, exec, realm, refused_port};
use crate::{
    lifecycle::Tasks,
    model::{
        host::{Host, SecretRef},
        host_key::{HostKeys, Policy},
        jump::{Hop, Jump},
    },
    ports::link::LinkError,
    ssh::SshLimits,
    time::{Clock as _, SystemClock},
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
