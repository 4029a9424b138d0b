use std::process::Stdio;

use tokio::{
    io::AsyncBufReadExt as _,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    lifecycle::Tasks,
    model::{
        health::{Fact, Incarnation},
        pipeline::{Version, VersionFrom},
    },
    ports::link::{Channel, Duplex},
    time::SystemClock,
};

/// This machine as a host: real shells, real connections.
struct Here {
    forwarding: bool,
    /// The only directory in which commands are found.
    tools: Option<std::path::PathBuf>,
}

#[async_trait]
impl Link for Here {
    async fn open(&self, command: &str) -> Result<Channel, LinkError> {
        let mut program = tokio::process::Command::new(command);
        if let Some(tools) = &self.tools {
            program = tokio::process::Command::new("/bin/sh");
            program.env("PATH", tools);
        }
        let mut child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| LinkError::new("channel_refused", error.to_string()))?;
        let (stdin, stdout, stderr) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let exit = async move {
            let status = child.wait().await.map_err(|error| LinkError::new("connection_lost", error.to_string()))?;
            Ok(status.code().map_or(Exit::Signal("KILL".into()), |code| Exit::Code(u32::try_from(code).unwrap())))
        };
        Ok(Channel { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr: Box::new(stderr), exit: Box::pin(exit) })
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        if !self.forwarding {
            return Err(LinkError::new("forwarding_refused", "the host does not forward connections"));
        }
        match TcpStream::connect((host, port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(LinkError::new("unreachable", error.to_string())),
        }
    }

    fn is_closed(&self) -> bool {
        false
    }

    async fn close(&self) {}

    fn base(&self) -> Option<String> {
        None
    }
}

/// An HTTP client that knows the difference of the two ways only.
struct Asked;

#[async_trait]
impl Http for Asked {
    async fn request(&self, request: Request) -> Result<Response, Cause> {
        Err(Cause::new("http_connect", format!("from here: {}", request.url)))
    }

    async fn request_over(&self, stream: Box<dyn Duplex>, request: Request) -> Result<Response, Cause> {
        let mut stream = tokio::io::BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.map_err(|error| Cause::new("http_protocol", error.to_string()))?;
        let status = line.trim().parse().map_err(|_| Cause::new("http_protocol", line.clone()))?;
        let headers = vec![("location".into(), "/login?secret=1".into())];
        Ok(Response {
            status,
            headers,
            body: format!("{}\n\u{1b}[31mdown\n", request.url).into_bytes(),
            truncated: false,
        })
    }
}

async fn look(check: Check, limit: Duration) -> Sight {
    Probes::new(Arc::new(Asked), Arc::new(SystemClock::new()))
        .look(&Here { forwarding: true, tools: None }, &check, limit)
        .await
}

async fn command(text: &str) -> (bool, String) {
    let Sight { good, seen, .. } = look(Check::Command(text.into()), Duration::from_secs(10)).await;
    (good, seen)
}

/// A port that sends `line` to everybody.
async fn port(tasks: &Tasks, line: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn("port", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(line.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn commands_run_as_written() {
    assert_eq!(command("true").await, (true, "exit 0".into()));
    assert_eq!(command("echo fine; echo 'it'\\''s up'").await, (true, "exit 0: it's up".into()));
    assert_eq!(command("false; echo not reached").await, (false, "exit 1".into()));
    assert_eq!(command("echo why >&2; exit 7").await, (false, "exit 7: why".into()));
    assert!(!command("echo $unset_variable").await.0, "-u");
    assert!(command("cat; echo the program is not on its input").await.0);
    assert_eq!(command("printf 'a\\033[2Jb\\n' >&2; exit 1").await, (false, "exit 1: a [2Jb".into()));
    for broken in ["if", "}", "echo 'open", "x() {", "(", "\"", "case"] {
        assert!(!command(broken).await.0, "{broken}");
    }
    assert_eq!(command("cat <<E\nhere\nE\n# a comment").await, (true, "exit 0: here".into()));
}

#[tokio::test]
async fn a_command_that_prints_without_end_or_hangs_ends_in_time() {
    let limit = Duration::from_millis(400);
    let sight =
        look(Check::Command("yes | head -c 300000000 >/dev/null; while :; do echo flood; done".into()), limit).await;
    assert_eq!(sight, super::sight(false, "no answer within 400ms".into()));
    let (good, seen) = command(&format!("echo {}; exit 1", "x".repeat(5000))).await;
    assert!(!good && seen.chars().count() <= MAX_SEEN + 1);
    // What it leaves behind holds its streams open, and is not waited for.
    let left = look(Check::Command("sleep 30 & echo up".into()), Duration::from_secs(10)).await;
    assert_eq!(left, super::sight(true, "exit 0: up".into()));
}

#[tokio::test]
async fn http_is_asked_through_the_session_or_from_here() {
    let tasks = Tasks::new();
    let limit = Duration::from_secs(10);
    let ok = port(&tasks, "204\n").await;
    let sight = look(Check::Http(format!(":{ok}/healthz?x=1")), limit).await;
    assert!(sight.good && sight.seen.starts_with("204 in "), "{sight:?}");
    let down = port(&tasks, "503\n").await;
    let sight = look(Check::Http(format!(":{down}")), limit).await;
    assert!(!sight.good && sight.seen.ends_with(" ms:  [31mdown"), "{sight:?}");
    let moved = port(&tasks, "302\n").await;
    let sight = look(Check::Http(format!(":{moved}/")), limit).await;
    assert!(!sight.good && sight.seen.ends_with("redirected to /login"), "{sight:?}");
    let sight = look(Check::Http("https://shop.example.com/x".into()), limit).await;
    assert_eq!(sight.seen, "from here: https://shop.example.com/x");
    for bad in [":", ":/x", ":0/", ":99999/", ":80a/", ":+80/"] {
        assert!(!look(Check::Http(bad.into()), limit).await.good, "{bad}");
    }
}

#[tokio::test]
async fn ports_are_dialled_by_the_host() {
    let tasks = Tasks::new();
    let limit = Duration::from_secs(10);
    let open = port(&tasks, "").await;
    assert!(look(Check::Tcp(format!(":{open}")), limit).await.good);
    assert!(look(Check::Tcp(format!("localhost:{open}")), limit).await.good);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let sight = look(Check::Tcp(format!(":{free}")), limit).await;
    assert!(!sight.good && sight.seen.contains("refused"), "{sight:?}");
    for bad in ["5432x", ":", "host:", ":-1"] {
        assert!(!look(Check::Tcp(bad.into()), limit).await.good, "{bad}");
    }
    let probes = Probes::new(Arc::new(Asked), Arc::new(SystemClock::new()));
    let sight = probes.look(&Here { forwarding: false, tools: None }, &Check::Tcp(":1".into()), limit).await;
    assert!(
        !sight.good && sight.seen.contains("AllowTcpForwarding") && sight.seen.contains("health.command"),
        "{sight:?}"
    );
}

/// What a look sees on a host with these programs and no others.
async fn with_tools(tools: &[(&str, &str)], check: Check) -> Sight {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in tools {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let probes = Probes::new(Arc::new(Asked), Arc::new(SystemClock::new()));
    let here = Here { forwarding: false, tools: Some(dir.path().to_owned()) };
    probes.look(&here, &check, Duration::from_secs(10)).await
}

#[tokio::test]
async fn containers_are_asked_for_by_the_tool_that_knows_them() {
    let container = || Check::Container("web".into());
    let none = "echo 'Error: No such container: web' >&2; exit 1";
    // Says what it was asked, to a file beside it, and answers.
    let knows = r#"[ "$1 $2 $3 $4 $6" = "inspect --type container --format web" ] || exit 9
        echo "2 ab12 {\"Status\":\"running\",\"StartedAt\":\"now\"}""#;
    let now = Some(Fact::Process(Incarnation { restarts: 2, id: "ab12 now".into() }));
    for tools in [&[("docker", knows)][..], &[("podman", knows)], &[("docker", none), ("podman", knows)]] {
        let sight = with_tools(tools, container()).await;
        assert_eq!((sight.good, &sight.fact), (true, &now), "{sight:?}");
    }
    for (tools, why) in [
        (&[][..], "this host has neither docker nor podman"),
        (&[("docker", none)], "it cannot be asked for: exit 1: Error: No such container: web"),
        (
            &[("docker", "echo 'permission denied while trying to connect' >&2; exit 1")],
            "let the user of ssh.user ask docker (group docker)",
        ),
        (&[("docker", "echo surprise")], "something else than a container's state"),
    ] {
        let sight = with_tools(tools, container()).await;
        assert!(!sight.good && sight.fact.is_none() && sight.seen.contains(why), "{sight:?}");
    }
}

#[tokio::test]
async fn units_are_asked_for_without_rights() {
    let service = || Check::Service("shop@1.service".into());
    let shows = r#"[ "$1 $4 $5" = "show -- shop@1.service" ] || exit 9
        printf 'LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=1\nInvocationID=4f\n'"#;
    let sight = with_tools(&[("systemctl", shows)], service()).await;
    let now = Some(Fact::Process(Incarnation { restarts: 1, id: "4f".into() }));
    assert_eq!((sight.good, sight.seen.as_str(), sight.fact), (true, "active (running), NRestarts 1", now));
    let sight = with_tools(&[], service()).await;
    assert!(!sight.good && sight.seen.contains("this host has no systemctl"), "{sight:?}");
    let sight = with_tools(&[("systemctl", "echo 'Failed to connect to bus' >&2; exit 1")], service()).await;
    assert!(!sight.good && sight.seen.contains("Failed to connect to bus"), "{sight:?}");
}

#[tokio::test]
async fn versions_are_printed_or_served() {
    let version = |from, json: Option<&str>| Check::Version(Version { from, json: json.map(str::to_owned) });
    let limit = Duration::from_secs(10);
    let printed = |text: &str| VersionFrom::Command(text.to_owned());
    let sight = look(version(printed("echo noise >&2; echo a1b2c3d"), None), limit).await;
    assert_eq!((sight.good, sight.fact), (true, Some(Fact::Version("a1b2c3d".into()))));
    let sight = look(version(printed("echo '{\"v\": \"a1b2c3d\"}'"), Some("v")), limit).await;
    assert_eq!(sight.fact, Some(Fact::Version("a1b2c3d".into())));
    let sight = look(version(printed("echo no such file >&2; exit 2"), None), limit).await;
    assert_eq!((sight.good, sight.seen.as_str(), sight.fact), (false, "exit 2: no such file", None));
    let tasks = Tasks::new();
    for (line, why) in [("200\n", "the answer has 2 lines"), ("503\n", "503")] {
        let port = port(&tasks, line).await;
        let sight = look(version(VersionFrom::Http(format!(":{port}/v")), None), limit).await;
        assert!(!sight.good && sight.seen.contains(why), "{sight:?}");
    }
}
