//! The command line: commands here, settings in [`crate::settings`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use rollcall_core::user::Role;

use crate::settings::{self, Flags};

const ABOUT: &str = "Rollcall, a real-time attendance server";

const LONG_ABOUT: &str = "\
Rollcall, a real-time attendance server for schools, universities and training providers.

Without a command it serves: on http://127.0.0.1:8000, with an embedded database in the folder `data`.

Every setting can be given in three ways. A flag wins over an environment variable, an environment variable over a line \
in a file `.env` in the current folder. An empty variable counts as unset.";

const EXAMPLES: &str = "\
Examples:
  rollcall
      Serve on http://127.0.0.1:8000; the documentation is at http://127.0.0.1:8000/docs
  rollcall --listen-addr 0.0.0.0:8000 --teacher-signup closed
      Serve to the network; teachers are made on the command line
  rollcall user create ada@school.example --name 'Ada Lovelace' --role teacher
      Make a teacher; the password is asked for
  rollcall doctor
      Check the configuration, the database, the disk and the clock, and say what to do
  rollcall backup /backups/rollcall-monday.db
      Copy the database while the server runs
  rollcall restore /backups/rollcall-monday.db
      Take that copy back, while no server runs
  rollcall copy sqlite://data/rollcall.db 'mongodb://db1,db2,db3/rollcall?replicaSet=rs0'
      Move to MongoDB: copy everything, and compare the two databases";

/// What was asked for on the command line.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, about = ABOUT, long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
#[command(disable_help_subcommand = true, subcommand_value_name = "COMMAND", subcommand_help_heading = "Commands")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server (what happens without a command)
    Serve,
    /// Check configuration, database, disk and clock, and say what to do
    ///
    /// One line for each check: ok, warn or FAIL. The exit code is 1 if anything failed.
    Doctor,
    /// Make and change accounts, also while the server runs
    User {
        /// What to do with accounts.
        #[command(subcommand)]
        action: UserAction,
    },
    /// Copy the database into a new file, also while the server runs
    ///
    /// The copy is consistent, complete and checked. `rollcall restore` takes it back. A server makes such copies by
    /// itself when `BACKUP_DIR` is set.
    Backup {
        /// The file to make; it must not exist yet
        file: PathBuf,
    },
    /// Put a backup in the place of the database, which is kept under another name
    ///
    /// No server may use the database meanwhile. The backup is checked first and stays what it is; one of an older
    /// version is brought up to date. Interrupted, even killed, the database is what it was or what the backup is,
    /// whole. To restore to another place, name it with `--db-url`.
    Restore {
        /// The backup: what `rollcall backup` or a server with `BACKUP_DIR` made
        file: PathBuf,
    },
    /// Copy a whole database into an empty one, such as to move to another kind of database
    ///
    /// Accounts with their passwords, classes, sessions with their logs, and records. No server may use either of the
    /// two meanwhile. A copy that was interrupted goes on when the same command is run again; until it is complete and
    /// was compared with its source, no server takes it. A URL with a password in it is better given by the environment
    /// (`FROM_URL`, `TO_URL`): other users of the machine can see the command line.
    Copy {
        /// The database to read: sqlite:// and a path, or the address of a MongoDB
        #[arg(env = "FROM_URL", hide_env_values = true, value_name = "FROM_URL")]
        from: String,
        /// The database to fill, empty or not there yet
        #[arg(env = "TO_URL", hide_env_values = true, value_name = "TO_URL")]
        to: String,
        /// Leave out what breaks the rules in the source, instead of stopping before anything is copied
        #[arg(long)]
        leave_out_broken: bool,
    },
    /// Print the OpenAPI document of the HTTP API as JSON
    Openapi,
    /// Ask the server on `LISTEN_ADDR` whether it is ready; for containers
    ///
    /// The exit code is 0 if it is, otherwise 1.
    Healthcheck,
}

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub(crate) enum UserAction {
    /// Make an account
    Create {
        /// The e-mail address, which is the login
        email: String,
        /// The person's name
        #[arg(long)]
        name: String,
        /// What the account may do
        #[arg(long, value_parser = role())]
        role: Role,
        /// Where the password comes from.
        #[command(flatten)]
        password: PasswordFrom,
    },
    /// List all accounts
    List,
    /// Disable an account: no login, and its tokens and open connections end
    Disable {
        /// The account's e-mail address
        email: String,
    },
    /// Enable a disabled account
    Enable {
        /// The account's e-mail address
        email: String,
    },
    /// Take an e-mail address for confirmed: notices of absences may be sent to it
    ConfirmEmail {
        /// The account's e-mail address
        email: String,
    },
    /// Set another password; all tokens of the account end
    ResetPassword {
        /// The account's e-mail address
        email: String,
        /// Where the password comes from.
        #[command(flatten)]
        password: PasswordFrom,
    },
}

/// Where a new password comes from; without either, a prompt asks for it.
#[derive(Debug, Args)]
pub(crate) struct PasswordFrom {
    /// Read the password from the first line of standard input
    #[arg(long, conflicts_with = "generate")]
    pub password_stdin: bool,
    /// Make a random password and print it
    #[arg(long)]
    pub generate: bool,
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(["teacher", "student", "admin"]).try_map(|name| name.parse::<Role>())
}

impl Cli {
    /// Reads the command line. An error knows how to print itself; `--help` and `--version` are errors too.
    pub(crate) fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<(Command, Flags), clap::Error> {
        let mut command = Self::command().args(settings::args());
        // Settings may stand before or after the command. Those that a command does not use stay out of its help.
        command.build();
        for sub in command.get_subcommands_mut() {
            hide_unused(sub);
        }
        let matches = command.try_get_matches_from_mut(args)?;
        let flags = Flags::from_matches(&matches);
        let cli = Self::from_arg_matches(&matches)?;
        Ok((cli.command.unwrap_or(Command::Serve), flags))
    }
}

fn hide_unused(command: &mut clap::Command) {
    let name = command.get_name().to_owned();
    if let "serve" | "doctor" = name.as_str() {
        return;
    }
    let used = |id: &str| match name.as_str() {
        "openapi" | "copy" => false,
        "healthcheck" => matches!(id, "LISTEN_ADDR" | "TLS_CERT" | "ACME_DOMAIN"),
        "backup" | "restore" => id == "DB_URL",
        _ => id == "DB_URL" || id == "BCRYPT_COST",
    };
    let owned = std::mem::take(command);
    *command = owned.mut_args(|arg| {
        let hide = settings::is_setting(arg.get_id().as_str()) && !used(arg.get_id().as_str());
        if hide { arg.hide(true) } else { arg }
    });
    for sub in command.get_subcommands_mut() {
        hide_unused(sub);
    }
}
