//! With the OpenSSH client as the peer.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::*;

/// A host with a key file and a known_hosts file beside it.
struct Fixture {
    folder: tempfile::TempDir,
    tasks: Tasks,
    port: u16,
}

impl Fixture {
    async fn new() -> Self {
        Self::forwarding(BTreeMap::new()).await
    }

    async fn forwarding(forwards: BTreeMap<u16, SocketAddr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (host_key, key) = (Key::generate().unwrap(), Key::generate().unwrap());
        let known = format!("[127.0.0.1]:{port} {}\n", host_key.public_line().unwrap());
        write(&folder.path().join("known_hosts"), &known);
        write(&folder.path().join("key"), &key.private_file().unwrap());
        write(&folder.path().join("other"), &Key::generate().unwrap().private_file().unwrap());
        let home = folder.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let account = Account { user: "demo".into(), key, home, path: std::env::var("PATH").unwrap(), forwards };
        let tasks = Tasks::new();
        serve("test", listener, host_key, account, &tasks);
        Fixture { folder, tasks, port }
    }

    fn ssh_as(&self, user: &str, key: &str, before: &[&str], command: &str) -> Command {
        let path = self.folder.path();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "IdentityAgent=none", "-o", "GlobalKnownHostsFile=/dev/null"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", path.join("known_hosts").display()))
            .arg("-i")
            .arg(path.join(key))
            .args(["-p", &self.port.to_string()])
            .args(before)
            .arg(format!("{user}@127.0.0.1"))
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        if !command.is_empty() {
            ssh.arg(command);
        }
        ssh
    }

    fn ssh(&self, command: &str) -> Command {
        self.ssh_as("demo", "key", &[], command)
    }

    async fn said(&self, command: &str) -> (Option<i32>, String, String) {
        let output = self.ssh(command).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn commands_run_at_home_with_a_clean_environment() {
    let host = Fixture::new().await;
    let (code, out, err) = host.said("pwd; env | cut -d= -f1 | sort | tr '\\n' ' '; echo no >&2; exit 7").await;
    assert_eq!(code, Some(7));
    // PWD, SHLVL and _ are the shell's own.
    let names: Vec<&str> = out
        .lines()
        .nth(1)
        .unwrap()
        .split(' ')
        .filter(|n| !matches!(*n, "" | "PWD" | "SHLVL" | "_" | "OLDPWD"))
        .collect();
    assert_eq!(names, ["HOME", "LOGNAME", "PATH", "SHELL", "USER"]);
    assert_eq!(Path::new(out.lines().next().unwrap()), host.folder.path().join("home").canonicalize().unwrap());
    assert_eq!(err, "no\n");
}

#[tokio::test]
async fn a_command_is_the_leader_of_a_session_of_its_own() {
    let host = Fixture::new().await;
    let (_, out, _) = host
        .said("read -r pid name state ppid group session rest </proc/$$/stat; echo $(($$ - group)) $(($$ - session))")
        .await;
    assert_eq!(out, "0 0\n");
}

#[tokio::test]
async fn a_signal_is_told_as_one() {
    let host = Fixture::new().await;
    let (code, _, _) = host.said("kill -TERM $$; sleep 60").await;
    // OpenSSH's client says 255 for a remote signal.
    assert_eq!(code, Some(255));
}

#[tokio::test]
async fn strangers_are_refused() {
    let host = Fixture::new().await;
    for (user, key) in [("demo", "other"), ("root", "key")] {
        let output = host.ssh_as(user, key, &[], "echo in").output().await.unwrap();
        assert_eq!(output.status.code(), Some(255));
        assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied (publickey)"), "{user} {key}");
    }
}

#[tokio::test]
async fn input_goes_in_and_50_megabytes_come_back() {
    let host = Fixture::new().await;
    let mut ssh = host.ssh("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let sent: Vec<u8> = (0..50_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let came = {
        let sent = sent.clone();
        let writer = async move {
            input.write_all(&sent).await.unwrap();
            drop(input);
        };
        let mut came = Vec::new();
        let (_, read) = tokio::join!(writer, output.read_to_end(&mut came));
        read.unwrap();
        came
    };
    assert!(came == sent, "{} bytes came", came.len());
    assert!(ssh.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_reader_that_stops_makes_the_command_wait_and_nothing_else() {
    let host = Fixture::new().await;
    let mark = host.folder.path().join("home/done");
    let mut slow = host.ssh("head -c 50000000 /dev/zero; touch done").stdout(Stdio::piped()).spawn().unwrap();
    let mut output = slow.stdout.take().unwrap();
    let mut first = [0; 1000];
    output.read_exact(&mut first).await.unwrap();
    // A whole other session later it still waits to be read: windows and pipes hold a few megabytes at most.
    assert_eq!(host.said("echo other").await.1, "other\n");
    assert!(!mark.exists());
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).await.unwrap();
    assert_eq!(first.len() + rest.len(), 50_000_000);
    assert!(slow.wait().await.unwrap().success());
    assert!(mark.exists());
}

#[tokio::test]
async fn channels_of_one_session_run_side_by_side() {
    let host = Fixture::new().await;
    let control = host.folder.path().join("c");
    let control = control.to_str().unwrap();
    let master = ["-M", "-S", control, "-o", "ControlPersist=no"];
    // The master's own command ends only when a second one, over the same connection, says so.
    let mut first = host
        .ssh_as("demo", "key", &master, "echo up; until [ -e go ]; do sleep 0.05; done; echo went")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = first.stdout.take().unwrap();
    let mut up = [0; 3];
    output.read_exact(&mut up).await.unwrap();
    assert_eq!(&up, b"up\n");
    let other = host.ssh_as("demo", "key", &["-S", control], "touch go; echo two").output().await.unwrap();
    assert_eq!(other.stdout, b"two\n");
    let mut went = String::new();
    output.read_to_string(&mut went).await.unwrap();
    assert_eq!(went, "went\n");
    assert!(first.wait().await.unwrap().success());
}

#[tokio::test]
async fn ports_that_were_given_are_forwarded_and_no_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Fixture::forwarding(BTreeMap::from([(8080, listener.local_addr().unwrap())])).await;
    host.tasks.spawn("peer", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await.unwrap();
        stream.write_all(format!("you said {asked}").as_bytes()).await.unwrap();
    });
    let mut ssh = host.ssh_as("demo", "key", &["-W", "127.0.0.1:8080"], "");
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    ssh.stdin.take().unwrap().write_all(b"hello").await.unwrap();
    let output = ssh.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "you said hello");
    for wrong in ["127.0.0.1:22", "10.0.0.1:8080"] {
        let refused = host.ssh_as("demo", "key", &["-W", wrong], "").output().await.unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("administratively prohibited"), "{wrong}");
    }
}

#[tokio::test]
async fn what_a_host_does_not_do_is_refused_and_the_end_is_orderly() {
    let host = Fixture::new().await;
    let shell = host.ssh("").output().await.unwrap();
    assert!(!shell.status.success());
    let mut long = host.ssh("echo $$; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut pid = [0; 2];
    long.stdout.as_mut().unwrap().read_exact(&mut pid).await.unwrap();
    assert!(host.tasks.shut_down(Duration::from_secs(5)).await.is_empty());
    assert_eq!(long.wait().await.unwrap().code(), Some(255));
}

#[test]
fn keys_are_what_openssh_reads() {
    let key = Key::generate().unwrap();
    assert!(key.public_line().unwrap().starts_with("ssh-ed25519 AAAA"));
    assert!(key.private_file().unwrap().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    assert_ne!(key.public_line().unwrap(), Key::generate().unwrap().public_line().unwrap());
}
