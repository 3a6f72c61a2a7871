//! Reads the repository as text: which files there are, which part of a Rust file is code, and
//! whether that code names a word or a path.

use std::fs;
use std::path::Path;

/// Folders that hold nothing written by hand.
const SKIPPED_FOLDERS: [&str; 4] = [".git", "target", "node_modules", "corpus"];

/// A text file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Path from the top of the repository, with `/`.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
}

impl SourceFile {
    /// A file for the tests of the rules.
    #[cfg(test)]
    pub(crate) fn planted(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Whether this is Rust source.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the whole file is test code.
    pub(crate) fn is_test(&self) -> bool {
        let (folders, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        folders.split('/').any(|folder| folder == "tests")
            || ["tests.rs", "test.rs"].contains(&name)
            || name.ends_with("_tests.rs")
            || name.ends_with("_test.rs")
    }

    /// The numbered lines of code, from 1: without comments and, if asked, without the inline
    /// modules marked `#[cfg(test)]`. Relies on rustfmt: such a module ends with a `}` in column 0.
    pub(crate) fn code(&self, with_tests: bool) -> Vec<(usize, &str)> {
        let mut lines = Vec::new();
        let mut in_test_module = false;
        let mut after_cfg_test = false;
        for (index, line) in self.text.lines().enumerate() {
            let code = strip_comment(line);
            if !with_tests {
                if in_test_module {
                    in_test_module = line != "}";
                    continue;
                }
                if after_cfg_test && code.contains("mod ") && code.trim_end().ends_with('{') {
                    in_test_module = true;
                    continue;
                }
                after_cfg_test = line == "#[cfg(test)]" || (after_cfg_test && code.is_empty());
            }
            if !code.trim().is_empty() {
                lines.push((index + 1, code));
            }
        }
        lines
    }
}

/// Every text file below `root`, ordered by path.
pub(crate) fn read_tree(root: &Path) -> Vec<SourceFile> {
    let mut files = Vec::new();
    read_folder(root, "", &mut files);
    files.sort_by(|left, right| left.path.cmp(&right.path));
    files
}

fn read_folder(folder: &Path, prefix: &str, files: &mut Vec<SourceFile>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository can be read") {
        let entry = entry.expect("a folder of the repository can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().expect("an entry has a type");
        if kind.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                read_folder(&entry.path(), &format!("{prefix}{name}/"), files);
            }
        } else if kind.is_file()
            // What is not UTF-8 is an image or a recorded byte stream.
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            files.push(SourceFile {
                path: format!("{prefix}{name}"),
                text,
            });
        }
    }
}

/// The part of a line before its comment. A `//` within a string would cut too much, except after
/// a colon, which is where it occurs in practice (`http://`).
fn strip_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(found) = line[from..].find("//") {
        let at = from + found;
        if !line[..at].ends_with(':') {
            return &line[..at];
        }
        from = at + 2;
    }
    line
}

/// Whether `code` contains `word` as a whole word. A following `_` belongs to no word here, so
/// that `openraft` is also found in `openraft_rt`.
pub(crate) fn names_word(code: &str, word: &str) -> bool {
    let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(|char| char.is_ascii_alphanumeric())
    })
}

/// The lines that name `first::second`, either so or as an item of the group `first::{..}`.
pub(crate) fn lines_naming_path(code: &[(usize, &str)], first: &str, second: &str) -> Vec<usize> {
    let direct = format!("{first}::{second}");
    let group = format!("{first}::{{");
    let mut found = Vec::new();
    // Depth of braces within the group; 0 outside of it.
    let mut depth = 0_usize;
    for (number, line) in code {
        let mut rest = *line;
        let mut is_named = names_word(line, &direct);
        if depth == 0
            && let Some(at) = line.find(&group)
        {
            depth = 1;
            rest = &line[at + group.len()..];
        }
        let mut item = String::new();
        for char in rest.chars().chain([',']) {
            match char {
                _ if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if char.is_ascii_alphanumeric() || char == '_' {
                item.push(char);
            } else {
                is_named |= item == second && (depth <= 1 || char == '{' || char == '}');
                item.clear();
            }
        }
        if is_named {
            found.push(*number);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_in_full_and_in_groups_and_nowhere_else() {
        for (line, expected) in [
            ("use tokio::net::TcpListener;", true),
            ("let x = tokio::net::lookup_host(y);", true),
            ("use tokio::{io, net::TcpStream};", true),
            ("use tokio::{net, io};", true),
            ("use tokio::{sync::{mpsc, watch}, net};", true),
            ("use tokio::{io, sync};", false),
            ("use crate::net::Stream;", false),
            ("use tokio::sync::Notify; use crate::{net};", false),
            ("use tokio::network;", false),
        ] {
            let found = lines_naming_path(&[(1, line)], "tokio", "net");
            assert_eq!(!found.is_empty(), expected, "{line}");
        }
        let lines = [
            (3, "use std::{"),
            (4, "    fs,"),
            (5, "    io,"),
            (6, "};"),
            (7, "fs"),
        ];
        assert_eq!(lines_naming_path(&lines, "std", "fs"), [4]);
    }

    #[test]
    fn words_are_whole() {
        assert!(names_word("use openraft_rt::X", "openraft"));
        assert!(names_word("tokio.workspace = true", "tokio"));
        assert!(!names_word("my_tokio", "tokio"));
        assert!(!names_word("kubernetes", "kube"));
    }

    #[test]
    fn comments_and_test_modules_are_no_code() {
        let file = SourceFile::planted(
            "a.rs",
            "//! head\nuse a; // why\n#[cfg(test)]\nmod far;\n#[cfg(test)]\nmod t {\n    b\n}\nlet c = \"http://x\";\n",
        );
        let code: Vec<&str> = file.code(false).into_iter().map(|(_, line)| line).collect();
        assert_eq!(
            code,
            [
                "use a; ",
                "#[cfg(test)]",
                "mod far;",
                "#[cfg(test)]",
                "let c = \"http://x\";"
            ]
        );
        assert!(file.code(true).iter().any(|(_, line)| line.trim() == "b"));
    }
}
