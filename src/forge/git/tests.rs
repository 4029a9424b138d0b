//! Against the real git, over `file://` here; over `ssh://` and smart HTTP in the files below.

use std::{os::unix::fs::MetadataExt as _, os::unix::fs::PermissionsExt as _, process::Stdio};

use super::*;
use crate::{
    model::host::SecretRef,
    ports::secrets::{Secret, SecretError},
    time::SystemClock,
};

mod hostile;
mod http;
mod ssh;

/// Secrets by name, in memory.
#[derive(Default)]
struct Known(BTreeMap<String, Vec<u8>>);

impl Secrets for Known {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        let missing = || SecretError::Missing { name: name.to_owned(), looked: "memory".to_owned() };
        self.0.get(name).map(|bytes| Secret::new(bytes)).ok_or_else(missing)
    }
}

/// Gives checkouts to this uid and gid, as root can, or to nobody.
struct Giver(Option<(u32, u32)>);

#[async_trait]
impl Hands for Giver {
    async fn give(&self, _project: &ProjectName, tree: &Path) -> Result<(), Cause> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        let owner = format!("{uid}:{gid}");
        let done = std::process::Command::new("chown").args(["-R", "-h", &owner]).arg(tree).status().unwrap();
        assert!(done.success());
        Ok(())
    }

    async fn remove(&self, _project: &ProjectName, tree: &Path) -> Result<(), Cause> {
        tree::remove(tree).map_err(|error| disk("remove", tree, &error))
    }
}

/// So many files of that kind are in the mirror's packs.
fn packs(fixture: &Fixture) -> usize {
    let dir = fixture.path("work/shop/mirror.git/objects/pack");
    let entries = std::fs::read_dir(dir).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "pack")).count()
}

#[tokio::test]
async fn what_fetches_leave_is_put_together_once_it_is_much_and_nothing_is_lost() {
    let fixture = Fixture::new();
    fixture.git.tidy(&fixture.project).await.unwrap();
    let first = fixture.push("main", "a");
    fixture.resolve(Wanted::Head).await.unwrap();
    fixture.sh("cd tree && git checkout -q --orphan other && for n in $(seq 400); do echo $n >$n; done && git add -A && git commit -qm anew");
    // Each fetch is a pack, however little it brings; what one has brought the next one may find on no branch any more.
    let mut last = first.clone();
    for n in 1..=PACKS {
        assert_eq!(packs(&fixture), n);
        fixture.git.tidy(&fixture.project).await.unwrap();
        last = fixture.push("main", "b");
        fixture.resolve(Wanted::Head).await.unwrap();
        fixture.sh("git -C tree reset -q --hard HEAD~1");
    }
    assert_eq!(packs(&fixture), PACKS + 1);
    let large = |fixture: &Fixture| fixture.sh("cd work/shop/mirror.git/objects/pack && ls -S *.pack | head -n 1");
    let before = large(&fixture);
    // Somebody is at work in it.
    let held = fixture.git.lock(&fixture.project).await;
    fixture.git.tidy(&fixture.project).await.unwrap();
    assert_eq!(packs(&fixture), PACKS + 1);
    drop(held);
    fixture.git.tidy(&fixture.project).await.unwrap();
    assert_eq!((packs(&fixture), large(&fixture)), (2, before), "a large pack is written again for a few small ones");
    assert_eq!(fixture.sh("find work/shop/mirror.git/objects -type f -path '*/??/*' | wc -l"), "0");
    fixture.push("main", "b");
    let head = fixture.resolve(Wanted::Head).await.unwrap().commit.sha;
    for sha in [head, first, last] {
        fixture.git.checkout(&fixture.project, &sha, &fixture.path("work/shop/run"), &Giver(None)).await.unwrap();
        assert_eq!(fixture.sh("git -C work/shop/run rev-parse HEAD"), sha.as_str());
    }
}

#[test]
fn many_loose_objects_are_guessed_from_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let scattered = |loose| tree::scattered(dir.path(), 0, loose).unwrap();
    assert!(!scattered(0));
    std::fs::create_dir(dir.path().join("17")).unwrap();
    for name in ["17/a", "17/b"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert!(scattered(511) && !scattered(512));
}

/// A repository to push to, a work directory, and a `Git` over both.
struct Fixture {
    dir: tempfile::TempDir,
    git: Git,
    project: ProjectName,
}

impl Fixture {
    fn new() -> Self {
        Fixture::with(Known::default())
    }

    fn with(secrets: Known) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let git = Git::new(dir.path().join("work"), Arc::new(secrets), Arc::new(SystemClock::new()));
        let fixture = Fixture { dir, git, project: "shop".parse().unwrap() };
        fixture.sh("git init -q --bare -b main repo.git && git init -q -b main tree && git -C tree remote add origin ../repo.git");
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a developer types; gives what it printed.
    fn sh(&self, text: &str) -> String {
        let out = std::process::Command::new("sh")
            .args(["-euc", text])
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .envs([
                ("GIT_AUTHOR_NAME", "Ann"),
                ("GIT_AUTHOR_EMAIL", "ann@x"),
                ("GIT_COMMITTER_NAME", "Cyd"),
                ("GIT_COMMITTER_EMAIL", "cyd@x"),
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// A commit with one changed file, pushed to `branch`.
    fn push(&self, branch: &str, file: &str) -> Sha {
        self.sh(&format!("cd tree && echo $(date +%N) >> '{file}' && git add -A && git commit -qm 'change {file}' && git push -qf origin HEAD:refs/heads/{branch}"));
        self.sh("git -C tree rev-parse HEAD").parse().unwrap()
    }

    fn source(&self) -> Source {
        self.source_at(&format!("file://{}", self.path("repo.git").display()))
    }

    fn source_at(&self, url: &str) -> Source {
        Source {
            git: url.to_owned(),
            branch: "main".to_owned(),
            tags: Vec::new(),
            poll_ms: None,
            webhook: Vec::new(),
            user: None,
            token: None,
            key: None,
            known_hosts: None,
        }
    }

    async fn resolve(&self, wanted: Wanted) -> Result<Resolved, Cause> {
        self.git.resolve(&self.project, &self.source(), &wanted).await
    }

    async fn named(&self, text: &str) -> Result<Resolved, Cause> {
        self.resolve(Wanted::Named(text.to_owned())).await
    }

    async fn code(&self, wanted: Wanted) -> String {
        self.resolve(wanted).await.unwrap_err().code
    }

    fn run_dir(&self, name: &str) -> PathBuf {
        self.git.work_dir(&self.project).join(name)
    }
}

#[tokio::test]
async fn the_head_is_found_with_all_its_facts() {
    let fixture = Fixture::new();
    let first = fixture.push("main", "a");
    let head = fixture.push("main", "b");
    assert_eq!(fixture.git.head(&fixture.project, &fixture.source()).await.unwrap(), head);
    let found = fixture.resolve(Wanted::Head).await.unwrap();
    assert!(found.is_head && found.tag.is_none());
    assert_eq!(
        (found.commit.sha.clone(), found.commit.author.as_str(), found.commit.message.as_str()),
        (head.clone(), "Ann <ann@x>", "change b\n")
    );
    assert_eq!(found.commit.tree.as_str(), fixture.sh("git -C tree rev-parse 'HEAD^{tree}'"));
    assert_eq!(
        found.commit.committed_at_ms / 1000,
        fixture.sh("git -C tree log -1 --format=%ct").parse::<i64>().unwrap()
    );
    assert!(fixture.git.is_ancestor(&fixture.project, &first, &head).await.unwrap());
    assert!(!fixture.git.is_ancestor(&fixture.project, &head, &first).await.unwrap());
    assert_eq!(fixture.git.changed(&fixture.project, &first, &head).await.unwrap(), ["b"]);
    let none: Sha = "a".repeat(40).parse().unwrap();
    assert_eq!(fixture.git.is_ancestor(&fixture.project, &none, &head).await.unwrap_err().code, "ref_unknown");
}

#[tokio::test]
async fn tags_that_match_are_listed_by_version_and_need_not_be_on_the_branch() {
    let fixture = Fixture::new();
    fixture.push("main", "a");
    fixture.sh("cd tree && git checkout -qb side");
    let side = fixture.push("side", "b");
    fixture.sh(
        "cd tree && git tag v1.10 && git tag v1.9 && git tag x1 && git tag -am note v2 && git push -q origin --tags",
    );
    let source = Source { tags: vec!["v*".to_owned()], ..fixture.source() };
    let tags = fixture.git.tags(&fixture.project, &source).await.unwrap();
    let names: Vec<&str> = tags.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["v1.9", "v1.10", "v2"]);
    assert_eq!(tags[0].1, side);
    assert_eq!(tags[2].1.as_str(), fixture.sh("git -C tree rev-parse v2"), "what it points at itself");
    let of = async |text: &str| fixture.git.resolve(&fixture.project, &source, &Wanted::Named(text.to_owned())).await;
    let found = of("refs/tags/v2").await.unwrap();
    assert_eq!((found.commit.sha, found.tag.as_deref(), found.is_head), (side.clone(), Some("v2"), false));
    // By no other name than such a tag.
    for text in ["x1", "side", side.as_str()] {
        let refused = of(text).await.unwrap_err();
        assert!(refused.code == "ref_not_allowed" && refused.message.contains("v*"), "{text}: {refused:?}");
    }
}

#[tokio::test]
async fn whatever_a_person_writes_is_found_or_refused() {
    let fixture = Fixture::new();
    let first = fixture.push("main", "a");
    fixture.sh("cd tree && git tag v1 && git tag -am note v1-note && git push -q origin --tags");
    let head = fixture.push("main", "b");
    fixture.sh("cd tree && git push -q origin HEAD~1:refs/heads/merged && git checkout -qb side");
    let side = fixture.push("side", "c");
    fixture.sh("cd tree && git tag off && git push -q origin off");
    for (text, sha, tag) in [
        ("main", &head, None),
        ("refs/heads/main", &head, None),
        ("v1", &first, Some("v1")),
        ("v1-note", &first, Some("v1-note")),
        ("refs/tags/v1", &first, Some("v1")),
        (first.as_str(), &first, None),
        (&first.as_str().to_uppercase(), &first, None),
        (&first.as_str()[..9], &first, None),
        ("merged", &first, None),
        ("refs/heads/merged", &first, None),
    ] {
        let found = fixture.named(text).await.unwrap();
        assert_eq!((&found.commit.sha, found.tag.as_deref(), found.is_head), (sha, tag, sha == &head), "{text}");
    }
    for (text, code) in [
        ("nope", "ref_unknown"),
        ("refs/tags/main", "ref_unknown"),
        ("refs/heads/v1", "ref_unknown"),
        (&"a".repeat(40), "ref_unknown"),
        ("side", "ref_not_allowed"),
        ("off", "ref_not_allowed"),
        (side.as_str(), "ref_not_allowed"),
        ("main~1", "ref_invalid"),
        ("v1^{}", "ref_invalid"),
        ("--upload-pack=id", "ref_invalid"),
        ("", "ref_invalid"),
        ("a b", "ref_invalid"),
        ("HEAD\nrefs/heads/side", "ref_invalid"),
    ] {
        assert_eq!(fixture.named(text).await.unwrap_err().code, code, "{text:?}");
    }
    assert!(fixture.resolve(Wanted::Pushed(first)).await.is_ok_and(|found| !found.is_head));
    assert_eq!(fixture.code(Wanted::Pushed(side)).await, "ref_unknown");
}

#[tokio::test]
async fn a_branch_pushed_over_takes_its_old_commits_out() {
    let fixture = Fixture::new();
    fixture.push("main", "a");
    let gone = fixture.push("main", "b");
    assert_eq!(fixture.resolve(Wanted::Head).await.unwrap().commit.sha, gone);
    fixture.sh("cd tree && git tag t && git push -q origin t && git reset -q --hard HEAD~1");
    assert!(fixture.named("t").await.is_ok());
    let head = fixture.push("main", "c");
    fixture.sh("git -C tree push -q origin :t");
    assert_eq!(fixture.resolve(Wanted::Head).await.unwrap().commit.sha, head);
    assert_eq!(fixture.code(Wanted::Pushed(gone.clone())).await, "ref_unknown");
    assert_eq!(fixture.code(Wanted::Named(gone.to_string())).await, "ref_not_allowed");
    assert_eq!(fixture.code(Wanted::Named("t".into())).await, "ref_unknown", "a deleted tag is gone here too");
}

#[tokio::test]
async fn branch_names_that_exclude_each_other_may_follow_each_other() {
    let fixture = Fixture::new();
    let mut source = fixture.source();
    fixture.push("main", "a");
    for branch in ["rel", "rel/1", "main"] {
        if branch.starts_with("rel") {
            fixture.sh("git -C tree push -q origin :rel 2>/dev/null || true");
            fixture.push(branch, "b");
        }
        source.branch = branch.to_owned();
        assert!(fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap().is_head, "{branch}");
    }
    source.branch = "none".to_owned();
    assert_eq!(fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap_err().code, "ref_unknown");
    assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap_err().code, "ref_unknown");
}

#[tokio::test]
async fn a_checkout_is_clean_private_and_whole() {
    let fixture = Fixture::new();
    fixture.sh("cd tree && mkdir -p d/e && ln -s /etc/passwd d/link && echo x > d/e/f && printf '#!/bin/sh\\n' > run && chmod +x run");
    let sha = fixture.push("main", "a");
    fixture.push("main", "later");
    fixture.resolve(Wanted::Head).await.unwrap();
    let dir = fixture.run_dir("run1");
    let owner = nix::unistd::Uid::effective().is_root().then_some((61_234, 61_235));
    for _twice in 0..2 {
        fixture.git.checkout(&fixture.project, &sha, &dir, &Giver(owner)).await.unwrap();
        std::fs::write(dir.join("left-over"), "x").unwrap();
        let trust = format!("git --no-optional-locks -c safe.directory='*' -C '{}'", dir.display());
        assert_eq!(fixture.sh(&format!("{trust} rev-parse HEAD")), sha.as_str());
        assert_eq!(fixture.sh(&format!("{trust} status --porcelain")), "?? left-over");
        assert_eq!(fixture.sh(&format!("{trust} rev-parse --abbrev-ref HEAD")), "HEAD", "detached");
        assert!(fixture.sh(&format!("{trust} branch --list main")).contains("main"));
        assert_eq!(fixture.sh(&format!("{trust} remote get-url origin")), fixture.source().git);
        assert_eq!(fixture.sh(&format!("ls '{}/.git/hooks' 2>/dev/null | wc -l", dir.display())), "0");
        assert!(!dir.join("later").exists());
    }
    assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(fixture.git.work_dir(&fixture.project)).unwrap().mode() & 0o777, 0o711);
    assert_eq!(fixture.sh(&format!("find '{}' -type f -links +1 | wc -l", dir.display())), "0", "no hard links");
    if let Some((uid, gid)) = owner {
        std::fs::remove_file(dir.join("left-over")).unwrap();
        assert_eq!(fixture.sh(&format!("find '{}' ! -uid {uid} -o ! -gid {gid} | wc -l", dir.display())), "0");
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().uid(), 0, "the link's target is untouched");
    } else {
        eprintln!("SKIPPED: handing over to another user needs root");
    }
}

#[tokio::test]
async fn a_checkout_goes_nowhere_else() {
    let fixture = Fixture::new();
    let sha = fixture.push("main", "a");
    fixture.resolve(Wanted::Head).await.unwrap();
    let outside = fixture.path("precious");
    std::fs::create_dir(&outside).unwrap();
    for dir in [outside.clone(), fixture.run_dir("../../precious"), fixture.git.work_dir(&fixture.project), "/".into()]
    {
        assert!(fixture.git.checkout(&fixture.project, &sha, &dir, &Giver(None)).await.is_err(), "{dir:?}");
    }
    assert!(outside.exists());
    let none: Sha = "b".repeat(40).parse().unwrap();
    let dir = fixture.run_dir("r");
    assert_eq!(
        fixture.git.checkout(&fixture.project, &none, &dir, &Giver(None)).await.unwrap_err().code,
        "ref_unknown"
    );
    assert!(!dir.exists(), "nothing is left of it");
    let other = "other".parse().unwrap();
    assert_eq!(
        fixture
            .git
            .checkout(&other, &sha, &fixture.git.work_dir(&other).join("r"), &Giver(None))
            .await
            .unwrap_err()
            .code,
        "ref_unknown"
    );
}

#[tokio::test]
async fn a_killed_fetch_or_repack_does_not_stop_the_next_one_and_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.push("main", "a");
    fixture.resolve(Wanted::Head).await.unwrap();
    let head = fixture.push("main", "b");
    let mirror = fixture.git.mirror_dir(&fixture.project);
    let packs = ["objects/pack/tmp_pack_x", "objects/pack/.tmp-7-pack-x.pack"];
    for left in ["refs/heads/main.lock", "packed-refs.lock", "HEAD.lock", "config.lock"].into_iter().chain(packs) {
        std::fs::write(mirror.join(left), "").unwrap();
    }
    // The daemon was killed: a new one has seen nothing of this mirror.
    let again = Git::new(fixture.path("work"), Arc::new(Known::default()), Arc::new(SystemClock::new()));
    assert_eq!(again.resolve(&fixture.project, &fixture.source(), &Wanted::Head).await.unwrap().commit.sha, head);
    assert!(packs.iter().all(|left| !mirror.join(left).exists()));
}

#[tokio::test]
async fn sha256_repositories_work() {
    let fixture = Fixture::new();
    fixture.sh("rm -rf repo.git tree && git init -q --bare --object-format=sha256 -b main repo.git && git init -q --object-format=sha256 -b main tree && git -C tree remote add origin ../repo.git");
    let sha = fixture.push("main", "a");
    assert_eq!(sha.as_str().len(), 64);
    assert_eq!(fixture.resolve(Wanted::Head).await.unwrap().commit.sha, sha);
    fixture.git.checkout(&fixture.project, &sha, &fixture.run_dir("r"), &Giver(None)).await.unwrap();
    assert!(fixture.run_dir("r/a").exists());
}

#[tokio::test]
async fn a_repository_of_another_user_on_this_machine_can_be_read() {
    let fixture = Fixture::new();
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIPPED: another user's repository needs root");
        return;
    }
    let head = fixture.push("main", "a");
    fixture.sh("chown -R 61234:61234 repo.git tree && ln -s repo.git link");
    let dir = fixture.dir.path().display();
    for url in [format!("file://{dir}/repo.git"), format!("{dir}/repo.git"), format!("{dir}/link")] {
        let source = fixture.source_at(&url);
        assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap(), head, "{url}");
        assert!(fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.is_ok(), "{url}");
    }
    // The tree's own head is its branch, in `.git` below the path.
    let source = fixture.source_at(&format!("{dir}/tree"));
    assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap(), head);
    assert_eq!(std::fs::read_dir(fixture.git.keys_dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_remote_that_is_not_there_or_no_git_says_so() {
    let fixture = Fixture::new();
    for (url, code) in [
        ("file:///nonexistent/x.git", "git_unreachable"),
        ("http://127.0.0.1:1/x.git", "git_unreachable"),
        ("ssh://git@127.0.0.1:1/x.git", "git_unreachable"),
        ("ext::sh -c touch% /tmp/phased-canary", "git_url"),
    ] {
        let source = fixture.source_at(url);
        let cause = fixture.git.head(&fixture.project, &source).await.unwrap_err();
        assert_eq!(cause.code, code, "{cause}");
        assert_eq!(
            fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap_err().code,
            code,
            "{url}"
        );
    }
}

#[tokio::test]
async fn a_deadline_ends_git_and_all_it_started() {
    let fixture = Fixture::new();
    let mark = fixture.path("pid");
    // An alias runs a shell: a git that hangs with a child that ignores being asked.
    let script = format!("!trap '' TERM; echo $$ > '{}'; sleep 600 & wait; sleep 600", mark.display());
    let command = fixture.git.command().arg("-c").arg(format!("alias.hang={script}")).arg("hang");
    let clock = SystemClock::new();
    let ended = command.run(&clock, Duration::from_millis(300)).await;
    assert!(matches!(ended, Ended::TimedOut), "{ended:?}");
    let pid = std::fs::read_to_string(&mark).unwrap().trim().to_owned();
    // Killed; what is left, if anything, is a zombie that its new parent has not looked at yet.
    for _ in 0..500 {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z") || state.contains(") X") {
            return;
        }
        clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} lives on");
}

#[test]
fn versions_are_read() {
    let version =
        |text: &str| fault::version(Ended::Exit { code: 0, out: text.as_bytes().to_vec(), err: String::new() });
    for good in ["git version 2.32.0\n", "git version 2.47.3", "git version 3.0", "git version 2.39.5 (Apple Git-154)"]
    {
        assert!(version(good).is_ok(), "{good}");
    }
    for bad in ["git version 2.31.9", "git version 1.99", "", "hub 2.50", "git version x.y"] {
        assert_eq!(version(bad).unwrap_err().code, "git_missing", "{bad}");
    }
    for asked in [format!("git (>= 1:{OLDEST_GIT})"), format!("git-core = \">= {OLDEST_GIT}\"")] {
        assert!(include_str!("../../../Cargo.toml").contains(&asked), "{asked}");
    }
    let missing = Ended::Broken(std::io::Error::from(std::io::ErrorKind::NotFound));
    assert_eq!(fault::version(missing).unwrap_err().code, "git_missing");
}

#[tokio::test]
#[ignore = "a measurement: cargo test --lib forge::git::tests::how_long -- --ignored --nocapture"]
async fn how_long_each_call_takes() {
    let fixture = Fixture::new();
    fixture.sh(
        "cd tree && for i in $(seq 200); do mkdir -p d$i && for j in 1 2 3 4 5; do echo $i $j > d$i/f$j; done; done",
    );
    let first = fixture.push("main", "a");
    let clock = SystemClock::new();
    for round in ["first", "pushed", "unchanged"] {
        if round == "pushed" {
            fixture.push("main", "b");
        }
        let mut at = clock.now();
        let mut lap = |what: &str| {
            let now = clock.now();
            eprintln!("{round:>9} {what:<12} {:>4} ms", now.since(&at).as_millis());
            at = now;
        };
        fixture.git.head(&fixture.project, &fixture.source()).await.unwrap();
        lap("head");
        let head = fixture.resolve(Wanted::Head).await.unwrap().commit.sha;
        lap("resolve");
        fixture.git.checkout(&fixture.project, &head, &fixture.run_dir("r"), &Giver(None)).await.unwrap();
        lap("checkout");
        fixture.git.is_ancestor(&fixture.project, &first, &head).await.unwrap();
        lap("is_ancestor");
        fixture.git.changed(&fixture.project, &first, &head).await.unwrap();
        lap("changed");
    }
}
