//! The end of a thread, for those who wait for it.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Waits for the end of what holds the [`EndGuard`].
pub(crate) struct End(Arc<Semaphore>);

/// Held until the end, and dropped last.
pub(crate) struct EndGuard(Arc<Semaphore>);

impl End {
    pub(crate) fn new() -> (Self, EndGuard) {
        let semaphore = Arc::new(Semaphore::new(0));
        (Self(Arc::clone(&semaphore)), EndGuard(semaphore))
    }

    pub(crate) async fn wait(&self) {
        // Nobody ever adds a permit: this returns when the guard closes the semaphore.
        let _ = self.0.acquire().await;
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}
