//! `data_dir/VERSION`: which format the data has, so that an older phased never works on what a newer one wrote.
//!
//! It is one number and a word for people. It grows only when an older phased would misread what is there: a new field that it may
//! ignore is no new format.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::whole::Part;

/// The format this phased writes, and the newest it reads.
pub const SCHEMA: u32 = 1;

/// Why the data cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer phased has been here.
    #[error(
        "`{path}` says that the data was written in format {found} by a newer phased; this one ({version}) knows formats up to {SCHEMA} \
         and has changed nothing: install the newer version again, or restore a backup that was made before the upgrade",
        version = env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// It holds no number.
    #[error(
        "`{path}` does not say which format the data has, it begins with {found:?}: restore it from a backup; for data of this phased \
         ({version}) its text is \"{SCHEMA}\"",
        version = env!("CARGO_PKG_VERSION")
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// How it begins.
        found: String,
    },
    /// The disk's.
    #[error("failed to read or write `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Refuses data of a newer format, and says in data without a word which format it has from now on.
///
/// # Errors
/// [`SchemaError`]; nothing was changed then.
pub fn check(data_dir: &Path) -> Result<(), SchemaError> {
    let path = data_dir.join("VERSION");
    let failed = |source| SchemaError::Io { path: path.clone(), source };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        // New, or of a phased before there was such a file: its data has the first format.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return write(&path).map_err(failed),
        Err(error) => return Err(failed(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let word = text.split_whitespace().next().unwrap_or_default();
    match word.parse::<u32>() {
        Ok(found) if found > SCHEMA => Err(SchemaError::Newer { path, found }),
        Ok(found) if found > 0 => Ok(()),
        _ => Err(SchemaError::Unreadable { path, found: text.chars().take(40).collect() }),
    }
}

/// Whole or not at all, whatever cuts it.
fn write(path: &Path) -> io::Result<()> {
    let mut part = Part::beside(path, 0o644)?;
    part.fill(
        format!("{SCHEMA} is the format of this data; phased {} began with it\n", env!("CARGO_PKG_VERSION")).as_bytes(),
    )?;
    part.replace(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_without_a_word_gets_one_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("VERSION")).unwrap();
        assert!(text.starts_with("1 is the format"), "{text}");
        fs::write(dir.path().join("VERSION"), "1\n").unwrap();
        check(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("VERSION")).unwrap(), "1\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn data_of_a_newer_phased_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let text = "2 is the format of this data; phased 9.1.0 began with it\n";
        fs::write(dir.path().join("VERSION"), text).unwrap();
        let error = check(dir.path()).unwrap_err();
        assert!(matches!(error, SchemaError::Newer { found: 2, .. }));
        let said = error.to_string();
        assert!(said.contains("format 2 by a newer phased") && said.contains("up to 1"), "{said}");
        assert!(said.contains("install the newer version again"), "{said}");
        assert_eq!(fs::read_to_string(dir.path().join("VERSION")).unwrap(), text);
    }

    #[test]
    fn what_is_no_number_is_refused_with_what_belongs_there() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "\n", "0", "-1", "one", "\u{1b}[2J", "99999999999"] {
            fs::write(dir.path().join("VERSION"), bad).unwrap();
            let error = check(dir.path()).unwrap_err();
            assert!(matches!(error, SchemaError::Unreadable { .. }), "{bad:?}: {error}");
            assert!(
                error.to_string().contains("its text is \"1\"") && !error.to_string().contains('\u{1b}'),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("VERSION")).unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("/VERSION`"));
    }
}
