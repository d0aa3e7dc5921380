//! Where settings come from: flags over environment variables over `.env`, as plain text.
//!
//! One table names every setting and explains it; the flags, the help and [`crate::config`], which turns the text
//! into validated types, all go by it. To add a setting: a row here, a field there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use clap::{Arg, ArgMatches};

/// A setting: its environment variable names it.
pub(crate) struct Setting {
    env: &'static str,
    flag: &'static str,
    value: &'static str,
    heading: &'static str,
    default: &'static str,
    help: &'static str,
    more: &'static str,
}

const DATABASE: &str = "Database";
const NETWORK: &str = "Network";
const TLS: &str = "TLS";
const ACCOUNTS: &str = "Accounts and sessions";
const MAIL: &str = "E-mail";
const LOGS: &str = "Logs and metrics";
const TRACES: &str = "Traces, for OpenTelemetry";

/// All settings, in the order of the help.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        env: "DB_URL",
        flag: "db-url",
        value: "URL",
        heading: DATABASE,
        default: "sqlite://data/rollcall.db",
        help: "Where the database is",
        more: "sqlite:// and a path, relative to the current folder or, with a third slash, absolute: \
               sqlite:///var/lib/rollcall/rollcall.db. Missing folders are made. Or, for several replicas, MongoDB: \
               mongodb:// or mongodb+srv:// and the address of a replica set with the database's name as its path, \
               rollcall if there is none. Prefer the environment to the flag if it holds a password: other users of \
               the machine can see flags.",
    },
    Setting {
        env: "BACKUP_DIR",
        flag: "backup-dir",
        value: "FOLDER",
        heading: DATABASE,
        default: "none, and no backups",
        help: "Where backups of the embedded database are put",
        more: "A folder that is there, best on another disk; one for each server. Backups are made while the server \
               works, checked, and named by their time in UTC. `rollcall restore` takes one back. Not with MongoDB, \
               which has its own means.",
    },
    Setting {
        env: "BACKUP_EVERY",
        flag: "backup-every",
        value: "DURATION",
        heading: DATABASE,
        default: "24h",
        help: "How long from one backup to the next",
        more: "A duration such as 30m, 6h or 1d; at most 3650d. The schedule goes on after a restart. A backup that \
               fails is tried again within five minutes.",
    },
    Setting {
        env: "BACKUP_KEEP",
        flag: "backup-keep",
        value: "RULES",
        heading: DATABASE,
        default: "3 last, 7 daily, 4 weekly",
        help: "Which backups are kept",
        more: "A number: so many of the newest. Or a list such as 3 last, 7 daily, 4 weekly: a backup is kept that is \
               one of the newest 3, the newest of one of the last 7 days, or the newest of one of the last 4 weeks. \
               Others are removed after the next one is made.",
    },
    Setting {
        env: "LISTEN_ADDR",
        flag: "listen-addr",
        value: "ADDR:PORT",
        heading: NETWORK,
        default: "127.0.0.1:8000",
        help: "Where to listen",
        more: "127.0.0.1 is this machine alone, 0.0.0.0 all of its IPv4 addresses, [::] all of its addresses. \
               Port 0 takes a free port; the first line printed says which.",
    },
    Setting {
        env: "ALLOWED_ORIGINS",
        flag: "allowed-origins",
        value: "LIST",
        heading: NETWORK,
        default: "the server's own host",
        help: "Web pages of which origins may open a WebSocket and call the API",
        more: "Origins such as https://school.example, separated by commas; * is any.",
    },
    Setting {
        env: "TRUSTED_PROXIES",
        flag: "trusted-proxies",
        value: "LIST",
        heading: NETWORK,
        default: "none",
        help: "Reverse proxies whose X-Forwarded-For is believed",
        more: "Addresses and networks such as 10.0.0.0/8, separated by commas. Behind a proxy that is not named here, \
               all clients count as one address for the limits.",
    },
    Setting {
        env: "RATE_LIMIT",
        flag: "rate-limit",
        value: "on|off",
        heading: NETWORK,
        default: "on",
        help: "Whether failed logins, sign-ups and messages are limited",
        more: "Ordinary use never meets the limits. Turn them off for load tests.",
    },
    Setting {
        env: "REDIS_URL",
        flag: "redis-url",
        value: "URL",
        heading: NETWORK,
        default: "none: each replica counts alone",
        help: "The Redis in which failed logins, sign-ups and mails asked for are counted for all replicas together",
        more: "redis:// or, for TLS, rediss://, such as rediss://user:password@redis.example:6380/0. Replicas with the \
               same JWT_SECRET count together. While Redis is away each replica counts alone, and nobody waits. Prefer \
               the environment to the flag if it holds a password: other users of the machine can see flags.",
    },
    Setting {
        env: "DRAIN_DELAY",
        flag: "drain-delay",
        value: "DURATION",
        heading: NETWORK,
        default: "0s",
        help: "How long to serve on after the order to end",
        more: "Meanwhile /health/ready fails, so that a load balancer has time to send nobody here any more before \
               connections are refused. A duration such as 10s, at most 10m.",
    },
    Setting {
        env: "TLS_CERT",
        flag: "tls-cert",
        value: "FILE",
        heading: TLS,
        default: "none: plain HTTP",
        help: "The certificate to serve HTTPS with: a PEM file, the server's own first, then its issuers'",
        more: "Needs TLS_KEY. When either file changes, the new pair is served within seconds, or at once after SIGHUP; \
               open connections go on. A pair that cannot be used is logged, and the old one is served on.",
    },
    Setting {
        env: "TLS_KEY",
        flag: "tls-key",
        value: "FILE",
        heading: TLS,
        default: "none",
        help: "The certificate's key: a PEM file without a password",
        more: "It may be the same file as TLS_CERT. Let its owner alone read it.",
    },
    Setting {
        env: "ACME_DOMAIN",
        flag: "acme-domain",
        value: "LIST",
        heading: TLS,
        default: "none",
        help: "The server's names, to get a certificate for from Let's Encrypt, instead of TLS_CERT",
        more: "One or several, separated by commas. Clients and Let's Encrypt must reach LISTEN_ADDR under these names \
               on port 443; nothing else is needed. To set it is to agree to the terms of Let's Encrypt, or of \
               ACME_DIRECTORY. The certificate is renewed by itself.",
    },
    Setting {
        env: "ACME_EMAIL",
        flag: "acme-email",
        value: "ADDRESS",
        heading: TLS,
        default: "none",
        help: "Whom the ACME server may write to",
        more: "Told when the account is made.",
    },
    Setting {
        env: "ACME_DIRECTORY",
        flag: "acme-directory",
        value: "URL",
        heading: TLS,
        default: "https://acme-v02.api.letsencrypt.org/directory",
        help: "The ACME server's directory",
        more: "Another server's, or that of Let's Encrypt for trials: \
               https://acme-staging-v02.api.letsencrypt.org/directory.",
    },
    Setting {
        env: "ACME_CA",
        flag: "acme-ca",
        value: "FILE",
        heading: TLS,
        default: "whom browsers trust",
        help: "Whom to trust when the ACME server is asked: a PEM file",
        more: "For an ACME server of your own, whose certificate browsers do not know.",
    },
    Setting {
        env: "ACME_CACHE",
        flag: "acme-cache",
        value: "FOLDER",
        heading: TLS,
        default: "beside the database, in a folder that ends in .acme",
        help: "Where the ACME account and the certificate are kept",
        more: "Its owner alone can read it. Keep it: Let's Encrypt issues the same certificate five times a week. With \
               MongoDB it has to be set.",
    },
    Setting {
        env: "HTTP_REDIRECT_ADDR",
        flag: "http-redirect-addr",
        value: "ADDR:PORT",
        heading: TLS,
        default: "none",
        help: "Where to listen for plain HTTP, which is sent to HTTPS",
        more: "Such as 0.0.0.0:80. Only hosts that the certificate is for are sent on, with path and query.",
    },
    Setting {
        env: "HTTP_REDIRECT_PORT",
        flag: "http-redirect-port",
        value: "PORT",
        heading: TLS,
        default: "that of LISTEN_ADDR; 443 with ACME_DOMAIN",
        help: "The port that clients use for HTTPS, for HTTP_REDIRECT_ADDR",
        more: "Set it where something before the server, such as a container's port mapping, gives it another port: 443.",
    },
    Setting {
        env: "HSTS_MAX_AGE",
        flag: "hsts-max-age",
        value: "DURATION",
        heading: TLS,
        default: "365d",
        help: "For how long browsers that saw the server over HTTPS use nothing else",
        more: "Sent as Strict-Transport-Security over TLS, and where a proxy of TRUSTED_PROXIES says X-Forwarded-Proto: \
               https. 0s has browsers forget it, for the way back to plain HTTP. Never sent for localhost.",
    },
    Setting {
        env: "JWT_SECRET",
        flag: "jwt-secret",
        value: "TEXT",
        heading: ACCOUNTS,
        default: "made at the first start",
        help: "What login tokens are signed with; at least 32 bytes",
        more: "Without it, a random secret is made at the first start and kept beside the database, in a file that ends \
               in .secret and that its owner alone can read. Prefer the environment to the flag: other users of the \
               machine can see flags. Another secret ends all logins. With MongoDB it has to be set, the same on every replica.",
    },
    Setting {
        env: "TOKEN_TTL",
        flag: "token-ttl",
        value: "DURATION",
        heading: ACCOUNTS,
        default: "24h",
        help: "How long a login lasts",
        more: "A duration such as 90s, 30m, 24h or 7d; at most 3650d.",
    },
    Setting {
        env: "BCRYPT_COST",
        flag: "bcrypt-cost",
        value: "NUMBER",
        heading: ACCOUNTS,
        default: "10",
        help: "How much work hashing a password is: 4 to 16",
        more: "Each step doubles the time of a login. 10 takes some 50 ms of one core. Existing passwords keep theirs.",
    },
    Setting {
        env: "TEACHER_SIGNUP",
        flag: "teacher-signup",
        value: "RULE",
        heading: ACCOUNTS,
        default: "open",
        help: "Who may sign up as a teacher: open, closed or code:SECRET",
        more: "open: anybody. closed: nobody, teachers are made with `rollcall user create`. \
               code:SECRET: who sends the secret as signupCode.",
    },
    Setting {
        env: "SESSION_MAX_AGE",
        flag: "session-max-age",
        value: "DURATION",
        heading: ACCOUNTS,
        default: "24h",
        help: "When an attendance session that nobody finished is finished",
        more: "As if its teacher had sent DONE. A duration such as 90m, 24h or 7d; at most 3650d.",
    },
    Setting {
        env: "SMTP_URL",
        flag: "smtp-url",
        value: "URL",
        heading: MAIL,
        default: "none: no mails are sent",
        help: "The mail server that takes mails, with user and password",
        more: "smtp://user:password@mail.school.example is STARTTLS on port 587, smtps:// is TLS from the start on port \
               465; without TLS nothing is sent. Characters such as @ in the user or the password are written %40. \
               smtp://localhost?tls=none is a mail server on this machine. Needs PUBLIC_URL. Prefer the environment to \
               the flag: other users of the machine can see flags.",
    },
    Setting {
        env: "SMTP_CA",
        flag: "smtp-ca",
        value: "FILE",
        heading: MAIL,
        default: "whom browsers trust",
        help: "Whom to trust beside them as the mail server: a PEM file",
        more: "For a mail server whose certificate browsers do not know.",
    },
    Setting {
        env: "MAIL_FROM",
        flag: "mail-from",
        value: "ADDRESS",
        heading: MAIL,
        default: "Rollcall <rollcall@ and the host of PUBLIC_URL>",
        help: "Who the mails are from",
        more: "An address that the mail server may send for: Rollcall <rollcall@school.example>.",
    },
    Setting {
        env: "PUBLIC_URL",
        flag: "public-url",
        value: "URL",
        heading: MAIL,
        default: "none",
        help: "Where people reach this server, for the links in mails",
        more: "https://rollcall.school.example, also with a path where a proxy adds one.",
    },
    Setting {
        env: "MAIL_TEMPLATES",
        flag: "mail-templates",
        value: "FOLDER",
        heading: MAIL,
        default: "the built-in ones",
        help: "A folder with the mails in your own words",
        more: "Files of the names that docs/mail.md lists take the place of the built-in ones; others stay. All are tried \
               at the start.",
    },
    Setting {
        env: "LOG_LEVEL",
        flag: "log-level",
        value: "LEVEL",
        heading: LOGS,
        default: "info",
        help: "What is logged: off, error, warn, info, debug or trace",
        more: "Or filters by part, separated by commas: info,rollcall_api=debug. Logs go to standard error. \
               Libraries never log below info, since their details could show tokens.",
    },
    Setting {
        env: "LOG_FORMAT",
        flag: "log-format",
        value: "text|json",
        heading: LOGS,
        default: "text",
        help: "How logs look",
        more: "json is one object a line.",
    },
    Setting {
        env: "METRICS_ADDR",
        flag: "metrics-addr",
        value: "ADDR:PORT",
        heading: LOGS,
        default: "on LISTEN_ADDR, for this machine alone",
        help: "Where /metrics is served, for Prometheus",
        more: "An address of its own, such as 127.0.0.1:9000. Whoever can reach it can read it.",
    },
    Setting {
        env: "OTEL_EXPORTER_OTLP_ENDPOINT",
        flag: "otel-exporter-otlp-endpoint",
        value: "URL",
        heading: TRACES,
        default: "none, and no traces",
        help: "Where the collector is that spans are sent to",
        more: "Such as http://localhost:4318: http:// or https://, to which /v1/traces is added. Without it the other \
               settings of this part mean nothing. A collector that is away or slow troubles nobody: spans that do not \
               fit any more are dropped and counted.",
    },
    Setting {
        env: "OTEL_EXPORTER_OTLP_PROTOCOL",
        flag: "otel-exporter-otlp-protocol",
        value: "http/protobuf",
        heading: TRACES,
        default: "http/protobuf",
        help: "What is spoken to the collector",
        more: "There is no other: this is here so that grpc, where it is set for all programs, is not taken for granted.",
    },
    Setting {
        env: "OTEL_EXPORTER_OTLP_HEADERS",
        flag: "otel-exporter-otlp-headers",
        value: "LIST",
        heading: TRACES,
        default: "none",
        help: "Headers for the collector, such as who asks",
        more: "name=value, separated by commas, values percent-encoded: authorization=Bearer%20secret. Prefer the \
               environment to the flag: other users of the machine can see flags.",
    },
    Setting {
        env: "OTEL_EXPORTER_OTLP_CERTIFICATE",
        flag: "otel-exporter-otlp-certificate",
        value: "FILE",
        heading: TRACES,
        default: "whom browsers trust",
        help: "Whom to trust when the collector is asked over https://: a PEM file",
        more: "For a collector of your own, whose certificate browsers do not know.",
    },
    Setting {
        env: "OTEL_SERVICE_NAME",
        flag: "otel-service-name",
        value: "NAME",
        heading: TRACES,
        default: "rollcall",
        help: "What the server is called in traces",
        more: "It is the attribute service.name of all spans.",
    },
    Setting {
        env: "OTEL_RESOURCE_ATTRIBUTES",
        flag: "otel-resource-attributes",
        value: "LIST",
        heading: TRACES,
        default: "none",
        help: "What else is known of the server in traces",
        more: "name=value, separated by commas, values percent-encoded: deployment.environment.name=school.",
    },
    Setting {
        env: "OTEL_TRACES_SAMPLER",
        flag: "otel-traces-sampler",
        value: "NAME",
        heading: TRACES,
        default: "parentbased_always_on",
        help: "Which traces are recorded",
        more: "always_on, always_off or traceidratio; or the same after parentbased_, where a trace that began elsewhere \
               (traceparent) is recorded if it is there. Anybody can send a traceparent: without parentbased_ it does \
               not count.",
    },
    Setting {
        env: "OTEL_TRACES_SAMPLER_ARG",
        flag: "otel-traces-sampler-arg",
        value: "NUMBER",
        heading: TRACES,
        default: "1.0",
        help: "For traceidratio: the part of all traces that is recorded",
        more: "From 0 to 1: 0.01 is one of a hundred.",
    },
];

/// Whether a setting has this name.
pub(crate) fn is_setting(env: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.env == env)
}

/// The flags of all settings.
pub(crate) fn args() -> impl Iterator<Item = Arg> {
    SETTINGS.iter().map(|setting| {
        let Setting { env, flag, value, heading, default, help, more } = setting;
        Arg::new(*env)
            .long(*flag)
            .value_name(*value)
            .help_heading(*heading)
            .help(format!("{help} [default: {default}]"))
            .long_help(format!("{help}\n\n{more}\n\n[env: {env}] [default: {default}]"))
            .global(true)
            .allow_hyphen_values(true)
    })
}

/// The settings given as flags.
#[derive(Default)]
pub(crate) struct Flags(BTreeMap<&'static str, String>);

impl Flags {
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let mut leaf = matches;
        while let Some((_, sub)) = leaf.subcommand() {
            leaf = sub;
        }
        let given = |setting: &Setting| Some((setting.env, leaf.get_one::<String>(setting.env)?.clone()));
        Self(SETTINGS.iter().filter_map(given).collect())
    }
}

/// Where a value was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment,
    DotEnv,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "given as a flag",
            Self::Environment => "from the environment",
            Self::DotEnv => "from .env",
        })
    }
}

/// A value as it was given. There is no `Debug`: it may be a secret.
pub(crate) struct Given {
    pub(crate) text: OsString,
    pub(crate) source: Source,
}

/// The settings from everywhere.
pub(crate) struct Settings(BTreeMap<&'static str, Given>);

impl Settings {
    /// Joins what was given: a flag wins over the environment, the environment over `.env`. Empty is unset, except
    /// for a flag, which nobody gives by accident.
    pub(crate) fn layered(
        mut flags: Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        dot_env: &BTreeMap<String, String>,
    ) -> Self {
        let find = |setting: &Setting| {
            let env = setting.env;
            let not_empty = |text: &OsString| !text.is_empty();
            let given = if let Some(text) = flags.0.remove(env) {
                Given { text: text.into(), source: Source::Flag }
            } else if let Some(text) = environment(env).filter(not_empty) {
                Given { text, source: Source::Environment }
            } else {
                let text = dot_env.get(env).map(OsString::from).filter(not_empty)?;
                Given { text, source: Source::DotEnv }
            };
            Some((env, given))
        };
        Self(SETTINGS.iter().filter_map(find).collect())
    }

    /// The settings of this process: `flags`, its environment, and `.env` in its current folder.
    pub(crate) fn of_process(flags: Flags) -> anyhow::Result<Self> {
        Ok(Self::layered(flags, |name| std::env::var_os(name), &read_dot_env(Path::new(".env"))?))
    }

    pub(crate) fn get(&self, env: &str) -> Option<&Given> {
        debug_assert!(is_setting(env), "{env} is in no help");
        self.0.get(env)
    }
}

/// Reads a `.env` file, if there is one. What an error shows of the file is at most a name: values may be secrets.
fn read_dot_env(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let lines = match dotenvy::from_path_iter(path) {
        Ok(lines) => lines,
        Err(error) if error.not_found() => return Ok(values),
        Err(error) => anyhow::bail!("{} cannot be read: {}", path.display(), without_line(&error)),
    };
    for line in lines {
        match line {
            // The first of several wins, as it does where `.env` is loaded into an environment.
            Ok((name, value)) => drop(values.entry(name).or_insert(value)),
            Err(error) => anyhow::bail!("{} cannot be read: {}", path.display(), without_line(&error)),
        }
    }
    Ok(values)
}

fn without_line(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::Io(error) => error.to_string(),
        dotenvy::Error::LineParse(line, _) => {
            let name = line.split('=').next().unwrap_or_default().trim();
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if is_name && line.contains('=') {
                format!(
                    "the value of {name} is not quoted as it should be. Put values with spaces, #, $ or quotes in 'single quotes'"
                )
            } else {
                "a line is not of the form NAME=value".to_owned()
            }
        }
        _ => "it is not of the form NAME=value".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(settings: &Settings, name: &str) -> Option<(String, Source)> {
        settings.get(name).map(|given| (given.text.to_string_lossy().into_owned(), given.source))
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let flags = Flags(BTreeMap::from([("DB_URL", "flag".to_owned()), ("LOG_LEVEL", String::new())]));
        let environment = |name: &str| match name {
            "DB_URL" | "LISTEN_ADDR" => Some("environment".into()),
            "TOKEN_TTL" => Some(OsString::new()),
            _ => None,
        };
        let file = ["DB_URL", "LISTEN_ADDR", "TOKEN_TTL", "RATE_LIMIT", "LOG_LEVEL"];
        let mut file: BTreeMap<_, _> = file.map(|name| (name.to_owned(), "file".to_owned())).into();
        file.insert("BCRYPT_COST".to_owned(), String::new());
        let settings = Settings::layered(flags, environment, &file);
        assert_eq!(text(&settings, "DB_URL"), Some(("flag".to_owned(), Source::Flag)));
        assert_eq!(text(&settings, "LISTEN_ADDR"), Some(("environment".to_owned(), Source::Environment)));
        assert_eq!(text(&settings, "TOKEN_TTL"), Some(("file".to_owned(), Source::DotEnv)), "empty is unset");
        assert_eq!(text(&settings, "RATE_LIMIT"), Some(("file".to_owned(), Source::DotEnv)));
        assert_eq!(text(&settings, "LOG_LEVEL"), Some((String::new(), Source::Flag)));
        assert_eq!(text(&settings, "BCRYPT_COST"), None, "empty is unset in the file too");
        assert_eq!(text(&settings, "JWT_SECRET"), None);
    }

    #[test]
    fn a_broken_file_is_refused_without_its_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        assert!(read_dot_env(&path).unwrap().is_empty(), "no file is no mistake");

        std::fs::write(&path, "# comment\nTOKEN_TTL=1h\nexport JWT_SECRET='a $b #c'\nTOKEN_TTL=2h\n").unwrap();
        let values = read_dot_env(&path).unwrap();
        assert_eq!(values["JWT_SECRET"], "a $b #c");
        assert_eq!(values["TOKEN_TTL"], "1h");

        for broken in
            ["JWT_SECRET='hunter2hunter2", "JWT_SECRET=hunter2 hunter2", "hunter2", "=hunter2", "JWT_SECRET hunter2"]
        {
            std::fs::write(&path, broken).unwrap();
            let error = read_dot_env(&path).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(read_dot_env(&path).unwrap_err().to_string().contains(".env cannot be read"));
    }
}
