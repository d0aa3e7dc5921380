//! The table: figures beside their references, and whether they are what they should be.

use std::fmt::Write as _;
use std::time::Duration;

/// One line of the table.
pub(crate) struct Row {
    what: String,
    figure: String,
    reference: String,
    ratio: Option<f64>,
    target: String,
    met: Option<bool>,
}

impl Row {
    /// A line about `what`, with nothing in it yet.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let none = || "–".to_owned();
        Self { what: what.into(), figure: none(), reference: none(), ratio: None, target: none(), met: None }
    }

    /// So many a second, beside a reference, of which it should reach at least `share`.
    pub(crate) fn rate(what: impl Into<String>, unit: &str, figure: f64, reference: f64, share: f64) -> Self {
        let ratio = figure / reference;
        let row = Self::new(what).figure(per_second(figure, unit)).reference(per_second(reference, unit)).ratio(ratio);
        row.target(format!("≥ {:.0} %", share * 100.0), ratio >= share)
    }

    /// What was measured.
    pub(crate) fn figure(self, figure: String) -> Self {
        Self { figure, ..self }
    }

    /// What stands beside it.
    pub(crate) fn reference(self, reference: String) -> Self {
        Self { reference, ..self }
    }

    /// The figure as a part of the reference.
    pub(crate) fn ratio(self, ratio: f64) -> Self {
        Self { ratio: Some(ratio), ..self }
    }

    /// What should be, and whether it is.
    pub(crate) fn target(self, target: impl Into<String>, met: bool) -> Self {
        Self { target: target.into(), met: Some(met), ..self }
    }
}

/// The table in Markdown.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut lines = vec![["", "Rollcall", "reference", "ratio", "target", ""].map(str::to_owned)];
    for row in rows {
        let ratio = row.ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0));
        let verdict = match row.met {
            Some(true) => "ok",
            Some(false) => "short",
            None => "",
        };
        let Row { what, figure, reference, target, .. } = row;
        lines.push([what.clone(), figure.clone(), reference.clone(), ratio, target.clone(), verdict.to_owned()]);
    }
    let widest = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(4);
    let widths: [usize; 6] = std::array::from_fn(widest);
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let _ =
                if is_figure(column) { write!(text, "| {cell:>width$} ") } else { write!(text, "| {cell:width$} ") };
        }
        text.push_str("|\n");
        if at == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                let end = if is_figure(column) { ':' } else { '-' };
                let _ = write!(text, "| {}{end} ", "-".repeat(width - 1));
            }
            text.push_str("|\n");
        }
    }
    text.trim_end().to_owned()
}

/// Whether a column is set to the right.
fn is_figure(column: usize) -> bool {
    (1..5).contains(&column)
}

/// A whole number in groups of three digits.
pub(crate) fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate with its unit.
pub(crate) fn per_second(rate: f64, unit: &str) -> String {
    if rate < 1_000.0 { format!("{rate:.1} {unit}/s") } else { format!("{} {unit}/s", count(rate)) }
}

/// A time as people say it.
pub(crate) fn time(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    match micros {
        ..100.0 => format!("{micros:.1} µs"),
        ..1_000.0 => format!("{micros:.0} µs"),
        ..100_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.0} ms", micros / 1e3),
    }
}

/// The middle of some rates; 0 of none.
pub(crate) fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// The time that `share` of all stay under; 0 of none.
pub(crate) fn percentile(times: &[Duration], share: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0.0, 999.0, 1_000.0, 1_234_567.4].map(count),
            ["0", "999", "1,000", "1,234,567"].map(str::to_owned)
        );
    }

    #[test]
    fn middles_and_ends() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0.99), Duration::from_millis(100));
        assert_eq!(percentile(&times, 0.5), Duration::from_millis(51));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn rows_tell_what_falls_short() {
        let text = render(&[Row::rate("a", "marks", 50.0, 100.0, 0.25), Row::rate("b", "marks", 2e6, 4e6, 0.8)]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[2].contains("50 %") && lines[2].ends_with("| ok    |"), "{text}");
        assert!(lines[3].contains("2,000,000 marks/s") && lines[3].ends_with("| short |"), "{text}");
    }
}
