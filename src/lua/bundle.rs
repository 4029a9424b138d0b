//! The Lua files that make one project, as pinned for its runs: by content, so that the same code is the same bundle wherever it
//! lies.
//!
//! On disk a bundle is `code/<sha256>/manifest.json` and a file for each module under `files/`. A format: golden.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use mlua::{Function, Lua, chunk::ChunkMode};

use serde::{Deserialize, Serialize};

use crate::{
    model::{cause::Cause, ids::Digest},
    whole::unsynced,
};

/// The format of the manifest.
const FORMAT: u32 = 1;

/// One file.
#[derive(Debug, Clone)]
pub struct Source {
    /// As messages call it, relative to its plugin directory: `alerts/slack.lua`.
    pub path: String,
    /// Its text.
    pub text: String,
    /// What the first VM made of the text, for those after it: each call of a run has its own.
    compiled: Arc<OnceLock<Vec<u8>>>,
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, &self.text) == (&other.path, &other.text)
    }
}

impl Eq for Source {}

impl Source {
    /// A file as it was read.
    #[must_use]
    pub fn new(path: String, text: String) -> Self {
        Source { path, text, compiled: Arc::default() }
    }

    /// The file as a function of `lua`. Only text is ever compiled: bytecode among the files is an error.
    ///
    /// # Errors
    /// Lua's, where the text is none of Lua's.
    pub fn function(&self, lua: &Lua) -> mlua::Result<Function> {
        if let Some(compiled) = self.compiled.get() {
            return lua.load(compiled).set_mode(ChunkMode::Binary).into_function();
        }
        let chunk = lua.load(&self.text).set_name(format!("@{}", self.path)).set_mode(ChunkMode::Text);
        let function = chunk.into_function()?;
        self.compiled.get_or_init(|| function.dump(false));
        Ok(function)
    }
}

/// A project's own file and every module it required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The module that returns the project, `projects/shop`: no `require` can name it.
    pub entry: String,
    /// The version of the prelude under which it runs.
    pub prelude: String,
    /// By module name, `alerts.slack`.
    pub files: BTreeMap<String, Source>,
}

/// What lies beside the files.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    entry: String,
    prelude: String,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    sha256: Digest,
}

impl Bundle {
    /// The module name of the project `name`.
    #[must_use]
    pub fn entry_of(name: &str) -> String {
        format!("projects/{name}")
    }

    fn manifest(&self) -> Vec<u8> {
        let files = self
            .files
            .iter()
            .map(|(name, file)| {
                (name.clone(), Entry { path: file.path.clone(), sha256: Digest::of(file.text.as_bytes()) })
            })
            .collect();
        let manifest = Manifest { format: FORMAT, entry: self.entry.clone(), prelude: self.prelude.clone(), files };
        crate::model::canonical::to_string(&serde_json::to_value(manifest).unwrap_or_default()).into_bytes()
    }

    /// The id of the code: the sha256 of the manifest, which holds those of the files.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest())
    }

    /// Stores the bundle under `code/<sha256>/`, on disk when it returns; one that is there already and sound is left alone.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn store(&self, code: &Path) -> io::Result<Digest> {
        let (digest, target) = (self.digest(), code.join(self.digest().as_str()));
        if Bundle::load(code, &digest).is_ok() {
            return Ok(digest);
        }
        let existed = code.exists();
        fs::create_dir_all(code)?;
        if !existed && let Some(parent) = code.parent() {
            sync(parent)?;
        }
        // A name of our own: a crash leaves it behind and the next attempt takes it away.
        let partial = code.join(format!("{digest}.part"));
        remove(&partial)?;
        fs::create_dir(&partial)?;
        let folder = partial.join("files");
        fs::create_dir(&folder)?;
        for (name, file) in &self.files {
            write(&folder.join(file_name(name)), file.text.as_bytes())?;
        }
        write(&partial.join("manifest.json"), &self.manifest())?;
        sync(&folder)?;
        sync(&partial)?;
        // What is there is damaged, or we would have returned above.
        remove(&target)?;
        fs::rename(&partial, &target)?;
        sync(code)?;
        Ok(digest)
    }

    /// Reads a stored bundle and checks every byte of it. Blocks on the disk.
    ///
    /// # Errors
    /// `code_missing` or `code_damaged`.
    pub fn load(code: &Path, digest: &Digest) -> Result<Bundle, Cause> {
        let folder = code.join(digest.as_str());
        let damaged = |why: String| {
            Cause::new("code_damaged", format!("the pinned code {} cannot be trusted: {why}", folder.display()))
        };
        // What is not there, or is no text, is damage; anything else is the disk's trouble of the moment.
        let unread = |what: &str, error: &io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::NotADirectory => {
                damaged(format!("{what} cannot be read: {error}"))
            }
            _ => Cause::new("disk", format!("the pinned code {} cannot be read: {what}: {error}", folder.display())),
        };
        let raw = match fs::read(folder.join("manifest.json")) {
            Ok(raw) => raw,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => {
                return Err(Cause::new(
                    "code_missing",
                    format!("the pinned code {} is not there any more", folder.display()),
                ));
            }
            Err(error) => return Err(unread("its manifest", &error)),
        };
        if Digest::of(&raw) != *digest {
            return Err(damaged("its manifest was changed".to_owned()));
        }
        let manifest: Manifest = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!("its format {} is not known", manifest.format)));
        }
        let mut files = BTreeMap::new();
        for (name, entry) in manifest.files {
            let text = fs::read_to_string(folder.join("files").join(file_name(&name)))
                .map_err(|error| unread(&name, &error))?;
            if Digest::of(text.as_bytes()) != entry.sha256 {
                return Err(damaged(format!("{name} was changed")));
            }
            files.insert(name, Source::new(entry.path, text));
        }
        if !files.contains_key(&manifest.entry) {
            return Err(damaged("the project's own file is not in it".to_owned()));
        }
        Ok(Bundle { entry: manifest.entry, prelude: manifest.prelude, files })
    }

    /// The project's own file.
    #[must_use]
    pub fn main(&self) -> Option<&Source> {
        self.files.get(&self.entry)
    }

    /// What `require name` gives, or why it gives nothing.
    ///
    /// # Errors
    /// One sentence.
    pub fn module(&self, name: &str) -> Result<Source, String> {
        super::rules::module(name).map_err(|why| format!("{name:?} {why}"))?;
        self.files.get(name).cloned().ok_or_else(|| {
            format!(
                "module {name:?} is not in the pinned code: it was not required when the project was loaded, so require it \
                 at the top of the file"
            )
        })
    }
}

/// A module's name as a file's: `projects/shop` has a slash.
fn file_name(module: &str) -> PathBuf {
    PathBuf::from(format!("{}.lua", crate::model::step::encode(module)))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all().map_err(unsynced)
}

fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all().map_err(unsynced)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let file = |path: &str, text: &str| Source::new(path.to_owned(), text.to_owned());
        Bundle {
            entry: Bundle::entry_of("shop"),
            prelude: "1".to_owned(),
            files: BTreeMap::from([
                ("projects/shop".to_owned(), file("projects/shop.lua", "return phased.project {}\n")),
                ("alerts.log".to_owned(), file("alerts/log.lua", "return 1\n")),
            ]),
        }
    }

    #[test]
    fn what_is_stored_is_read_back_and_its_id_is_golden() {
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("code");
        let digest = bundle().store(&code).unwrap();
        assert_eq!(digest.as_str(), "ba1fc2b8121ba2256d6bab25365cce69cae26f40e025ecfd17ae2fed680132e5");
        assert_eq!(Bundle::load(&code, &digest).unwrap(), bundle());
        assert_eq!(bundle().store(&code).unwrap(), digest, "a second time changes nothing");
        assert_eq!(fs::read_dir(&code).unwrap().count(), 1);
    }

    #[test]
    fn other_text_or_another_prelude_is_other_code() {
        let (mut text, mut prelude) = (bundle(), bundle());
        text.files.get_mut("alerts.log").unwrap().text.push('\n');
        prelude.prelude = "2".to_owned();
        assert_ne!(text.digest(), bundle().digest());
        assert_ne!(prelude.digest(), bundle().digest());
    }

    #[test]
    fn damage_is_found_and_stored_anew() {
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("code");
        let digest = bundle().store(&code).unwrap();
        let place = code.join(digest.as_str());
        let module = place.join("files").join("alerts.log.lua");
        let manifest = place.join("manifest.json");
        let damages: [&dyn Fn(); 5] = [
            &|| fs::write(&module, "return 2\n").unwrap(),
            &|| fs::write(&module, b"\xff").unwrap(),
            &|| fs::remove_file(&module).unwrap(),
            &|| fs::write(&manifest, "{}").unwrap(),
            &|| fs::remove_file(&manifest).unwrap(),
        ];
        for damage in damages {
            damage();
            assert_eq!(Bundle::load(&code, &digest).unwrap_err().code, "code_damaged");
            bundle().store(&code).unwrap();
            assert_eq!(Bundle::load(&code, &digest).unwrap(), bundle());
        }
        fs::remove_dir_all(&place).unwrap();
        assert_eq!(Bundle::load(&code, &digest).unwrap_err().code, "code_missing");
    }

    #[test]
    fn a_half_written_bundle_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("code");
        let partial = code.join(format!("{}.part", bundle().digest()));
        fs::create_dir_all(partial.join("files")).unwrap();
        fs::write(partial.join("files/x"), "x").unwrap();
        let digest = bundle().store(&code).unwrap();
        assert_eq!(Bundle::load(&code, &digest).unwrap(), bundle());
        assert!(!partial.exists());
    }
}
