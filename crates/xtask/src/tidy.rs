//! Rules of the house that neither rustfmt nor clippy checks.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::run::{command, output};
use crate::workspace::Workspace;

const LINES_MAX: usize = 800;

/// The crates that may hold unsafe code.
const UNSAFE: &[&str] = &["holdfast-checksum", "holdfast-iov", "holdfast-ring"];

const FORBID: &str = "#![forbid(unsafe_code)]";

/// Leftovers and ways around a test. They are cut here, because this file is read as well.
const BANNED: &[&str] = &[
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
    concat!("#[ig", "nore"),
    concat!("should", "_panic"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];

/// Checks every file that git knows or would add, and fails with all faults.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut list =
        command("git", &["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let list = output(list.current_dir(&workspace.root)).context("the list of files")?;
    let mut faults = Vec::new();
    let mut files = 0;
    for path in list.split('\0').filter(|path| is_text(path)) {
        let file = workspace.root.join(path);
        // Git goes on listing a file that was removed, until that is staged.
        if file.is_file() {
            let text = fs::read(&file).with_context(|| format!("cannot read {path}"))?;
            faults.extend(faults_of(path, &text));
            files += 1;
        }
        if let Some((folder, name)) = test_of(path)
            && file.is_file()
        {
            let read = |file: &str| fs::read_to_string(workspace.root.join(folder).join(file));
            // Without the file cargo finds each test by itself.
            let roots = [read("tests/main.rs"), read("Cargo.toml")].map(Result::unwrap_or_default);
            if !is_reached(name, &roots) {
                faults.push(format!("{path}: neither in tests/main.rs nor a [[test]] of its own"));
            }
        }
    }
    if !faults.is_empty() {
        bail!("{}\n{} faults", faults.join("\n"), faults.len());
    }
    println!("{files} files are tidy");
    Ok(())
}

fn is_text(path: &str) -> bool {
    [".rs", ".toml", ".md", ".sh", ".yml", ".ci/run"].iter().any(|end| path.ends_with(end))
}

/// The folder of the crate and the name of the test, of a file right in `tests`.
fn test_of(path: &str) -> Option<(&str, &str)> {
    let (folder, file) = path.split_once("/tests/")?;
    let name = file.strip_suffix(".rs")?;
    (folder.starts_with("crates/") && !name.contains('/') && name != "main")
        .then_some((folder, name))
}

/// Whether cargo builds a test, by the text of `tests/main.rs` and that of `Cargo.toml`.
fn is_reached(name: &str, [main, manifest]: &[String; 2]) -> bool {
    let is_line = |text: &str, line: &str| text.lines().any(|found| found == line);
    !is_line(manifest, "autotests = false")
        || is_line(main, &format!("mod {name};"))
        || is_line(manifest, &format!("path = \"tests/{name}.rs\""))
}

/// What is wrong with a file, each as `path:line: what`.
fn faults_of(path: &str, text: &[u8]) -> Vec<String> {
    let Ok(text) = str::from_utf8(text) else {
        return vec![format!("{path}: not UTF-8")];
    };
    let is_rust = path.ends_with(".rs");
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut fault = |what: &str| faults.push(format!("{path}:{}: {what}", index + 1));
        if line.contains('\t') {
            fault("a tab");
        }
        if line.ends_with([' ', '\t']) {
            fault("blanks at the end");
        }
        if is_rust {
            faults_of_rust_line(line, fault);
        }
    }
    if is_rust && text.lines().count() > LINES_MAX {
        faults.push(format!("{path}: {} lines; {LINES_MAX} at most", text.lines().count()));
    }
    if must_forbid_unsafe(path) && !text.lines().any(|line| line.trim() == FORBID) {
        faults.push(format!("{path}: lacks {FORBID}"));
    }
    faults
}

fn faults_of_rust_line(line: &str, mut fault: impl FnMut(&str)) {
    if let Some(strange) = line.chars().find(|c| !c.is_ascii()) {
        fault(&format!("not ASCII: {}", strange.escape_unicode()));
    }
    for word in BANNED.iter().filter(|word| has_word(line, word)) {
        fault(&format!("`{word}` must not stay"));
    }
}

/// Whether the word is there, and not just as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !joins(before) && (word.ends_with('!') || !joins(after))
    })
}

/// Whether the file is the root of a crate that has no business with unsafe code.
fn must_forbid_unsafe(path: &str) -> bool {
    let Some((name, file)) = path.strip_prefix("crates/").and_then(|path| path.split_once('/'))
    else {
        return false;
    };
    matches!(file, "src/lib.rs" | "src/main.rs") && !UNSAFE.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of_line(line: &str) -> Vec<String> {
        faults_of("a.rs", line.as_bytes())
    }

    #[test]
    fn a_tidy_file_has_no_faults() {
        assert!(faults_of_line("fn main() {}\n").is_empty());
    }

    #[test]
    fn a_letter_outside_ascii_is_named_by_its_number() {
        assert_eq!(faults_of_line("// caf\u{e9}"), [r"a.rs:1: not ASCII: \u{e9}"]);
    }

    #[test]
    fn text_may_hold_letters_outside_ascii() {
        assert!(faults_of("a.md", "caf\u{e9}".as_bytes()).is_empty());
    }

    #[test]
    fn a_tab_and_a_trailing_blank_are_faults_in_any_text() {
        assert_eq!(
            faults_of("a.md", b"ok\n\ta \n"),
            ["a.md:2: a tab", "a.md:2: blanks at the end"]
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_a_fault() {
        assert_eq!(faults_of("a.rs", &[0xff]), ["a.rs: not UTF-8"]);
    }

    #[test]
    fn each_banned_word_is_found() {
        let found = BANNED.iter().filter(|word| !faults_of_line(&format!("    {word}")).is_empty());
        assert_eq!(found.count(), BANNED.len());
    }

    #[test]
    fn an_attribute_with_a_reason_is_found() {
        assert!(!faults_of_line(concat!("#[ig", "nore = \"slow\"]")).is_empty());
    }

    #[test]
    fn a_part_of_a_longer_word_is_not_banned() {
        assert!(faults_of_line("let name = mktemp(\"a.XXXXXX\");").is_empty());
    }

    #[test]
    fn a_file_of_801_lines_is_too_long() {
        assert_eq!(
            faults_of("a.rs", "\n".repeat(801).as_bytes()),
            ["a.rs: 801 lines; 800 at most"]
        );
    }

    #[test]
    fn a_crate_forbids_unsafe_code() {
        let faults = faults_of("crates/holdfast-bio/src/lib.rs", b"//! Bios.\n");
        assert_eq!(faults, ["crates/holdfast-bio/src/lib.rs: lacks #![forbid(unsafe_code)]"]);
    }

    #[test]
    fn three_crates_may_hold_unsafe_code() {
        assert!(faults_of("crates/holdfast-iov/src/lib.rs", b"//! Memory.\n").is_empty());
    }

    #[test]
    fn a_test_is_a_file_right_in_the_folder_of_tests() {
        assert_eq!(test_of("crates/a/tests/b.rs"), Some(("crates/a", "b")));
        let others = ["crates/a/tests/main.rs", "crates/a/tests/b/mod.rs", "crates/a/src/b.rs"];
        assert!(others.iter().all(|path| test_of(path).is_none()));
    }

    #[test]
    fn a_test_that_no_program_has_is_found() {
        let manifest = "autotests = false\n[[test]]\npath = \"tests/alone.rs\"\n".to_owned();
        let roots = ["mod common;\nmod model;\n".to_owned(), manifest];
        let reached = ["model", "alone", "forgotten"].map(|name| is_reached(name, &roots));
        assert_eq!(reached, [true, true, false]);
    }

    #[test]
    fn cargo_finds_tests_by_itself_where_nobody_forbids_it() {
        assert!(is_reached("any", &[String::new(), "[package]\n".to_owned()]));
    }

    #[test]
    fn only_the_root_of_a_crate_forbids() {
        assert!(faults_of("crates/holdfast-bio/src/split.rs", b"//! Splits.\n").is_empty());
    }
}
