//! The secret that tokens are signed with, kept beside the embedded database.
//!
//! It is made once. The file appears whole or not at all, and of several processes that make it at the same moment
//! one wins and the others take what it made.

use std::fmt::Write;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use crate::config::SECRET_MIN_BYTES;
use crate::system;

/// What the file's name ends in, in the place of the database's own ending.
pub(crate) const EXTENSION: &str = "secret";
/// A secret is a line; a file that is much longer is something else.
const MAX_BYTES: u64 = 4096;

/// The file that belongs to a database.
pub(crate) fn path_for(database: &Path) -> PathBuf {
    database.with_extension(EXTENSION)
}

/// The secret in the file at `path`, which is made if there is none. Others are shut out of a file that they could read.
pub(crate) fn load_or_create(path: &Path) -> anyhow::Result<SecretSlice<u8>> {
    if let Some(secret) = load(path)? {
        return Ok(secret);
    }
    create(path).with_context(|| format!("the token secret cannot be kept in {}", path.display()))?;
    load(path)?.with_context(|| format!("{} was removed while the server started", path.display()))
}

fn load(path: &Path) -> anyhow::Result<Option<SecretSlice<u8>>> {
    let unreadable = || format!("the token secret in {} cannot be read", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(unreadable),
    };
    let mode = file.metadata().with_context(unreadable)?.mode();
    if open_to_others(mode) {
        match file.set_permissions(Permissions::from_mode(0o600)) {
            Ok(()) => tracing::warn!(
                path = %path.display(), mode = format!("{:o}", mode & 0o777),
                "the token secret was open to others; its file is now its owner's alone. If somebody may have read it, \
                 remove the file and start again, which ends all logins"
            ),
            Err(error) => tracing::warn!(
                path = %path.display(), mode = format!("{:o}", mode & 0o777), %error,
                "the token secret is open to others and that cannot be changed"
            ),
        }
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(unreadable)?;
    let whole = SecretSlice::from(bytes);
    let secret = whole.expose_secret().trim_ascii();
    ensure!(
        secret.len() >= SECRET_MIN_BYTES && whole.expose_secret().len() as u64 <= MAX_BYTES,
        "{} holds no token secret of {SECRET_MIN_BYTES} to {MAX_BYTES} bytes; remove it and another is made, which ends all logins",
        path.display()
    );
    Ok(Some(secret.to_vec().into()))
}

/// Whether a file of this mode is open to more than its owner.
pub(crate) fn open_to_others(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn create(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Its owner's alone from the start, and under another name until it is whole.
    let mut file = tempfile::Builder::new().prefix(".rollcall-").suffix(".tmp").tempfile_in(folder)?;
    let random: [u8; 32] = system::random()?;
    let mut line = String::with_capacity(65);
    for byte in random {
        write!(line, "{byte:02x}")?;
    }
    line.push('\n');
    let line = SecretString::from(line);
    file.write_all(line.expose_secret().as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => File::open(folder)?.sync_all()?,
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.error.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_for(&folder.path().join("school.db"));
        assert!(path.ends_with("school.secret"));
        let made = load_or_create(&path).unwrap();
        assert_eq!(made.expose_secret().len(), 64);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(load_or_create(&path).unwrap().expose_secret(), made.expose_secret());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn many_at_once_end_with_the_same_secret() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = folder.path().join(format!("{round}.secret"));
            let barrier = Barrier::new(8);
            let secrets: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    load_or_create(&path).unwrap().expose_secret().to_vec()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        }
    }

    #[test]
    fn others_are_shut_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollcall.secret");
        let text = "0123456789abcdef0123456789abcdef";
        std::fs::write(&path, format!("{text}\n")).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load_or_create(&path).unwrap().expose_secret(), text.as_bytes());
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn what_is_no_secret_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollcall.secret");
        for wrong in ["", "short\n", &" ".repeat(100), &"x".repeat(5000)] {
            std::fs::write(&path, wrong).unwrap();
            let error = load_or_create(&path).unwrap_err().to_string();
            assert!(error.contains("remove it"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), wrong);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(load_or_create(&path).is_err());
        assert!(load_or_create(&folder.path().join("missing/rollcall.secret")).is_err());
    }
}
