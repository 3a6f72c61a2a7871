"""Volumes for the test node: a default StorageClass, and a provisioner that makes a local volume, a
folder, for each claim and removes it with the claim."""

import shutil
import threading

import api
import capsule
import control_plane

CLASS = "standard"
PROVISIONER = "raftmq.test/local"
FOLDER = capsule.INSIDE / "volumes"

CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"


def make_class(client):
    """The default class. A volume is made when a pod wants it, as usual for local disks."""
    body = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    client.apply(f"/apis/storage.k8s.io/v1/storageclasses/{CLASS}", body)


def start(wait_for_pod=True):
    """Begins to serve claims. `wait_for_pod`: a scheduler says for which node a claim is."""
    client = api.Api()
    make_class(client)
    FOLDER.mkdir(exist_ok=True)
    threading.Thread(target=provide, args=(client, wait_for_pod), name="provide", daemon=True).start()
    threading.Thread(target=reclaim, args=(client,), name="reclaim", daemon=True).start()


def provide(client, wait_for_pod):
    """A volume for each claim of our class that has none."""
    for kind, claim in client.watch(CLAIMS):
        if kind not in ("ADDED", "MODIFIED") or claim["spec"].get("volumeName"):
            continue
        chosen = "volume.kubernetes.io/selected-node" in claim["metadata"].get("annotations", {})
        if claim["spec"].get("storageClassName") != CLASS or (wait_for_pod and not chosen):
            continue
        try:
            provide_one(client, claim)
        except (OSError, api.ApiError) as error:
            print(f"volume for {claim['metadata']['name']}: {error}", flush=True)


def provide_one(client, claim):
    """The folder and its PersistentVolume, bound to this claim and no other."""
    metadata = claim["metadata"]
    name = f"pvc-{metadata['uid']}"
    (FOLDER / name).mkdir(exist_ok=True)
    terms = [{"key": "kubernetes.io/hostname", "operator": "In", "values": [control_plane.NODE_NAME]}]
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "local": {"path": str(FOLDER / name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": terms}]}},
        },
    }
    client.apply(f"{VOLUMES}/{name}", body)


def reclaim(client):
    """Removes the volumes whose claim is gone."""
    for kind, volume in client.watch(VOLUMES):
        if kind not in ("ADDED", "MODIFIED") or volume.get("status", {}).get("phase") != "Released":
            continue
        if volume["spec"]["persistentVolumeReclaimPolicy"] != "Delete":
            continue
        name = volume["metadata"]["name"]
        try:
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            client.call("DELETE", f"{VOLUMES}/{name}")
        except (OSError, api.ApiError) as error:
            print(f"reclaim {name}: {error}", flush=True)
