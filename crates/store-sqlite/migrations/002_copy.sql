-- What `rollcall copy` needs.

-- Attendance that a backend before Rollcall kept without a session, dated by its own id. It counts as long as no session
-- of the class has been finished. It may name classes and students that are not there.
CREATE TABLE earlier_records (
    id         BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 12),
    class_id   BLOB NOT NULL,
    student_id BLOB NOT NULL,
    status     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX earlier_records_of_student ON earlier_records (class_id, student_id, id);

-- One row while this file is an unfinished copy: of what content, and how far it has come.
CREATE TABLE unfinished_copy (
    no          INTEGER PRIMARY KEY CHECK (no = 1),
    fingerprint TEXT NOT NULL,
    part        TEXT NOT NULL,
    after_id    BLOB
) STRICT;
