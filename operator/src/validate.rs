//! Second step: is this specification one that can be built? Pure. The API server has checked the
//! rules of `crd::rules`; here is what they cannot see, above all the free-form pod template.

use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use thiserror::Error;

use crate::crd::{PodTemplate, RaftCluster, RaftClusterSpec};
use crate::names::{
    CLUSTER_NAME_LENGTH_MAX, CONFIG_PATH, CONFIG_VOLUME, CONTAINER, DATA_PATH, DATA_VOLUME, GroupId,
};

/// What the operator brings along for resources that do not say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Image of the brokers.
    pub image: String,
}

/// A cluster that can be built: nothing behind this step looks at the raw resource.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidCluster {
    /// Namespace of the resource and of everything made from it.
    pub namespace: String,
    /// Name of the resource.
    pub name: String,
    /// Makes the resource the owner of a child.
    pub owner: OwnerReference,
    /// Generation of the specification.
    pub generation: Option<i64>,
    /// The specification.
    pub spec: RaftClusterSpec,
    /// Image of the brokers, resolved.
    pub image: String,
    /// The groups in the order of the specification; at least one.
    pub groups: Vec<GroupId>,
    /// What is merged over a built pod.
    pub pod_override: PodTemplateSpec,
}

impl ValidCluster {
    /// The group whose pods are the name servers.
    #[must_use]
    pub fn namesrv_group(&self) -> Option<&GroupId> {
        self.groups.first()
    }

    /// The pods of a group, in the order of their ordinals.
    pub fn pods<'a>(&self, group: &'a GroupId) -> impl Iterator<Item = String> + use<'a> {
        (0..self.spec.replicas).map(|ordinal| group.pod(ordinal))
    }
}

/// A specification that cannot be built; waits for its author.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// Path of the field.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

fn invalid(field: &str, message: impl Into<String>) -> Invalid {
    Invalid {
        field: field.to_owned(),
        message: message.into(),
    }
}

/// Checks a resource and resolves what it leaves open.
///
/// # Errors
/// When the resource cannot be built; the error names the field.
pub fn validate(cluster: &RaftCluster, defaults: &Defaults) -> Result<ValidCluster, Invalid> {
    let missing = |field| {
        invalid(
            field,
            "is missing, so this is not an object of an API server",
        )
    };
    let metadata = &cluster.metadata;
    let name = metadata
        .name
        .clone()
        .ok_or_else(|| missing("metadata.name"))?;
    let namespace = metadata
        .namespace
        .clone()
        .ok_or_else(|| missing("metadata.namespace"))?;
    let owner = cluster
        .controller_owner_ref(&())
        .ok_or_else(|| missing("metadata.uid"))?;
    let spec = cluster.spec.clone();
    check_size(&name, &spec)?;
    let groups = spec.groups.iter().map(|group| GroupId {
        namespace: namespace.clone(),
        cluster: name.clone(),
        group: group.name.clone(),
    });
    Ok(ValidCluster {
        groups: groups.collect(),
        image: spec
            .image
            .name
            .clone()
            .unwrap_or_else(|| defaults.image.clone()),
        pod_override: pod_override(spec.pod_template.as_ref())?,
        generation: metadata.generation,
        owner,
        namespace,
        name,
        spec,
    })
}

/// What an API server with our definition has checked already; a definition of another release
/// may not have.
fn check_size(name: &str, spec: &RaftClusterSpec) -> Result<(), Invalid> {
    if name.len() > CLUSTER_NAME_LENGTH_MAX {
        let message = format!("has more than {CLUSTER_NAME_LENGTH_MAX} characters");
        return Err(invalid("metadata.name", message));
    }
    if spec.replicas.is_multiple_of(2) || spec.replicas > 9 {
        return Err(invalid("spec.replicas", "must be 1, 3, 5, 7 or 9"));
    }
    if spec.groups.is_empty() {
        return Err(invalid("spec.groups", "must have at least one group"));
    }
    Ok(())
}

/// The pod template as types. It may add to the broker's container, and not change what makes it
/// that broker: its command, its data and its configuration.
fn pod_override(template: Option<&PodTemplate>) -> Result<PodTemplateSpec, Invalid> {
    let mut pod = PodTemplateSpec::default();
    let Some(template) = template else {
        return Ok(pod);
    };
    if let Some(metadata) = &template.metadata {
        pod.metadata.merge_from(Some(ObjectMeta {
            labels: Some(metadata.labels.clone()),
            annotations: Some(metadata.annotations.clone()),
            ..ObjectMeta::default()
        }));
    }
    let Some(free_form) = &template.spec else {
        return Ok(pod);
    };
    // `containers` is required in a pod and not in what is merged over one.
    let mut free_form = free_form.clone();
    if let Some(fields) = free_form.as_object_mut() {
        fields
            .entry("containers")
            .or_insert_with(|| serde_json::json!([]));
    }
    let spec: PodSpec = serde_json::from_value(free_form)
        .map_err(|error| invalid("spec.podTemplate.spec", format!("is not a pod: {error}")))?;
    check_volumes(&spec)?;
    for container in &spec.containers {
        if container.name == CONTAINER {
            check_container(container)?;
        }
    }
    pod.spec = Some(spec);
    Ok(pod)
}

fn check_volumes(spec: &PodSpec) -> Result<(), Invalid> {
    let owned = [DATA_VOLUME, CONFIG_VOLUME];
    let taken = spec
        .volumes
        .iter()
        .flatten()
        .find(|volume| owned.contains(&volume.name.as_str()));
    match taken {
        Some(volume) => Err(invalid(
            "spec.podTemplate.spec.volumes",
            format!(
                "'{}' is the name of a volume of the operator; use another",
                volume.name
            ),
        )),
        None => Ok(()),
    }
}

fn check_container(container: &Container) -> Result<(), Invalid> {
    let field = "spec.podTemplate.spec.containers[broker]";
    if container.command.is_some() || container.args.is_some() {
        let message = "must not set command or args: use spec.config for the broker's settings";
        return Err(invalid(field, message));
    }
    if container.image.is_some() {
        return Err(invalid(field, "must not set image: use spec.image.name"));
    }
    let mut mounts = container.volume_mounts.iter().flatten();
    if mounts.any(|mount| [DATA_PATH, CONFIG_PATH].contains(&mount.mount_path.as_str())) {
        let message = format!("must not mount at {DATA_PATH} or {CONFIG_PATH}");
        return Err(invalid(field, message));
    }
    let mut variables = container.env.iter().flatten();
    if variables.any(|variable| ["POD_NAME", "POD_IP"].contains(&variable.name.as_str())) {
        return Err(invalid(
            field,
            "must not set the variables POD_NAME or POD_IP",
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
pub(crate) mod tests;
