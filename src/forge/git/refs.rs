//! Names of refs and the bytes of commits, read without trusting either.

use crate::model::{cause::Cause, ids::Sha, release::Commit};

/// Whether `name` may stand behind `refs/heads/` or `refs/tags/`: the rules of `git check-ref-format`, and no leading dash.
pub(super) fn is_ref_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 250
        && name != "@"
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.chars().any(|c| c.is_ascii_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\'))
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

pub(super) fn branch(name: &str) -> Result<String, Cause> {
    if is_ref_name(name) {
        return Ok(format!("refs/heads/{name}"));
    }
    Err(invalid(name))
}

pub(super) fn invalid(name: &str) -> Cause {
    let shown: String = name.chars().take(120).collect();
    Cause::new(
        "ref_invalid",
        format!("{shown:?} is no name git allows for a branch or tag: write a branch, a tag or a commit hash"),
    )
}

/// Whether it can only be a commit: a whole hash.
pub(super) fn as_hash(text: &str) -> Option<Sha> {
    text.to_ascii_lowercase().parse().ok()
}

/// Whether it may be the beginning of a hash.
pub(super) fn is_short_hash(text: &str) -> bool {
    (4..64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Answers of `git cat-file --batch`, one for each name asked for: `None` where there is no such commit.
pub(super) fn batch(mut out: &[u8]) -> Option<Vec<Option<Commit>>> {
    let mut answers = Vec::new();
    while !out.is_empty() {
        let end = out.iter().position(|b| *b == b'\n')?;
        let (line, rest) = (std::str::from_utf8(out.get(..end)?).ok()?, out.get(end + 1..)?);
        let words: Vec<&str> = line.rsplitn(3, ' ').collect();
        match words[..] {
            [size, "commit", sha] => {
                let size: usize = size.parse().ok()?;
                answers.push(Some(commit(sha.parse().ok()?, rest.get(..size)?)?));
                out = rest.get(size + 1..)?;
            }
            // `^{commit}` never gives another kind; "missing", "ambiguous" have no content.
            ["missing" | "ambiguous", ..] => {
                answers.push(None);
                out = rest;
            }
            _ => return None,
        }
    }
    Some(answers)
}

/// Reads a commit object: header lines, an empty line, the message.
fn commit(sha: Sha, raw: &[u8]) -> Option<Commit> {
    let end = raw.windows(2).position(|pair| pair == b"\n\n").unwrap_or(raw.len());
    let message = raw.get(end + 2..).unwrap_or_default();
    let (mut tree, mut author, mut committed, mut encoding) = (None, None, None, None);
    for line in raw.get(..end)?.split(|b| *b == b'\n') {
        let Some(at) = line.iter().position(|b| *b == b' ') else { continue };
        let (key, value) = (line.get(..at)?, line.get(at + 1..)?);
        // The first of each counts; a signature's lines begin with a space.
        match key {
            b"tree" => tree = tree.or(Some(value)),
            b"author" => author = author.or(Some(value)),
            b"committer" => committed = committed.or(Some(value)),
            b"encoding" => encoding = encoding.or(Some(value)),
            _ => {}
        }
    }
    let latin1 = encoding.is_some_and(|name| {
        [&b"iso-8859-1"[..], b"iso8859-1", b"latin1", b"latin-1"].iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    let text = |bytes: &[u8]| {
        if latin1 {
            bytes.iter().map(|b| char::from(*b)).collect()
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        }
    };
    // "Name <mail> 1700000000 +0100": the name may hold anything but < > and newlines.
    let stamped = |line: &[u8]| {
        let at = line.iter().rposition(|b| *b == b'>')?;
        let seconds = text(line.get(at + 1..)?).split_ascii_whitespace().next().and_then(|s| s.parse::<i64>().ok());
        Some((text(line.get(..=at)?), seconds.unwrap_or(0)))
    };
    Some(Commit {
        sha,
        tree: std::str::from_utf8(tree?).ok()?.parse().ok()?,
        author: author.and_then(stamped).map(|(who, _)| who).unwrap_or_default(),
        message: text(message),
        committed_at_ms: committed.and_then(stamped).map_or(0, |(_, seconds)| seconds.saturating_mul(1000)),
    })
}

/// The hash `ls-remote` gives for exactly `reference`.
pub(super) fn listed(out: &[u8], reference: &str) -> Option<Sha> {
    out.split(|b| *b == b'\n').find_map(|line| {
        let at = line.iter().position(|b| *b == b'\t')?;
        (line.get(at + 1..)? == reference.as_bytes())
            .then(|| std::str::from_utf8(line.get(..at)?).ok()?.parse().ok())?
    })
}

/// The tags of a listing, in its order; names that git itself would not allow are left out.
pub(super) fn tags(out: &[u8]) -> Vec<(String, Sha)> {
    let lines = out.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.split_once('\t'));
    let tags = lines.filter_map(|(sha, reference)| Some((reference.strip_prefix("refs/tags/")?, sha.parse().ok()?)));
    tags.filter(|(name, _)| is_ref_name(name)).map(|(name, sha)| (name.to_owned(), sha)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ref_names_follow_git() {
        for good in ["main", "a/b", "v1.2", "$(id)", "`id`", "a;b", "ünï", "x'y\"z", "release+1", &"0".repeat(40)] {
            assert!(is_ref_name(good), "{good:?}");
        }
        for bad in [
            "",
            "-x",
            "--upload-pack=x",
            "a b",
            "a..b",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[b",
            "a\\b",
            "@",
            "a@{1}",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a/",
            "/a",
            "a//b",
            "a.",
            "a\n",
            "a\0b",
            "\x7f",
            &"x".repeat(251),
        ] {
            assert!(!is_ref_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn batches_are_read_and_nonsense_is_refused() {
        let body = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A \"x\" <a@b> 5 +0000\ncommitter C <c@d> 7 -0100\ngpgsig x\n y\n\nhello\n\nworld\n";
        let out = format!(
            "refs/tags/x y^{{commit}} missing\n{} commit {}\n{body}\nabc ambiguous\n",
            "a".repeat(40),
            body.len()
        );
        let answers = batch(out.as_bytes()).unwrap();
        assert_eq!(answers.len(), 3);
        let commit = answers[1].clone().unwrap();
        assert_eq!((commit.author.as_str(), commit.message.as_str()), ("A \"x\" <a@b>", "hello\n\nworld\n"));
        assert_eq!(commit.committed_at_ms, 7000);
        for bad in [
            "x",
            "x\n",
            "aaaa commit 5\n",
            &format!("{} commit 99999999999999999999\n", "a".repeat(40)),
            "\u{0} commit -1\n",
        ] {
            assert_eq!(batch(bad.as_bytes()), None, "{bad:?}");
        }
        let empty = format!("{} commit 0\n\n", "a".repeat(40));
        assert_eq!(batch(empty.as_bytes()), None, "a commit without a tree");
    }

    #[test]
    fn old_encodings_are_read() {
        let raw = b"tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor Jos\xe9 <j@x> 1 +0000\ncommitter x <y> 99999999999999999999 +0000\nencoding ISO-8859-1\n\n\xe9t\xe9";
        let read = commit("a".repeat(40).parse().unwrap(), raw).unwrap();
        assert_eq!((read.author.as_str(), read.message.as_str(), read.committed_at_ms), ("José <j@x>", "été", 0));
    }

    #[test]
    fn tags_are_read_from_a_listing() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let out = format!(
            "{b}\trefs/tags/v1.9\n{a}\trefs/tags/v1.10\nx\trefs/tags/y\n{a}\trefs/heads/v2\n{a}\trefs/tags/-x\n"
        );
        let names: Vec<String> = tags(out.as_bytes()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["v1.9", "v1.10"]);
    }

    #[test]
    fn only_the_exact_ref_is_taken_from_a_listing() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let out = format!("{a}\trefs/heads/x/refs/heads/main\n{b}\trefs/heads/main\n");
        assert_eq!(listed(out.as_bytes(), "refs/heads/main").unwrap().as_str(), b);
        assert_eq!(listed(b"junk\n\trefs/heads/main\n", "refs/heads/main"), None);
    }
}
