//! From the committed stream to the sockets of this process.
//!
//! One task follows the store. It keeps the directory true, tells the hub who hears of which class, and turns every
//! event of a session into a frame, in the order of revisions: last + 1 is applied, what was seen is ignored, and on
//! a gap the session is loaded and what differs is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rollcall_core::session::{Event, OpenSession, Revision};
use rollcall_core::store::{Batch, Change, Followed, Page, SessionChange, StoreError};
use rollcall_core::{ClassId, Error, SessionId, UserId};
use rollcall_realtime::{Key, Message, Tier, close};
use tokio_util::sync::CancellationToken;

use crate::Api;
use crate::metric;
use crate::ws::{Seat, protocol, tier};

/// How long to wait before a store that is away is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// One event in its place, as the hub takes it.
type Publication = (Key, u64, Option<Message>);

/// How far each open session has been told.
type Told = HashMap<SessionId, (ClassId, Revision)>;

impl Api {
    /// Follows what the store commits until `cancel` or until the store is closed.
    pub async fn follow(self: Arc<Self>, cancel: CancellationToken) -> Result<(), StoreError> {
        let mut stream = self.services.store.follow(None).await?;
        let mut told = Told::new();
        // Followed first, loaded second: what was committed in between comes twice and is ignored once.
        for session in self.services.store.open_sessions().await? {
            let info = session.info();
            told.insert(info.id, (info.class_id, info.revision));
            self.hub.publish(info.class_id.bytes(), info.revision.0, None);
        }
        self.following.send_replace(true);
        let alive_at = metrics::gauge!("rollcall_stream_alive_timestamp_seconds");
        alive_at.set(self.services.clock.now().millis() as f64 / 1000.0);
        loop {
            let item = tokio::select! {
                () = cancel.cancelled() => None,
                item = stream.next() => item,
            };
            let Some(item) = item else { break };
            let step = async {
                match item {
                    // A batch proves nothing of its own time: many may have waited.
                    Followed::Alive => {
                        self.services.directory.alive();
                        alive_at.set(self.services.clock.now().millis() as f64 / 1000.0);
                    }
                    Followed::Batch(batch) => self.tell(&batch, &mut told).await?,
                    Followed::Lost => self.catch_up(&mut told).await?,
                }
                Ok(())
            };
            match cancel.run_until_cancelled(step).await {
                Some(step) => step?,
                None => break,
            }
        }
        self.following.send_replace(false);
        Ok(())
    }

    async fn tell(self: &Arc<Self>, batch: &Batch, told: &mut Told) -> Result<(), StoreError> {
        let mut publications: Vec<Publication> = Vec::with_capacity(batch.changes.len());
        // They end when all of the batch is with the sockets' topics.
        let mut spans = Vec::new();
        for change in &batch.changes {
            self.services.directory.changed(change);
            if let Change::Session(change) = change {
                if let Some(traces) = &self.traces {
                    let SessionChange { class_id, entry, .. } = &**change;
                    spans.extend(traces.fan_out(&entry.origin, *class_id, entry.revision.0));
                }
                self.apply(change, told, &mut publications).await?;
                continue;
            }
            // Who hears changes in its place among the frames.
            self.hub.publish_batch(publications.drain(..));
            match change {
                Change::Session(_) => {}
                Change::Account(user) => self.recheck(*user),
                Change::Class { class_id, teacher_id } => {
                    self.hub.join_user(teacher_id.bytes(), class_id.bytes(), Tier::First);
                }
                Change::Enrolment { class_id, student_id, enrolled: true } => {
                    self.hub.join_user(student_id.bytes(), class_id.bytes(), Tier::Rest);
                }
                Change::Enrolment { class_id, student_id, enrolled: false } => {
                    self.hub.leave_user(student_id.bytes(), class_id.bytes());
                }
            }
        }
        self.hub.publish_batch(publications);
        drop(spans);
        Ok(())
    }

    /// Puts one event of a session in its place.
    async fn apply(
        &self,
        change: &SessionChange,
        told: &mut Told,
        publications: &mut Vec<Publication>,
    ) -> Result<(), StoreError> {
        let SessionChange { session_id, class_id, entry } = change;
        let last = told.get(session_id).map(|(_, revision)| *revision);
        match (last, &entry.event) {
            (Some(last), _) if entry.revision <= last => return Ok(()),
            (Some(last), _) if entry.revision == last.next() => {}
            (None, Event::Started) => {}
            _ => return self.reload(*class_id, *session_id, told, publications).await,
        }
        if let Event::Finished(_) = entry.event {
            told.remove(session_id);
        } else {
            told.insert(*session_id, (*class_id, entry.revision));
        }
        let message =
            protocol::change(change, None).map(|frame| Message { frame, variant: self.named.variant_for(change) });
        publications.push((class_id.bytes(), entry.revision.0, message));
        Ok(())
    }

    /// Brings a session up to date of which events were missed.
    async fn reload(
        &self,
        class_id: ClassId,
        session_id: SessionId,
        told: &mut Told,
        publications: &mut Vec<Publication>,
    ) -> Result<(), StoreError> {
        metric::stream_reloads("session").increment(1);
        tracing::warn!(class = %class_id, session = %session_id, "events of a session were missed; it is loaded again");
        match answered(|| self.services.store.open_session(class_id)).await? {
            Some(session) if session.info().id == session_id => tell_difference(&session, told, publications),
            _ => self.tell_end(class_id, session_id, told, publications).await?,
        }
        Ok(())
    }

    /// Tells of a session's end, if it has ended and that was not told.
    async fn tell_end(
        &self,
        class_id: ClassId,
        session_id: SessionId,
        told: &mut Told,
        publications: &mut Vec<Publication>,
    ) -> Result<(), StoreError> {
        told.remove(&session_id);
        let found = answered(|| self.services.store.session(class_id, session_id)).await?;
        let Some(info) = found else { return Ok(()) };
        let end = Page { after: Some(Revision(info.revision.0.saturating_sub(1))), limit: 1 };
        for entry in answered(|| self.services.store.log(session_id, None, end)).await? {
            let change = SessionChange { session_id, class_id, entry };
            let variant = self.named.variant_for(&change);
            let message = protocol::change(&change, None).map(|frame| Message { frame, variant });
            publications.push((class_id.bytes(), change.entry.revision.0, message));
        }
        Ok(())
    }

    /// After changes were lost: nothing is believed, and everybody connected is brought to what stands.
    async fn catch_up(self: &Arc<Self>, told: &mut Told) -> Result<(), StoreError> {
        metric::stream_reloads("everything").increment(1);
        tracing::warn!("changes were lost; everything is loaded again");
        self.services.directory.lost();
        for user in self.hub.connected_users() {
            let hears = answered(|| self.services.store.class_ids_of(UserId::from_bytes(user))).await?;
            for topic in
                self.hub.topics_of(user).into_iter().filter(|topic| !hears.iter().any(|class| class.bytes() == *topic))
            {
                self.hub.leave_user(user, topic);
            }
            let role = self.hub.connections(user).first().map(|connection| Seat::from_tag(connection.tag()).role);
            if let Some(role) = role {
                for class in &hears {
                    self.hub.join_user(user, class.bytes(), tier(role));
                }
            }
            self.recheck(UserId::from_bytes(user));
        }
        let mut publications = Vec::new();
        let sessions = answered(|| self.services.store.open_sessions()).await?;
        let ended: Vec<_> = told
            .iter()
            .filter(|(id, _)| !sessions.iter().any(|session| session.info().id == **id))
            .map(|(id, (class, _))| (*id, *class))
            .collect();
        for (session, class) in ended {
            self.tell_end(class, session, told, &mut publications).await?;
        }
        for session in &sessions {
            tell_difference(session, told, &mut publications);
        }
        self.hub.publish_batch(publications);
        Ok(())
    }

    /// Closes the sockets that an account may not have any more. Beside the feed, which must not wait for the store.
    fn recheck(self: &Arc<Self>, user: UserId) {
        if self.hub.connections(user.bytes()).is_empty() {
            return;
        }
        let api = Arc::clone(self);
        tokio::spawn(async move {
            for connection in api.hub.connections(user.bytes()) {
                let seat = Seat::from_tag(connection.tag());
                match api.services.accounts.member(user, seat.version).await {
                    Ok(member) if member.account().role == seat.role => {}
                    Ok(_) | Err(Error::Unauthenticated) => connection.close(close::ACCOUNT_CHANGED),
                    // Every command asks again, so that nothing is allowed meanwhile.
                    Err(error) => crate::error::log_failure(&error),
                }
            }
        });
    }
}

/// Asks the store until it answers: a store that is away for a while must not make anybody miss anything.
async fn answered<T, F>(ask: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match ask().await {
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what was missed cannot be read; trying again"
                );
                tokio::time::sleep(RETRY).await;
            }
            answer => return answer,
        }
    }
}

/// One frame for each student who was marked after what was told, in the order of the marks.
fn tell_difference(session: &OpenSession, told: &mut Told, publications: &mut Vec<Publication>) {
    let info = session.info();
    let last = told.get(&info.id).map_or(Revision(info.first_revision.0.saturating_sub(1)), |(_, revision)| *revision);
    let mut marks: Vec<_> = session.marks().iter().filter(|(_, mark)| mark.revision > last).collect();
    marks.sort_unstable_by_key(|(_, mark)| mark.revision);
    for (student, mark) in marks {
        let frame = protocol::mark(info.class_id, *student, mark.status, mark.revision.0);
        publications.push((info.class_id.bytes(), mark.revision.0, Some(Message { frame, variant: None })));
    }
    publications.push((info.class_id.bytes(), info.revision.0, None));
    told.insert(info.id, (info.class_id, info.revision));
}
