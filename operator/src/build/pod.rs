//! The pod of a broker: one container, non-root, read-only root, no token; probes on its HTTP
//! port; it hands the leadership over before it stops.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
    ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, LocalObjectReference,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::names::{
    ANNOTATION_CONFIG, CONFIG_FILE, CONFIG_PATH, CONFIG_VOLUME, CONTAINER, DATA_PATH, DATA_VOLUME,
    GroupId, PORT_HTTP, PORT_NAMESRV, PORT_RAFT, PORT_REMOTING, service_account,
};
use crate::validate::ValidCluster;

/// User and group of the broker process; owns nothing on a node.
const USER: i64 = 65532;

/// Longest stop: handing over takes milliseconds, at worst the few seconds that the broker grants
/// itself, and then what is buffered is synced. After this the pod is killed, which Raft survives.
const TERMINATION_GRACE_SECONDS: i64 = 45;

/// How long a broker goes on serving after it has handed over. kube-proxy writes its rules at most
/// once a second, and the first thing it hears of is that the pod will end: connections that come
/// to the leader's Service until then must not be refused.
const LINGER: &str = "2s";

/// Tries of one second each that a broker gets to recover its log before it is restarted. A log
/// is checked from its last checkpoint on, which takes seconds; damaged ones take longer.
const STARTUP_TRIES: i32 = 600;

/// The template of the pods of a group.
pub(super) fn template(cluster: &ValidCluster, group: &GroupId, config: &str) -> PodTemplateSpec {
    let annotations = BTreeMap::from([
        (ANNOTATION_CONFIG.to_owned(), config.to_owned()),
        (
            "kubectl.kubernetes.io/default-container".to_owned(),
            CONTAINER.to_owned(),
        ),
    ]);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(group.labels()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(service_account(&cluster.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
            security_context: Some(pod_security()),
            image_pull_secrets: pull_secrets(cluster),
            topology_spread_constraints: Some(vec![spread_over_nodes(group)]),
            containers: vec![container(cluster, group)],
            volumes: Some(vec![config_volume(group)]),
            ..PodSpec::default()
        }),
    }
}

fn container(cluster: &ValidCluster, group: &GroupId) -> Container {
    let pull_policy = cluster.spec.image.pull_policy;
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: pull_policy.map(|policy| policy.name().to_owned()),
        command: Some(vec!["raftmq".to_owned()]),
        args: Some(arguments()),
        env: Some(vec![
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_IP", "status.podIP"),
        ]),
        ports: Some(ports(cluster, group)),
        startup_probe: Some(probe("/livez", 1, STARTUP_TRIES)),
        // Three failed tries take a stuck replica out of the name service; a leader's endpoint
        // does not wait for them.
        readiness_probe: Some(probe("/readyz", 2, 3)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(ExecAction {
                    command: Some(
                        ["raftmq", "hand-over", "--linger", LINGER]
                            .map(str::to_owned)
                            .to_vec(),
                    ),
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: Some(requests()),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![
            VolumeMount {
                name: DATA_VOLUME.to_owned(),
                mount_path: DATA_PATH.to_owned(),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: CONFIG_VOLUME.to_owned(),
                mount_path: CONFIG_PATH.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

/// Later files win over earlier ones, `--set` over both.
fn arguments() -> Vec<String> {
    let shared = format!("{CONFIG_PATH}/{CONFIG_FILE}");
    let own = format!("{CONFIG_PATH}/$(POD_NAME).conf");
    [
        "broker",
        "-c",
        &shared,
        "-c",
        &own,
        "--set",
        "brokerIP1=$(POD_IP)",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn from_field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn ports(cluster: &ValidCluster, group: &GroupId) -> Vec<ContainerPort> {
    let mut ports = vec![
        ("remoting", PORT_REMOTING),
        ("raft", PORT_RAFT),
        ("http", PORT_HTTP),
    ];
    if cluster.namesrv_group() == Some(group) {
        ports.push(("namesrv", PORT_NAMESRV));
    }
    let port = |(name, number): (&str, u16)| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    ports.into_iter().map(port).collect()
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

/// What a small broker uses; no limits, because a throttled broker is a slow quorum.
fn requests() -> ResourceRequirements {
    let requests = [("cpu", "100m"), ("memory", "256Mi")]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    ResourceRequirements {
        requests: Some(requests.into()),
        ..ResourceRequirements::default()
    }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // Without it every start walks the whole volume.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        ..SecurityContext::default()
    }
}

/// Two brokers of a group on one node are better than one broker that does not run.
fn spread_over_nodes(group: &GroupId) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(group.selector()),
        ..TopologySpreadConstraint::default()
    }
}

fn pull_secrets(cluster: &ValidCluster) -> Option<Vec<LocalObjectReference>> {
    let names = &cluster.spec.image.pull_secrets;
    let secrets = names
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() });
    (!names.is_empty()).then(|| secrets.collect())
}

fn config_volume(group: &GroupId) -> Volume {
    Volume {
        name: CONFIG_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: group.config(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}
