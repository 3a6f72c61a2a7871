//! The three Services: `-peers` for the brokers themselves, `-leader` without a selector (its
//! EndpointSlice is written by `endpoints`), `-namesrv` for clients.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{cluster_metadata, group_metadata};
use crate::names::{GroupId, PORT_HTTP, PORT_NAMESRV, PORT_RAFT, PORT_REMOTING, namesrv};
use crate::validate::ValidCluster;

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::Int(i32::from(number))),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// Headless: gives every pod a name, also before it is ready, because a group can only become
/// ready once its members find each other.
#[must_use]
pub fn peers_service(cluster: &ValidCluster, group: &GroupId) -> Service {
    Service {
        metadata: group_metadata(cluster, group, group.peers()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(group.selector_labels()),
            ports: Some(vec![
                port("raft", PORT_RAFT),
                port("http", PORT_HTTP),
                port("remoting", PORT_REMOTING),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Without a selector, so that no other controller publishes anything. `recorded` is the address
/// the Service had before it was deleted: brokers and clients still use it.
#[must_use]
pub fn leader_service(
    cluster: &ValidCluster,
    group: &GroupId,
    recorded: Option<IpAddr>,
) -> Service {
    Service {
        metadata: group_metadata(cluster, group, group.leader()),
        spec: Some(ServiceSpec {
            cluster_ip: recorded.map(|ip| ip.to_string()),
            ports: Some(vec![port("remoting", PORT_REMOTING)]),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// What clients set as `namesrvAddr`: the ready pods of the first group.
#[must_use]
pub fn namesrv_service(cluster: &ValidCluster, group: &GroupId) -> Service {
    Service {
        metadata: cluster_metadata(cluster, namesrv(&cluster.name)),
        spec: Some(ServiceSpec {
            selector: Some(group.selector_labels()),
            ports: Some(vec![port("namesrv", PORT_NAMESRV)]),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
