//! What is new in a release: its section of the changelog.

use anyhow::{Context as _, ensure};

use crate::cargo;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The version, such as 0.2.0, which has to be the one of Cargo.toml
    version: String,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let version = &options.version;
    // All packages of the workspace have the same.
    let own = env!("CARGO_PKG_VERSION");
    ensure!(version == own, "{version} is to be released, and Cargo.toml has {own}");
    let file = cargo::root().join("CHANGELOG.md");
    let changelog = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let section = section(&changelog, version).with_context(|| format!("CHANGELOG.md has no section [{version}]"))?;
    ensure!(!section.is_empty(), "the section [{version}] of CHANGELOG.md is empty");
    println!("{section}");
    Ok(())
}

/// The text under the heading `## [version] - date`, without the links at the changelog's end.
fn section<'a>(changelog: &'a str, version: &str) -> Option<&'a str> {
    let heading = format!("## [{version}]");
    let mut sections = changelog.split("\n## ").skip(1);
    let section = sections.find(|section| section.starts_with(&heading["## ".len()..]))?;
    let (_, text) = section.split_once('\n').unwrap_or((section, ""));
    let links = text.find("\n[").unwrap_or(text.len());
    Some(text[..links].trim())
}

#[cfg(test)]
mod tests {
    use super::section;

    const CHANGELOG: &str = "# Changelog\n\nAll of it.\n\n## [Unreleased]\n\n## [0.10.0] - 2027-02-01\n\n### Added\n\n- Ten.\n\n\
                             ## [0.1.0] - 2026-12-01\n\n### Added\n\n- [Links](docs/api.md) stay.\n- One.\n\n\
                             [Unreleased]: https://example/compare\n[0.1.0]: https://example/one\n";

    #[test]
    fn a_version_gets_its_own_section() {
        assert_eq!(section(CHANGELOG, "0.10.0"), Some("### Added\n\n- Ten."));
        assert_eq!(section(CHANGELOG, "0.1.0"), Some("### Added\n\n- [Links](docs/api.md) stay.\n- One."));
        assert_eq!(section(CHANGELOG, "Unreleased"), Some(""));
        assert_eq!(section(CHANGELOG, "0.1"), None);
        assert_eq!(section(CHANGELOG, "1.0"), None);
    }

    #[test]
    fn the_next_release_has_notes() {
        let changelog = include_str!("../../CHANGELOG.md");
        let unreleased = section(changelog, "Unreleased").expect("a section for what is not released");
        let released = section(changelog, env!("CARGO_PKG_VERSION"));
        assert!(released.is_some_and(|notes| !notes.is_empty()) || !unreleased.is_empty());
    }
}
