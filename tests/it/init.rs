//! `phased init`: from a repository's URL to a project that deploys, and what it says where the way is barred.

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::fixture::{BINARY, Daemon, Sshd, World, eventually, output};

/// What `phased init` says, as JSON, and its exit code.
fn init(dir: &Path, args: &[&str]) -> (i32, Value, String) {
    // As people who are careful run it.
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 077; exec \"$@\"", "sh", BINARY, "init", "--json", "--config"])
        .arg(dir.join("phased.toml"))
        .args(args);
    let done = output(&mut command);
    (done.code, serde_json::from_str(&done.stdout).unwrap_or_default(), done.stderr)
}

fn codes(host: &Value) -> Vec<&str> {
    host["missing"].as_array().unwrap().iter().map(|cause| cause["code"].as_str().unwrap()).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_there_is_kept_and_said_and_the_check_is_content() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said, _) = init(dir.path(), &[]);
    let files: Vec<String> =
        ["phased.toml", "plugins/types/phased.d.lua", "plugins/.luarc.json", "plugins/projects/shop.lua.example"]
            .map(|name| dir.path().join(name).display().to_string())
            .to_vec();
    assert_eq!((code, &said["wrote"], &said["kept"]), (0, &serde_json::json!(files), &serde_json::json!([])));
    let mine = format!("# mine\nplugins = [\"{}/plugins\"]\n", dir.path().display());
    std::fs::write(dir.path().join("phased.toml"), &mine).unwrap();
    std::fs::remove_file(dir.path().join("plugins/.luarc.json")).unwrap();
    let (code, said, _) = init(dir.path(), &[]);
    assert_eq!((code, said["wrote"].as_array().unwrap().len(), said["kept"].as_array().unwrap().len()), (0, 1, 3));
    assert_eq!(std::fs::read_to_string(dir.path().join("phased.toml")).unwrap(), mine);
    // A directory, as it was said before there were URLs, and one that is no repository.
    let (code, _, said) = init(dir.path(), &[dir.path().to_str().unwrap()]);
    assert!(code == 1 && said.contains("is a directory and no repository") && said.contains("--config"), "{said}");
}

#[test]
fn a_repository_becomes_a_project_that_deploys_and_each_missing_part_is_named() {
    let world = World::new();
    world.repo.commit(
        &[("Makefile", "build:\n\techo built >app\ntest:\n\tgrep -q built app\n"), ("message.txt", "first")],
        "first",
    );
    world.repo.push_as("trunk");
    // The repository's own branch is not the one that phased would guess.
    std::fs::write(world.path("repo.git/HEAD"), "ref: refs/heads/trunk\n").unwrap();
    std::fs::remove_file(world.path("known_hosts")).unwrap();
    Daemon::configure(&world);
    let target = world.host("target");
    std::fs::create_dir(&target).unwrap();
    let host = format!("fleet@127.0.0.1:{}", world.sshd.port);
    let dir = format!("{}/app", target.display());
    let url = world.repo.url();
    let args = ["--name", "shop", "--host", &host, "--service", "none", "--dir", &dir, &url];
    let conf = world.root();

    // Nobody has said that the host's key is right.
    let (code, said, err) = init(conf, &args);
    assert_eq!(code, 0, "{err}");
    assert_eq!((codes(&said["hosts"][0]), &said["branch"]), (vec!["host_key_unknown"], &"trunk".into()), "{said:#}");
    assert!(
        said["next"].as_str().unwrap().contains("--accept-host-keys") && !conf.join("known_hosts").exists(),
        "{said:#}"
    );
    assert_eq!(said["found"], serde_json::json!(["make (Makefile)"]));
    for secret in ["secrets/deploy_key", "secrets/shop_webhook"] {
        assert_eq!(mode(&conf.join(secret)), 0o600, "{secret}");
    }
    assert_eq!(mode(&conf.join("plugins/projects/shop.lua")), 0o644);
    assert_eq!(said["webhook"]["secret"], std::fs::read_to_string(conf.join("secrets/shop_webhook")).unwrap().trim());

    // It is, and the host knows nothing of our key.
    let mut accepting = args.to_vec();
    accepting.push("--accept-host-keys");
    let (_, said, _) = init(conf, &accepting);
    assert_eq!(codes(&said["hosts"][0]), ["auth_failed"], "{said:#}");
    assert!(said["next"].as_str().unwrap().contains("shop.host.sh") && conf.join("shop.host.sh").exists(), "{said:#}");
    let key = said["public_key"].as_str().unwrap().to_owned();
    let pinned = std::fs::read_to_string(conf.join("known_hosts")).unwrap();
    assert!(pinned.contains(&format!("[127.0.0.1]:{} ssh-ed25519 ", world.sshd.port)), "{pinned}");

    // Now it does, and the user may not write where releases are to lie.
    let authorized = world.path("sshd/authorized_keys");
    let old = std::fs::read_to_string(&authorized).unwrap();
    std::fs::write(&authorized, format!("{old}{key}\n")).unwrap();
    let (_, said, _) = init(conf, &args);
    assert_eq!(codes(&said["hosts"][0]), ["directory"], "{said:#}");
    assert_eq!(std::fs::read_to_string(conf.join("known_hosts")).unwrap(), pinned, "it was pinned twice");
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (_, said, _) = init(conf, &args);
    assert!(codes(&said["hosts"][0]).is_empty() && said["next"].as_str().unwrap().contains("phased"), "{said:#}");

    // Other words, and the files stay: it says so, and does not call a project ready that is in no file.
    let mut other = args.to_vec();
    other.extend(["--health", ":8080/healthz"]);
    let (code, said, err) = init(conf, &other);
    let file = conf.join("plugins/projects/shop.lua").display().to_string();
    assert_eq!((code, &said["differs"]), (0, &serde_json::json!([file])), "{said:#} {err}");
    assert!(said["next"].as_str().unwrap().starts_with(&format!("{file} is there already")), "{said:#}");
    // No host is said: the file's are looked at, and of what they need no more is known than that they let us in.
    let again = ["--name", "shop", &url];
    let (_, said, _) = init(conf, &again);
    let place = format!("127.0.0.1:{}", world.sshd.port);
    assert_eq!((&said["hosts"][0]["host"], codes(&said["hosts"][0]).len()), (&place.into(), 0), "{said:#}");
    assert_eq!((&said["differs"], &said["sudoers"]), (&serde_json::json!([]), &Value::Null), "{said:#}");
    std::fs::write(&authorized, &old).unwrap();
    let (_, said, _) = init(conf, &again);
    assert_eq!(codes(&said["hosts"][0]), ["auth_failed"], "{said:#}");
    std::fs::write(&authorized, format!("{old}{key}\n")).unwrap();
    // Nor a repository.
    let (_, said, _) = init(conf, &[]);
    assert!(said["next"].as_str().unwrap().contains(&format!("phased init {url} does so for shop")), "{said:#}");
    // What would stand in a line of sudoers on every host.
    for (word, value) in [("--user", "x ALL=(ALL) NOPASSWD: ALL\n#"), ("--user", "ALL"), ("--service", "a, /bin/sh")] {
        let (code, _, err) = init(conf, &["--name", "shop", "--host", "127.0.0.1", word, value, &url]);
        assert!(code == 1 && err.contains("is no "), "{word} {value}: {err}");
    }

    // The daemon takes that file, and the commit gets there by itself.
    world.projects.lock().unwrap().insert("shop".to_owned());
    let _daemon = world.start();
    eventually("it is live", || {
        std::fs::read_to_string(format!("{dir}/current/app")).ok().filter(|text| text == "built\n")
    });
}

#[test]
fn run_again_without_the_hosts_it_looks_at_them_as_when_they_were_said() {
    let world = World::new();
    world.repo.push("first");
    let (conf, url) = (world.path("conf"), world.repo.url());
    let host = format!("fleet@127.0.0.1:{}", world.sshd.port);
    let said_once = ["--host", &host, "--accept-host-keys", &url];
    let (_, said, err) = init(&conf, &said_once);
    assert_eq!(codes(&said["hosts"][0]), ["auth_failed"], "{said:#} {err}");
    let authorized = world.path("sshd/authorized_keys");
    let old = std::fs::read_to_string(&authorized).unwrap();
    std::fs::write(&authorized, format!("{old}{}\n", said["public_key"].as_str().unwrap())).unwrap();
    let (_, then, _) = init(&conf, &said_once);
    assert!(codes(&then["hosts"][0]).contains(&"unit"), "{then:#}");
    let (_, now, _) = init(&conf, &[&url]);
    for what in ["hosts", "differs", "sudoers", "next"] {
        assert_eq!(now[what], then[what], "{what}");
    }
    // In the project that is somebody's own by now, hosts that nobody has listed are not passed over in silence.
    let file = conf.join("plugins/projects/repo.lua");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once("hosts = {").unwrap();
    let (_, after) = rest.split_once('\n').unwrap();
    std::fs::write(&file, format!("{before}hosts = require \"discovery.file\" {{ \"/nowhere.json\" }},\n{after}"))
        .unwrap();
    let (code, said, err) = init(&conf, &[&url]);
    let notes = said["notes"].to_string();
    assert!(code == 0 && notes.contains("phased doctor"), "{said:#} {err}");
}

#[test]
fn without_hosts_and_without_a_terminal_nothing_is_deployed_by_itself() {
    let world = World::new();
    world.repo.push("first");
    let (code, said, err) = init(&world.path("conf"), &[&world.repo.url()]);
    assert_eq!(code, 0, "{err}");
    let file = std::fs::read_to_string(world.path("conf/plugins/projects/repo.lua")).unwrap();
    assert!(
        file.contains("when = \"manual\"") && said["next"].as_str().unwrap().contains("put your hosts into"),
        "{said:#}\n{file}"
    );
}

#[test]
fn every_bar_on_the_way_to_the_repository_is_named_with_its_remedy() {
    let world = World::new();
    world.repo.push("first");
    let failed = |args: &[&str]| {
        let (code, _, said) = init(&world.path("conf"), args);
        assert_eq!(code, 1, "{args:?}: {said}");
        said
    };
    // A name that no server has; a URL that is none; a repository that is not there; one without a commit; a branch that is not there.
    let said = failed(&["https://nowhere.invalid/acme/shop.git"]);
    assert!(said.contains("does DNS work on this machine?"), "{said}");
    let said = failed(&["http://example.com/acme/shop.git"]);
    assert!(said.contains("is not encrypted"), "{said}");
    let said = failed(&["file:///nowhere/shop.git"]);
    assert!(said.contains("no repository is there"), "{said}");
    let said = failed(&["--branch", "nope", &world.repo.url()]);
    assert!(said.contains("has no branch \"nope\""), "{said}");
    let empty = world.path("empty.git");
    output(Command::new("git").args(["init", "-q", "--bare"]).arg(&empty));
    let said = failed(&[&format!("file://{}", empty.display())]);
    assert!(said.contains("has no commit yet"), "{said}");

    // By SSH: a server whose key nobody has accepted, one that does not know our key, one whose key is another than before.
    let url = format!("ssh://fleet@127.0.0.1:{}{}", world.sshd.port, world.path("repo.git").display());
    let said = failed(&[&url]);
    assert!(said.contains("nobody has said that it is right") && said.contains("--accept-host-keys"), "{said}");
    let said = failed(&["--accept-host-keys", &url]);
    assert!(said.contains("Add it as a deploy key") && said.contains("ssh-ed25519 AAAA"), "{said}");
    let other = Sshd::start(&world.path("other"), "", "");
    let key = std::fs::read_to_string(world.path("other/hostkey.pub")).unwrap();
    let known = format!("[127.0.0.1]:{} {}\n", world.sshd.port, key.split(' ').take(2).collect::<Vec<_>>().join(" "));
    std::fs::write(world.path("conf/known_hosts"), known).unwrap();
    drop(other);
    let said = failed(&["--accept-host-keys", &url]);
    assert!(said.contains("is not the one in") && said.contains("installed anew"), "{said}");
}

/// `phased init` on a terminal, where somebody types these lines: everything that is seen there.
fn on_a_terminal(config: &Path, url: &str, typed: &str) -> String {
    // One question more than there are answers would be waited for.
    let command =
        format!("timeout --foreground 60 '{BINARY}' init --config '{}' --name shop '{url}'", config.display());
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let script = script.as_mut().expect("script is missing: apt-get install bsdutils");
    script.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let mut seen = String::new();
    script.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert!(script.wait().unwrap().success(), "{seen}");
    seen.replace('\r', "")
}

#[test]
fn on_a_terminal_it_asks_and_a_key_is_agreed_to_in_full() {
    let world = World::new();
    world.repo.push("x");
    let conf = world.path("here");
    std::fs::create_dir(&conf).unwrap();
    let (config, url) = (conf.join("phased.toml"), world.repo.url());
    let place = format!("127.0.0.1:{}", world.sshd.port);

    let seen = on_a_terminal(&config, &url, &format!("{place}\nfleet\nnone\ny\n"));
    for question in [
        "Hosts to deploy to, as in web1.example.com web2.example.com (none yet: Enter):",
        "User to log in as on them [deploy]",
        "The systemd unit that is restarted on them (none: nothing is) [shop]",
        "Is it the host's? (yes/no)",
    ] {
        assert_eq!(seen.matches(question).count(), 1, "{question}: {seen}");
    }
    assert!(seen.contains("nobody has said is right") && !conf.join("known_hosts").exists(), "{seen}");
    let secret = std::fs::read_to_string(conf.join("secrets/shop_webhook")).unwrap();
    let webhook = ["http://127.0.0.1:7427/hooks/github/shop", secret.trim(), "Settings, Webhooks, Add webhook"];
    assert!(webhook.iter().all(|words| seen.contains(words)), "{seen}");

    // What has been answered is not asked again.
    let seen = on_a_terminal(&config, &url, "yes\n");
    assert!(seen.contains("Is it the host's?") && !seen.contains("Hosts to deploy to"), "{seen}");
    let known = std::fs::read_to_string(conf.join("known_hosts")).unwrap();
    assert!(known.starts_with(&format!("[127.0.0.1]:{} ", world.sshd.port)), "{known}");

    // A name of its own is a proxy's with TLS; without an address to listen at there is nothing that a forge could call.
    for (api, words) in [
        ("host_names = [\"ci.example.com\"]", "https://ci.example.com/hooks/github/shop"),
        ("listen = \"none\"", "[api] listen is \"none\"; the branch is asked for every minute"),
    ] {
        std::fs::write(
            &config,
            format!("plugins = [\"{}/plugins\"]\n[secrets]\ndir = \"{0}/secrets\"\n[api]\n{api}\n", conf.display()),
        )
        .unwrap();
        let seen = on_a_terminal(&config, &url, "");
        assert!(seen.contains(words), "{seen}");
    }
}
