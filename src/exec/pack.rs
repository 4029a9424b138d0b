//! `phased pack`: a directory tree as a tar archive, or a file, on standard output. What a test stage has made belongs to code under
//! test: the daemon never reads it itself but has this done by the job user, who gets no further than that code does.
//!
//! The archive is the same bytes for the same tree: entries by name, no times, no owners, modes without setuid and the like. Links are
//! kept and never followed.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

/// What is to be packed; comes on standard input as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The run's directory.
    pub dir: PathBuf,
    /// What of it, relative.
    pub path: PathBuf,
    /// Patterns of what is left out, relative to `path`.
    pub exclude: Vec<String>,
    /// More bytes than this are refused before anything is written.
    pub most: u64,
}

/// The first line of the answer when a tree follows.
pub const TREE: &str = "tree\n";
/// The first line of the answer when a file follows.
pub const FILE: &str = "file\n";

/// Never part of an artifact: where `run:artifact_path` puts others.
const OURS: &str = ".phased";

/// Something to pack.
struct Entry {
    /// Relative to the tree.
    path: PathBuf,
    meta: Metadata,
}

fn at<T>(path: &Path, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn refuse<T>(path: &Path, why: &str) -> io::Result<T> {
    Err(io::Error::other(format!("{}: {why}", path.display())))
}

fn globs(patterns: &[String]) -> io::Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern.trim_end_matches('/')).literal_separator(true).build();
        set.add(glob.map_err(|error| io::Error::other(format!("exclude: {pattern:?} is no pattern: {error}")))?);
    }
    set.build().map_err(io::Error::other)
}

/// Answers `request` on `out`.
///
/// # Errors
/// What cannot be read or packed, by its path. What was written until then is worthless.
pub fn pack(request: &Request, out: impl Write) -> io::Result<()> {
    let dir = at(&request.dir, fs::canonicalize(&request.dir))?;
    let root = at(&request.path, fs::canonicalize(dir.join(&request.path)))?;
    if !root.starts_with(&dir) {
        return refuse(&request.path, "a link leads it out of the run's directory");
    }
    let mut out = BufWriter::with_capacity(256 * 1024, out);
    let meta = at(&request.path, fs::symlink_metadata(&root))?;
    if meta.is_dir() {
        let entries = list(&root, &globs(&request.exclude)?, request)?;
        out.write_all(TREE.as_bytes())?;
        tree(&root, &entries, &mut out)?;
    } else if meta.is_file() {
        bounded(&request.path, &meta, meta.len(), request.most)?;
        out.write_all(FILE.as_bytes())?;
        let mut file = Steady::open(&root, &request.path, &meta)?;
        io::copy(&mut file, &mut out)?;
        file.end()?;
    } else {
        return refuse(&request.path, what(&meta));
    }
    out.flush()
}

fn what(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_socket() => "a socket cannot be in an artifact: exclude it",
        () if kind.is_fifo() => "a named pipe cannot be in an artifact: exclude it",
        () => "a device cannot be in an artifact: exclude it",
    }
}

fn bounded(path: &Path, meta: &Metadata, sum: u64, most: u64) -> io::Result<()> {
    if sum <= most {
        return Ok(());
    }
    let sparse = if meta.blocks().saturating_mul(512) < meta.len() / 2 { " (it is sparse)" } else { "" };
    let why = format!(
        "with this file of {} bytes{sparse} it is larger than an artifact may be, {most} bytes: exclude what is not needed, or raise \
         [limits] max_artifact",
        meta.len()
    );
    refuse(path, &why)
}

/// Everything in the tree that is not left out, by name.
fn list(root: &Path, exclude: &GlobSet, request: &Request) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    let mut sum = 0u64;
    while let Some(dir) = dirs.pop() {
        for name in at(&dir, names(&root.join(&dir)))? {
            let path = dir.join(&name);
            if exclude.is_match(&path) || path == Path::new(OURS) {
                continue;
            }
            let meta = at(&path, fs::symlink_metadata(root.join(&path)))?;
            if meta.is_dir() {
                dirs.push(path.clone());
            } else if meta.is_file() {
                sum = sum.saturating_add(meta.len());
                bounded(&path, &meta, sum, request.most)?;
            } else if !meta.is_symlink() {
                return refuse(&path, what(&meta));
            }
            found.push(Entry { path, meta });
        }
    }
    // By bytes, so that it is the same wherever it is made.
    found.sort_unstable_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
    Ok(found)
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Setuid and the like are not for others to unpack.
fn mode(meta: &Metadata) -> u32 {
    meta.mode() & 0o777
}

fn tree(root: &Path, entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    for Entry { path, meta } in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode(meta));
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        if meta.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            // A slash at its end, as every tar writes it.
            let mut name = path.as_os_str().as_bytes().to_vec();
            name.push(b'/');
            at(path, archive.append_data(&mut header, PathBuf::from(OsString::from_vec(name)), io::empty()))?;
        } else if meta.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            let target = at(path, fs::read_link(root.join(path)))?;
            at(path, archive.append_link(&mut header, path, target))?;
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(meta.len());
            let mut file = Steady::open(&root.join(path), path, meta)?;
            at(path, archive.append_data(&mut header, path, &mut file))?;
            file.end()?;
        }
    }
    archive.finish()
}

/// A file that must stay as it was found while it is read.
struct Steady<'a> {
    file: File,
    path: &'a Path,
    found: &'a Metadata,
    left: u64,
}

impl<'a> Steady<'a> {
    fn open(full: &Path, path: &'a Path, found: &'a Metadata) -> io::Result<Self> {
        // Another thing may have taken its place: not to be followed, and not to be waited for.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = at(path, OpenOptions::new().read(true).custom_flags(flags).open(full))?;
        let steady = Steady { file, path, found, left: found.len() };
        steady.unchanged()?;
        Ok(steady)
    }

    fn unchanged(&self) -> io::Result<()> {
        let known =
            |meta: &Metadata| (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.mode());
        let now = at(self.path, self.file.metadata())?;
        if known(&now) == known(self.found) { Ok(()) } else { self.changed() }
    }

    fn changed<T>(&self) -> io::Result<T> {
        refuse(self.path, "it was changed while it was read: wait until nothing writes it any more, or exclude it")
    }

    /// All of it was read, and nothing has changed meanwhile.
    fn end(&self) -> io::Result<()> {
        if self.left == 0 { self.unchanged() } else { self.changed() }
    }
}

impl Read for Steady<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read(&mut buffer[..most])?;
        if n == 0 && most > 0 {
            return self.changed();
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn request(dir: &Path, exclude: &[&str]) -> Request {
        let exclude = exclude.iter().map(|e| (*e).to_owned()).collect();
        Request { dir: dir.to_owned(), path: ".".into(), exclude, most: 1 << 20 }
    }

    fn packed(request: &Request) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        pack(request, &mut out).map_err(|error| error.to_string())?;
        Ok(out)
    }

    /// Name to kind, mode, content or target.
    fn entries(answer: &[u8]) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(answer.strip_prefix(TREE.as_bytes()).unwrap());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let link = entry.link_name().unwrap().map(|to| format!("-> {}", to.display()));
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            found.push((name, format!("{:o} {}", header.mode().unwrap(), link.unwrap_or(content))));
        }
        found
    }

    fn write(dir: &Path, name: &str, content: &str, mode: u32) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_same_tree_is_the_same_bytes_in_whatever_order_it_was_made() {
        let made = |order: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for name in order {
                write(dir.path(), name, name, 0o640);
            }
            symlink("/etc/passwd", dir.path().join("link")).unwrap();
            for sub in ["a", "z"] {
                fs::set_permissions(dir.path().join(sub), fs::Permissions::from_mode(0o755)).unwrap();
            }
            packed(&request(dir.path(), &[])).unwrap()
        };
        let bytes = made(&["a/x", "a-b", "z/y", "a/b"]);
        assert_eq!(bytes, made(&["z/y", "a/b", "a-b", "a/x"]));
        let names: Vec<String> = entries(&bytes).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a/", "a-b", "a/b", "a/x", "link", "z/", "z/y"]);
        // Its own kind of golden file: another version of phased makes the same of the same tree.
        let digest = crate::model::ids::Digest::of(&bytes);
        assert_eq!(digest.as_str(), "9636eb5516ace7b4a4dd459cf5e7458f825a9783153632feecc8b17ef4eb4679");
    }

    #[test]
    fn modes_links_and_odd_names_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        for (name, mode) in [("run", 0o4755), ("a\nb", 0o600), ("-rf", 0o644), (long.as_str(), 0o644)] {
            write(dir.path(), name, name, mode);
        }
        symlink("../../outside", dir.path().join("out")).unwrap();
        symlink("/proc", dir.path().join("proc")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        let found: BTreeMap<String, String> =
            entries(&packed(&request(dir.path(), &[])).unwrap()).into_iter().collect();
        assert_eq!(found["run"], "755 run", "not setuid");
        assert_eq!(found["a\nb"], "600 a\nb");
        assert_eq!(found["-rf"], "644 -rf");
        assert_eq!(found[&long], format!("644 {long}"));
        assert_eq!((found["out"].as_str(), found["proc"].as_str()), ("777 -> ../../outside", "777 -> /proc"));
        assert!(found.contains_key("empty/") && !found.keys().any(|name| name.starts_with("proc/")));
    }

    #[test]
    fn what_is_excluded_is_not_even_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            [".git/config", "sub/.git/config", "reports/a.xml", "src/a.map", "src/a.js", ".phased/artifacts/old"]
        {
            write(dir.path(), name, "", 0o644);
        }
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let exclude = [".git", "reports/", "**/*.map", "fifo"];
        let found = entries(&packed(&request(dir.path(), &exclude)).unwrap());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["src/", "src/a.js", "sub/", "sub/.git/", "sub/.git/config"]);
        let error = packed(&request(dir.path(), &["reports/", "a[b"])).unwrap_err();
        assert!(error.contains("\"a[b\" is no pattern"), "{error}");
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        let of = |path: &str| Request { path: path.into(), ..request(&dir.path().join("tree"), &[]) };
        let refused = |path: &str, why: &str| {
            let error = packed(&of(path)).unwrap_err();
            assert!(error.contains(why), "{path}: {error}");
        };
        refused("nothing", "nothing: No such file");
        fs::write(dir.path().join("secret"), "").unwrap();
        symlink("../secret", dir.path().join("tree/link")).unwrap();
        refused("link", "out of the run's directory");
        refused("..", "out of the run's directory");
        refused("../secret", "out of the run's directory");
        let fifo = dir.path().join("tree/fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(".", "fifo: a named pipe");
        refused("fifo", "fifo: a named pipe");
        fs::remove_file(fifo).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("tree/sock")).unwrap();
        refused(".", "sock: a socket");
        drop(socket);
        fs::remove_file(dir.path().join("tree/sock")).unwrap();
        // A terabyte that takes no room is refused before it is read.
        File::create(dir.path().join("tree/huge")).unwrap().set_len(1 << 40).unwrap();
        refused(".", "it is sparse");
        refused("huge", "max_artifact");
    }

    #[test]
    fn a_file_is_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "app", "the app", 0o755);
        symlink("app", dir.path().join("link")).unwrap();
        for path in ["app", "link"] {
            let answer = packed(&Request { path: path.into(), ..request(dir.path(), &[]) }).unwrap();
            assert_eq!(answer, b"file\nthe app");
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let reading = |change: &dyn Fn()| {
            fs::write(&path, "0123456789").unwrap();
            let meta = fs::symlink_metadata(&path).unwrap();
            let opened = Steady::open(&path, Path::new("log"), &meta);
            let mut file = opened.unwrap();
            file.read_exact(&mut [0; 5]).unwrap();
            change();
            io::copy(&mut file, &mut io::sink()).and_then(|_| file.end())
        };
        reading(&|| {}).unwrap();
        let append = || OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        let shorten = || OpenOptions::new().write(true).open(&path).unwrap().set_len(7).unwrap();
        for change in [&append as &dyn Fn(), &shorten] {
            assert!(reading(change).unwrap_err().to_string().contains("it was changed while it was read"));
        }
        // Another file in its place between the look and the opening, or a link to one.
        fs::write(&path, "x").unwrap();
        let meta = fs::symlink_metadata(&path).unwrap();
        fs::write(dir.path().join("new"), "y").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(Steady::open(&path, Path::new("log"), &meta).is_err());
        fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        assert!(Steady::open(&path, Path::new("log"), &meta).is_err());
    }
}
