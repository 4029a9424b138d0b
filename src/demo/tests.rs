//! Everything but the daemon: the hosts, the repository, the project file.

use serde_json::Value;
use tokio::process::Command;

use super::{
    ask::{Answer, Place, ask},
    repository::{AUTHOR, FAILS_TESTS, GOOD, ILL, UNHEALTHY},
    *,
};
use crate::{
    lua::{
        loader::{Loader, SHIPPED},
        sandbox::Limits,
    },
    ports::{
        program::Programs as _,
        secrets::{Secret, SecretError, Secrets},
    },
};

async fn site() -> (Site, Tasks, Arc<dyn Clock>) {
    let (tasks, clock) = (Tasks::new(), Arc::new(SystemClock::new()) as Arc<dyn Clock>);
    let site = Site::build(site::SHOP, &tasks, &clock).await.unwrap();
    (site, tasks, clock)
}

/// `ssh` to a host as the daemon would, with the files it would use.
async fn ssh(site: &Site, n: usize, command: &str) -> std::process::Output {
    let (root, host) = (site.root().display().to_string(), &site.hosts[n]);
    Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentityAgent=none"])
        .args(["-o", "GlobalKnownHostsFile=/dev/null", "-o", &format!("UserKnownHostsFile={root}/known_hosts")])
        .args([
            "-i",
            &format!("{root}/secrets/deploy_key"),
            "-p",
            &host.ssh.port().to_string(),
            "demo@127.0.0.1",
            command,
        ])
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap()
}

/// What the project's deploy does.
async fn deploy(site: &Site, n: usize, revision: &str) {
    let repository = site.repository.dir().display();
    let script = format!(
        "set -eu; [ -d shop/.git ] || git clone -q --no-checkout file://{repository} shop; cd shop; git fetch -q origin; git checkout -q --detach {revision}"
    );
    let output = ssh(site, n, &script).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn get(clock: &Arc<dyn Clock>, site: &Site, n: usize, path: &str) -> Answer {
    ask(&**clock, &Place::Tcp(site.hosts[n].http), path, None, None).await.unwrap()
}

#[tokio::test]
async fn a_host_serves_what_is_deployed_on_it() {
    let (site, tasks, clock) = site().await;
    let nothing = get(&clock, &site, 0, "/healthz").await;
    assert_eq!((nothing.status.as_u16(), nothing.body.as_str()), (503, "nothing is deployed on web-1 yet\n"));
    assert_eq!(get(&clock, &site, 0, "/version").await.json::<Value>().unwrap()["revision"], Value::Null);

    let good = site.repository.commit(&GOOD).unwrap();
    deploy(&site, 0, &good).await;
    assert_eq!(get(&clock, &site, 0, "/").await.body, "Croissant 2.50 EUR, fresh from web-1\n");
    assert_eq!(get(&clock, &site, 0, "/healthz").await.body, "ok\n");
    let version = get(&clock, &site, 0, "/version").await.json::<Value>().unwrap();
    assert_eq!(version["revision"], *good);
    assert_eq!(get(&clock, &site, 1, "/version").await.json::<Value>().unwrap()["revision"], Value::Null);

    site.repository.commit(&FAILS_TESTS).unwrap();
    let bad = site.repository.commit(&UNHEALTHY).unwrap();
    deploy(&site, 0, &bad).await;
    let down = get(&clock, &site, 0, "/healthz").await;
    assert_eq!(down.status.as_u16(), 503);
    assert!(down.body.contains("SHOP_CURRENCY"), "{}", down.body);
    assert!(tasks.shut_down(END).await.is_empty());
}

#[tokio::test]
async fn an_app_that_hangs_or_babbles_is_cut_short() {
    let (site, _tasks, clock) = site().await;
    let shop = site.hosts[0].home.join("shop");
    std::fs::create_dir_all(&shop).unwrap();
    std::fs::write(shop.join("app.sh"), "sleep 1000").unwrap();
    let slow = get(&clock, &site, 0, "/").await;
    assert_eq!((slow.status.as_u16(), slow.body.as_str()), (503, "the app took longer than 3 s\n"));
    std::fs::write(shop.join("app.sh"), "echo out; echo why >&2; exit 3").unwrap();
    let failed = get(&clock, &site, 0, "/").await;
    assert_eq!((failed.status.as_u16(), failed.body.as_str()), (503, "why\n"));
    std::fs::write(shop.join("app.sh"), "while :; do echo 0123456789012345678901234567890123456789; done").unwrap();
    assert!(get(&clock, &site, 0, "/").await.body.len() <= 64 << 10);
}

#[tokio::test]
async fn the_commits_are_what_the_story_says() {
    let (site, _tasks, _clock) = site().await;
    let dir = site.repository.dir().to_owned();
    let tests = || async {
        Command::new("sh").arg("tests/run.sh").current_dir(&dir).env_remove("SHOP_CURRENCY").output().await.unwrap()
    };
    for (change, passes) in [(GOOD, true), (FAILS_TESTS, false), (UNHEALTHY, true)] {
        let revision = site.repository.commit(&change).unwrap();
        assert_eq!(revision.len(), 40);
        let output = tests().await;
        assert_eq!(output.status.success(), passes, "{}", change.message);
        assert!(passes || String::from_utf8_lossy(&output.stdout).starts_with("FAIL  the price: wanted"));
    }
    let log =
        Command::new("git").args(["log", "--format=%an <%ae> %s", "main"]).current_dir(&dir).output().await.unwrap();
    let log = String::from_utf8(log.stdout).unwrap();
    assert_eq!(log.lines().count(), 3);
    assert!(log.lines().all(|line| line.starts_with(&format!("{} <{}> ", AUTHOR.0, AUTHOR.1))), "{log}");
}

#[tokio::test]
async fn what_is_told_to_type_mends_the_last_commit() {
    let (site, _tasks, _clock) = site().await;
    let dir = site.repository.dir().to_owned();
    let ill = site.repository.commit(&ILL).unwrap();
    // Two tills, each asked as often as a bake asks.
    let tills = |prices: std::path::PathBuf| {
        let asked = "for i in 1 2 3 4 5 6 7 8 9; do for HOST_NAME in a b; do export HOST_NAME; sh ./app.sh || exit 1; done; done";
        Command::new("sh").args(["-c", asked]).current_dir(&dir).env("PRICES", prices).output()
    };
    assert!(!tills(site.root().join("before")).await.unwrap().status.success());
    let typed = Command::new("sh").args(["-euc", repository::MEND]).current_dir(&dir).output().await.unwrap();
    assert!(typed.status.success(), "{typed:?}");
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(&dir).output().await.unwrap();
    assert_ne!(String::from_utf8_lossy(&head.stdout).trim(), ill);
    assert!(tills(site.root().join("after")).await.unwrap().status.success());
    assert!(Command::new("sh").arg("tests/run.sh").current_dir(&dir).output().await.unwrap().status.success());
}

/// Secrets of one directory.
struct Files(std::path::PathBuf);

impl Secrets for Files {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        let missing = |_| SecretError::Missing { name: name.to_owned(), looked: self.0.display().to_string() };
        std::fs::read(self.0.join(name)).map(|bytes| Secret::new(&bytes)).map_err(missing)
    }
}

#[tokio::test]
async fn the_project_loads_without_a_word() {
    let (site, _tasks, _clock) = site().await;
    let root = site.root();
    let secrets = Arc::new(Files(root.join("secrets")));
    let loader = Loader::new(vec![root.join("plugins")], SHIPPED, &root.join("data"), secrets, Limits::default());
    let loaded = loader.load().unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].name.to_string(), "shop");
    let config = std::fs::read_to_string(site.config()).unwrap();
    assert!(config.contains("listen = \"127.0.0.1:0\"") && config.contains("same_user = true"));
}

#[tokio::test]
async fn the_announcer_keeps_one_message_a_line() {
    let (site, _tasks, _clock) = site().await;
    for text in ["{\"a\": 1}", "{\"b\": 2}"] {
        let script = format!("printf %s '{text}' | sh {}/announce.sh", site.root().display());
        assert!(Command::new("sh").args(["-c", &script]).status().await.unwrap().success());
    }
    assert_eq!(std::fs::read_to_string(site.alerts()).unwrap(), "{\"a\": 1}\n{\"b\": 2}\n");
}

#[tokio::test]
async fn nothing_is_left_in_the_end() {
    let (site, tasks, _clock) = site().await;
    let root = site.root().to_owned();
    // Detached as a command of the protocol is; only its HOME tells where it came from.
    let output = ssh(&site, 2, "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!").await;
    let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(tasks.shut_down(END).await.is_empty());
    drop(site);
    assert!(!root.exists());
    // Killed; it may still wait to be reaped by whoever adopted it.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = state.rsplit(')').next().unwrap_or_default().trim().chars().next();
    assert!(matches!(state, None | Some('Z' | 'X')), "{state:?}");
}
