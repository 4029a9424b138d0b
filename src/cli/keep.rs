//! `phased backup` and `phased export`: answers that are too long to hold.

use std::{
    io::{Seek as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;

use super::{
    BackupArgs,
    client::with_query,
    exit::Failure,
    output::{data, say},
    verbs::Asking,
};
use crate::{api::text::one_line, journal::backup, time::within, whole::Part};

/// How long the daemon may send nothing: a slow disk is read through, and one that hangs is not waited for.
const IDLE: Duration = Duration::from_secs(180);

impl Asking {
    /// The file is whole, checked and on disk when this returns.
    pub(super) async fn backup(&self, args: &BackupArgs) -> Result<(), Failure> {
        let path = with_query("/v1/backup", &[("secrets", args.secrets.then(|| "true".to_owned()))]);
        if args.file.as_deref() == Some(Path::new("-")) {
            let mut out = std::io::stdout().lock();
            let body = self.client.open(&path, "application/zstd").await?.into_body();
            return self.pour(body, |bytes| out.write_all(bytes).map_err(|_| Failure::OutputClosed)).await;
        }
        let to = args.file.clone().unwrap_or_else(|| {
            let at = self.client.clock.now().rfc3339();
            let date: String = at.chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(15).collect();
            PathBuf::from(format!("phased-{date}.tar.zst"))
        });
        let broken = |what: &str, error: &std::io::Error| Failure::Broken(format!("{what} {}: {error}", to.display()));
        if to.exists() {
            return Err(Failure::Usage(format!("{} is there already: give another name", to.display())));
        }
        // Beside it, under another name until it is whole: what has the name is a backup.
        let part = Part::beside(&to, 0o600).map_err(|error| broken("cannot write", &error))?;
        let body = self.client.open(&path, "application/zstd").await?.into_body();
        let mut file = &part.file;
        self.pour(body, |bytes| file.write_all(bytes).map_err(|error| broken("cannot write", &error))).await?;
        let checked = finish(part, &to).map_err(|error| broken("there is no backup in", &error))?;
        let size = std::fs::metadata(&to).map_or(0, |meta| meta.len());
        if self.json {
            let document = json!({
                "file": to.display().to_string(), "bytes": size, "at": checked.manifest.at, "runs": checked.runs, "blobs": checked.blobs,
                "files": checked.files, "secrets": checked.manifest.secrets,
            });
            return self.raw(&document.to_string());
        }
        data(&format!("{}\n", to.display()))?;
        let secrets = match checked.manifest.secrets {
            true => "with secrets: keep it as you keep them",
            false => "without secrets (--secrets takes them along)",
        };
        say(&format!(
            "{} runs and {} blobs as of {}, {} KiB, {secrets}; the configuration and the projects' files are not in it either\n",
            checked.runs,
            checked.blobs,
            one_line(&checked.manifest.at, 40),
            size / 1024
        ));
        Ok(())
    }

    /// Line by line, as it comes.
    pub(super) async fn export(&self, project: Option<&str>, after: Option<&str>) -> Result<(), Failure> {
        let pairs = [("project", project.map(str::to_owned)), ("after", after.map(str::to_owned))];
        let body = self.client.open(&with_query("/v1/export", &pairs), "application/x-ndjson").await?.into_body();
        // Data for programs: as it is. JSON has escaped what a terminal would take for something else.
        let mut out = std::io::stdout().lock();
        self.pour(body, |bytes| out.write_all(bytes).map_err(|_| Failure::OutputClosed)).await
    }

    /// Gives all of a body to `take`.
    async fn pour(
        &self,
        mut body: Incoming,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            let frame = within(&*self.client.clock, IDLE, body.frame()).await;
            let frame = frame.ok_or_else(|| {
                Failure::Broken(format!("the daemon has sent nothing for {} s: look at its log", IDLE.as_secs()))
            })?;
            let Some(frame) = frame else { return Ok(()) };
            let broken = |e: hyper::Error| Failure::Broken(format!("the daemon broke off, look at its log: {e}"));
            if let Ok(bytes) = frame.map_err(broken)?.into_data() {
                take(&bytes)?;
            }
        }
    }
}

/// Reads it again, whole, and gives it its name.
fn finish(part: Part, to: &Path) -> std::io::Result<backup::Unpacked> {
    part.sync()?;
    (&part.file).rewind()?;
    let checked = backup::check(&mut &part.file)?;
    part.name(to)?;
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::{
        journal::{DataArchive, Layout},
        ports::backup::{Archive as _, Manifest},
    };

    #[test]
    fn two_backups_of_one_name_are_one_and_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(&dir.path().join("data")).unwrap();
        std::fs::write(layout.journal.join("control"), "").unwrap();
        let archive = DataArchive::new(layout, dir.path().join("secrets"));
        let to = dir.path().join("it.tar.zst");
        let write = |version: &str| {
            let part = Part::beside(&to, 0o600).unwrap();
            let (version, controller, at) = (version.to_owned(), "m:1".to_owned(), "then".to_owned());
            let manifest = Manifest { format: 1, version, controller, at, at_ms: 1, secrets: false };
            archive.write(&manifest, &mut &part.file).unwrap();
            part
        };
        let (first, second) = (write("first"), write("second"));
        assert_eq!(finish(first, &to).unwrap().manifest.version, "first");
        assert_eq!(finish(second, &to).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(backup::check(&mut File::open(&to).unwrap()).unwrap().manifest.version, "first");
        let parts = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part"));
        assert_eq!(parts.count(), 0);
    }
}
