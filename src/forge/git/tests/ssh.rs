//! Over `ssh://`, with an sshd of the test's own.

use std::{net::TcpListener, process::Child};

use super::*;

struct Sshd {
    child: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Starts sshd with keys of its own in the fixture's directory; `None` where that is not possible here.
async fn sshd(fixture: &Fixture) -> Option<Sshd> {
    if !nix::unistd::Uid::effective().is_root() || !Path::new("/usr/sbin/sshd").exists() {
        eprintln!("SKIPPED: git over ssh needs root and /usr/sbin/sshd");
        return None;
    }
    fixture.sh("mkdir -p '/run/sshd'; ssh-keygen -qt ed25519 -N '' -f host; ssh-keygen -qt ed25519 -N '' -f user; ssh-keygen -qt ed25519 -N '' -f stranger; cp user.pub authorized; chmod 600 authorized");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = fixture.dir.path().display();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized\nStrictModes no\nPidFile none\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin yes\n"
    );
    std::fs::write(fixture.path("sshd.conf"), config).unwrap();
    fixture.sh(&format!("mkdir -p 'odd dir'; printf '[127.0.0.1]:{port} %s\\n' \"$(cut -d' ' -f1,2 host.pub)\" > 'odd dir/known%h'; printf '[127.0.0.1]:{port} %s\\n' \"$(cut -d' ' -f1,2 stranger.pub)\" > changed; : > empty"));
    let child = std::process::Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f"])
        .arg(fixture.path("sshd.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(fixture.path("sshd.log")).unwrap())
        .spawn()
        .unwrap();
    let sshd = Sshd { child, port };
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(sshd);
        }
        SystemClock::new().sleep(Duration::from_millis(20)).await;
    }
    panic!("sshd did not come up: {}", std::fs::read_to_string(fixture.path("sshd.log")).unwrap());
}

#[tokio::test]
async fn a_repository_over_ssh() {
    let mut fixture = Fixture::new();
    let Some(sshd) = sshd(&fixture).await else { return };
    let sha = fixture.push("main", "a");
    let read = |name: &str| std::fs::read(fixture.path(name)).unwrap();
    let known = Known(BTreeMap::from([
        ("good".into(), read("user")),
        ("stranger".into(), read("stranger")),
        ("junk".into(), b"no key at all".to_vec()),
    ]));
    fixture.git = Git::new(fixture.path("work $(touch canary) 'x'"), Arc::new(known), Arc::new(SystemClock::new()));

    let mut source =
        fixture.source_at(&format!("ssh://root@127.0.0.1:{}{}", sshd.port, fixture.path("repo.git").display()));
    source.known_hosts = Some(fixture.path("odd dir/known%h").display().to_string());
    source.key = Some(SecretRef { name: "good".into() });
    assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap(), sha);
    assert!(fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap().is_head);
    let dir = fixture.run_dir("r");
    fixture.git.checkout(&fixture.project, &sha, &dir, &Giver(None)).await.unwrap();
    assert_eq!(
        fixture.sh(&format!("git -C \"{}\" remote get-url origin", dir.display().to_string().replace('$', "\\$"))),
        source.git
    );

    for (key, known, part) in [
        (Some("stranger"), "odd dir/known%h", "Permission denied"),
        (Some("junk"), "odd dir/known%h", "source.key"),
        (None, "odd dir/known%h", "Permission denied"),
        (Some("absent"), "odd dir/known%h", "does not exist"),
        (Some("good"), "empty", "Host key verification failed"),
        (Some("good"), "changed", "Host key verification failed"),
    ] {
        source.key = key.map(|name| SecretRef { name: name.into() });
        source.known_hosts = Some(fixture.path(known).display().to_string());
        let cause = fixture.git.head(&fixture.project, &source).await.unwrap_err();
        assert!(cause.code == "git_auth" && cause.message.contains(part), "{key:?} {known}: {cause}");
    }
    let left = std::fs::read_dir(fixture.git.keys_dir()).unwrap().count();
    assert_eq!(left, 0, "no key stays on disk");
    assert!(!Path::new("/canary").exists(), "git runs in /");
    assert_eq!(fixture.sh("find . -name canary | wc -l"), "0");
}
