//! Figures of a run, kept in `docs/benchmarks.md`.

use anyhow::Context as _;

use crate::cargo;

/// Puts this text into the place of what was recorded there last by the command `by`.
pub(crate) fn replace(by: &str, text: &str) -> anyhow::Result<()> {
    let path = cargo::root().join("docs/benchmarks.md");
    let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = replaced(&page, by, text).with_context(|| format!("{} has no place for {by}", path.display()))?;
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn replaced(page: &str, by: &str, text: &str) -> Option<String> {
    let begin = format!("<!-- recorded by `{by}` -->");
    let end = "<!-- end of the record -->";
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{text}\n\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn each_record_has_a_place_of_its_own() {
        let page = "# Page\n<!-- recorded by `a` -->\n1\n<!-- end of the record -->\n<!-- recorded by `b` -->\n2\n\
                    <!-- end of the record -->\nend";
        let page = replaced(page, "b", "3").unwrap();
        assert_eq!(
            page,
            "# Page\n<!-- recorded by `a` -->\n1\n<!-- end of the record -->\n<!-- recorded by `b` -->\n\n3\n\n\
             <!-- end of the record -->\nend"
        );
        assert!(replaced(&page, "c", "4").is_none());
    }
}
