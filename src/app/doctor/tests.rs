//! Every check is broken once.

use std::os::unix::fs::PermissionsExt as _;

use nix::unistd::Uid;

use super::*;
use crate::{
    config::{Exec, Limits, UidRange},
    journal::{DataLock, Layout},
    time::{Clock as _, SystemClock},
};

fn me() -> Daemon {
    Daemon { uid: Uid::effective(), name: "me".into(), pid: None }
}

/// Another user, who is not root either.
fn other() -> Daemon {
    Daemon { uid: Uid::from_raw(61_234), name: "other".into(), pid: None }
}

fn states(checks: &[Check]) -> Vec<State> {
    checks.iter().map(|check| check.state).collect()
}

fn chmod(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn who_has_the_data_directory_is_said() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(files::lock(dir.path()).1, None);
    let held = DataLock::take(dir.path(), &SystemClock::new().now()).unwrap();
    let (check, pid) = files::lock(dir.path());
    assert!(check.what.starts_with("held by pid ") && pid == Some(std::process::id()), "{check:?}");
    drop(held);
    let (check, pid) = files::lock(dir.path());
    assert!(check.what.starts_with("free") && pid.is_none(), "{check:?}");
    // Looking took it from nobody.
    assert!(DataLock::take(dir.path(), &SystemClock::new().now()).is_ok());
}

#[test]
fn the_data_directory_is_the_daemons_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(states(&files::data_dir(&data, &me())), [State::Warn]);
    Layout::create(&data).unwrap();
    assert_eq!(states(&files::data_dir(&data, &me())), [State::Ok]);
    chmod(&data.join("journal"), 0o755);
    let found = files::data_dir(&data, &me());
    assert!(found[0].state == State::Fail && found[0].todo.as_ref().unwrap().contains("chmod 700"), "{found:?}");
    chmod(&data.join("journal"), 0o700);
    chmod(&data, 0o777);
    assert_eq!(states(&files::data_dir(&data, &me())), [State::Fail]);
    chmod(&data, 0o711);
    let found = files::data_dir(&data, &other());
    assert!(
        found
            .iter()
            .all(|check| check.state == State::Fail && check.todo.as_ref().unwrap().starts_with("chown -R other")),
        "{found:?}"
    );
    std::os::unix::fs::chown(&data, Some(61_234), None).unwrap();
    assert_eq!(states(&files::data_dir(&data, &me())), [State::Warn], "root works in it all the same");
    chmod(&data, 0o777);
    assert_eq!(states(&files::data_dir(&data, &me())), [State::Warn, State::Fail], "but nobody else may");
    chmod(&data, 0o711);
    std::os::unix::fs::chown(&data, Some(0), None).unwrap();
    std::fs::remove_dir_all(data.join("blobs")).unwrap();
    std::fs::write(data.join("blobs"), "").unwrap();
    assert_eq!(states(&files::data_dir(&data, &me())), [State::Fail]);
}

#[test]
fn secrets_are_readable_by_the_daemon_alone() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    assert_eq!(states(&files::secrets(&secrets, &me())), [State::Warn]);
    std::fs::create_dir(&secrets).unwrap();
    chmod(&secrets, 0o700);
    let write = |name: &str, text: &str, mode| {
        std::fs::write(secrets.join(name), text).unwrap();
        chmod(&secrets.join(name), mode);
    };
    write("good", "long enough", 0o600);
    assert_eq!(states(&files::secrets(&secrets, &me())), [State::Ok]);
    for (name, text, mode, state, word) in [
        ("open", "long enough", 0o644, State::Fail, "chmod 600"),
        ("short", "x", 0o600, State::Fail, "at least 8"),
        ("a b", "long enough", 0o600, State::Warn, "rename"),
    ] {
        write(name, text, mode);
        let found = files::secrets(&secrets, &me());
        assert!(
            found.len() == 1 && found[0].state == state && found[0].todo.as_ref().unwrap().contains(word),
            "{name}: {found:?}"
        );
        std::fs::remove_file(secrets.join(name)).unwrap();
    }
    let found = files::secrets(&secrets, &other());
    assert!(found[0].state == State::Fail && found[0].what.contains("cannot enter"), "{found:?}");
    chmod(&secrets, 0o711);
    let found = files::secrets(&secrets, &other());
    assert!(found[0].state == State::Fail && found[0].what.contains("cannot read"), "{found:?}");
    chmod(&secrets, 0o777);
    assert_eq!(states(&files::secrets(&secrets, &me())), [State::Fail]);
}

#[test]
fn the_socket_is_a_socket_and_not_everybodys() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("phased.sock");
    let failed =
        |daemon: &Daemon| files::socket(&socket, daemon).into_iter().filter(|check| check.state == State::Fail).count();
    assert_eq!(failed(&me()), 0);
    std::fs::write(&socket, "").unwrap();
    assert_eq!(failed(&me()), 1);
    std::fs::remove_file(&socket).unwrap();
    let _listens = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    chmod(&socket, 0o660);
    assert_eq!(failed(&me()), 0);
    chmod(&socket, 0o666);
    assert_eq!(failed(&me()), 1);
    chmod(&socket, 0o660);
    chmod(dir.path(), 0o777);
    assert_eq!(failed(&me()), 1);
    chmod(dir.path(), 0o755);
    let nowhere = dir.path().join("not/there/phased.sock");
    assert!(
        files::socket(&nowhere, &other())
            .iter()
            .any(|check| check.state == State::Warn && check.what.contains("is not there"))
    );
}

#[test]
fn the_machine() {
    assert_eq!(machine::git(Some("git version 2.47.3")).state, State::Ok);
    assert_eq!(machine::git(Some("git version 2.20.1")).state, State::Fail);
    assert_eq!(machine::git(None).state, State::Fail);

    assert_eq!(machine::tools(&|_| true).state, State::Ok);
    let lacking = machine::tools(&|program| program != "flock");
    assert!(lacking.state == State::Fail && lacking.what.contains("flock"), "{lacking:?}");

    let room = |free, inodes| machine::room(std::path::Path::new("/x"), free, inodes, 1_000_000).state;
    assert_eq!(
        [room(5 << 30, 100_000), room(500 << 20, 100_000), room(10 << 20, 100_000), room(5 << 30, 3)],
        [State::Ok, State::Warn, State::Fail, State::Fail]
    );

    assert_eq!(
        [Some("yes"), Some("no"), None].map(|said| machine::clock(said).state),
        [State::Ok, State::Warn, State::Ok]
    );

    // The numbers of the daemon's own warning.
    let limits = [(Some(65_536), 500), (Some(3559), 500), (Some(3560), 500), (Some(65_536), 50_000), (None, 500)];
    let limited = |sessions| Limits { sessions, ..Limits::default() };
    assert_eq!(
        limits.map(|(limit, sessions)| machine::open_files(limit, &limited(sessions)).state),
        [State::Ok, State::Warn, State::Ok, State::Warn, State::Ok]
    );

    let unit = |load: &str, active: &str, more: &str| {
        machine::systemd(&format!("LoadState={load}\nActiveState={active}\n{more}")).state
    };
    assert_eq!(unit("not-found", "inactive", ""), State::Ok);
    assert_eq!(unit("loaded", "active", "NRestarts=0\nUnitFileState=enabled"), State::Ok);
    assert_eq!(unit("loaded", "failed", ""), State::Fail);
    assert_eq!(unit("loaded", "activating", "NRestarts=3"), State::Fail);
    assert_eq!(unit("loaded", "inactive", ""), State::Warn);
    assert_eq!(unit("loaded", "active", "NeedDaemonReload=yes"), State::Warn);
    assert_eq!(unit("loaded", "active", "NRestarts=9"), State::Warn);
    assert_eq!(unit("loaded", "active", "UnitFileState=disabled"), State::Warn);
}

#[test]
fn the_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        // One is only connected to; one is somebody else; one is ours.
        for answer in ["", "HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nok\n"] {
            let (mut stream, _) = listener.accept().unwrap();
            if !answer.is_empty() {
                let _asked = stream.read(&mut [0; 1000]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    assert_eq!(machine::port(taken, false, None).state, State::Fail);
    assert_eq!(machine::port(taken, true, None).state, State::Fail);
    assert_eq!(machine::port(taken, true, None).state, State::Ok);
    answering.join().unwrap();
    assert_eq!(machine::port(taken, true, None).state, State::Warn);
    assert_eq!(machine::port(taken, false, None).state, State::Ok);
    assert_eq!(machine::port("127.0.0.1:0".parse().unwrap(), true, None).state, State::Ok);
}

#[test]
fn as_whom_tests_run() {
    let exec = |change: &dyn Fn(&mut Exec)| {
        let mut exec = Exec::default();
        change(&mut exec);
        exec
    };
    let (root, plain) = (Uid::from_raw(0), Uid::from_raw(61_234));
    let far = Some(UidRange { first: 3_000_000, last: 3_000_099 });
    let range = exec(&|exec| exec.uids = far);
    assert_eq!(code::job_users(&range, root, false).state, State::Ok);
    assert_eq!(code::job_users(&range, plain, true).state, State::Ok);
    assert_eq!(code::job_users(&range, plain, false).state, State::Fail);
    // Services with DynamicUser= may be there any time.
    let dynamic = exec(&|exec| exec.uids = Some(UidRange { first: 61_900, last: 61_901 }));
    assert_eq!(code::job_users(&dynamic, root, false).state, State::Warn);
    // Root's own range: somebody is there.
    let nobody = exec(&|exec| exec.uids = Some(UidRange { first: 65_534, last: 65_534 }));
    assert_eq!(code::job_users(&nobody, root, false).state, State::Fail);
    assert_eq!(code::job_users(&exec(&|exec| exec.same_user = true), root, false).state, State::Warn);
    let user = |name: &str| code::job_users(&exec(&|exec| exec.user = Some(name.to_owned())), root, false).state;
    assert_eq!([user("nobody"), user("root"), user("no-such-user")], [State::Ok, State::Fail, State::Fail]);
}

#[test]
fn projects_that_do_not_load_and_news_that_nobody_hears() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let text = format!(
        "plugins = [\"{here}/plugins\"]\ndata_dir = \"{here}/data\"\n[secrets]\ndir = \"{here}/secrets\"\n[exec]\nuids = \"3000000-3000099\"\n"
    );
    let config = Config::parse(&text, std::path::Path::new("phased.toml")).unwrap();
    let root = Daemon { uid: Uid::from_raw(0), name: "root".into(), pid: None };
    let of = |name: &str| {
        code::all(&config, None, &root).into_iter().filter(|check| check.check == name).collect::<Vec<_>>()
    };
    assert_eq!((states(&of("plugins")), states(&of("projects"))), (vec![State::Warn], vec![State::Warn]));
    std::fs::create_dir_all(dir.path().join("plugins/projects")).unwrap();
    let project = |git: &str, secret: &str| {
        let lua = format!(
            "return phased.project {{ source = {{ git = \"{git}\", branch = \"main\"{secret} }}, test = {{ {{ \"unit\", run = function(run) run:sh \"true\" end }} }},\n\
             environments = {{ {{ \"production\", hosts = {{ \"a\" }}, health = \"none\", deploy = function(host) end }} }}, notify = require \"alerts.log\" {{}} }}"
        );
        std::fs::write(dir.path().join("plugins/projects/shop.lua"), lua).unwrap();
    };
    project("https://example.com/x.git", "");
    assert_eq!(
        (states(&of("plugins")), states(&of("projects")), states(&of("notify"))),
        (vec![], vec![State::Ok], vec![State::Warn])
    );
    project("https://example.com/x.git", ", token = phased.secret \"missing_one\"");
    let found = of("projects");
    assert!(found[0].state == State::Fail && found[0].what.contains("missing_one"), "{found:?}");
    assert_eq!(code::told("shop", &["log".to_owned(), "slack".to_owned()]), None);
    project("git@example.com:x.git", "");
    assert_eq!(of("ssh").len(), 1);
    assert_eq!([code::ssh("shop", true).state, code::ssh("shop", false).state], [State::Ok, State::Fail]);
}

#[test]
fn a_line_a_check_and_what_to_do() {
    let found = [
        Check::ok("config", "/x"),
        Check::warn("clock", "off\nby far", "set it"),
        Check::fail("disk", "full\u{1b}[2J", "make room"),
    ];
    assert_eq!(
        text(&found),
        "ok    config       /x\nwarn  clock        off\n                   by far\n                   -> set it\nFAIL  disk         full\n                   -> make room\n\n3 checks: 1 failed, 1 to look at.\n"
    );
}
