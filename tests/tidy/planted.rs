//! Each rule against a planted violation: a check that never fails proves nothing.

use super::*;

fn problems(check: fn(&[SourceFile]) -> Vec<String>, path: &str, text: &str) -> usize {
    check(&[SourceFile::planted(path, text)]).len()
}

#[test]
fn an_upward_dependency_is_found() {
    let text = "[dependencies]\nraftmq-store.workspace = true\nraftmq-remoting.workspace = true\n";
    assert_eq!(
        problems(check_manifests, "broker/state/Cargo.toml", text),
        1
    );
    assert_eq!(problems(check_manifests, "broker/Cargo.toml", text), 0);
    assert_eq!(
        problems(check_words, "broker/store/Cargo.toml", "tokio = \"1\"\n"),
        1
    );
    assert_eq!(
        problems(check_words, "broker/store/Cargo.toml", "# no tokio\n"),
        0
    );
}

#[test]
fn a_banned_word_is_found_in_code_and_not_in_comments() {
    let text = "//! Head.\n// no tokio here\nuse tokio::sync;\n";
    assert_eq!(problems(check_words, "broker/remoting/src/a.rs", text), 1);
    assert_eq!(problems(check_words, "broker/src/a.rs", text), 0);
    assert_eq!(
        problems(
            check_words,
            "broker/state/src/a.rs",
            "let m = HashMap::new();\n"
        ),
        1
    );
}

#[test]
fn the_pure_steps_of_the_operator_wait_for_nothing_and_it_knows_no_files() {
    let text = "//! Head.\nuse tokio::time::Instant;\n";
    assert_eq!(problems(check_words, "operator/src/plan/a.rs", text), 2);
    assert_eq!(problems(check_words, "operator/src/apply.rs", text), 0);
    let text = "//! Head.\nuse raftmq_store::Store;\n";
    assert_eq!(problems(check_words, "operator/src/apply.rs", text), 1);
}

#[test]
fn a_seam_is_found_outside_its_place_and_an_unused_allowance_too() {
    for text in [
        "use openraft::Raft;",
        "use tokio::{io, net};",
        "use std::fs;",
        "SystemTime::now()",
    ] {
        assert_eq!(
            problems(check_seams, "broker/src/proposer.rs", text),
            1,
            "{text}"
        );
        assert_eq!(
            problems(check_seams, "broker/src/proposer/tests.rs", text),
            0,
            "{text}"
        );
    }
    assert_eq!(
        problems(
            check_seams,
            "broker/host/src/clock.rs",
            "use std::time::SystemTime;"
        ),
        0
    );
    assert_eq!(
        problems(check_seams, "broker/host/src/clock.rs", "use std::io;"),
        1
    );
    assert_eq!(
        problems(
            check_seams,
            "broker/src/a.rs",
            "use std::net::{IpAddr, TcpStream};"
        ),
        1
    );
}

#[test]
fn a_long_or_headless_file_is_found() {
    let long = format!("//! Head.\n{}", "fn f() {}\n".repeat(FILE_LINES_MAX));
    assert_eq!(problems(check_files, "broker/src/a.rs", &long), 1);
    assert_eq!(problems(check_files, "broker/src/a/tests.rs", &long), 0);
    assert_eq!(problems(check_files, "broker/src/a.rs", "fn f() {}\n"), 1);
}

#[test]
fn unfinished_work_machine_paths_and_registries_are_found() {
    for text in UNFINISHED.iter().chain(&BANNED_TEXT) {
        let line = format!("// see {text} there\n");
        assert_eq!(problems(check_text, "broker/src/a.rs", &line), 1, "{text}");
        assert_eq!(problems(check_text, "Cargo.lock", &line), 0, "{text}");
    }
}

#[test]
fn a_file_that_no_module_declares_is_found() {
    let lib = SourceFile::planted("broker/src/lib.rs", "pub mod net;\nmod raft;\n");
    let declared = ["broker/src/net.rs", "broker/src/raft/mod.rs"];
    for path in declared {
        let file = SourceFile::planted(path, "//! Head.\n");
        assert_none(&check_modules(&[lib.clone(), file]));
    }
    for path in ["broker/host/src/clock.rs", "broker/src/raft/wire.rs"] {
        let file = SourceFile::planted(path, "//! Head.\n");
        assert_eq!(check_modules(&[lib.clone(), file]).len(), 1, "{path}");
    }
}

#[test]
fn a_readme_that_names_a_missing_file_is_found() {
    let readme = SourceFile::planted("broker/README.md", "`src/a.rs`, `b.rs`, `Arc<T>`, `c.rs`");
    let a = SourceFile::planted("broker/src/a.rs", "//! Head.\n");
    let b = SourceFile::planted("broker/src/b.rs", "//! Head.\n");
    assert_eq!(check_code_maps(&[readme, a, b]).len(), 1);
}

#[test]
fn an_incomplete_lint_file_and_a_stray_top_level_name_are_found() {
    let top = SourceFile::planted(".clippy.toml", "a = 1\nb = 2\n");
    let nested = SourceFile::planted("broker/state/.clippy.toml", "a = 1\n");
    assert_eq!(check_lint_files(&[top, nested]).len(), 1);
    assert_eq!(
        check_top_level(&["broker".to_owned(), "scripts".to_owned()]).len(),
        1
    );
}
