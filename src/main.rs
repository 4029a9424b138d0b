//! Parse, what must precede threads, run, exit code.

use std::{path::PathBuf, process::ExitCode};

use phased::{
    app, cli,
    cli::{CheckFormat, Command, ServeArgs},
    config::Config,
    daemon, telemetry,
};

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
    }
}

fn said(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("phased: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let options = app::Options {
        credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        ..app::Options::default()
    };
    let parent = if args.daemonize {
        std::fs::create_dir_all(&config.data_dir)?;
        let log = config.data_dir.join("daemon.log");
        let background = daemon::Background { pid_file: args.pid_file.clone(), user: args.user.clone(), log };
        Some(daemon::go(&background)?)
    } else {
        None
    };
    telemetry::init(config.log.format, &config.log.filter)?;
    let mut parent = parent;
    let done = app::run(config, options, || {
        if let Some(parent) = parent.take() {
            parent.ready();
        }
    });
    if let (Err(error), Some(parent)) = (&done, parent) {
        parent.failed(&format!("{error:#}"));
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
