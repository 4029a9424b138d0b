//! Names that want to be commands: whoever may push may choose them.

use super::*;

/// What an author may put into a message, a name or a path. `@` stands for a command that leaves a canary.
const TEXTS: [&str; 30] = [
    "$(@)",
    "`@`",
    "; @",
    "| @",
    "& @ &",
    "&& @",
    "|| @",
    "'; @; '",
    "\"; @; \"",
    "x'$(@)'",
    "$IFS$(@)",
    "${x:-$(@)}",
    "<(@)",
    "> canary",
    "\\$(@)",
    "--upload-pack=@",
    "-oProxyCommand=@",
    "--output=canary",
    "--help",
    "-",
    "--",
    "%s%n%x00",
    "~root",
    "*",
    "ünï ☃ 🌕",
    "\u{202e}gpj.exe",
    "\u{1b}[2J",
    "a\tb",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "HEAD",
];

/// Names git allows for branches; no spaces there.
const BRANCHES: [&str; 24] = [
    "$(touch${IFS}canary)",
    "`touch${IFS}canary`",
    ";touch${IFS}canary",
    "|touch${IFS}canary",
    "&touch${IFS}canary&",
    "a'b",
    "a\"b",
    "'$(touch${IFS}canary)'",
    "x;touch${IFS}canary;#",
    "${PATH}",
    "<canary",
    ">canary",
    "(touch)",
    "{a,b}",
    "#comment",
    "%2e%2e",
    "x--upload-pack=touch",
    "x/-oProxyCommand=touch",
    "ünï☃🌕",
    "refs/heads/main",
    "main/HEAD",
    "0123456789012345678901234567890123456789",
    "deadbeef",
    "!important",
];

#[tokio::test]
async fn commit_texts_and_file_names_come_through_byte_for_byte_and_run_nowhere() {
    let fixture = Fixture::new();
    let first = fixture.push("main", "start");
    let evil: Vec<String> = TEXTS.iter().map(|text| text.replace('@', "touch canary")).collect();
    for text in &evil {
        std::fs::write(fixture.path("tree").join(text.replace('/', "_")), text).unwrap();
    }
    fixture.sh("cd tree && git add -A && git commit -qm files");
    let files = fixture.sh("git -C tree rev-parse HEAD");
    for text in &evil {
        let status = std::process::Command::new("git")
            .args([
                "-C",
                "tree",
                "commit",
                "-q",
                "--allow-empty",
                "--allow-empty-message",
                "--cleanup=verbatim",
                "-F",
                "-",
            ])
            .current_dir(fixture.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .envs([
                ("GIT_AUTHOR_NAME", text.as_str()),
                ("GIT_AUTHOR_EMAIL", "a@x"),
                ("GIT_COMMITTER_NAME", "c"),
                ("GIT_COMMITTER_EMAIL", "c@x"),
            ])
            .stdin(Stdio::from(std::fs::File::open(fixture.path("tree").join(text)).unwrap()))
            .status()
            .unwrap();
        // git itself refuses an author it cannot write down, such as "-" alone never is; all of these it takes.
        assert!(status.success(), "{text:?}");
        fixture.sh("git -C tree push -q origin HEAD:main");
        let found = fixture.resolve(Wanted::Head).await.unwrap().commit;
        assert_eq!(&found.message, text);
        let written = fixture.sh("git -C tree cat-file commit HEAD | sed -n 's/^author \\(.*>\\) .*/\\1/p'");
        assert_eq!(found.author, written, "{text:?}");
    }
    let changed = fixture.git.changed(&fixture.project, &first, &files.parse().unwrap()).await.unwrap();
    let mut expected = evil.clone();
    expected.sort();
    assert_eq!(changed, expected);
    let dir = fixture.run_dir("r");
    let head = fixture.resolve(Wanted::Head).await.unwrap().commit.sha;
    fixture.git.checkout(&fixture.project, &head, &dir, &Giver(None)).await.unwrap();
    for text in &evil {
        assert_eq!(std::fs::read_to_string(dir.join(text)).unwrap(), *text, "{text:?}");
    }
    no_canary(&fixture);
}

#[tokio::test]
async fn hostile_branch_names_are_only_names() {
    let fixture = Fixture::new();
    for (i, branch) in BRANCHES.iter().enumerate() {
        let sha = fixture.push("staging", &format!("f{i}"));
        let quoted = format!("'refs/heads/{}'", branch.replace('\'', r"'\''"));
        fixture.sh(&format!("git -C tree push -qf origin HEAD:{quoted}"));
        let source = Source { branch: (*branch).to_owned(), ..fixture.source() };
        assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap(), sha, "{branch}");
        for wanted in [Wanted::Head, Wanted::Named((*branch).to_owned()), Wanted::Pushed(sha.clone())] {
            let found = fixture.git.resolve(&fixture.project, &source, &wanted).await.unwrap();
            assert_eq!((found.commit.sha, found.is_head), (sha.clone(), true), "{branch} {wanted:?}");
        }
        let dir = fixture.run_dir("r");
        fixture.git.checkout(&fixture.project, &sha, &dir, &Giver(None)).await.unwrap();
        assert_eq!(fixture.sh(&format!("git -C '{}' rev-parse HEAD", dir.display())), sha.as_str(), "{branch}");
        let local = std::process::Command::new("git")
            .arg("-C")
            .arg(&dir)
            .args(["rev-parse", "--verify", "-q"])
            .arg(format!("refs/heads/{branch}"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&local.stdout).trim(), sha.as_str(), "the branch's name is there: {branch}");
        fixture.sh(&format!("git -C tree push -q origin :{quoted}"));
    }
    no_canary(&fixture);
}

#[tokio::test]
async fn a_branch_or_tag_named_like_a_commit_does_not_stand_for_it() {
    let fixture = Fixture::new();
    let good = fixture.push("main", "a");
    let evil = fixture.push("main", "b");
    // Whoever may push names a tag and a branch like the good commit.
    fixture.sh(&format!("cd tree && git update-ref refs/tags/{good} {evil} && git push -q origin refs/tags/{good} {evil}:refs/heads/{good}"));
    let found = fixture.named(good.as_str()).await.unwrap();
    assert_eq!((found.commit.sha, found.tag), (good.clone(), None), "a hash is a commit");
    // The project says it wants that branch: then it is the branch.
    let source = Source { branch: good.to_string(), ..fixture.source() };
    assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap(), evil);
    assert_eq!(fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap().commit.sha, evil);
}

#[tokio::test]
async fn nothing_that_looks_like_an_option_or_helper_reaches_git() {
    let fixture = Fixture::new();
    let sha = fixture.push("main", "a");
    for branch in [
        "--upload-pack=touch canary",
        "-oProxyCommand=touch",
        "main:refs/heads/x",
        "+main",
        "main^{tree}",
        "*",
        "a b",
        "..",
        "main\n",
    ] {
        let source = Source { branch: branch.to_owned(), ..fixture.source() };
        let code = fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap_err().code;
        assert!(code == "ref_invalid" || (branch == "+main" && code == "ref_unknown"), "{branch}: {code}");
    }
    for url in [
        "ext::touch canary",
        "--upload-pack=touch canary",
        "ssh://-oProxyCommand=touch%20canary/x",
        "fd::0",
        "git://x/y",
    ] {
        let source = fixture.source_at(url);
        assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap_err().code, "git_url", "{url}");
    }
    // A repository cannot bring its own hooks, filters or submodules.
    fixture.sh("cd tree && mkdir -p hooks && printf '#!/bin/sh\\ntouch canary\\n' > hooks/post-checkout && chmod +x hooks/post-checkout && printf '* filter=evil\\n' > .gitattributes && printf '[submodule \"x\"]\\n\\tpath = x\\n\\turl = ext::touch canary\\n' > .gitmodules");
    let head = fixture.push("main", "c");
    fixture.resolve(Wanted::Head).await.unwrap();
    fixture.git.checkout(&fixture.project, &head, &fixture.run_dir("r"), &Giver(None)).await.unwrap();
    assert_ne!(head, sha);
    no_canary(&fixture);
}

fn no_canary(fixture: &Fixture) {
    for place in ["/canary", "canary"] {
        assert!(!Path::new(place).exists(), "{place}");
    }
    assert_eq!(fixture.sh("find . -name canary | wc -l"), "0");
}
