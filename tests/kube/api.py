"""A small client of the Kubernetes API: JSON over HTTPS with a token, and watches."""

import http.client
import json
import os
import pathlib
import ssl
import threading
import urllib.parse

# A silent watch is asked again after this time. Unit: seconds.
WATCH_SECONDS = 300

# How long one answer may take. Unit: seconds.
CALL_TIMEOUT = 30

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server refused."""

    def __init__(self, status, answer):
        super().__init__(f"{status}: {answer.get('message', answer) if isinstance(answer, dict) else answer}")
        self.status = status
        self.answer = answer


class Api:
    """The API server that $KUBECONFIG names. A connection for each thread."""

    def __init__(self, kubeconfig=None):
        config = read_kubeconfig(kubeconfig or os.environ["KUBECONFIG"])
        self.server = urllib.parse.urlsplit(config["server"])
        self.headers = {"Accept": "application/json"}
        if config["token"]:
            self.headers["Authorization"] = f"Bearer {config['token']}"
        self.tls = ssl.create_default_context(cafile=config["ca"])
        # A test server's own certificate; its authority is given by the file above.
        self.tls.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        if config["certificate"]:
            self.tls.load_cert_chain(config["certificate"], config["key"])
        self.local = threading.local()

    def connect(self, timeout):
        """A fresh connection."""
        return http.client.HTTPSConnection(self.server.hostname, self.server.port, timeout=timeout, context=self.tls)

    def call(self, method, path, body=None, content="application/json"):
        """One call; the decoded answer. A connection that broke while idle is made anew once."""
        for attempt in range(2):
            connection = getattr(self.local, "connection", None)
            fresh = connection is None
            if fresh:
                connection = self.local.connection = self.connect(CALL_TIMEOUT)
            try:
                data = None if body is None else json.dumps(body)
                connection.request(method, path, data, {**self.headers, "Content-Type": content})
                response = connection.getresponse()
                text = response.read()
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                self.local.connection = None
                if fresh or attempt:
                    raise
        try:
            answer = json.loads(text)
        except ValueError:
            answer = text.decode(errors="replace")
        if response.status >= 300:
            raise ApiError(response.status, answer)
        return answer

    def get(self, path):
        """GET; None when there is no such thing."""
        try:
            return self.call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def patch(self, path, body, content=MERGE):
        """PATCH."""
        return self.call("PATCH", path, body, content)

    def apply(self, path, body, manager="raftmq-test"):
        """Server-side apply."""
        return self.call("PATCH", f"{path}?fieldManager={manager}&force=true", body, APPLY)

    def watch(self, path, stopping=None):
        """Yields (type, object) for ever: first what is there as ADDED, then what happens.

        A watch that breaks begins anew, with everything as ADDED again; RESET tells so.
        """
        while stopping is None or not stopping.is_set():
            try:
                listed = self.call("GET", path)
                yield "RESET", None
                for item in listed["items"]:
                    yield "ADDED", item
                yield from self.events(path, listed["metadata"]["resourceVersion"])
            except (OSError, http.client.HTTPException, ValueError, ApiError):
                if stopping is not None and stopping.wait(0.1):
                    return

    def events(self, path, version):
        """The events of one watch, until it ends."""
        connection = self.connect(WATCH_SECONDS + CALL_TIMEOUT)
        try:
            sign = "&" if "?" in path else "?"
            query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}"
            connection.request("GET", f"{path}{sign}{query}", headers=self.headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ApiError(response.status, response.read().decode(errors="replace"))
            while line := response.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] != "BOOKMARK":
                    yield event["type"], event["object"]
        finally:
            connection.close()


def read_kubeconfig(path):
    """Server, authority and credentials of the current context, by kubectl, which knows every form."""
    import subprocess  # pylint: disable=import-outside-toplevel

    shown = subprocess.run(
        ["kubectl", "config", "view", "--minify", "--raw", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KUBECONFIG": str(path)},
    )
    config = json.loads(shown.stdout)
    cluster, user = config["clusters"][0]["cluster"], (config.get("users") or [{"user": {}}])[0]["user"]
    folder = pathlib.Path(path).resolve().parent
    return {
        "server": cluster["server"],
        "ca": as_file(cluster, "certificate-authority", folder),
        "token": user.get("token"),
        "certificate": as_file(user, "client-certificate", folder),
        "key": as_file(user, "client-key", folder),
    }


def as_file(section, key, folder):
    """A file with what the section says, be it a path or the bytes themselves; None without."""
    import base64  # pylint: disable=import-outside-toplevel
    import tempfile  # pylint: disable=import-outside-toplevel

    if data := section.get(f"{key}-data"):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(base64.b64decode(data))
        return file.name
    return str(folder / section[key]) if section.get(key) else None
