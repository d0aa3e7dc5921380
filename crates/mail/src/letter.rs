//! What mails say: templates, and the messages that are made with them.
//!
//! `templates/{kind}.txt` begins with `Subject: …` and an empty line; `templates/{kind}.html` says the same, within
//! `layout.html`. They are given:
//!
//! * `url`: where Rollcall is; `site`: the same without `https://`; `sender`: the name that mails are from.
//! * `name`: the reader's. It is not used in mails to addresses that nobody has confirmed, their `To:` included: whoever
//!   signed up chose it, and could send a stranger any text in it.
//! * `link` and `until`: what to open, and until when it is good (`confirm-email`, `reset-password`).
//! * `class`, `started`, `unsubscribe`: the class, when its session began, and what to open against more of these
//!   (`absence`).
//!
//! To add a kind: its templates in [`BUILT_IN`], what they are given in [`Letters::values`], and a sample.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use lettre::Address;
use lettre::address::Envelope;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use minijinja::{Environment, UndefinedBehavior, Value, context};
use rollcall_core::Timestamp;
use rollcall_core::class::ClassName;
use rollcall_core::id::{MailId, ObjectId};
use rollcall_core::mail::Kind;
use rollcall_core::service::{Letter, Subject};
use rollcall_core::user::{Email, PersonName};
use secrecy::ExposeSecret;

use crate::config::{Originator, PublicUrl};

const LAYOUT: &str = "layout.html";
const BUILT_IN: [(&str, &str); 7] = [
    (LAYOUT, include_str!("../templates/layout.html")),
    ("confirm-email.txt", include_str!("../templates/confirm-email.txt")),
    ("confirm-email.html", include_str!("../templates/confirm-email.html")),
    ("reset-password.txt", include_str!("../templates/reset-password.txt")),
    ("reset-password.html", include_str!("../templates/reset-password.html")),
    ("absence.txt", include_str!("../templates/absence.txt")),
    ("absence.html", include_str!("../templates/absence.html")),
];

/// A message as it is sent. There is no `Debug`: it holds a token.
pub(crate) struct Message {
    /// The sender's address.
    pub from: String,
    /// The reader's address. It may have letters that are not ASCII before its `@`.
    pub to: String,
    /// The message, with CRLF at the end of each line.
    pub bytes: Vec<u8>,
}

/// Writes letters.
pub(crate) struct Letters {
    templates: Environment<'static>,
    from: Originator,
    url: PublicUrl,
}

impl Letters {
    /// Reads the templates in `folder`, which take the place of the built-in ones, and tries all of them.
    pub(crate) fn new(from: Originator, url: PublicUrl, folder: Option<&Path>) -> anyhow::Result<Self> {
        let mut templates = Environment::new();
        // What is escaped goes by a name's end: `.html`. A value that is misspelt is found at the start, not in a mail.
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, text) in BUILT_IN {
            templates.add_template(name, text).with_context(|| format!("the built-in template {name}"))?;
        }
        if let Some(folder) = folder {
            for (name, text) in own(folder)? {
                templates
                    .add_template_owned(name, text)
                    .with_context(|| format!("templates in {}", folder.display()))?;
            }
        }
        let letters = Self { templates, from, url };
        for letter in samples() {
            letters
                .write(MailId(ObjectId::from_bytes([7; 12])), Timestamp::from_millis(1_700_000_000_000), &letter)
                .context("a mail cannot be written")?;
        }
        Ok(letters)
    }

    /// The letter as a message: the same one each time, so that whoever gets it twice can tell.
    pub(crate) fn write(&self, id: MailId, queued_at: Timestamp, letter: &Letter) -> anyhow::Result<Message> {
        let kind = kind(&letter.subject).as_str();
        let values = self.values(letter);
        let text = self.render(&format!("{kind}.txt"), &values)?;
        let html = self.render(&format!("{kind}.html"), &values)?;
        let (subject, text) =
            split(&text).with_context(|| format!("{kind}.txt must begin with a line `Subject: …`"))?;

        let to = address(&letter.email)?;
        let confirmed = matches!(letter.subject, Subject::Absence { .. });
        let name = confirmed.then(|| one_line(letter.name.as_str()));
        let host = self.url.mail_host();
        // When it was queued, as RFC 5322 has it: not when it happened to get through.
        let queued_at = Duration::from_millis(queued_at.millis().try_into().unwrap_or_default());
        let mut message = lettre::Message::builder()
            .message_id(Some(format!("<{id}@{host}>")))
            .date(SystemTime::UNIX_EPOCH + queued_at)
            .from(self.from.0.clone())
            .to(Mailbox::new(name, to.clone()))
            // Else it is read back from the headers, which fails for addresses such as "a,b"@school.example.
            .envelope(Envelope::new(Some(self.from.0.email.clone()), vec![to.clone()])?)
            .subject(subject)
            // No "out of office" in return (RFC 3834).
            .raw_header(header("Auto-Submitted", "auto-generated".to_owned()));
        if let Subject::Absence { unsubscribe, .. } = &letter.subject {
            // The button of mail programs (RFC 8058).
            let link = format!("<{}>", self.unsubscribe(unsubscribe.expose_secret()));
            message = message
                .raw_header(header("List-Unsubscribe", link))
                .raw_header(header("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned()));
        }
        let parts = MultiPart::alternative().boundary(format!("=_{id}"));
        let parts = parts.singlepart(SinglePart::plain(text)).singlepart(SinglePart::html(html));
        let message = message.multipart(parts)?;
        Ok(Message { from: self.from.0.email.to_string(), to: to.to_string(), bytes: message.formatted() })
    }

    fn render(&self, name: &str, values: &Value) -> anyhow::Result<String> {
        let rendered = self.templates.get_template(name).and_then(|template| template.render(values));
        // The error's own text may quote what it was given; its kind and line say enough.
        rendered.map_err(|error| {
            let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
            anyhow::anyhow!("{}{line}: {}", error.name().unwrap_or(name), error.kind())
        })
    }

    fn values(&self, Letter { name, subject, .. }: &Letter) -> Value {
        let sender = self.from.0.name.clone().unwrap_or_else(|| self.url.shown().to_owned());
        let (url, site) = (self.url.as_str(), self.url.shown());
        let all = context! { url, site, sender, name => one_line(name.as_str()) };
        // What stands behind # stays with the browser: no log of a server on the way has it.
        let own = match subject {
            Subject::ConfirmEmail { token, expires_at } => {
                let link = format!("{url}/email/confirm#{}", token.expose_secret());
                context! { link, until => moment(*expires_at) }
            }
            Subject::ResetPassword { token, expires_at } => {
                let link = format!("{url}/password/reset#{}", token.expose_secret());
                context! { link, until => moment(*expires_at) }
            }
            Subject::Absence { class, started_at, unsubscribe } => context! {
                class => one_line(class.as_str()),
                started => moment(*started_at),
                unsubscribe => self.unsubscribe(unsubscribe.expose_secret()),
            },
        };
        context! { ..own, ..all }
    }

    fn unsubscribe(&self, token: &str) -> String {
        format!("{}/unsubscribe/{token}", self.url.as_str())
    }
}

/// The templates of an operator, by name.
fn own(folder: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let unreadable = || format!("{} cannot be read", folder.display());
    let mut templates = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let is_template = path.extension().is_some_and(|extension| extension == "txt" || extension == "html");
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| is_template) else { continue };
        let known = BUILT_IN.map(|(name, _)| name);
        ensure!(known.contains(&name), "{} has a name that no template has: {}", path.display(), known.join(", "));
        let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        templates.push((name.to_owned(), text));
    }
    Ok(templates)
}

const fn kind(subject: &Subject) -> Kind {
    match subject {
        Subject::ConfirmEmail { .. } => Kind::ConfirmEmail,
        Subject::ResetPassword { .. } => Kind::ResetPassword,
        Subject::Absence { .. } => Kind::Absence,
    }
}

/// The subject and the text of a rendered `.txt`.
fn split(rendered: &str) -> Option<(String, String)> {
    let (first, text) = rendered.split_once('\n')?;
    let subject = one_line(first.strip_prefix("Subject:")?);
    (!subject.is_empty()).then(|| (subject, text.trim_start().to_owned()))
}

/// The text without what could end a line: names from older databases may hold anything.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    text.trim().to_owned()
}

/// The address as it is sent: its domain in ASCII, which every mail server takes.
fn address(email: &Email) -> anyhow::Result<Address> {
    let Some((user, domain)) = email.as_str().rsplit_once('@') else { bail!("that is no address") };
    let domain = idna::domain_to_ascii(domain).ok().context("the address has no domain that could be looked up")?;
    Address::new(user, domain).context("that is no address")
}

fn header(name: &'static str, value: String) -> HeaderValue {
    // As it is: mail programs look for these very bytes, and there is nothing in them that would have to be encoded.
    HeaderValue::dangerous_new_pre_encoded(HeaderName::new_from_ascii_str(name), value.clone(), value)
}

/// A moment for people. Nobody knows where they are.
fn moment(moment: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(moment.millis()) {
        Ok(known) => known.strftime("%-d %B %Y, %H:%M UTC").to_string(),
        Err(_) => moment.to_string(),
    }
}

/// One of each, to try templates with.
fn samples() -> [Letter; 3] {
    let expires_at = Timestamp::from_millis(1_700_000_000_000);
    let letter = |subject| Letter {
        name: PersonName::stored("Ada \"<b>\" Lovelace, née Çelik"),
        email: Email::stored("ada@school.example"),
        subject,
    };
    [
        letter(Subject::ConfirmEmail { token: "sample".into(), expires_at }),
        letter(Subject::ResetPassword { token: "sample".into(), expires_at }),
        letter(Subject::Absence {
            class: ClassName::stored("Maths & <Physics>, 日本"),
            started_at: expires_at,
            unsubscribe: "sample".into(),
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(folder: Option<&Path>) -> anyhow::Result<Letters> {
        let from = Originator::parse("Rollcall <rollcall@school.example>")?;
        Letters::new(from, PublicUrl::parse("https://school.example/rollcall/")?, folder)
    }

    fn written(letter: &Letter) -> String {
        let id = MailId::named("6553f1000102030405ffffff");
        let message = letters(None).unwrap().write(id, Timestamp::from_millis(1_700_000_000_120), letter).unwrap();
        String::from_utf8(message.bytes).unwrap()
    }

    #[test]
    fn a_message_is_the_same_each_time_and_has_its_headers() {
        let [confirm, reset, absence] = samples();
        assert_eq!(written(&absence), written(&absence));
        for wanted in [
            "Message-ID: <6553f1000102030405ffffff@school.example>\r\n",
            "Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n",
            "From: Rollcall <rollcall@school.example>\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "List-Unsubscribe: <https://school.example/rollcall/unsubscribe/sample>\r\n",
            "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n",
        ] {
            assert!(written(&absence).contains(wanted), "{wanted}");
        }
        for letter in [confirm, reset] {
            assert!(!written(&letter).contains("List-Unsubscribe"));
        }
    }

    #[test]
    fn what_an_older_database_holds_makes_no_header() {
        let [_, _, mut absence] = samples();
        absence.name = PersonName::stored("Eve\r\nBcc: all@school.example\r\n\r\n");
        let Subject::Absence { class, .. } = &mut absence.subject else { panic!("an absence") };
        *class = ClassName::stored("x\r\nBcc: all@school.example");
        assert!(!written(&absence).contains("\nBcc:"));
    }

    #[test]
    fn only_confirmed_addresses_are_sent_a_name() {
        let [confirm, reset, mut absence] = samples();
        for letter in [confirm, reset] {
            let message = written(&letter);
            assert!(message.contains("\r\nTo: ada@school.example\r\n"), "{message}");
        }
        absence.name = PersonName::stored("Ada");
        assert!(written(&absence).contains("\r\nTo: Ada <ada@school.example>\r\n"), "{}", written(&absence));
    }

    #[test]
    fn whoever_can_sign_up_can_be_written_to() {
        let letters = letters(None).unwrap();
        for mut letter in samples() {
            for email in [r#""vic>tim"@school.example"#, r#""a,b"@school.example"#, r#""a\"b<"@school.example"#] {
                letter.email = Email::parse(email).unwrap();
                let id = MailId::named("6553f1000102030405ffffff");
                let message = letters.write(id, Timestamp::from_millis(1_700_000_000_120), &letter).unwrap();
                assert_eq!(message.to, email);
                let text = String::from_utf8(message.bytes).unwrap();
                let to = text.lines().skip_while(|line| !line.starts_with("To: ")).take(2).collect::<String>();
                assert!(to.contains(email), "{text}");
            }
        }
    }

    #[test]
    fn names_are_no_html() {
        let [_, _, absence] = samples();
        let letters = letters(None).unwrap();
        let html = letters.render("absence.html", &letters.values(&absence)).unwrap();
        assert!(html.contains("Hello Ada &quot;&lt;b&gt;&quot; Lovelace, née Çelik,"), "{html}");
        assert!(html.contains("“<strong>Maths &amp; &lt;Physics&gt;, 日本</strong>”"), "{html}");
    }

    #[test]
    fn addresses_have_domains_in_ascii() {
        let to = |text: &str| address(&Email::stored(text)).map(|it| it.to_string());
        assert_eq!(to("a@Schüle.example").unwrap(), "a@xn--schle-mva.example");
        assert_eq!(to("jürgen@school.example").unwrap(), "jürgen@school.example");
        for bad in ["a", "a@", "a b@c.d", "a@b.c>\r\nRSET", "a@b.c\r\nRSET", "\"a\r\nRSET\"@b.c"] {
            assert!(to(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn templates_of_an_operator_are_used_and_tried() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("absence.txt", "Subject: {{ class }}: fehlt\n\nHallo {{ name }}! {{ unsubscribe }}\n");
        write("README", "not a template");
        let [_, _, absence] = samples();
        let values = letters(Some(folder.path())).unwrap().values(&absence);
        let own = letters(Some(folder.path())).unwrap().render("absence.txt", &values).unwrap();
        assert!(own.starts_with("Subject: Maths & <Physics>, 日本: fehlt\n\nHallo Ada"), "{own}");

        for (text, expected) in [
            ("Subject: {{ clas }}\n\nx", "absence.txt, line 1: undefined value"),
            ("Subject: {{ class }\n\nx", "syntax error"),
            ("Hello\n\nx", "must begin with a line `Subject: …`"),
        ] {
            write("absence.txt", text);
            let error = format!("{:#}", letters(Some(folder.path())).err().expect(text));
            assert!(error.contains(expected), "{error}");
        }
        write("absence.txt", "Subject: x\n\nx");
        write("abscence.html", "x");
        let error = format!("{:#}", letters(Some(folder.path())).err().expect("a misspelt name"));
        assert!(error.contains("abscence.html has a name that no template has"), "{error}");
        assert!(letters(Some(&folder.path().join("absent"))).is_err());
    }
}
