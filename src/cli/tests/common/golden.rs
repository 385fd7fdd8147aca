//! Golden transcripts.

use std::path::Path;

/// Compares with a golden file; `UPDATE_GOLDEN=1 cargo test -p reattach-cli` writes it.
#[track_caller]
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{name}; UPDATE_GOLDEN=1 accepts the new text");
    assert!(
        text.lines().all(|l| l.chars().count() <= 100),
        "a line of {name} is wider than 100 columns"
    );
}
