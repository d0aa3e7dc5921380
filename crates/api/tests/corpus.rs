//! The inputs that the fuzz targets start from, and those that they found, as an ordinary test.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rollcall_api::fuzzing;

#[test]
fn frames() {
    feed("frames", fuzzing::frame);
}

#[test]
fn bodies() {
    feed("bodies", fuzzing::body);
}

/// Feeds every input, and every input cut short at any place, as a peer that breaks off would.
fn feed(kind: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(kind);
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 20, "the corpus is there");
    for file in files {
        let input = fs::read(&file).expect("a readable file");
        // Long inputs are long of the same; their cuts are tried here and there.
        for end in (0..input.len()).step_by(input.len() / 512 + 1).chain([input.len()]) {
            let checked = catch_unwind(AssertUnwindSafe(|| check(&input[..end])));
            assert!(checked.is_ok(), "the first {end} bytes of {}", file.display());
        }
    }
}
