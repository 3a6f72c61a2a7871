//! What cannot be built is refused with the field and a reason; what can be is resolved.

use serde_json::{Value, json};

use super::*;

/// A resource as an API server would give it.
pub(crate) fn resource(spec: Value) -> RaftCluster {
    serde_json::from_value(json!({
        "apiVersion": "raftmq.io/v1alpha1",
        "kind": "RaftCluster",
        "metadata": {"name": "orders", "namespace": "mq", "uid": "uid-1", "generation": 3},
        "spec": spec
    }))
    .unwrap()
}

pub(crate) fn defaults() -> Defaults {
    Defaults {
        image: "registry.example/raftmq:0.1.0".to_owned(),
    }
}

fn with_broker(container: Value) -> RaftCluster {
    let mut container = container;
    container["name"] = json!("broker");
    resource(json!({
        "storage": {"size": "10Gi"},
        "podTemplate": {"spec": {"containers": [container]}}
    }))
}

fn problem(cluster: &RaftCluster) -> String {
    validate(cluster, &defaults()).unwrap_err().to_string()
}

#[test]
fn a_size_is_enough() {
    let valid = validate(&resource(json!({"storage": {"size": "10Gi"}})), &defaults()).unwrap();
    assert_eq!(valid.image, "registry.example/raftmq:0.1.0");
    assert_eq!(valid.groups[0].base(), "orders-broker-a");
    let pods: Vec<String> = valid.pods(&valid.groups[0]).collect();
    assert_eq!(
        pods,
        [
            "orders-broker-a-0",
            "orders-broker-a-1",
            "orders-broker-a-2"
        ]
    );
    assert_eq!(valid.owner.controller, Some(true));
}

#[test]
fn a_template_that_is_no_pod_is_refused_with_the_reason() {
    let cluster = resource(json!({
        "storage": {"size": "10Gi"},
        "podTemplate": {"spec": {"hostNetwork": "yes"}}
    }));
    let problem = problem(&cluster);
    assert!(
        problem.starts_with("spec.podTemplate.spec: is not a pod: "),
        "{problem}"
    );
}

#[test]
fn what_makes_a_container_the_broker_cannot_be_changed() {
    for (container, word) in [
        (json!({"command": ["sh"]}), "command"),
        (json!({"args": ["-p"]}), "args"),
        (json!({"image": "other"}), "spec.image.name"),
        (
            json!({"volumeMounts": [{"name": "x", "mountPath": "/var/lib/raftmq"}]}),
            "mount",
        ),
        (
            json!({"env": [{"name": "POD_IP", "value": "1.2.3.4"}]}),
            "POD_IP",
        ),
    ] {
        let problem = problem(&with_broker(container));
        assert!(problem.contains(word), "{word}: {problem}");
    }
}

#[test]
fn volumes_of_the_operator_cannot_be_replaced() {
    let cluster = resource(json!({
        "storage": {"size": "10Gi"},
        "podTemplate": {"spec": {"volumes": [{"name": "data", "emptyDir": {}}]}}
    }));
    assert!(problem(&cluster).contains("'data'"));
}

#[test]
fn other_settings_of_the_broker_and_sidecars_are_taken() {
    let cluster = resource(json!({
        "storage": {"size": "10Gi"},
        "podTemplate": {
            "metadata": {"labels": {"team": "payments"}},
            "spec": {
                "nodeSelector": {"disk": "nvme"},
                "containers": [
                    {"name": "broker", "resources": {"limits": {"memory": "4Gi"}}},
                    {"name": "sidecar", "image": "busybox", "command": ["sleep", "1d"]}
                ]
            }
        }
    }));
    let valid = validate(&cluster, &defaults()).unwrap();
    let spec = valid.pod_override.spec.unwrap();
    assert_eq!(spec.containers.len(), 2);
}

#[test]
fn an_even_number_is_refused_although_the_server_should_have() {
    let cluster = resource(json!({"storage": {"size": "10Gi"}, "replicas": 4}));
    assert!(problem(&cluster).starts_with("spec.replicas"));
}
