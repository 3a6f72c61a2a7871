//! The definition: the copy in `crds/`, its size, its rules and its defaults.

use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::rules::OWNED_CONFIG_KEYS;
use super::{RaftCluster, RaftClusterSpec};

const CRD_FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crds/raftclusters.raftmq.io.yaml"
);
const CHART_FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../charts/raftmq-operator/files/raftclusters.raftmq.io.yaml"
);
const EXAMPLE_FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crds/examples/raftcluster.yaml"
);

/// `kubectl apply` keeps the whole object in an annotation, which has this many bytes at most.
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_files_are_what_the_types_generate() {
    let generated = super::yaml().unwrap();
    for path in [CRD_FILE, CHART_FILE] {
        assert!(
            read(path) == generated,
            "{path} differs from the types; write it anew with\n  \
             cargo run -p raftmq-operator -- crd > {path}"
        );
    }
}

#[test]
fn the_definition_fits_into_an_annotation() {
    assert!(super::yaml().unwrap().len() < ANNOTATION_BYTES_MAX);
}

#[test]
fn the_example_is_a_resource_of_this_definition() {
    let example: RaftCluster = serde_yaml::from_str(&read(EXAMPLE_FILE)).unwrap();
    assert!(example.metadata.name.is_some());
    assert_eq!(example.spec.replicas, 3);
}

#[test]
fn a_size_is_enough() {
    let spec: RaftClusterSpec =
        serde_json::from_value(json!({"storage": {"size": "1Gi"}})).unwrap();
    assert_eq!(spec.replicas, 3);
    assert_eq!(spec.groups[0].name, "broker-a");
    assert!(!spec.paused);
    let error = serde_json::from_value::<RaftClusterSpec>(json!({"replicas": 3})).unwrap_err();
    assert!(error.to_string().contains("storage"));
}

#[test]
fn defaults_stand_in_the_definition_so_that_they_are_seen() {
    let spec = schema_of_spec();
    for (field, default) in [
        ("/replicas", json!(3)),
        ("/groups", json!([{"name": "broker-a"}])),
        ("/paused", json!(false)),
        ("/nameServer", json!({"mode": "Embedded"})),
        (
            "/raft",
            json!({"heartbeatMs": 75, "electionTimeoutMinMs": 225, "electionTimeoutMaxMs": 375}),
        ),
    ] {
        assert_eq!(
            spec.pointer(&format!("{field}/default")),
            Some(&default),
            "{field}"
        );
    }
}

fn schema_of_spec() -> Value {
    let crd = serde_json::to_value(RaftCluster::crd()).unwrap();
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    crd.pointer(path).unwrap().clone()
}

fn collect_rules<'a>(schema: &'a Value, rules: &mut Vec<&'a Value>) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == "x-kubernetes-validations" {
                    rules.extend(value.as_array().unwrap());
                } else {
                    collect_rules(value, rules);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_rules(item, rules)),
        _ => {}
    }
}

#[test]
fn every_rule_has_a_message() {
    let crd = serde_json::to_value(RaftCluster::crd()).unwrap();
    let mut rules = Vec::new();
    collect_rules(&crd, &mut rules);
    assert_eq!(rules.len(), 16);
    for rule in rules {
        assert!(
            rule.get("message")
                .or(rule.get("messageExpression"))
                .is_some(),
            "{rule}"
        );
    }
}

#[test]
fn owned_keys_are_sorted_and_named_once() {
    assert!(OWNED_CONFIG_KEYS.is_sorted_by(|left, right| left < right));
}
