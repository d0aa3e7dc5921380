-- E-mails.

ALTER TABLE users ADD COLUMN email_confirmed INTEGER NOT NULL DEFAULT 0 CHECK (email_confirmed IN (0, 1));
ALTER TABLE users ADD COLUMN absence_notices INTEGER NOT NULL DEFAULT 1 CHECK (absence_notices IN (0, 1));
ALTER TABLE classes ADD COLUMN absence_notices INTEGER NOT NULL DEFAULT 0 CHECK (absence_notices IN (0, 1));

-- Mails, also those that were sent, until they expire. `key` names person and reason. `due_at` is when to send it next;
-- one without it is not sent any more. `token` is the hash of a token that is good.
CREATE TABLE mails (
    id         BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 12),
    key        TEXT    NOT NULL UNIQUE,
    user_id    BLOB    NOT NULL,
    kind       TEXT    NOT NULL,
    class_id   BLOB,
    session_id BLOB,
    token      BLOB    UNIQUE CHECK (length(token) = 32),
    queued_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    due_at     INTEGER,
    attempts   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Notices of absences wait for what somebody waits for.
CREATE INDEX mails_due ON mails (kind = 'absence', due_at) WHERE due_at IS NOT NULL;
CREATE INDEX mails_of_user ON mails (user_id, kind, queued_at);
CREATE INDEX mails_expired ON mails (expires_at);

-- Finished sessions whose absent students are to be told, and have no mail yet.
CREATE TABLE absences (
    session_id BLOB NOT NULL PRIMARY KEY,
    class_id   BLOB NOT NULL
) STRICT, WITHOUT ROWID;
