"""One pod of the quick bed: from its binding to its end, as a kubelet does it, with processes."""

import datetime
import http.client
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import threading
import time

import api
import capsule
import control_plane
import process_net
import process_root
import volumes

# A container that ended is started again after this. A kubelet waits longer from the second time
# on; the bed is there to have many failures in a short time. Unit: seconds.
RESTART_PAUSE = 0.05

# Pause between two looks at what cannot be waited for. Unit: seconds.
POLL = 0.05

# The fastest probing; Kubernetes has no period below a second, but nothing here waits on purpose.
# Unit: seconds.
PROBE_PERIOD = 0.1

# How long an API server that is away is waited for. Unit: seconds.
API_PATIENCE = 60

PIDS = capsule.INSIDE / "pids"
LOGS = capsule.INSIDE / "logs"


API_ERRORS = (api.ApiError, OSError, http.client.HTTPException)


class Ended(Exception):
    """The pod was deleted meanwhile."""


def is_away(error):
    """Whether the API server is away, or not yet itself after its start."""
    return not isinstance(error, api.ApiError) or error.status in (401, 403, 429) or error.status >= 500


def patiently(wait, call, *arguments):
    """A call of the client, again and again while the API server is away."""
    end = time.monotonic() + API_PATIENCE
    while True:
        try:
            return call(*arguments)
        except API_ERRORS as error:
            if not is_away(error) or time.monotonic() > end:
                raise
        wait(POLL)


class ProcessPod(threading.Thread):
    """Runs one pod. Everything about it happens in its thread; `see` hands it news."""

    def __init__(self, client, pod, number, address):
        metadata = pod["metadata"]
        self.full_name = f"{metadata['namespace']}.{metadata['name']}"
        super().__init__(name=self.full_name, daemon=True)
        self.client = client
        self.pod = pod
        self.number = number
        self.address = address
        self.network = metadata["uid"]
        self.path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self.folder = capsule.INSIDE / "process-pods" / metadata["uid"]
        self.news = queue.Queue()
        self.gone = False
        self.processes = {}
        self.restarts = {container["name"]: 0 for container in pod["spec"]["containers"]}
        self.ready = None
        # The state that the API server knows.
        self.reported = None
        self.started = now()

    def see(self, pod, gone):
        """Called by the watch."""
        self.news.put((pod, gone))

    def run(self):
        try:
            self.bind()
            self.live()
        except Ended:
            pass
        except (*API_ERRORS, KeyError, subprocess.SubprocessError) as error:
            self.fail(f"{type(error).__name__}: {error}")
        finally:
            self.end()

    def fail(self, message):
        """Tells that the bed cannot run this pod."""
        print(f"{self.full_name}: {message}", flush=True)
        status = {"phase": "Failed", "reason": "BedCannotRunIt", "message": message}
        try:
            self.client.patch(f"{self.path}/status", {"status": status})
        except API_ERRORS:
            pass

    def take_news(self, seconds):
        """Waits for news; raises Ended when the pod shall end."""
        try:
            self.pod, self.gone = self.news.get(timeout=seconds)
        except queue.Empty:
            pass
        if self.gone or "deletionTimestamp" in self.pod["metadata"]:
            raise Ended

    def bind(self):
        """There is one node, so there is nothing to schedule."""
        if "nodeName" in self.pod["spec"]:
            return
        target = {"apiVersion": "v1", "kind": "Node", "name": control_plane.NODE_NAME}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.pod["metadata"]["name"]}, "target": target}
        patiently(self.take_news, self.client.call, "POST", f"{self.path}/binding", body)

    def live(self):
        """Runs the containers until the pod is deleted."""
        self.folder.mkdir(parents=True)
        process_net.make(self.network, self.number, self.address)
        sources = {volume["name"]: self.volume(volume) for volume in self.pod["spec"].get("volumes", [])}
        while True:
            self.take_news(0)
            for container in self.pod["spec"]["containers"]:
                self.keep_running(container, sources)
            self.report()
            self.take_news(POLL if self.ready else PROBE_PERIOD)

    def keep_running(self, container, sources):
        """Starts a container that does not run."""
        name = container["name"]
        process = self.processes.get(name)
        if process is not None:
            if process.poll() is None:
                return
            print(f"{self.full_name}/{name} ended with {process.returncode}", flush=True)
            self.restarts[name] += 1
            self.report()
            time.sleep(RESTART_PAUSE)
        self.refresh(sources)
        mounts = []
        for mount in container.get("volumeMounts", []):
            source = sources[mount["name"]] / mount.get("subPath", "")
            mounts.append((source, mount["mountPath"], not mount.get("readOnly", False)))
        with open(LOGS / f"pod.{self.full_name}.{name}.log", "ab") as log:
            network = process_net.path(self.network)
            process = process_root.start(self.pod, container, self.environment(container), mounts, network, log)
        self.processes[name] = process
        (PIDS / f"pod.{self.full_name}").write_text(f"{process.pid}\n")

    def environment(self, container):
        """The variables of a container, with the downward API."""
        found = {"PATH": f"{process_root.PROGRAMS}:/usr/bin:/bin", "HOSTNAME": self.pod["metadata"]["name"]}
        fields = {
            "metadata.name": self.pod["metadata"]["name"],
            "metadata.namespace": self.pod["metadata"]["namespace"],
            "metadata.uid": self.pod["metadata"]["uid"],
            "spec.nodeName": control_plane.NODE_NAME,
            "status.podIP": self.address,
        }
        for variable in container.get("env", []):
            if "value" in variable:
                found[variable["name"]] = process_root.expand(variable["value"], found)
            elif "valueFrom" in variable:
                found[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        return found

    def volume(self, volume):
        """The folder a volume is; waits for a claim to be bound."""
        if "persistentVolumeClaim" in volume:
            return self.await_claim(volume["persistentVolumeClaim"]["claimName"])
        if not {"configMap", "emptyDir"} & volume.keys():
            raise KeyError(f"volume {volume['name']} is of a kind that the bed does not have")
        folder = self.folder / volume["name"]
        folder.mkdir()
        if "emptyDir" in volume:
            os.chown(folder, process_root.USER, process_root.USER)
        return folder

    def await_claim(self, name):
        """The folder of a claim."""
        path = f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/persistentvolumeclaims/{name}"
        while True:
            claim = patiently(self.take_news, self.client.get, path)
            if claim and claim["status"].get("phase") == "Bound" and "deletionTimestamp" not in claim["metadata"]:
                folder = volumes.FOLDER / claim["spec"]["volumeName"]
                os.chown(folder, process_root.USER, process_root.USER)
                return folder
            self.take_news(POLL)

    def refresh(self, sources):
        """Writes the files of configuration volumes as they are now, or leaves them as they were
        when nobody answers: a container is started again without an API server too."""
        namespace = self.pod["metadata"]["namespace"]
        for volume in self.pod["spec"].get("volumes", []):
            if "configMap" not in volume:
                continue
            path = f"/api/v1/namespaces/{namespace}/configmaps/{volume['configMap']['name']}"
            try:
                is_first = not any(sources[volume["name"]].iterdir())
                source = patiently(self.take_news, self.client.get, path) if is_first else self.client.get(path)
            except API_ERRORS as error:
                if is_first or not is_away(error):
                    raise
                continue
            if source is None:
                raise KeyError(f"there is no ConfigMap {volume['configMap']['name']}")
            for name, text in source.get("data", {}).items():
                (sources[volume["name"]] / name).write_text(text)

    def report(self):
        """Writes the status when it has changed."""
        running = {name: process.poll() is None for name, process in self.processes.items()}
        ready = all(running.values()) and all(self.probe(container) for container in self.pod["spec"]["containers"])
        state = (ready, tuple(running.values()), tuple(self.restarts.values()))
        if state == self.reported:
            return
        self.ready = ready
        try:
            self.client.patch(f"{self.path}/status", {"status": self.status(running, ready)}, api.STRATEGIC)
            self.reported = state
        except API_ERRORS as error:
            # The next look tries again.
            if not is_away(error):
                raise

    def probe(self, container):
        """The readiness probe, by HTTP; a container without one is ready."""
        probe = container.get("readinessProbe")
        if probe is None:
            return True
        port = probe["httpGet"]["port"]
        if isinstance(port, str):
            port = next(entry["containerPort"] for entry in container["ports"] if entry["name"] == port)
        connection = http.client.HTTPConnection(self.address, port, timeout=probe.get("timeoutSeconds", 1))
        try:
            connection.request("GET", probe["httpGet"].get("path", "/"))
            return connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def status(self, running, ready):
        """The status of the pod as a kubelet writes it."""
        conditions = [
            {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": now()}
            for kind, holds in (("PodScheduled", True), ("Initialized", True), ("ContainersReady", ready), ("Ready", ready))
        ]
        containers = []
        for container in self.pod["spec"]["containers"]:
            name = container["name"]
            state = {"running": {"startedAt": now()}} if running[name] else {"terminated": {"exitCode": 137}}
            containers.append(
                {
                    "name": name,
                    "image": container["image"],
                    "imageID": container["image"],
                    "containerID": f"process://{self.processes[name].pid}",
                    "ready": ready,
                    "started": running[name],
                    "restartCount": self.restarts[name],
                    "state": state,
                }
            )
        return {
            "phase": "Running",
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "hostIP": control_plane.NODE_IP,
            "startTime": self.started,
            "conditions": conditions,
            "containerStatuses": containers,
        }

    def end(self):
        """preStop, SIGTERM, SIGKILL after the grace period; then the pod is gone."""
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
        if grace is None:
            grace = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        deadline = time.monotonic() + (0 if self.gone else grace)
        for container in self.pod["spec"]["containers"]:
            process = self.processes.get(container["name"])
            if process is not None and process.poll() is None and not self.gone:
                self.pre_stop(container, process, deadline - time.monotonic())
        for process in self.processes.values():
            stop(process, deadline)
        process_net.remove(self.network)
        shutil.rmtree(self.folder, ignore_errors=True)
        (PIDS / f"pod.{self.full_name}").unlink(missing_ok=True)
        if not self.gone and "deletionTimestamp" in self.pod["metadata"]:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
            try:
                patiently(time.sleep, self.client.call, "DELETE", self.path, options)
            except API_ERRORS as error:
                print(f"{self.full_name}: {error}", flush=True)

    def pre_stop(self, container, process, seconds):
        """The preStop command, in the root of the running process."""
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec")
        if hook is None or seconds <= 0:
            return
        environment = self.environment(container)
        command = [process_root.expand(argument, environment) for argument in hook["command"]]
        entered = ["nsenter", f"--target={process.pid}", "--net", "--mount", "--root", "--wd"]
        entered += [f"--setuid={process_root.USER}", f"--setgid={process_root.USER}", "--", *command]
        with open(LOGS / f"pod.{self.full_name}.{container['name']}.log", "ab") as log:
            try:
                subprocess.run(entered, env=environment, stdout=log, stderr=log, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                print(f"{self.full_name}: preStop took longer than {seconds:.0f} s", flush=True)


def stop(process, deadline):
    """SIGTERM, and SIGKILL at the deadline."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def now():
    """This moment as Kubernetes writes it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
