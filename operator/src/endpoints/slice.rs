//! The EndpointSlice of a leader Service: what the operator writes into it and reads from it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::decide::{Kind, Published};
use crate::names::{
    ANNOTATION_LEADER, ANNOTATION_PUBLISHED, ANNOTATION_TERM, GroupId, LABEL_SERVICE_NAME,
    LABEL_SLICE_MANAGED_BY, OPERATOR, PORT_REMOTING,
};

/// The pod behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: Option<String>,
}

/// Name of the slice. A slice has addresses of one family and never changes it.
pub(super) fn name(group: &GroupId, ip: IpAddr) -> String {
    let family = match ip {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    };
    format!("{}-{family}", group.leader())
}

/// A slice that publishes `published`. With `resource_version` the API server refuses it when
/// somebody else was faster.
pub(super) fn build(
    group: &GroupId,
    owner: &OwnerReference,
    published: &Published,
    ip: IpAddr,
    target: &Target,
    resource_version: Option<String>,
) -> EndpointSlice {
    let mut labels = group.labels();
    labels.insert(LABEL_SERVICE_NAME.to_owned(), group.leader());
    labels.insert(LABEL_SLICE_MANAGED_BY.to_owned(), OPERATOR.to_owned());
    let annotations = [
        (ANNOTATION_TERM, published.term.to_string()),
        (ANNOTATION_LEADER, published.leader.to_string()),
        (ANNOTATION_PUBLISHED, published.kind.name().to_owned()),
    ];
    EndpointSlice {
        address_type: if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        metadata: ObjectMeta {
            name: Some(name(group, ip)),
            namespace: Some(group.namespace.clone()),
            labels: Some(labels),
            annotations: Some(
                annotations
                    .map(|(key, value)| (key.to_owned(), value))
                    .into(),
            ),
            owner_references: Some(vec![owner.clone()]),
            resource_version,
            ..ObjectMeta::default()
        },
        endpoints: Some(vec![Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: target.node.clone(),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(group.namespace.clone()),
                name: Some(target.name.clone()),
                uid: Some(target.uid.clone()),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }]),
        ports: Some(vec![EndpointPort {
            name: Some("remoting".to_owned()),
            port: Some(i32::from(PORT_REMOTING)),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]),
    }
}

/// What a slice publishes. An annotation that does not read counts as absent.
pub(super) fn read(slice: &EndpointSlice) -> Published {
    let annotation = |key: &str| slice.metadata.annotations.as_ref()?.get(key);
    let number = |key| {
        annotation(key)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let mut addresses = slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|one| &one.addresses);
    let ip = addresses.next().and_then(|address| address.parse().ok());
    Published {
        // Two addresses are as wrong as none: neither is published by an operator.
        ip: ip.filter(|_| addresses.next().is_none()),
        term: number(ANNOTATION_TERM),
        leader: number(ANNOTATION_LEADER),
        kind: match annotation(ANNOTATION_PUBLISHED).map(String::as_str) {
            Some("Leader") => Kind::Leader,
            _ => Kind::StandIn,
        },
    }
}

/// Whether the slice was made for this very resource, and not for one of the same name before.
pub(super) fn is_owned_by(slice: &EndpointSlice, owner: &OwnerReference) -> bool {
    let mut owners = slice.metadata.owner_references.iter().flatten();
    owners.any(|reference| reference.uid == owner.uid)
}

#[cfg(test)]
#[path = "slice_tests.rs"]
mod tests;
