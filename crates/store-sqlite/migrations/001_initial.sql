-- Ids are the 12 bytes of an ObjectId, times are milliseconds since 1970 in UTC. Names of roles, statuses, kinds and
-- doors are the public ones, so that the file can be read without this program.

-- "Roll": the file is Rollcall's.
PRAGMA application_id = 0x526f6c6c;

CREATE TABLE users (
    id            BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 12),
    name          TEXT    NOT NULL,
    email         TEXT    NOT NULL,
    email_key     TEXT    NOT NULL UNIQUE,
    role          TEXT    NOT NULL CHECK (role IN ('teacher', 'student', 'admin')),
    password_hash TEXT    NOT NULL,
    token_version INTEGER NOT NULL,
    disabled      INTEGER NOT NULL CHECK (disabled IN (0, 1)),
    created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX users_students ON users (id) WHERE role = 'student' AND disabled = 0;

CREATE TABLE classes (
    id         BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 12),
    name       TEXT    NOT NULL,
    teacher_id BLOB    NOT NULL REFERENCES users (id),
    archived   INTEGER NOT NULL CHECK (archived IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX classes_of_teacher ON classes (teacher_id, archived, id);

-- Who is in which class; `no` is the order of enrolment. It is the roster of the class's open session too.
CREATE TABLE enrolments (
    no         INTEGER PRIMARY KEY,
    class_id   BLOB NOT NULL REFERENCES classes (id),
    student_id BLOB NOT NULL REFERENCES users (id),
    UNIQUE (class_id, student_id)
) STRICT;

CREATE INDEX enrolments_of_class ON enrolments (class_id, no, student_id);
CREATE INDEX enrolments_of_student ON enrolments (student_id, class_id);

-- `no` is the order in which sessions were opened. A session without `finished_at` is open; one that Rollcall itself
-- finished has no `finished_by`.
CREATE TABLE sessions (
    no             INTEGER PRIMARY KEY,
    id             BLOB    NOT NULL UNIQUE CHECK (length(id) = 12),
    class_id       BLOB    NOT NULL REFERENCES classes (id),
    teacher_id     BLOB    NOT NULL REFERENCES users (id),
    started_at     INTEGER NOT NULL,
    first_revision INTEGER NOT NULL,
    revision       INTEGER NOT NULL CHECK (revision >= first_revision),
    finished_at    INTEGER,
    finished_by    BLOB,
    present        INTEGER,
    absent         INTEGER,
    late           INTEGER,
    excused        INTEGER,
    UNIQUE (class_id, first_revision)
) STRICT;

CREATE UNIQUE INDEX sessions_open ON sessions (class_id) WHERE finished_at IS NULL;
CREATE INDEX sessions_open_of_teacher ON sessions (teacher_id) WHERE finished_at IS NULL;

-- Everything that happened in sessions, for good. `seq` is the place in the committed stream, shared with `changes`:
-- a new row of either takes one more than the greatest of both. Entries without `by_id` are Rollcall's own.
CREATE TABLE log (
    seq        INTEGER PRIMARY KEY,
    session_id BLOB    NOT NULL REFERENCES sessions (id),
    revision   INTEGER NOT NULL,
    kind       TEXT    NOT NULL CHECK (kind IN ('started', 'enrolled', 'removed', 'marked', 'summarised', 'finished')),
    student_id BLOB,
    old_status TEXT,
    new_status TEXT,
    reason     TEXT,
    present    INTEGER,
    absent     INTEGER,
    late       INTEGER,
    excused    INTEGER,
    by_id      BLOB,
    at         INTEGER NOT NULL,
    door       TEXT    NOT NULL,
    address    TEXT,
    op         TEXT    NOT NULL,
    op_client  INTEGER NOT NULL CHECK (op_client IN (0, 1))
) STRICT;

-- The student stands in the index so that one student's part of a long log is found without reading the rest.
CREATE INDEX log_of_session ON log (session_id, revision, student_id);
-- Finds the same command sent again in one step, however often a client uses an operation id.
CREATE INDEX log_operations ON log (by_id, op, kind, student_id, new_status, reason, at) WHERE op_client = 1;

-- The students' present statuses in open sessions. DONE turns them into records.
CREATE TABLE marks (
    session_id BLOB    NOT NULL,
    student_id BLOB    NOT NULL,
    status     TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    revision   INTEGER NOT NULL,
    PRIMARY KEY (session_id, student_id)
) STRICT, WITHOUT ROWID;

-- What stands after DONE. Without `marked_at`: never marked, and so absent.
CREATE TABLE records (
    session_id BLOB NOT NULL REFERENCES sessions (id),
    student_id BLOB NOT NULL,
    status     TEXT NOT NULL,
    marked_at  INTEGER,
    PRIMARY KEY (session_id, student_id)
) STRICT, WITHOUT ROWID;

-- The part of the committed stream that `log` does not tell. `flag`: of an enrolment, whether it began.
CREATE TABLE changes (
    seq     INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL CHECK (kind IN ('account', 'class', 'enrolment')),
    id      BLOB NOT NULL,
    user_id BLOB,
    flag    INTEGER
) STRICT;

-- One row, written to find out whether writing works.
CREATE TABLE probe (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    n    INTEGER NOT NULL,
    room BLOB
) STRICT;

INSERT INTO probe (id, n) VALUES (1, 0);
