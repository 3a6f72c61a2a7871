//! Rules of the repository that no compiler checks: which crate may name what, how long a file
//! may be, what must not stand in a text, and what lies where. Each rule is a table and a function
//! from files to problems; `planted` at the end shows that each of them can fail.

#[path = "tidy/keys.rs"]
mod keys;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use raftmq_tests::repository_root;

use keys::check_keys;
use source::{SourceFile, lines_naming_path, names_word, read_tree};

/// Lines after which a non-test file is reported, and after which it is refused.
const FILE_LINES_WARN: usize = 500;
const FILE_LINES_MAX: usize = 600;

/// What may lie at the top of the repository. Hidden files are settings of tools.
const TOP_LEVEL: [&str; 25] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "rust-toolchain.toml",
    "README.md",
    "broker",
    "charts",
    "crds",
    "operator",
    "tests",
    "target",
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".config",
    ".deny.toml",
    ".dockerignore",
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
    ".rustfmt.toml",
];

/// A crate of ours, and which other crates of ours it may use.
const CRATES: [(&str, &[&str]); 13] = [
    ("broker/remoting", &[]),
    ("broker/state", &["raftmq-remoting"]),
    ("broker/store", &[]),
    ("broker/api", &[]),
    ("broker/host", &["raftmq-remoting", "raftmq-store"]),
    ("broker/config", &["raftmq-host"]),
    ("broker/telemetry", &[]),
    (
        "broker/namesrv",
        &[
            "raftmq-config",
            "raftmq-host",
            "raftmq-remoting",
            "raftmq-telemetry",
        ],
    ),
    ("broker/bench", &["raftmq-host", "raftmq-remoting"]),
    (
        "broker/replica",
        &[
            "raftmq-config",
            "raftmq-host",
            "raftmq-remoting",
            "raftmq-state",
            "raftmq-store",
            "raftmq-telemetry",
        ],
    ),
    ("operator", &["raftmq-api"]),
    (
        "broker",
        &[
            "raftmq-api",
            "raftmq-bench",
            "raftmq-config",
            "raftmq-host",
            "raftmq-namesrv",
            "raftmq-remoting",
            "raftmq-replica",
            "raftmq-state",
            "raftmq-store",
            "raftmq-telemetry",
        ],
    ),
    (
        "tests",
        &[
            "raftmq",
            "raftmq-api",
            "raftmq-operator",
            "raftmq-remoting",
            "raftmq-state",
            "raftmq-store",
        ],
    ),
];

/// The crates that neither wait nor know a network, a consensus or a cluster.
const SYNCHRONOUS: [&str; 3] = ["broker/remoting/", "broker/state/", "broker/store/"];

/// Words no file under these folders may have, tests and manifests included.
const BANNED_WORDS: [(&[&str], &[&str], &str); 4] = [
    (
        &SYNCHRONOUS,
        &["tokio", "openraft", "tonic", "kube", "axum"],
        "this crate is synchronous and knows no network, consensus or cluster",
    ),
    (
        &["broker/state/"],
        &[
            "HashMap",
            "HashSet",
            "Instant",
            "SystemTime",
            "rand",
            "fastrand",
            "getrandom",
            "uuid",
        ],
        "the state machine is a function of its log: no clock, no randomness, no hash order",
    ),
    (
        &[
            "operator/src/build/",
            "operator/src/drift.rs",
            "operator/src/endpoints/decide.rs",
            "operator/src/plan/",
            "operator/src/validate.rs",
        ],
        &[
            "tokio",
            "tonic",
            "async",
            "await",
            "Client",
            "Instant",
            "SystemTime",
            "rand",
        ],
        "this step of the operator is pure: it waits for nothing, calls nobody and reads no clock",
    ),
    (
        &["operator/"],
        &[
            "openraft",
            "raftmq_remoting",
            "raftmq_state",
            "raftmq_store",
            "commitlog",
        ],
        "the operator knows brokers by their admin service alone, never by their files or log",
    ),
];

/// A name that only a few files may use, so that a simulation can replace what is behind it.
struct Seam {
    /// `first::second` as in a `use`, or one word.
    name: &'static str,
    /// Where the rule holds.
    within: &'static str,
    /// Path prefixes that may use the name, each with its reason.
    allowed: &'static [(&'static str, &'static str)],
}

const SEAMS: [Seam; 7] = [
    Seam {
        name: "openraft",
        within: "",
        allowed: &[
            (
                "broker/replica/src/raft/",
                "the one place that knows the consensus library",
            ),
            (
                "tests/",
                "the simulator and the suite for log stores drive it directly",
            ),
        ],
    },
    Seam {
        name: "tokio::net",
        within: "broker/",
        allowed: &[("broker/host/src/net.rs", "the real network")],
    },
    Seam {
        name: "std::net::TcpStream",
        within: "broker/",
        allowed: &[],
    },
    Seam {
        name: "SystemTime",
        within: "broker/",
        allowed: &[("broker/host/src/clock.rs", "the real clock")],
    },
    Seam {
        name: "std::fs",
        within: "broker/",
        allowed: &[
            ("broker/store/src/disk.rs", "the real disk"),
            ("broker/host/src/memory.rs", "reads /proc"),
            (
                "broker/bench/",
                "writes what was sent to a file, reads /proc",
            ),
            (
                "broker/config/",
                "reads the configuration before there is a disk",
            ),
            (
                "broker/namesrv/src/kv_config.rs",
                "a small file of the name server, not of the log",
            ),
            (
                "broker/src/cli/",
                "writes configuration for child processes, reads /proc",
            ),
        ],
    },
    Seam {
        name: "kube",
        within: "",
        allowed: &[("operator/", "the one crate that talks to Kubernetes")],
    },
    Seam {
        name: "tokio::net",
        within: "operator/",
        allowed: &[("operator/src/http.rs", "metrics and probes")],
    },
];

/// Marks of unfinished work. Split, so that this file does not contain them.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Paths of one machine, and hosts of package registries: neither belongs into a repository.
const BANNED_TEXT: [&str; 10] = [
    concat!("/wo", "rk"),
    concat!("/ro", "ot"),
    concat!("crates", ".io"),
    concat!("registry.npm", "js.org"),
    concat!("repo.maven", ".apache.org"),
    concat!("repo1", ".maven.org"),
    concat!("proxy.golang", ".org"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("deb.debian", ".org"),
];

/// Crates use only the crates of ours that lie below them.
fn check_manifests(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for (folder, allowed) in CRATES {
        let manifest = format!("{folder}/Cargo.toml");
        let Some(file) = files.iter().find(|file| file.path == manifest) else {
            continue;
        };
        let (mut in_dependencies, mut for_tests) = (false, false);
        for line in file.text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
                for_tests = line == "[dev-dependencies]";
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            let is_ours = name == "raftmq" || name.starts_with("raftmq-");
            // Its simulated disk is of use to every test, and cargo builds it for tests alone.
            let uses_simulator = ["broker", "broker/replica"].contains(&folder);
            let is_shared = for_tests && uses_simulator && name == "raftmq-tests";
            if in_dependencies && is_ours && !is_shared && !allowed.contains(&name) {
                problems.push(format!("{manifest}: must not depend on {name}"));
            }
        }
    }
    problems
}

fn check_words(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for (folders, words, reason) in BANNED_WORDS {
        let concerned = files.iter().filter(|file| {
            folders.iter().any(|folder| file.path.starts_with(folder))
                && (file.is_rust() || file.path.ends_with("Cargo.toml"))
        });
        for file in concerned {
            for (number, line) in file.code(true) {
                // A `#` opens a comment in a manifest and an attribute in Rust.
                if !file.is_rust() && line.trim_start().starts_with('#') {
                    continue;
                }
                for word in words.iter().filter(|word| names_word(line, word)) {
                    problems.push(format!("{}:{number}: names {word}; {reason}", file.path));
                }
            }
        }
    }
    problems
}

fn lines_using(seam: &Seam, file: &SourceFile) -> Vec<usize> {
    let code = file.code(false);
    match seam.name.rsplit_once("::") {
        Some((first, second)) => lines_naming_path(&code, first, second),
        None => {
            let naming = code.iter().filter(|(_, line)| names_word(line, seam.name));
            naming.map(|(number, _)| *number).collect()
        }
    }
}

/// Seams are named where they are allowed, and no allowance is left over.
fn check_seams(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for seam in &SEAMS {
        let mut present = BTreeSet::new();
        let mut used = BTreeSet::new();
        for file in files
            .iter()
            .filter(|file| file.is_rust() && file.path.starts_with(seam.within))
        {
            let lines = lines_using(seam, file);
            let allowed = seam
                .allowed
                .iter()
                .find(|(prefix, _)| file.path.starts_with(prefix));
            if let Some((prefix, _)) = allowed {
                present.insert(*prefix);
                if !lines.is_empty() {
                    used.insert(*prefix);
                }
            } else if !file.is_test() {
                let problem = |line| format!("{}:{line}: names {}", file.path, seam.name);
                problems.extend(lines.into_iter().map(problem));
            }
        }
        // The tests may use everything; they need not.
        for prefix in present
            .difference(&used)
            .filter(|prefix| **prefix != "tests/")
        {
            problems.push(format!(
                "{prefix}: allowed to name {} and does not",
                seam.name
            ));
        }
    }
    problems
}

fn check_files(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        if !file.text.starts_with("//!") {
            problems.push(format!("{}: does not open with //!", file.path));
        }
        let lines = file.text.lines().count();
        if file.is_test() || lines <= FILE_LINES_WARN {
            continue;
        }
        if lines <= FILE_LINES_MAX {
            eprintln!("warning: {}: {lines} lines", file.path);
        } else {
            problems.push(format!(
                "{}: {lines} lines, at most {FILE_LINES_MAX}",
                file.path
            ));
        }
    }
    problems
}

fn check_text(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.path != "Cargo.lock") {
        for (index, line) in file.text.lines().enumerate() {
            let unfinished = UNFINISHED.iter().filter(|word| names_word(line, word));
            let banned = BANNED_TEXT.iter().filter(|text| contains_apart(line, text));
            for found in unfinished.chain(banned) {
                problems.push(format!("{}:{}: contains {found}", file.path, index + 1));
            }
        }
    }
    problems
}

/// Whether `line` contains `text` other than as the middle of a longer path or name.
fn contains_apart(line: &str, text: &str) -> bool {
    line.match_indices(text).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + text.len()..].chars().next();
        !before.is_some_and(|char| char.is_ascii_alphanumeric() || "_<-}".contains(char))
            && !after.is_some_and(|char| char.is_ascii_alphanumeric() || char == '_')
    })
}

/// Every file of a crate is a module of it: what nothing declares is never compiled.
fn check_modules(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.is_rust() && file.path.contains("/src/"))
    {
        let Some((folder, name)) = file.path.rsplit_once('/') else {
            continue;
        };
        let in_source_root = folder.ends_with("/src");
        if in_source_root && ["lib.rs", "main.rs"].contains(&name) || folder.ends_with("/bin") {
            continue;
        }
        let (folder, module) = match name {
            "mod.rs" => folder.rsplit_once('/').unwrap_or_default(),
            _ => (folder, name.trim_end_matches(".rs")),
        };
        let parents = [
            format!("{folder}.rs"),
            format!("{folder}/mod.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
        ];
        let declaration = format!("mod {module};");
        let by_path = format!("{name}\"]");
        let is_declared = files.iter().any(|parent| {
            let is_parent = parents.contains(&parent.path);
            let is_beside = parent.path.starts_with(&format!("{folder}/"));
            let mut code = parent.text.lines().map(str::trim);
            is_parent && code.clone().any(|line| line.ends_with(&declaration))
                || is_beside
                    && code.any(|line| line.starts_with("#[path") && line.ends_with(&by_path))
        });
        if !is_declared {
            problems.push(format!("{}: no module declares it", file.path));
        }
    }
    problems
}

/// Files that a README names in backticks exist, seen from its folder, the `src` of that or the
/// top of the repository.
fn check_code_maps(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    let known: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for readme in files.iter().filter(|file| file.path.ends_with("README.md")) {
        let folder = readme.path.trim_end_matches("README.md");
        let named = readme.text.split('`').skip(1).step_by(2);
        for name in named.filter(|name| looks_like_source(name)) {
            let places = [
                format!("{folder}{name}"),
                format!("{folder}src/{name}"),
                name.to_owned(),
            ];
            if !places.iter().any(|place| known.contains(place.as_str())) {
                problems.push(format!(
                    "{}: names `{name}`, which does not exist",
                    readme.path
                ));
            }
        }
    }
    problems
}

fn looks_like_source(name: &str) -> bool {
    let is_path = name
        .chars()
        .all(|char| char.is_ascii_alphanumeric() || "_-./".contains(char));
    is_path && (name.ends_with(".rs") || name.ends_with(".proto"))
}

/// A nested lint file replaces the one at the top, so it must repeat it.
fn check_lint_files(files: &[SourceFile]) -> Vec<String> {
    let Some(top) = files.iter().find(|file| file.path == ".clippy.toml") else {
        return vec![".clippy.toml: is missing".to_owned()];
    };
    let nested = files
        .iter()
        .filter(|file| file.path.ends_with("/.clippy.toml"));
    let missing = nested.flat_map(|file| {
        let lines = top.text.lines().filter(|line| !file.text.contains(line));
        lines.map(|line| format!("{}: lacks '{line}'", file.path))
    });
    missing.collect()
}

fn check_top_level(names: &[String]) -> Vec<String> {
    let unknown = names
        .iter()
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    unknown
        .map(|name| format!("{name}: does not belong to the top level"))
        .collect()
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let files = read_tree(repository_root());
    assert_none(&[check_manifests(&files), check_words(&files)].concat());
}

#[test]
fn network_clock_disk_and_consensus_are_named_in_their_place_only() {
    assert_none(&check_seams(&read_tree(repository_root())));
}

#[test]
fn files_are_short_opened_by_a_header_and_part_of_their_crate() {
    let files = read_tree(repository_root());
    assert_none(&[check_files(&files), check_modules(&files)].concat());
}

#[test]
fn texts_hold_no_unfinished_work_machine_path_or_registry() {
    assert_none(&check_text(&read_tree(repository_root())));
}

#[test]
fn readmes_and_lint_files_are_complete() {
    let files = read_tree(repository_root());
    assert_none(&[check_code_maps(&files), check_lint_files(&files)].concat());
}

#[test]
fn honoured_keys_are_read() {
    assert_none(&check_keys(&read_tree(repository_root())));
}

#[test]
fn the_top_level_holds_only_known_names() {
    assert_none(&check_top_level(&names_in(repository_root())));
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the repository can be read");
    let names = entries.map(|entry| entry.expect("the repository can be read").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[path = "tidy/planted.rs"]
mod planted;
