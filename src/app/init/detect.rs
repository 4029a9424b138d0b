//! What a repository is written in, and how such a thing is built and tested: from the names of its files and the text of a few.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The files whose text tells more than their name.
pub(super) const READ: &[&str] = &[
    "package.json",
    "Cargo.toml",
    "pyproject.toml",
    "requirements.txt",
    "requirements-dev.txt",
    "composer.json",
    "Gemfile",
    "Makefile",
    "makefile",
    "GNUmakefile",
];

/// One of the things that were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// What, and by which file: `Node.js with npm (package-lock.json)`.
    pub what: String,
    /// What its machine needs to have: programs.
    pub needs: Vec<&'static str>,
    /// Commands that make what is deployed.
    pub build: Vec<String>,
    /// Commands that test it; empty where nothing was found.
    pub test: Vec<String>,
    /// A command of tests that need more than the code.
    pub integration: Option<String>,
    /// Where what is deployed lies; `None` = it is the whole checkout.
    pub path: Option<&'static str>,
    /// What is of no use on a host.
    pub exclude: Vec<&'static str>,
    /// What a host does with a release before it serves, in the release's directory: what cannot be brought along.
    pub on_host: Vec<String>,
}

/// A repository's files.
pub(super) struct Files<'a> {
    /// All of them.
    pub names: &'a BTreeSet<String>,
    /// The text of those of [`READ`] that are there.
    pub texts: &'a BTreeMap<String, String>,
}

impl Files<'_> {
    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    fn first<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().find(|name| self.has(name)).copied()
    }

    fn any_below(&self, dir: &str) -> bool {
        self.names.range(dir.to_owned()..).next().is_some_and(|name| name.starts_with(dir))
    }

    fn text(&self, name: &str) -> &str {
        self.texts.get(name).map_or("", String::as_str)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(self.text(name).trim_start_matches('\u{feff}')).unwrap_or_default()
    }
}

/// Everything that was found, in the order in which it is built.
pub(super) fn detect(files: &Files<'_>) -> Vec<Found> {
    let languages = [node, rust, python, go, php, ruby];
    let mut found: Vec<Found> = languages.iter().filter_map(|language| language(files)).collect();
    // A Makefile beside these mostly calls them; alone it is all there is to go by.
    if found.is_empty() {
        found.extend(make(files).or_else(|| script(files)));
    }
    found
}

fn node(files: &Files<'_>) -> Option<Found> {
    if !files.has("package.json") {
        return None;
    }
    let package = files.json("package.json");
    let script = |name: &str| package["scripts"][name].as_str().map(str::trim).filter(|text| !text.is_empty());
    let (tool, lock, install) = if let Some(lock) = files.first(&["pnpm-lock.yaml"]) {
        ("pnpm", lock, "pnpm install --frozen-lockfile")
    } else if let Some(lock) = files.first(&["yarn.lock"]) {
        // Yarn 2 and later have a file of their own, and another word for it.
        let modern = files.has(".yarnrc.yml")
            || package["packageManager"].as_str().is_some_and(|m| m.starts_with("yarn@") && !m.starts_with("yarn@1."));
        ("yarn", lock, if modern { "yarn install --immutable" } else { "yarn install --frozen-lockfile" })
    } else if let Some(lock) = files.first(&["package-lock.json", "npm-shrinkwrap.json"]) {
        ("npm", lock, "npm ci")
    } else {
        ("npm", "package.json", "npm install --no-package-lock")
    };
    let mut build = vec![install.to_owned()];
    build.extend(script("build").map(|_| format!("{tool} run build")));
    // What `npm init` writes is no test.
    let test = script("test").filter(|text| !text.contains("no test specified"));
    let integration = ["test:integration", "integration", "test:e2e"].into_iter().find(|name| script(name).is_some());
    Some(Found {
        what: format!("Node.js with {tool} ({lock})"),
        needs: vec!["node", tool],
        build,
        test: test.map(|_| format!("{tool} test")).into_iter().collect(),
        integration: integration.map(|name| format!("{tool} run {name}")),
        ..Found::default()
    })
}

fn rust(files: &Files<'_>) -> Option<Found> {
    if !files.has("Cargo.toml") {
        return None;
    }
    let locked = if files.has("Cargo.lock") { " --locked" } else { "" };
    let manifest = files.text("Cargo.toml");
    let all = if manifest.lines().any(|line| line.trim() == "[workspace]") { " --workspace" } else { "" };
    Some(Found {
        what: "Rust with cargo (Cargo.toml)".to_owned(),
        needs: vec!["cargo"],
        build: vec![
            format!("cargo build --release{all}{locked}"),
            "mkdir -p dist/bin && find target/release -maxdepth 1 -type f -perm -u+x -exec cp {} dist/bin/ \\;"
                .to_owned(),
        ],
        test: vec![format!("cargo test{all}{locked}")],
        path: Some("dist"),
        ..Found::default()
    })
}

fn python(files: &Files<'_>) -> Option<Found> {
    let by = files.first(&["uv.lock", "poetry.lock", "pyproject.toml", "requirements.txt", "setup.py", "Pipfile"])?;
    let project = files.text("pyproject.toml");
    let needs: String =
        ["pyproject.toml", "requirements.txt", "requirements-dev.txt"].map(|name| files.text(name)).concat();
    let pytest = needs.contains("pytest") || files.first(&["pytest.ini", "conftest.py", "tests/conftest.py"]).is_some();
    let tests = pytest || files.any_below("tests/") || files.any_below("test/");
    let runner = if pytest { "pytest" } else { "unittest" };
    // An environment of Python cannot be moved: a host makes its own.
    let exclude = vec![".venv", ".pytest_cache"];
    let found = |tool: &str, needs, install: Vec<String>, run: &str, on_host| Found {
        what: format!("Python with {tool} ({by})"),
        needs,
        build: install,
        test: if tests { vec![format!("{run} -m {runner}")] } else { Vec::new() },
        exclude: exclude.clone(),
        on_host,
        ..Found::default()
    };
    if by == "uv.lock" {
        let sync = |more: &str| vec![format!("uv sync --frozen{more}")];
        return Some(found("uv", vec!["uv"], sync(""), "uv run --frozen python", sync(" --no-dev")));
    }
    if by == "poetry.lock" || project.contains("[tool.poetry]") {
        let install =
            |more: &str| vec![format!("POETRY_VIRTUALENVS_IN_PROJECT=true poetry install --no-interaction{more}")];
        // The same environment for what follows: poetry finds .venv where it made it.
        return Some(found(
            "poetry",
            vec!["poetry"],
            install(""),
            "poetry run python",
            install(" --only main --no-root"),
        ));
    }
    let install = |development: bool| {
        let mut lines = vec!["python3 -m venv .venv".to_owned()];
        if files.has("requirements.txt") {
            lines.push(".venv/bin/pip install -r requirements.txt".to_owned());
        } else if by != "Pipfile" {
            lines.push(".venv/bin/pip install .".to_owned());
        }
        let more = files.first(&[
            "requirements-dev.txt",
            "dev-requirements.txt",
            "requirements/dev.txt",
            "requirements-test.txt",
        ]);
        match more.filter(|_| development) {
            Some(more) => lines.push(format!(".venv/bin/pip install -r {more}")),
            None if development && pytest && !files.text("requirements.txt").contains("pytest") => {
                lines.push(".venv/bin/pip install pytest".to_owned());
            }
            None => {}
        }
        lines
    };
    Some(found("pip", vec!["python3"], install(true), ".venv/bin/python", install(false)))
}

fn go(files: &Files<'_>) -> Option<Found> {
    files.has("go.mod").then(|| Found {
        what: "Go (go.mod)".to_owned(),
        needs: vec!["go"],
        build: vec!["go build -o dist/ ./...".to_owned()],
        test: vec!["go vet ./...".to_owned(), "go test ./...".to_owned()],
        path: Some("dist"),
        ..Found::default()
    })
}

fn php(files: &Files<'_>) -> Option<Found> {
    if !files.has("composer.json") {
        return None;
    }
    let composer = files.json("composer.json");
    let test = if !composer["scripts"]["test"].is_null() {
        Some("composer test")
    } else if files.first(&["phpunit.xml", "phpunit.xml.dist", "phpunit.dist.xml"]).is_some() {
        Some("vendor/bin/phpunit")
    } else {
        None
    };
    Some(Found {
        what: "PHP with composer (composer.json)".to_owned(),
        needs: vec!["php", "composer"],
        build: vec!["composer install --no-interaction --no-progress".to_owned()],
        test: test.map(str::to_owned).into_iter().collect(),
        ..Found::default()
    })
}

fn ruby(files: &Files<'_>) -> Option<Found> {
    if !files.has("Gemfile") {
        return None;
    }
    let gems = files.text("Gemfile");
    let test = if files.any_below("spec/") || gems.contains("rspec") {
        Some("bundle exec rspec")
    } else if files.has("bin/rails") {
        Some("bin/rails test")
    } else if files.has("Rakefile") {
        Some("bundle exec rake test")
    } else {
        None
    };
    Some(Found {
        what: "Ruby with bundler (Gemfile)".to_owned(),
        needs: vec!["ruby", "bundle"],
        build: vec!["bundle config set --local path vendor/bundle".to_owned(), "bundle install".to_owned()],
        test: test.map(str::to_owned).into_iter().collect(),
        ..Found::default()
    })
}

fn make(files: &Files<'_>) -> Option<Found> {
    let name = files.first(&["GNUmakefile", "makefile", "Makefile"])?;
    let text = files.text(name);
    let target = |target: &str| {
        text.lines().any(|line| {
            line.split_once(':').is_some_and(|(names, rest)| {
                !names.starts_with(['\t', ' ', '.', '#'])
                    && !rest.starts_with('=')
                    && names.split_whitespace().any(|one| one == target)
            })
        })
    };
    let build = ["build", "all"].into_iter().find(|name| target(name));
    let test = ["test", "tests", "check"].into_iter().find(|name| target(name));
    Some(Found {
        what: format!("make ({name})"),
        needs: vec!["make"],
        build: vec![build.map_or_else(|| "make".to_owned(), |target| format!("make {target}"))],
        test: test.map(|target| format!("make {target}")).into_iter().collect(),
        ..Found::default()
    })
}

/// Scripts by the names that they mostly have.
fn script(files: &Files<'_>) -> Option<Found> {
    let test =
        files.first(&["scripts/test", "script/test", "bin/test", "test.sh", "scripts/test.sh", "run-tests.sh"])?;
    let build = files.first(&["scripts/build", "script/build", "bin/build", "build.sh", "scripts/build.sh"]);
    let run = |script: &str| format!("sh {script}");
    // Not `sh`: it may be written for another shell, which its first line names.
    let direct = |script: &str| if script.ends_with(".sh") { run(script) } else { script.to_owned() };
    Some(Found {
        what: format!("scripts ({test})"),
        build: build.map(direct).into_iter().collect(),
        test: vec![direct(test)],
        ..Found::default()
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Repositories as lists of files with their text, and what is to be found in each: by what, the commands of build and test.
    pub(in crate::app::init) type Case =
        (&'static [(&'static str, &'static str)], &'static str, &'static [&'static str], &'static [&'static str]);

    pub(in crate::app::init) const CASES: &[Case] = &[
        (
            &[("package.json", r#"{"scripts":{"test":"node --test","build":"tsc"}}"#), ("package-lock.json", "{}")],
            "npm (package-lock.json)",
            &["npm ci", "npm run build"],
            &["npm test"],
        ),
        (
            &[("package.json", r#"{"scripts":{"test":"echo \"Error: no test specified\" && exit 1"}}"#)],
            "npm (package.json)",
            &["npm install --no-package-lock"],
            &[],
        ),
        (
            &[("package.json", r#"{"scripts":{"test":"vitest run"}}"#), ("pnpm-lock.yaml", "")],
            "pnpm (pnpm-lock.yaml)",
            &["pnpm install --frozen-lockfile"],
            &["pnpm test"],
        ),
        (
            &[("package.json", r#"{"scripts":{"test":"jest"}}"#), ("yarn.lock", "")],
            "yarn (yarn.lock)",
            &["yarn install --frozen-lockfile"],
            &["yarn test"],
        ),
        (
            &[("package.json", r#"{"packageManager":"yarn@4.5.0","scripts":{"test":"jest"}}"#), ("yarn.lock", "")],
            "yarn (yarn.lock)",
            &["yarn install --immutable"],
            &["yarn test"],
        ),
        (
            &[("Cargo.toml", "[package]\nname = \"x\"\n"), ("Cargo.lock", ""), ("src/main.rs", "")],
            "cargo (Cargo.toml)",
            &[
                "cargo build --release --locked",
                "mkdir -p dist/bin && find target/release -maxdepth 1 -type f -perm -u+x -exec cp {} dist/bin/ \\;",
            ],
            &["cargo test --locked"],
        ),
        (
            &[("requirements.txt", "flask\n"), ("requirements-dev.txt", "pytest\n"), ("tests/test_x.py", "")],
            "pip (requirements.txt)",
            &[
                "python3 -m venv .venv",
                ".venv/bin/pip install -r requirements.txt",
                ".venv/bin/pip install -r requirements-dev.txt",
            ],
            &[".venv/bin/python -m pytest"],
        ),
        (
            &[("pyproject.toml", "[project]\nname = \"x\"\n"), ("tests/test_x.py", "")],
            "pip (pyproject.toml)",
            &["python3 -m venv .venv", ".venv/bin/pip install ."],
            &[".venv/bin/python -m unittest"],
        ),
        (
            &[
                ("pyproject.toml", "[tool.poetry]\n[tool.poetry.group.dev.dependencies]\npytest = \"*\"\n"),
                ("poetry.lock", ""),
            ],
            "poetry (poetry.lock)",
            &["POETRY_VIRTUALENVS_IN_PROJECT=true poetry install --no-interaction"],
            &["poetry run python -m pytest"],
        ),
        (
            &[("pyproject.toml", "[dependency-groups]\ndev = [\"pytest\"]\n"), ("uv.lock", "")],
            "uv (uv.lock)",
            &["uv sync --frozen"],
            &["uv run --frozen python -m pytest"],
        ),
        (&[("go.mod", "module x\n")], "Go (go.mod)", &["go build -o dist/ ./..."], &["go vet ./...", "go test ./..."]),
        (
            &[("Makefile", "CC := cc\nall: x\n\t$(CC)\ncheck test: all\n")],
            "make (Makefile)",
            &["make all"],
            &["make test"],
        ),
        (
            &[("composer.json", "{}"), ("phpunit.xml.dist", "")],
            "composer (composer.json)",
            &["composer install --no-interaction --no-progress"],
            &["vendor/bin/phpunit"],
        ),
        (
            &[("Gemfile", "gem \"rspec\"\n"), ("spec/x_spec.rb", "")],
            "bundler (Gemfile)",
            &["bundle config set --local path vendor/bundle", "bundle install"],
            &["bundle exec rspec"],
        ),
        (&[("test.sh", "true\n")], "scripts (test.sh)", &[], &["sh test.sh"]),
    ];

    pub(in crate::app::init) fn files(case: &[(&str, &str)]) -> (BTreeSet<String>, BTreeMap<String, String>) {
        let names = case.iter().map(|(name, _)| (*name).to_owned()).collect();
        let read = case.iter().filter(|(name, _)| READ.contains(name));
        (names, read.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }

    #[test]
    fn every_language_is_told_by_its_files() {
        for (case, by, build, test) in CASES {
            let (names, texts) = files(case);
            let found = detect(&Files { names: &names, texts: &texts });
            let [one] = &found[..] else { panic!("{by}: {found:?}") };
            assert!(one.what.contains(by), "{by}: {one:?}");
            assert_eq!((&one.build[..], &one.test[..]), (&build.map_owned()[..], &test.map_owned()[..]), "{by}");
        }
    }

    trait Owned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl Owned for [&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }

    #[test]
    fn several_are_all_found_and_nothing_is_nothing() {
        let (names, texts) = files(&[("package.json", "{}"), ("composer.json", "{}"), ("Makefile", "test:\n")]);
        let whats: Vec<String> =
            detect(&Files { names: &names, texts: &texts }).into_iter().map(|one| one.what).collect();
        assert_eq!(whats, ["Node.js with npm (package.json)", "PHP with composer (composer.json)"]);
        let (names, texts) = files(&[("README.md", "")]);
        assert!(detect(&Files { names: &names, texts: &texts }).is_empty());
    }

    #[test]
    fn a_file_that_is_no_json_is_no_reason_to_fail() {
        let (names, texts) = files(&[("package.json", "{ nonsense")]);
        let found = detect(&Files { names: &names, texts: &texts });
        assert_eq!(found[0].build, ["npm install --no-package-lock"]);
    }
}
