//! Each honoured key of a configuration file is read by somebody: one that is only stored would be
//! a promise that nobody keeps.

use crate::source::SourceFile;

/// The one table of keys.
const TABLE: &str = "broker/config/src/keys.rs";

/// Keys whose field no code reads.
pub(crate) fn check_keys(files: &[SourceFile]) -> Vec<String> {
    let Some(table) = files.iter().find(|file| file.path == TABLE) else {
        return vec![format!("{TABLE} is missing")];
    };
    let readers: Vec<&SourceFile> = files
        .iter()
        .filter(|file| file.path.starts_with("broker/") && file.path != TABLE)
        .filter(|file| file.is_rust() && !file.is_test())
        .collect();
    let is_read = |field: &str| {
        let code = readers.iter().flat_map(|file| file.code(false));
        code.into_iter().any(|(_, line)| reads(line, field))
    };
    rows(&table.text)
        .into_iter()
        .filter(|(_, field)| !is_read(field))
        .map(|(key, field)| format!("{TABLE}: {key} is honoured, and nobody reads `{field}`"))
        .collect()
}

/// Key and field of each `row!("key", field)`.
fn rows(table: &str) -> Vec<(&str, &str)> {
    let calls = table.split("row!(").skip(1);
    let arguments = calls.filter_map(|call| call.split_once(')'));
    arguments
        .filter_map(|(arguments, _)| arguments.split_once(','))
        .map(|(key, field)| {
            (
                key.trim().trim_matches('"'),
                field.trim().trim_end_matches(','),
            )
        })
        .filter(|(key, _)| !key.starts_with('$'))
        .collect()
}

/// Whether the line names the field of a value without setting it.
fn reads(line: &str, field: &str) -> bool {
    // `raft.heartbeat_ms` is passed on as the part of the configuration that it is in.
    let name = format!(".{}", field.rsplit('.').next().unwrap_or(field));
    let mut uses = line
        .match_indices(&name)
        .map(|(at, found)| &line[at + found.len()..]);
    uses.any(|rest| {
        let ends = !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        let set = rest.trim_start();
        let is_set = set.starts_with('=') && !set.starts_with("==");
        ends && !is_set
    })
}

#[test]
fn a_key_that_nobody_reads_is_found() {
    let table =
        "//! Head.\nrow!(\"regionId\", region_id),\nrow!(\n    \"httpPort\",\n    http_port\n)\n";
    let problems = |code: &str| {
        check_keys(&[
            SourceFile::planted(TABLE, table),
            SourceFile::planted("broker/src/a.rs", code),
        ])
        .len()
    };
    assert_eq!(
        problems("let a = config.region_id;\nlet b = (config.http_port, 1);\n"),
        0
    );
    assert_eq!(
        problems("config.region_id = a;\nif config.http_port == 1 {}\n"),
        1
    );
    assert_eq!(
        problems("config.region_id_of = a; // .region_id\nconfig.http_ports\n"),
        2
    );
}
