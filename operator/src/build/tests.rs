//! Every built object as YAML, to be read in review; and the properties that must not be lost.

use serde_json::json;

use super::*;
use crate::validate::tests::{defaults, resource};
use crate::validate::{ValidCluster, validate};

fn cluster(spec: Value) -> ValidCluster {
    validate(&resource(spec), &defaults()).unwrap()
}

fn two_groups() -> ValidCluster {
    cluster(json!({
        "storage": {"size": "100Gi", "storageClassName": "fast"},
        "groups": [{"name": "broker-a"}, {"name": "broker-b"}],
        "config": {"fileReservedTime": "48", "autoCreateTopicEnable": "false"},
        "image": {"name": "registry.example/raftmq:0.2.0", "pullPolicy": "Never", "pullSecrets": ["s"]}
    }))
}

fn input(cluster: &ValidCluster, at: usize) -> GroupInput {
    let id = cluster.groups[at].clone();
    GroupInput {
        members: cluster.pods(&id).zip(1..).collect(),
        leader_ip: "10.96.0.7".parse().unwrap(),
        id,
    }
}

fn yaml<T: Serialize>(value: &T) -> String {
    serde_yaml::to_string(value).unwrap()
}

#[test]
fn config_map_of_the_first_group() {
    let cluster = two_groups();
    insta::assert_snapshot!(yaml(&config_map(&cluster, &input(&cluster, 0))));
}

#[test]
fn only_the_first_group_serves_names_and_all_register_there() {
    let cluster = two_groups();
    let file = |at| {
        let map = config_map(&cluster, &input(&cluster, at));
        map.data.unwrap()["broker.conf"].clone()
    };
    assert!(file(0).contains("embeddedNamesrvPort=9876"));
    assert!(!file(1).contains("embeddedNamesrvPort"));
    let servers = |text: String| {
        text.lines()
            .find(|line| line.starts_with("namesrvAddr="))
            .unwrap()
            .to_owned()
    };
    assert_eq!(servers(file(0)), servers(file(1)));
    assert_eq!(servers(file(0)).matches(":9876").count(), 3);
}

#[test]
fn stateful_set_with_its_pod() {
    let cluster = two_groups();
    let group = input(&cluster, 0);
    insta::assert_snapshot!(yaml(&stateful_set(
        &cluster,
        &group,
        &config_map(&cluster, &group)
    )));
}

#[test]
fn services() {
    let cluster = two_groups();
    let group = &cluster.groups[0];
    let all = [
        yaml(&peers_service(&cluster, group)),
        yaml(&leader_service(&cluster, group, None)),
        yaml(&namesrv_service(&cluster, group)),
    ];
    insta::assert_snapshot!(all.join("---\n"));
}

#[test]
fn budget_and_account() {
    let cluster = two_groups();
    let group = &cluster.groups[0];
    let budget = disruption_budget(&cluster, group).unwrap();
    insta::assert_snapshot!([yaml(&budget), yaml(&service_account(&cluster))].join("---\n"));
}

#[test]
fn a_group_of_one_has_no_budget_that_would_block_every_drain() {
    let cluster = cluster(json!({"storage": {"size": "1Gi"}, "replicas": 1}));
    assert_eq!(disruption_budget(&cluster, &cluster.groups[0]), None);
}

#[test]
fn a_lost_service_asks_for_the_address_that_clients_know() {
    let cluster = two_groups();
    let service = leader_service(&cluster, &cluster.groups[0], "10.96.0.7".parse().ok());
    assert_eq!(
        service.spec.unwrap().cluster_ip.as_deref(),
        Some("10.96.0.7")
    );
}

#[test]
fn a_pod_template_is_merged_by_name() {
    let cluster = cluster(json!({
        "storage": {"size": "1Gi"},
        "podTemplate": {
            "metadata": {"labels": {"team": "payments"}},
            "spec": {
                "priorityClassName": "messaging",
                "containers": [
                    {"name": "broker", "env": [{"name": "RAFTMQ_LOG", "value": "debug"}],
                     "resources": {"requests": {"memory": "2Gi"}}},
                    {"name": "sidecar", "image": "busybox"}
                ],
                "volumes": [{"name": "scratch", "emptyDir": {}}]
            }
        }
    }));
    let group = input(&cluster, 0);
    let set = stateful_set(&cluster, &group, &config_map(&cluster, &group));
    let template = set.spec.template;
    let labels = template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels["team"], "payments");
    assert_eq!(labels["raftmq.io/group"], "broker-a");
    let pod = template.spec.unwrap();
    assert_eq!(pod.priority_class_name.as_deref(), Some("messaging"));
    assert_eq!(pod.containers.len(), 2);
    let broker = &pod.containers[0];
    let variables: Vec<&str> = broker
        .env
        .iter()
        .flatten()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(variables, ["POD_NAME", "POD_IP", "RAFTMQ_LOG"]);
    assert!(
        broker
            .args
            .as_ref()
            .unwrap()
            .contains(&"brokerIP1=$(POD_IP)".to_owned())
    );
    let requests = broker
        .resources
        .as_ref()
        .unwrap()
        .requests
        .as_ref()
        .unwrap();
    assert_eq!(requests["memory"].0, "2Gi");
    assert_eq!(requests["cpu"].0, "100m");
    assert_eq!(pod.volumes.unwrap().len(), 2);
}

#[test]
fn equal_inputs_have_equal_hashes_and_a_changed_configuration_changes_the_pods() {
    let desired = |spec: Value| {
        let cluster = cluster(spec);
        let group = input(&cluster, 0);
        let set = stateful_set(&cluster, &group, &config_map(&cluster, &group));
        Desired::new(&set).unwrap()
    };
    let base = json!({"storage": {"size": "1Gi"}});
    assert_eq!(desired(base.clone()), desired(base.clone()));
    let mut changed = base.clone();
    changed["config"] = json!({"fileReservedTime": "1"});
    let annotation = |desired: &Desired| {
        desired.body["spec"]["template"]["metadata"]["annotations"]["raftmq.io/config"].clone()
    };
    assert_ne!(annotation(&desired(base)), annotation(&desired(changed)));
}

#[test]
fn names_and_label_values_stay_below_63_characters() {
    let id = GroupId {
        namespace: "mq".to_owned(),
        cluster: "c".repeat(crate::names::CLUSTER_NAME_LENGTH_MAX),
        group: "g".repeat(20),
    };
    // A pod carries its StatefulSet's name and a hash of ten characters as a label.
    for name in [
        format!("{}-0123456789", id.base()),
        id.leader(),
        id.peers(),
        id.pod(8),
    ] {
        assert!(name.len() <= 63, "{name}");
    }
}
