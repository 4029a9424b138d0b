use super::*;
use crate::{
    lua::diagnostics,
    model::pipeline::{Budget, Check, HostSource},
    ports::secrets::{Secret, SecretError},
};

mod bad;

/// Secrets whose names begin with `good`.
struct Fake;

impl Secrets for Fake {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        if name.starts_with("good") {
            return Ok(Secret::new(b"0123456789"));
        }
        Err(SecretError::Missing { name: name.to_owned(), looked: "/etc/phased/secrets".to_owned() })
    }
}

/// A project that is as short as it can be.
const BASE: &str = r#"local log = require "alerts.log" {}
return phased.project {
  source = { git = "https://example.com/shop.git", branch = "main" },
  test = { { "unit", run = function(run) run:sh "npm test" end } },
  environments = {
    { "production",
      hosts = { "web1", "web2" },
      deploy = function(host) host:sh "true" end,
      health = { http = ":8080/healthz" } },
  },
  notify = log,
}
"#;

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    fn project(text: &str) -> Self {
        Fixture::new(&[("projects/shop.lua", text)])
    }

    fn plugins(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.plugins().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn loader(&self) -> Loader {
        Loader::new(vec![self.plugins()], SHIPPED, &self.folder.path().join("data"), Arc::new(Fake), Limits::default())
    }

    /// `shop.lua:3:5+4 code: message; help`, one a line.
    fn findings(&self) -> String {
        let found = self.loader().load().err().unwrap_or_default();
        let line = |one: &Diagnostic| {
            let file = one.file.strip_prefix(self.plugins()).unwrap_or(&one.file).display();
            let help = one.help.as_ref().map_or(String::new(), |help| format!("; {help}"));
            format!("{file}:{}:{}+{} {}: {}{help}", one.line, one.column, one.length, one.code, one.message)
        };
        found
            .iter()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
            .replace(&self.plugins().display().to_string(), "DIR")
            .replace("projects/shop.lua", "shop")
    }
}

fn load(text: &str) -> Loaded {
    let fixture = Fixture::project(text);
    match fixture.loader().load() {
        Ok(mut loaded) => loaded.remove(0),
        Err(found) => panic!("{}", diagnostics::render(&found, false)),
    }
}
