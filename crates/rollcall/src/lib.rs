//! Rollcall, a real-time attendance server: configuration, command line, telemetry, lifecycle.
//!
//! * [`settings`] collects text from flags, the environment and `.env`; [`config`] makes validated types of it.
//! * [`database`] and [`limits`] choose the adapters, [`lifecycle`] joins all to the services and serves; [`connection`], [`listener`]
//!   and [`tls`] are its HTTP side.
//! * [`backups`] works beside the server on a schedule.
//! * [`users`], [`copy`], [`doctor`], [`healthcheck`] are commands beside the server.
//! * [`passwords`], [`system`], [`secret_file`], [`progress`], [`telemetry`] are what the operating system is asked for.
//! * `traces` tells a collector what `rollcall_api::trace` made, over `http_client`.

mod backups;
mod cli;
mod config;
mod connection;
mod copy;
mod database;
mod doctor;
mod healthcheck;
#[cfg(any(feature = "acme", feature = "otlp"))]
mod http_client;
mod lifecycle;
mod limits;
mod listener;
mod passwords;
mod progress;
mod secret_file;
mod settings;
mod system;
mod telemetry;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
mod users;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use rollcall_core::Clock;
use rollcall_store_sqlite::SqliteStore;

use crate::cli::{Cli, Command};
use crate::config::{Config, Mistakes};
use crate::database::Database;
use crate::settings::{Flags, Settings};
use crate::system::SystemClock;

/// The exit code for a command line or a setting that cannot be.
const MISUSED: u8 = 2;

/// Does what the command line `args` asks for. The first of them is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (command, flags) = match Cli::parse_from(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help goes to standard output, mistakes to standard error. Where neither is read there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(MISUSED));
        }
    };
    match execute(command, flags) {
        Ok(code) => code,
        // Who reads only the first lines of a list has what was wanted.
        Err(error)
            if error
                .root_cause()
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "rollcall: {error:#}");
            if error.is::<Mistakes>() { ExitCode::from(MISUSED) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(command: Command, flags: Flags) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve => {
            let (config, logs) = Config::new(&Settings::of_process(flags)?)?;
            telemetry::start_logs(logs);
            lifecycle::serve(config)?;
        }
        Command::Doctor => return doctor::run(Settings::of_process(flags)),
        Command::User { action } => {
            let (database, cost) = Config::accounts(&Settings::of_process(flags)?)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
            runtime.block_on(users::run(action, &database, cost))?;
        }
        Command::Backup { file } => backup(&Config::database(&Settings::of_process(flags)?)?, &file)?,
        Command::Restore { file } => restore(&Config::database(&Settings::of_process(flags)?)?, &file)?,
        Command::Copy { from, to, leave_out_broken } => {
            let (from, to) = (copy::place("FROM_URL", &from)?, copy::place("TO_URL", &to)?);
            return copy::run(&from, &to, leave_out_broken);
        }
        Command::Openapi => {
            let document = rollcall_api::openapi().to_pretty_json().context("the document cannot be written")?;
            writeln!(io::stdout(), "{document}")?;
        }
        Command::Healthcheck => {
            let (address, tls) = Config::listen(&Settings::of_process(flags)?)?;
            healthcheck::run(address, tls)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn backup(database: &Database, file: &Path) -> anyhow::Result<()> {
    let database = database
        .file()
        .context("MongoDB is not backed up by this command; use mongodump, or snapshots, as docs/backup.md says")?;
    ensure!(database.exists(), "there is no database at {}; is DB_URL right?", database.display());
    SqliteStore::backup(database, file, || false)?;
    writeln!(io::stdout(), "{} is a copy of {}", file.display(), database.display())?;
    Ok(())
}

fn restore(database: &Database, file: &Path) -> anyhow::Result<()> {
    let database = database.file().context(
        "this command restores the embedded database; use mongorestore, or snapshots, as docs/backup.md says",
    )?;
    let time = backups::stamp(SystemClock::start().now());
    let kept = SqliteStore::restore(file, database, &time).context("nothing was restored")?;
    let mut out = io::stdout();
    writeln!(out, "{} is now what {} is", database.display(), file.display())?;
    if let Some(kept) = kept {
        writeln!(out, "What it was before is in {}", kept.display())?;
    }
    Ok(())
}
