//! Rows as values of the core, and back.

use std::error::Error;
use std::str::FromStr;
use std::sync::Arc;

use rollcall_core::id::{ClassId, MailId, ObjectId, SessionId, UserId};
use rollcall_core::session::Revision;
use rollcall_core::time::Timestamp;
use rusqlite::Row;
use rusqlite::types::Type;

/// An id as its 12 bytes.
pub(crate) trait Key {
    fn of(bytes: [u8; 12]) -> Self;
}

macro_rules! keys {
    ($($name:ident),+) => {$(
        impl Key for $name {
            fn of(bytes: [u8; 12]) -> Self {
                Self::from_bytes(bytes)
            }
        }
    )+};
}

keys!(ObjectId, UserId, ClassId, SessionId, MailId);

/// Reads columns of one row in their order.
pub(crate) struct Columns<'a, 'stmt> {
    row: &'a Row<'stmt>,
    next: usize,
}

impl<'a, 'stmt> Columns<'a, 'stmt> {
    pub(crate) fn new(row: &'a Row<'stmt>) -> Self {
        Self { row, next: 0 }
    }

    fn index(&mut self) -> usize {
        let index = self.next;
        self.next += 1;
        index
    }

    pub(crate) fn id<T: Key>(&mut self) -> rusqlite::Result<T> {
        let index = self.index();
        self.row.get(index).map(T::of)
    }

    pub(crate) fn optional_id<T: Key>(&mut self) -> rusqlite::Result<Option<T>> {
        let index = self.index();
        Ok(self.row.get::<_, Option<_>>(index)?.map(T::of))
    }

    pub(crate) fn optional_bytes<const N: usize>(&mut self) -> rusqlite::Result<Option<[u8; N]>> {
        let index = self.index();
        self.row.get(index)
    }

    pub(crate) fn text(&mut self) -> rusqlite::Result<Arc<str>> {
        let index = self.index();
        self.row.get(index)
    }

    pub(crate) fn optional_text(&mut self) -> rusqlite::Result<Option<Arc<str>>> {
        let index = self.index();
        self.row.get(index)
    }

    pub(crate) fn flag(&mut self) -> rusqlite::Result<bool> {
        let index = self.index();
        self.row.get(index)
    }

    pub(crate) fn number(&mut self) -> rusqlite::Result<u32> {
        let index = self.index();
        self.row.get(index)
    }

    pub(crate) fn optional_number(&mut self) -> rusqlite::Result<Option<u32>> {
        let index = self.index();
        self.row.get(index)
    }

    pub(crate) fn sequence(&mut self) -> rusqlite::Result<u64> {
        let index = self.index();
        let number: i64 = self.row.get(index)?;
        u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, number))
    }

    pub(crate) fn revision(&mut self) -> rusqlite::Result<Revision> {
        self.sequence().map(Revision)
    }

    pub(crate) fn time(&mut self) -> rusqlite::Result<Timestamp> {
        let index = self.index();
        self.row.get(index).map(Timestamp::from_millis)
    }

    pub(crate) fn optional_time(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        let index = self.index();
        Ok(self.row.get::<_, Option<_>>(index)?.map(Timestamp::from_millis))
    }

    /// A name such as a role's.
    pub(crate) fn named<T>(&mut self) -> rusqlite::Result<T>
    where
        T: FromStr,
        T::Err: Error + Send + Sync + 'static,
    {
        let index = self.index();
        self.row.get_ref(index)?.as_str()?.parse().map_err(|error| damaged(index, error))
    }

    pub(crate) fn optional_named<T>(&mut self) -> rusqlite::Result<Option<T>>
    where
        T: FromStr,
        T::Err: Error + Send + Sync + 'static,
    {
        let index = self.index();
        let text = self.row.get_ref(index)?.as_str_or_null()?;
        text.map(|text| text.parse().map_err(|error| damaged(index, error))).transpose()
    }

    /// The last column read holds what cannot be there.
    pub(crate) fn impossible(&self, what: &str) -> rusqlite::Error {
        rusqlite::Error::FromSqlConversionFailure(self.next.saturating_sub(1), Type::Text, what.into())
    }
}

fn damaged(index: usize, error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
}

/// A count or revision as SQLite keeps it. None of ours comes near the limit.
pub(crate) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
