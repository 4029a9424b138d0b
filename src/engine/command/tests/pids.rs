//! The number of a command that comes again as somebody else's: in a pid namespace, where the next number can be chosen.

use super::*;

/// A pid namespace with a `/proc` of its own; whatever runs in it ends with it.
struct Pids(std::process::Child);

/// Starts processes of somebody else, in groups of their own, until one has got the number `$1`.
const COMES_AGAIN: &str = r#"
    tries=0
    while [ "$tries" -lt 5000 ]; do
      echo $(($1 - 1)) >/proc/sys/kernel/ns_last_pid || exit 2
      (exec setsid sleep "$2") </dev/null >/dev/null 2>&1 &
      [ $! != "$1" ] || exit 0
      kill -KILL $!
      tries=$((tries + 1))
    done
    exit 1
"#;

impl Pids {
    /// `None`, loudly, where none can be made.
    fn new() -> Option<Pids> {
        // Its first process inherits whoever loses a parent, and leaves their ends to the kernel.
        let first = "echo begun; exec env --ignore-signal=CHLD sleep infinity";
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", first]);
        let mut made = Pids(unshare.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let mut said = String::new();
        let out = made.0.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut said).unwrap();
        if said.is_empty() {
            eprintln!("SKIPPED: this test needs root and util-linux's unshare, to make a pid namespace");
            return None;
        }
        Some(made)
    }

    /// What a program's words follow that is to run in it.
    fn enter(&self) -> Vec<String> {
        let of = format!("/proc/{}/ns", self.0.id());
        vec![
            "/usr/bin/nsenter".into(),
            format!("--pid={of}/pid_for_children"),
            format!("--mount={of}/mnt"),
            "--".into(),
        ]
    }

    /// Runs a shell's text in it, which must succeed.
    fn sh(&self, text: &str, words: &[&str]) {
        let enter = self.enter();
        let mut command = std::process::Command::new(&enter[0]);
        command.args(&enter[1..]).args(["sh", "-u", "-c", text, "sh"]).args(words);
        assert!(command.status().unwrap().success(), "{text} {words:?}");
    }

    /// The command's wrapper is killed; it lives.
    fn kill_wrapper(&self, leader: i32) {
        self.sh(r#"set -- $(cat "/proc/$1/stat"); kill -KILL "$4""#, &[&leader.to_string()]);
    }

    fn kill_group(&self, leader: i32) {
        self.sh(r#"kill -KILL "-$1""#, &[&leader.to_string()]);
    }

    /// The number is that of somebody else from now on, a `sleep` of so many seconds, who leads a group.
    fn comes_again(&self, number: i32, sleep: &str) {
        self.sh(COMES_AGAIN, &[&number.to_string(), sleep]);
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        let _dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Host {
    /// The same host, which counts its processes in `pids` from now on.
    fn counting_in(self, pids: &Pids) -> Host {
        let argv = [pids.enter(), self.shells.argv.clone()].concat();
        let shells = Shells::new(argv, self.shells.path.clone(), self.shells.base.clone(), self.shells.env.clone());
        let session = Arc::new(Session::new(shells.clone(), Arc::new(SystemClock::new()), Arc::new(Fleeting)));
        Host { shells, session, ..self }
    }
}

in_every_shell! {
    async fn who_has_the_number_of_a_lost_command_is_not_taken_for_it(host: Host) {
        let Some(pids) = Pids::new() else { return };
        let host = host.counting_in(&pids);
        let (cmd, other) = (sh(1, &format!("sleep {}", host.marker())), host.marker());
        let reusing = async {
            host.watched(1).await;
            let leader = host.leader(1);
            pids.kill_wrapper(leader);
            pids.kill_group(leader);
            pids.comes_again(leader, &other);
        };
        let ((verdict, ..), ()) = tokio::join!(host.run(&cmd), reusing);
        assert_eq!(verdict, Verdict::Lost);
        assert_eq!(host.run(&cmd).await.0, Verdict::Lost, "it is not taken for the command");
        assert_eq!(host.given_up(1).await, Verdict::Lost);
        until("the end of the watchdog", || !is_locked(&host.file(1, "watch"))).await;
        assert!(process_exists(&other), "somebody else was signalled");
    }

    async fn who_has_the_number_of_an_orphan_is_not_signalled(host: Host) {
        let Some(pids) = Pids::new() else { return };
        let host = host.counting_in(&pids);
        let (apart, other) = (host.marker(), host.marker());
        let (gone, goes) = (host.path("gone"), host.path("goes"));
        // It holds the lock, in a session of its own, when nobody of the command's group is left.
        let text = format!(
            "setsid sh -c 'echo >{}; exec sleep {apart}' & until [ -e {} ]; do sleep 0.05; done",
            gone.display(),
            goes.display()
        );
        let (cmd, stop, mut sink) = (sh(1, &text), CancellationToken::new(), Discard);
        let reusing = async {
            host.watched(1).await;
            until("what goes its own way", || gone.exists()).await;
            let leader = host.leader(1);
            pids.kill_wrapper(leader);
            std::fs::write(&goes, "").unwrap();
            pids.comes_again(leader, &other);
            stop.cancel();
        };
        let (verdict, ()) = tokio::join!(host.session.run(&cmd, &mut sink, &stop), reusing);
        assert_eq!(verdict, Verdict::Orphaned);
        until("the end of the watchdog", || !is_locked(&host.file(1, "watch"))).await;
        assert!(process_exists(&other), "somebody else was signalled");
        assert!(process_exists(&apart), "nobody knows whose it is");
    }

    /// As a daemon before this one has noted it: without when it began.
    async fn a_group_that_is_noted_by_its_number_alone_is_signalled(host: Host) {
        let marker = host.marker();
        let mut cmd = sh(1, &format!("sleep {marker}"));
        cmd.timeout = Duration::from_secs(4);
        let noting = async {
            host.watched(1).await;
            let go = host.go(1);
            let noted = go.lines().find(|line| line.starts_with("pg ")).unwrap();
            assert_eq!(noted.split(' ').count(), 3, "{noted}");
            assert!(!go.lines().any(|line| line == "timeout"), "too late to see anything: {go}");
            std::fs::write(host.file(1, "go"), go.replace(noted, &format!("pg {}", host.leader(1)))).unwrap();
        };
        let ((verdict, ..), ()) = tokio::join!(host.run(&cmd), noting);
        assert!(matches!(verdict, Verdict::TimedOut { .. }), "{verdict:?}");
        until("its end", || !process_exists(&marker)).await;
    }
}
