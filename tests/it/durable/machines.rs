//! A host reboots, or is another machine, in the middle of a step: nobody guesses.

use serde_json::Value;

use crate::fixture::{Project, Run, World, run::Ended};

/// A step that waits to be let go, then a last one; each writes down that it ran.
fn waiting(options: &str) -> Project {
    let deploy = format!(
        r#"
      local env = {{ HERE = "@ROOT@/" .. host.id }}
      host:sh {{ 'echo one >>"$HERE/trace"; echo waits; until [ -e "$HERE/go" ]; do sleep 0.05; done', env = env {options} }}
      host:sh {{ 'echo two >>"$HERE/trace"', env = env }}"#
    );
    Project::new("shop").hosts(&["h1"]).deploy(&deploy)
}

fn trace(world: &World) -> String {
    std::fs::read_to_string(world.host("h1").join("trace")).unwrap_or_default()
}

/// The first process of the command that runs on the host, as the host counts.
fn leader(world: &World) -> String {
    let files = std::fs::read_dir(world.host("h1").join("base")).unwrap().flatten();
    let go = files.into_iter().find(|file| file.file_name().to_string_lossy().ends_with(".go")).unwrap();
    let go = std::fs::read_to_string(go.path()).unwrap();
    let noted = go.lines().find_map(|line| line.strip_prefix("pg ")).unwrap();
    noted.split(' ').next().unwrap().to_owned()
}

/// The host failed with this cause, and nothing of the deploy came after it.
#[track_caller]
fn ends_unknown(ended: &Ended, world: &World, code: &str) {
    let host = ended.host("h1");
    assert_eq!(
        (&host["state"], &host["cause"]["code"]),
        (&Value::from("failed"), &Value::from(code)),
        "{}",
        ended.view
    );
    assert_eq!(trace(world), "one\n");
    let outcome = world.events(&ended.id, "done").pop().unwrap()["outcome"].to_string();
    assert!(outcome.contains("unknown"), "{outcome}");
}

#[test]
fn a_host_that_reboots_in_the_middle_of_a_step_fails_as_rebooted() {
    let (mut world, daemon) = World::with(&waiting(""));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    let running = world.commands_on("h1");
    assert!(!running.is_empty());
    world.sshd.reboot(&running);
    ends_unknown(&run.wait().is("halted"), &world, "rebooted");
}

#[test]
fn a_host_that_rebooted_while_the_daemon_was_gone_fails_as_rebooted() {
    let (mut world, daemon) = World::with(&waiting(""));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    let running = world.commands_on("h1");
    world.sshd.reboot(&running);
    let daemon = world.start();
    ends_unknown(&daemon.run(&run.id).wait().is("halted"), &world, "rebooted");
}

#[test]
fn a_command_that_was_killed_with_all_that_watched_it_is_lost() {
    let (world, daemon) = World::with(&waiting(""));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    world.commands_on("h1").into_iter().for_each(kill);
    let daemon = world.start();
    ends_unknown(&daemon.run(&run.id).wait().is("halted"), &world, "lost");
}

/// The process `$1` is somebody else's from now on: a `sleep` that leads a group, of a user whom the command's watchdog may signal.
const COMES_AGAIN: &str = r#"
    tries=0
    while [ "$tries" -lt 5000 ]; do
      echo $(($1 - 1)) >/proc/sys/kernel/ns_last_pid || exit 2
      (exec setpriv --reuid fleet --regid fleet --clear-groups setsid sleep 98768) </dev/null >/dev/null 2>&1 &
      [ $! != "$1" ] || exit 0
      kill -KILL $!
      tries=$((tries + 1))
    done
    exit 1"#;

/// Whoever has got the number lives, and was not signalled.
#[track_caller]
fn is_left_alone(world: &World, number: &str) {
    let command = world.sshd.apart(r#"tr '\0' ' ' <"/proc/$1/cmdline""#, &[number]);
    assert_eq!(command, "sleep 98768 ", "somebody else's process is gone");
}

#[test]
fn a_lost_command_whose_number_is_somebody_elses_by_now_is_lost() {
    let mut world = World::new();
    world.sshd.count_apart();
    world.project(&waiting(""));
    let daemon = world.start();
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    let number = leader(&world);
    let parent_and_group = r#"set -- "$1" $(cat "/proc/$1/stat"); kill -KILL "$5" "-$1""#;
    world.sshd.apart(parent_and_group, &[&number]);
    world.sshd.apart(COMES_AGAIN, &[&number]);
    let daemon = world.start();
    ends_unknown(&daemon.run(&run.id).wait().is("halted"), &world, "lost");
    is_left_alone(&world, &number);
}

/// Its wrapper was killed, nobody of its group is left, and what it has put into a session of its own lives: the time-out finds whoever has
/// got the group's number meanwhile.
#[test]
fn the_time_out_of_an_orphan_signals_nobody_else() {
    let mut world = World::new();
    world.sshd.count_apart();
    let deploy = r#"host:sh { [[
        setsid sh -c 'echo waits; exec sleep 98769' &
        until [ -e "$HERE/go" ]; do sleep 0.05; done; echo one >>"$HERE/trace"
      ]], env = { HERE = "@ROOT@/" .. host.id }, timeout = "10s" }"#;
    world.project(&Project::new("shop").hosts(&["h1"]).deploy(deploy));
    let daemon = world.start();
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    let number = leader(&world);
    world.sshd.apart(r#"set -- $(cat "/proc/$1/stat"); kill -KILL "$4""#, &[&number]);
    std::fs::write(world.host("h1").join("go"), "").unwrap();
    world.sshd.apart(COMES_AGAIN, &[&number]);
    ends_unknown(&run.wait().is("halted"), &world, "orphaned");
    is_left_alone(&world, &number);
}

#[test]
fn a_step_that_may_be_done_again_is_done_again_after_a_reboot() {
    let (mut world, daemon) = World::with(&waiting(r#", on_unknown = "retry""#));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    std::fs::write(world.host("h1").join("go"), "").unwrap();
    let running = world.commands_on("h1");
    // It may just have seen that it may go: what is wanted is a step that was cut, not one that ended.
    let cut = !ended_by_itself(&world, &running);
    world.sshd.reboot(&running);
    let daemon = world.start();
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(trace(&world), if cut { "one\none\ntwo\n" } else { "one\ntwo\n" });
}

/// Stops `running`; true when the command was over before.
fn ended_by_itself(world: &World, running: &[i32]) -> bool {
    for pid in running {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGSTOP);
    }
    let files = std::fs::read_dir(world.host("h1").join("base")).unwrap().flatten();
    let go = files.into_iter().find(|file| file.file_name().to_string_lossy().ends_with(".go"));
    go.is_none_or(|go| std::fs::read_to_string(go.path()).unwrap().starts_with("end"))
}

fn kill(pid: i32) {
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// Another machine at the same address: nothing that was on the first is there.
fn replace(world: &World) {
    world.sshd.cut();
    world.commands_on("h1").into_iter().for_each(kill);
    std::fs::remove_dir_all(world.host("h1").join("base")).unwrap();
}

#[test]
fn a_host_that_is_replaced_in_the_middle_of_a_step_fails_as_replaced() {
    let (world, daemon) = World::with(&waiting(""));
    world.repo.push("x");
    let run: Run = daemon.press();
    run.prints("waits");
    // The daemon is held meanwhile: it meets the one machine or the other, none that is half of each.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    replace(&world);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    ends_unknown(&run.wait().is("halted"), &world, "replaced");
}

#[test]
fn a_host_that_was_replaced_while_the_daemon_was_gone_fails_as_replaced() {
    let (world, daemon) = World::with(&waiting(""));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    replace(&world);
    let daemon = world.start();
    ends_unknown(&daemon.run(&run.id).wait().is("halted"), &world, "replaced");
}
