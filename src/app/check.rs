//! `phased check`: the configuration and every project, offline, all errors at once.

mod environment;
mod known_hosts;

use std::{io::IsTerminal as _, path::Path, process::ExitCode, sync::Arc};

use super::{guard::Guard, projects, uids};
use crate::{
    api::Certificates,
    cli::CheckFormat,
    config::{Config, FileSecrets},
    lua::diagnostics,
    ports::{
        program::{Diagnostic, Loaded, Programs as _},
        secrets::Secrets,
    },
    time::{Clock as _, Span, SystemClock},
};

/// Checks and says what it found. Exit code 0 only if everything is right.
pub fn run(path: &Path, format: CheckFormat) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("phased: {error}");
            return ExitCode::from(1);
        }
    };
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(std::path::PathBuf::from);
    let secrets: Arc<dyn Secrets> = Arc::new(FileSecrets::new(config.secret_dirs(credentials.as_deref())));
    let programs = Guard::new(&config.exec, &uids::way(&config.exec)).programs(projects(&config, &secrets));
    let mut wrong: Vec<Diagnostic> = certificate(&config, path).into_iter().collect();
    let loaded = programs.load().map_err(|found| wrong.extend(found)).unwrap_or_default();
    wrong.extend(known_hosts::wrong(&config, &loaded));
    match wrong.is_empty() {
        true => {
            if format == CheckFormat::Json {
                println!(
                    "{}",
                    serde_json::json!({ "projects": loaded.iter().map(|l| l.name.as_str()).collect::<Vec<_>>() })
                );
            } else {
                print!("{}", found(&config, &loaded));
            }
            ExitCode::SUCCESS
        }
        false => {
            match format {
                CheckFormat::Long => {
                    let styled = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                    eprint!("{}", diagnostics::render(&wrong, styled));
                }
                CheckFormat::Short => wrong.iter().for_each(|d| println!("{}", diagnostics::line(d))),
                CheckFormat::Json => println!("{}", diagnostics::json(&wrong)),
            }
            ExitCode::from(1)
        }
    }
}

/// What is wrong with the certificate of `[api] tls` and its key: the daemon would not start with them, or clients would refuse it.
fn certificate(config: &Config, path: &Path) -> Option<Diagnostic> {
    let tls = config.api.tls.as_ref()?;
    let message = Certificates::check(&tls.cert, &tls.key, SystemClock::new().now().wall_ms).err()?;
    let file = path.to_owned();
    Some(Diagnostic {
        file,
        line: 0,
        column: 0,
        length: 1,
        code: "bad_tls",
        message: format!("`tls` in [api]: {message}"),
        help: None,
    })
}

/// What a good set is, in a few lines a project.
fn found(config: &Config, loaded: &[Loaded]) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    if loaded.is_empty() {
        let dirs: Vec<String> = config.plugins.iter().map(|dir| dir.join("projects").display().to_string()).collect();
        let _infallible = writeln!(
            out,
            "No projects. `phased init URL` writes one from a repository; they are files in {}.",
            dirs.join(" or ")
        );
        return out;
    }
    for project in loaded {
        let pipeline = &project.pipeline;
        let stages: Vec<&str> = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
        let poll =
            pipeline.source.poll_ms.map(|ms| format!(", polled every {}", Span(std::time::Duration::from_millis(ms))));
        let tags = match pipeline.source.tags.as_slice() {
            [] => String::new(),
            tags => format!(" and tags {}", tags.join(", ")),
        };
        let hook = if pipeline.source.webhook.is_empty() {
            String::new()
        } else {
            format!(", webhook POST /hooks/github/{}", project.name)
        };
        let _infallible = writeln!(
            out,
            "project {}\n  source       {} branch {}{tags}{}{hook}",
            project.name,
            pipeline.source.git,
            pipeline.source.branch,
            poll.unwrap_or_default()
        );
        let _infallible =
            writeln!(out, "  tests        {}", if stages.is_empty() { "none".to_owned() } else { stages.join(", ") });
        for environment in &pipeline.environments {
            let _infallible = writeln!(out, "  environment  {}", environment.name);
            for (label, text) in environment::lines(environment) {
                let _infallible = writeln!(out, "    {label:<10} {text}");
            }
        }
        let notify = &pipeline.notify;
        let good =
            if notify.good.is_empty() { String::new() } else { format!(", good news to {}", notify.good.join(", ")) };
        let _infallible = writeln!(out, "  notify       bad news to {}{good}", notify.bad.join(", "));
        if !project.secrets.is_empty() {
            let _infallible = writeln!(out, "  secrets      {}", project.secrets.join(", "));
        }
    }
    let _infallible =
        writeln!(out, "{} project{} checked, no errors.", loaded.len(), if loaded.len() == 1 { "" } else { "s" });
    out
}
