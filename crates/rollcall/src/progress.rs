//! How far a long command has come: a bar on a terminal, now and then a line elsewhere. Both go to standard error.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// How often a line says how far it is where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Shows the stages of a command.
pub(crate) struct View {
    bar: ProgressBar,
    stage: &'static str,
    told: Instant,
}

impl View {
    /// Nothing is shown yet.
    pub(crate) fn new() -> Self {
        Self { bar: ProgressBar::hidden(), stage: "", told: Instant::now() }
    }

    /// Begins a stage of `total` steps, if their number is known.
    pub(crate) fn stage(&mut self, name: &'static str, total: Option<u64>) {
        self.clear();
        self.stage = name;
        self.told = Instant::now();
        let template = if total.is_some() { "{msg:9} {wide_bar} {pos}/{len}, {eta} left" } else { "{msg:9} {pos}" };
        self.bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
            .with_finish(ProgressFinish::AndClear)
            .with_message(name);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        if self.bar.is_hidden() {
            self.say(name);
        }
    }

    /// So many more steps are done.
    pub(crate) fn advance(&mut self, steps: usize) {
        self.bar.inc(steps as u64);
        if self.bar.is_hidden() && self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length());
            let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
            self.say(&format!("{} {done}{of}", self.stage));
        }
    }

    /// Says something beside the progress.
    pub(crate) fn say(&self, line: &str) {
        // Data of other origin may hold what would command a terminal.
        let line = line.replace(char::is_control, "\u{fffd}");
        // Nobody has to listen.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{line}")));
    }

    /// Ends what is shown.
    pub(crate) fn clear(&mut self) {
        self.bar.finish_and_clear();
    }
}
