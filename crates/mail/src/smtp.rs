//! A connection to the mail server (RFC 5321), as far as a sender needs one.
//!
//! Each step has its time limit, and a failure says what it means: for this mail, for all, or that nobody knows whether
//! the mail was accepted. What the server says about a mail is not told, since it names the reader; its codes are.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::config::{Credentials, Limits, Security, SmtpUrl};
use crate::letter::Message;

/// The most bytes of an answer that are read. Real ones have a few hundred.
const MAX_REPLY: u64 = 64 << 10;

/// Why a mail was not sent, or may not have been.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The mail server was not reached, or went away, before it could have accepted the mail.
    Away(String),
    /// The mail server takes nothing from this sender: its certificate, the password or its settings are not right.
    Setup(String),
    /// The mail server said no to this mail.
    Refused(Refusal),
    /// The mail's end was sent, and no answer came.
    Unknown(String),
}

/// What the mail server said no to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The command, or `message` for what follows DATA.
    pub at: &'static str,
    /// The three digits, and the three numbers of RFC 3463 if there were any.
    pub code: String,
    /// Whether it would say the same tomorrow.
    pub permanent: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) | Self::Setup(why) => f.write_str(why),
            Self::Refused(Refusal { at, code, .. }) => write!(f, "the mail server answered {code} to {at}"),
            Self::Unknown(why) => write!(f, "{why} after the message was sent"),
        }
    }
}

/// A mail server, and all that is needed to connect to it.
pub(crate) struct Server {
    pub url: SmtpUrl,
    pub tls: Arc<ClientConfig>,
    /// What this end calls itself.
    pub hello: String,
    pub limits: Limits,
}

trait Wire: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Wire for T {}

/// A connection over which mails can be sent, one after the other.
pub(crate) struct Connection {
    wire: BufReader<Box<dyn Wire>>,
    limits: Limits,
    /// What the server offers, in capitals, by lines.
    offers: Vec<String>,
    /// Whether the server took the MAIL of the mail that was sent last: what failed then may be about that mail alone.
    pub under_way: bool,
    /// Whether a mail was sent over it, so that the server may have tired of it since.
    pub used: bool,
    /// When it was last used.
    pub since: Instant,
}

struct Reply {
    code: u16,
    lines: Vec<String>,
}

impl Reply {
    /// The code as it is logged.
    fn shown(&self) -> String {
        let numbers = self.lines.first().and_then(|line| line.split_whitespace().next()).unwrap_or_default();
        let is_enhanced = numbers.len() <= 9
            && numbers.split('.').count() == 3
            && numbers.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
        if is_enhanced { format!("{} {numbers}", self.code) } else { self.code.to_string() }
    }

    /// What a negative answer to `at` means.
    fn failure(&self, at: &'static str) -> Failure {
        // Policies answer by any code there, and mean one reader.
        let of_one = matches!(at, "RCPT" | "message");
        let of_setup = matches!(self.code, 454 | 530 | 534 | 535 | 538);
        match self.code {
            // It closes the connection, or cannot do what any mail needs now.
            421 => Failure::Away(format!("the mail server answered {} to {at}", self.shown())),
            // Authentication and encryption: the same for every mail.
            _ if of_setup && !of_one => Failure::Setup(format!("the mail server answered {} to {at}", self.shown())),
            // A mail that is refused for want of a password can be sent when there is one.
            400..=599 => Failure::Refused(Refusal { at, code: self.shown(), permanent: self.code >= 500 && !of_setup }),
            _ => Failure::Away(format!("the mail server answered {} to {at}, which makes no sense", self.code)),
        }
    }
}

impl Server {
    /// Connects, and is let in.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let Self { url: SmtpUrl { security, host, port, credentials }, limits, .. } = self;
        let away = |error: io::Error| Failure::Away(format!("{host}:{port} cannot be reached: {error}"));
        let tcp = within(limits.command, TcpStream::connect((host.as_str(), *port))).await.map_err(away)?;
        tcp.set_nodelay(true).map_err(away)?;
        let wire: Box<dyn Wire> = match security {
            Security::Implicit => self.encrypt(tcp).await?,
            Security::StartTls => {
                let mut open = Connection::new(Box::new(tcp), *limits);
                open.greet(&self.hello).await?;
                if !open.offers("STARTTLS") {
                    return Err(Failure::Setup(format!("{host}:{port} offers no STARTTLS, so that nothing is sent")));
                }
                open.command("STARTTLS", "STARTTLS", 220).await.map_err(for_all)?;
                // What came before TLS is not the server's for sure, and must not be taken for what comes in it.
                if !open.wire.buffer().is_empty() {
                    return Err(Failure::Setup(format!("{host}:{port} sent more than an answer before TLS")));
                }
                self.encrypt(open.wire.into_inner()).await?
            }
            Security::Plain => Box::new(tcp),
        };
        let mut connection = Connection::new(wire, *limits);
        if *security == Security::StartTls {
            connection.hello(&self.hello).await?;
        } else {
            connection.greet(&self.hello).await?;
        }
        if let Some(credentials) = credentials {
            connection.authenticate(credentials).await.map_err(for_all)?;
        }
        Ok(connection)
    }

    async fn encrypt(&self, wire: impl Wire + 'static) -> Result<Box<dyn Wire>, Failure> {
        let SmtpUrl { host, port, .. } = &self.url;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| Failure::Setup(format!("{host} is no name that a certificate could have")))?;
        let connected =
            within(self.limits.command, TlsConnector::from(Arc::clone(&self.tls)).connect(name, wire)).await;
        let wire = connected.map_err(|error| {
            let text = format!("no TLS with {host}:{port}: {error}");
            // So the library marks what was wrong with the server's side of TLS, its certificate above all.
            if error.kind() == io::ErrorKind::InvalidData { Failure::Setup(text) } else { Failure::Away(text) }
        })?;
        Ok(Box::new(wire))
    }
}

/// What is refused before there is a mail is refused to all of them.
fn for_all(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(_) => Failure::Setup(failure.to_string()),
        other => other,
    }
}

async fn within<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {limit:?}"));
    timeout(limit, step).await.map_err(late)?
}

impl Connection {
    fn new(wire: Box<dyn Wire>, limits: Limits) -> Self {
        let wire = BufReader::new(wire);
        Self { wire, limits, offers: Vec::new(), under_way: false, used: false, since: Instant::now() }
    }

    /// Waits for the server's greeting and answers it.
    async fn greet(&mut self, name: &str) -> Result<(), Failure> {
        let reply = self.reply(self.limits.command).await.map_err(|error| away("the greeting", &error))?;
        if reply.code != 220 {
            return Err(for_all(reply.failure("the connection")));
        }
        self.hello(name).await
    }

    async fn hello(&mut self, name: &str) -> Result<(), Failure> {
        let reply = self.command("EHLO", &format!("EHLO {name}"), 250).await.map_err(for_all)?;
        self.offers = reply.lines.iter().skip(1).map(|line| line.to_ascii_uppercase()).collect();
        Ok(())
    }

    fn offers(&self, extension: &str) -> bool {
        self.offers.iter().any(|line| line.split_whitespace().next() == Some(extension))
    }

    async fn authenticate(&mut self, Credentials { user, password }: &Credentials) -> Result<(), Failure> {
        let mechanisms = self.offers.iter().find_map(|line| line.strip_prefix("AUTH ")).unwrap_or_default();
        let has = |wanted| mechanisms.split_whitespace().any(|mechanism| mechanism == wanted);
        if has("PLAIN") {
            let secret: SecretString = format!("\0{user}\0{}", password.expose_secret()).into();
            let secret: SecretString = STANDARD.encode(secret.expose_secret()).into();
            self.command("AUTH", &format!("AUTH PLAIN {}", secret.expose_secret()), 235).await?;
        } else if has("LOGIN") {
            self.command("AUTH", "AUTH LOGIN", 334).await?;
            self.command("AUTH", &STANDARD.encode(user), 334).await?;
            self.command("AUTH", &STANDARD.encode(password.expose_secret()), 235).await?;
        } else {
            return Err(Failure::Setup("the mail server offers neither AUTH PLAIN nor LOGIN".to_owned()));
        }
        Ok(())
    }

    /// Sends a mail; `begun` is called as soon as the server took its MAIL. After a [refusal](Failure::Refused) the
    /// connection is good for the next one, after any other failure for nothing.
    pub(crate) async fn send(&mut self, message: &Message, begun: impl FnOnce() + Send) -> Result<(), Failure> {
        self.under_way = false;
        let mut parameters = "";
        if !message.to.is_ascii() {
            if !self.offers("SMTPUTF8") {
                // No mail server on the way has to know better than the first.
                let code = "no SMTPUTF8".to_owned();
                return Err(Failure::Refused(Refusal { at: "RCPT", code, permanent: true }));
            }
            parameters = " BODY=8BITMIME SMTPUTF8";
        }
        let outcome = self.transfer(message, parameters, begun).await;
        self.used = true;
        self.since = Instant::now();
        if matches!(outcome, Err(Failure::Refused(_))) {
            self.command("RSET", "RSET", 250).await.ok();
        }
        outcome
    }

    async fn transfer(
        &mut self,
        Message { from, to, bytes, .. }: &Message,
        parameters: &str,
        begun: impl FnOnce() + Send,
    ) -> Result<(), Failure> {
        self.command("MAIL", &format!("MAIL FROM:<{from}>{parameters}"), 250).await?;
        self.under_way = true;
        begun();
        self.command("RCPT", &format!("RCPT TO:<{to}>"), 250).await?;
        self.command("DATA", "DATA", 354).await?;
        self.write(&dotted(bytes)).await.map_err(|error| away("the message", &error))?;
        // From here on the server may have the mail, whatever happens.
        let unknown = |error: io::Error| Failure::Unknown(error.to_string());
        self.write(b".\r\n").await.map_err(unknown)?;
        let reply = self.reply(self.limits.acceptance).await.map_err(unknown)?;
        if reply.code == 250 { Ok(()) } else { Err(reply.failure("message")) }
    }

    /// Says that no more will come.
    pub(crate) async fn quit(mut self) {
        self.limits.command = Duration::from_secs(1);
        // That the mails were accepted is known already.
        let _ = self.command("QUIT", "QUIT", 221).await;
        let _ = within(self.limits.command, self.wire.get_mut().shutdown()).await;
    }

    async fn command(&mut self, at: &'static str, line: &str, expected: u16) -> Result<Reply, Failure> {
        let away = |error: io::Error| away(at, &error);
        self.write(format!("{line}\r\n").as_bytes()).await.map_err(away)?;
        let reply = self.reply(self.limits.command).await.map_err(away)?;
        // 251 and 252: the server takes the mail, and has something to say of the address.
        let good = reply.code == expected || (at == "RCPT" && matches!(reply.code, 251 | 252));
        if good { Ok(reply) } else { Err(reply.failure(at)) }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let limit = self.limits.command;
        let wire = self.wire.get_mut();
        let write = async {
            wire.write_all(bytes).await?;
            wire.flush().await
        };
        within(limit, write).await
    }

    async fn reply(&mut self, limit: Duration) -> io::Result<Reply> {
        let wire = &mut self.wire;
        let read = async {
            let mut wire = wire.take(MAX_REPLY);
            let mut lines = Vec::new();
            let mut line = Vec::new();
            loop {
                line.clear();
                wire.read_until(b'\n', &mut line).await?;
                let Some(whole) = line.strip_suffix(b"\n") else {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
                };
                let text = String::from_utf8_lossy(whole.strip_suffix(b"\r").unwrap_or(whole));
                let code = text.get(..3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
                let code = code.and_then(|digits| digits.parse().ok());
                let (Some(code), more) = (code, text.as_bytes().get(3).copied()) else {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "that is no mail server's answer"));
                };
                lines.push(text.get(4..).unwrap_or_default().to_owned());
                if more != Some(b'-') {
                    return Ok(Reply { code, lines });
                }
            }
        };
        within(limit, read).await
    }
}

fn away(at: &str, error: &io::Error) -> Failure {
    Failure::Away(format!("the mail server went away at {at}: {error}"))
}

/// The message with a dot before each line that begins with one: a dot alone is the message's end.
fn dotted(message: &[u8]) -> Vec<u8> {
    let mut dotted = Vec::with_capacity(message.len() + 64);
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            dotted.push(b'.');
        }
        dotted.extend_from_slice(line);
    }
    if !dotted.ends_with(b"\r\n") {
        dotted.extend_from_slice(b"\r\n");
    }
    dotted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_doubled_where_lines_begin() {
        assert_eq!(dotted(b"a.\r\n.\r\n..b\r\n"), b"a.\r\n..\r\n...b\r\n");
        assert_eq!(dotted(b".a"), b"..a\r\n");
        assert_eq!(dotted(b""), b"\r\n");
    }

    #[test]
    fn answers_say_whom_they_concern() {
        let answered = |at, code, line: &str| Reply { code, lines: vec![line.to_owned()] }.failure(at);
        let failure = |code, line: &str| answered("RCPT", code, line);
        let refusal = |code: &str, permanent| Refusal { at: "RCPT", code: code.to_owned(), permanent };
        for (code, line, expected) in [
            (550, "5.1.1 <a@b.c> who?", refusal("550 5.1.1", true)),
            (550, "a@b.c? No.", refusal("550", true)),
            (451, "4.7.1 later", refusal("451 4.7.1", false)),
            (552, "1.2.3.4 5", refusal("552", true)),
            // So does Postfix answer for one domain alone.
            (454, "4.7.1 <a@b.c>: Relay access denied", refusal("454 4.7.1", false)),
            (530, "5.7.0 who are you?", refusal("530 5.7.0", false)),
        ] {
            assert!(matches!(failure(code, line), Failure::Refused(it) if it == expected), "{code} {line}");
        }
        for code in [454, 530, 534, 535, 538] {
            for at in ["AUTH", "STARTTLS", "EHLO", "MAIL"] {
                assert!(matches!(answered(at, code, ""), Failure::Setup(_)), "{code} to {at}");
            }
            for at in ["RCPT", "message"] {
                assert!(matches!(answered(at, code, ""), Failure::Refused(it) if !it.permanent), "{code} to {at}");
            }
        }
        for code in [421, 220, 999] {
            assert!(matches!(failure(code, ""), Failure::Away(_)), "{code}");
        }
    }

    /// What a server that says `answers`, whatever it hears, makes of a message.
    async fn told(answers: &str) -> Result<(), Failure> {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(answers.as_bytes()).await.unwrap();
        let mut connection = Connection::new(Box::new(near), Limits::default());
        let message = Message { from: "a@b.c".into(), to: "d@e.f".into(), bytes: b"Subject: x\r\n\r\ny\r\n".to_vec() };
        far.shutdown().await.unwrap();
        connection.greet("school.example").await?;
        connection.send(&message, || ()).await
    }

    #[tokio::test]
    async fn the_end_of_the_message_divides_no_from_perhaps() {
        let start = "220-hello\r\n220 you\r\n250-me\r\n250 PIPELINING\r\n";
        let to = async |answers: &str| told(&format!("{start}{answers}")).await;
        assert!(matches!(to("250 a\r\n251 b\r\n354 c\r\n250 d\r\n").await, Ok(())));
        for early in ["", "250 a\r\n", "250 a\r\n250 b\r\n", "250 a\r\n250 b\r\n3", "250 a\r\nthat is all\r\n"] {
            assert!(matches!(to(early).await, Err(Failure::Away(_))), "{early:?}");
        }
        for late in ["", "2", "250", "250-more\r\n", "nonsense\r\n"] {
            let answers = format!("250 a\r\n250 b\r\n354 c\r\n{late}");
            assert!(matches!(to(&answers).await, Err(Failure::Unknown(_))), "{late:?}");
        }
        assert!(matches!(to("250 a\r\n550 b\r\n250 reset\r\n").await, Err(Failure::Refused(_))));
        assert!(matches!(told("220 hi\r\n502 no\r\n").await, Err(Failure::Setup(_))));
        assert!(matches!(told("554 go away\r\n").await, Err(Failure::Setup(_))));
        assert!(matches!(told(&format!("220 {}", "x".repeat(100_000))).await, Err(Failure::Away(_))));
    }

    /// What somebody on the way slips in before TLS would be read as the server's answers within it.
    #[tokio::test]
    async fn answers_from_before_tls_are_not_read_in_it() {
        let listening = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listening.local_addr().unwrap().port();
        let server = Server {
            url: SmtpUrl::parse(&format!("smtp://user:password@127.0.0.1:{port}")).unwrap(),
            tls: crate::tls::client(None).unwrap(),
            hello: "school.example".to_owned(),
            limits: Limits::default(),
        };
        let slip_in = async {
            let (mut stream, _) = listening.accept().await.unwrap();
            stream.write_all(b"220 hello\r\n250-me\r\n250 STARTTLS\r\n220 go on\r\n250 AUTH PLAIN\r\n").await.unwrap();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).await.unwrap();
            heard
        };
        let (outcome, heard) = tokio::join!(server.connect(), slip_in);
        let failure = outcome.err().expect("a failure");
        assert!(matches!(&failure, Failure::Setup(why) if why.contains("more than an answer")), "{failure}");
        assert_eq!(heard, "EHLO school.example\r\nSTARTTLS\r\n");
    }
}
