//! Parse, what must precede threads, run, exit code.

use std::{path::PathBuf, process::ExitCode};

use phased::{
    app, cli,
    cli::{CheckFormat, Command, ServeArgs},
    config::Config,
    daemon,
    journal::{LockError, SchemaError},
    service::{limits, notify, sockets},
    telemetry::{self, file::LogFile},
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = cli::parse();
    match cli.command {
        Command::Client(command) => cli::run(&command, &cli.client),
        Command::Check(args) => {
            app::check::run(&args.config, if cli.client.json { CheckFormat::Json } else { args.format })
        }
        Command::Serve(args) => said(serve(&args)),
        Command::Doctor(args) => app::doctor::run(&args, &cli.client),
        Command::Init(args) => said(app::init::run(&args, cli.client.json)),
        Command::Rebuild(args) => said(rebuild(&args.config)),
        Command::Restore(args) => said(app::restore::run(&args, cli.client.json)),
        Command::Demo(args) => demo(&args),
        Command::Keys(command) => said(app::signals::keys(&command)),
        Command::Pack => said(pack()),
        Command::Generate(args) => said(cli::generate::run(&args.directory)),
        // No thread, no log, and root for a moment: it says why it refuses to its unit's log and to who asked.
        Command::Job(args) => phased::exec::shim::run(&args.config, &args.daemon),
    }
}

fn said(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("phased: {error:#}");
            ExitCode::from(if is_wrong_data(&error) { WRONG_DATA } else { 1 })
        }
    }
}

/// EX_CONFIG of sysexits: to start again does not help, so the unit says `RestartPreventExitStatus=78`.
const WRONG_DATA: u8 = 78;

/// The data directory is of a format that this phased does not know.
fn is_wrong_data(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref() {
        Some(LockError::Schema(why)) => !matches!(why, SchemaError::Io { .. }),
        _ => false,
    })
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let passed = sockets::Passed::of_environment()?;
    let log_file = args.log_file.as_deref().map(std::path::absolute).transpose()?.map(LogFile::at);
    let mut log = log_file.clone();
    let mut background = None;
    if args.daemonize {
        let file = log_file.unwrap_or_else(|| LogFile::at(config.data_dir.join("daemon.log")));
        log = Some(file.clone());
        let socket = config.api.socket.parent().map(PathBuf::from);
        let dirs = std::iter::once(config.data_dir.clone()).chain(socket).collect();
        let what = daemon::Background { pid_file: args.pid_file.clone(), user: args.user.clone(), log: file, dirs };
        background = Some(daemon::go(&what)?);
    } else if let Some(file) = &log {
        file.begin()?;
    }
    telemetry::init(config.log.format, &config.log.filter)?;
    limits::raise_open_files(&config.limits);
    let manager = notify::Manager::of_environment();
    let options = app::Options {
        credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        passed,
        manager: manager.clone(),
        log,
        ..app::Options::default()
    };
    let done = app::run(config, options, || {
        if let Some(daemon) = &mut background {
            daemon.ready()?;
        }
        Ok(())
    });
    let why = done.as_ref().err().map(|error| format!("{error:#}"));
    if let Some(why) = &why {
        manager.works(format!("not started: {why}"));
    }
    if let Some(daemon) = background {
        daemon.ended(why.as_deref());
    }
    done
}

fn demo(args: &cli::DemoArgs) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(phased::demo::run(args));
            // Threads that still wait for a disk or for Lua are not waited for.
            runtime.shutdown_timeout(std::time::Duration::from_millis(500));
            code
        }
        Err(error) => said(Err(error.into())),
    }
}

/// No thread, no log: it runs as the job user, and its answer is all it says.
fn pack() -> anyhow::Result<()> {
    let request = serde_json::from_reader(std::io::stdin().lock())?;
    Ok(phased::exec::pack::pack(&request, std::io::stdout().lock())?)
}

fn rebuild(config: &std::path::Path) -> anyhow::Result<()> {
    let (count, bad) = app::rebuild::run(&Config::load(config)?)?;
    println!("{count} runs folded from their journals.");
    anyhow::ensure!(bad.is_empty(), "these could not be:\n{}", bad.join("\n"));
    Ok(())
}
