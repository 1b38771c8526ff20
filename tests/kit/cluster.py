"""A Kubernetes API small enough to read, for the real kubectl: what it is asked is kept, patches are applied."""

from __future__ import annotations

import copy
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.kit.web import reply, web

NAMESPACE = "miniserversystem"
CLUSTER_ID = "5ad2b7f4-7f0c-4c51-9a4e-0c5f3c1f2a11"
_VERBS = ["get", "list", "patch", "watch"]


def _resource(name: str, kind: str, verbs: list[str] = _VERBS, **more: Any) -> dict[str, Any]:
    return {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs} | more


def _resources(version: str, *resources: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "APIResourceList", "groupVersion": version, "resources": list(resources)}


_APPS = {"groupVersion": "apps/v1", "version": "v1"}
#: What a deployment says of its pods.
_COUNTS = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
_DISCOVERY: dict[str, Any] = {
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "apps", "versions": [_APPS], "preferredVersion": _APPS}],
    },
    "/api/v1": _resources(
        "v1",
        _resource("pods", "Pod", singularName="pod"),
        _resource("pods/log", "Pod", ["get"]),
        _resource("namespaces", "Namespace", ["get"], singularName="namespace", namespaced=False),
    ),
    "/apis/apps/v1": _resources(
        "apps/v1",
        _resource("deployments", "Deployment", singularName="deployment", shortNames=["deploy"]),
        _resource("deployments/scale", "Scale", ["get", "patch", "update"], group="autoscaling", version="v1"),
    ),
}


def discovery(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the discovery documents of an API that has the kinds of these objects and no others."""
    documents: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for version, kind in sorted({(o["apiVersion"], o["kind"]) for o in objects}):
        group, _, name = version.rpartition("/")
        plural = re.sub("y$", "ie", kind.lower()) + "s"
        known = documents.setdefault(f"/apis/{version}" if group else f"/api/{version}", _resources(version))
        known["resources"].append(_resource(plural, kind, ["create", "get"], namespaced=kind != "Namespace"))
        served = {"groupVersion": version, "version": name}
        if group:
            groups.setdefault(group, {"name": group, "versions": [], "preferredVersion": served})
            groups[group]["versions"] = [v for v in groups[group]["versions"] if v != served] + [served]
    return _DISCOVERY | documents | {"/apis": _DISCOVERY["/apis"] | {"groups": list(groups.values())}}


@dataclass(frozen=True)
class Asked:
    """One request beyond discovery."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    body: Any


@dataclass
class Cluster:
    """Deployments, pods and logs of one namespace."""

    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    refuse: int = 0
    discovery: dict[str, Any] = field(default_factory=lambda: _DISCOVERY)

    def __enter__(self) -> Cluster:
        self._open = ExitStack()
        self._url = self._open.enter_context(web(self._answer))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody answers any more."""
        self._open.close()

    def write_config(self, path: Path, plugin: str = "") -> None:
        """A kubeconfig that points here; its login is a token, or the script of a plugin (asked for TLS only)."""
        user, url = dict[str, Any]({"token": "kubeconfig-token"}), self._url
        if plugin:
            url = "https://127.0.0.1:9"
            command = {"command": "sh", "args": ["-c", plugin], "interactiveMode": "IfAvailable"}
            user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1"} | command}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": {"server": url}}],
            "users": [{"name": "responder", "user": user}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "responder"}}],
            "current-context": "double",
        }
        path.write_text(json.dumps(config))

    def add(
        self, name: str, *, replicas: int = 1, strategy: str = "Recreate", env: Any = (), env_from: Any = ()
    ) -> None:
        """A deployment with a sidecar, and its ready pods."""
        labels = {"app": name}
        started = {"running": {"startedAt": "2025-01-31T02:30:00Z"}}
        before = {"terminated": {"startedAt": "2025-01-31T02:20:00Z"}}
        own = {"name": name, "image": "x", "env": list(env), "resources": {"limits": {"memory": "512Mi"}}}
        own |= {"envFrom": list(env_from)} if env_from else {}
        containers = [own, {"name": "istio-proxy", "image": "y"}]
        self.deployments[name] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE, "generation": 1, "resourceVersion": "1"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "strategy": {"type": strategy},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
            },
            "status": {"observedGeneration": 1} | dict.fromkeys(_COUNTS, replicas),
        }
        for n in range(replicas):
            self.pods.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": f"{name}-7c9d5f6b8-x2k4{n}", "namespace": NAMESPACE, "labels": labels},
                    "spec": {"containers": containers},
                    "status": {
                        "phase": "Running",
                        "startTime": "2025-01-31T02:00:00Z",
                        "containerStatuses": [
                            {
                                "name": container,
                                "ready": True,
                                "restartCount": restarts,
                                "state": started,
                                "lastState": before if restarts else {},
                            }
                            for container, restarts in (("istio-proxy", 0), (name, 3))
                        ],
                    },
                }
            )

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        query = dict(parse_qsl(url.query))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if (found := self.discovery.get(url.path)) is None:
            content_type = request.headers.get("Content-Type") or ""
            self.asked.append(Asked(request.command, url.path, query, content_type, json.loads(body) if body else None))
            if self.refuse:
                denied = 'deployments.apps is forbidden: User "system:anonymous" cannot do it'
                refused = {403: ("Forbidden", denied), 401: ("Unauthorized", "Unauthorized")}
                reason, text = refused.get(self.refuse, ("InternalError", "etcd has no leader"))
                _send(request, _status(self.refuse, reason, text), self.refuse)
                return
            found = self._found(request.command, url.path, query, self.asked[-1].body)
        if found is None:
            _send(request, _status(404, "NotFound", f'"{url.path}" not found'), 404)
        else:
            _send(request, found)

    def _found(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if path == "/api/v1/namespaces/kube-system":
            return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": CLUSTER_ID}}
        names = re.fullmatch(
            rf"/(?:api/v1|apis/apps/v1)/namespaces/{NAMESPACE}/(\w+)(?:/([\w.-]+))?(/log|/scale)?", path
        )
        if not names:
            return None
        kind, name, part = names.groups()
        if kind == "deployments" and part == "/scale" and name in self.deployments:
            found = self.deployments[name]
            if method in ("PATCH", "PUT"):
                found["spec"]["replicas"] = int(body["spec"].get("replicas", 0))
            return {
                "apiVersion": "autoscaling/v1",
                "kind": "Scale",
                "metadata": found["metadata"],
                "spec": {"replicas": found["spec"]["replicas"]},
                "status": {"replicas": found["spec"]["replicas"], "selector": f"app={name}"},
            }
        if kind == "deployments" and name:
            if method == "PATCH" and name in self.deployments:
                self.deployments[name] = merged(self.deployments[name], body)
            return self.deployments.get(name)
        if kind == "deployments":
            if query.get("watch"):
                return ""
            items = [
                d for n, d in self.deployments.items() if query.get("fieldSelector") in (None, f"metadata.name={n}")
            ]
            return _list("apps/v1", "DeploymentList", items)
        pods = [p for p in self.pods if name in (None, p["metadata"]["name"])]
        if part == "/log":
            return self._log(name, query) if pods else None
        if name:
            return pods[0] if pods else None
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        return _list("v1", "PodList", [p for p in pods if wanted.items() <= p["metadata"]["labels"].items()])

    def _log(self, pod: str, query: dict[str, str]) -> str:
        # As the kubelet does: the newest lines first of all, and of these the first bytes.
        lines = self.logs.get(pod, [])[-int(query.get("tailLines", 1_000_000)) :]
        return "".join(f"{line}\n" for line in lines)[: int(query.get("limitBytes", 1_000_000_000))]


def merged(old: Any, patch: Any) -> Any:
    """A strategic merge patch, as far as kubectl's own patches go: lists of named things merge by name."""
    if isinstance(patch, dict) and isinstance(old, dict):
        new = copy.deepcopy(old)
        for key, value in patch.items():
            if not key.startswith("$"):
                new[key] = merged(old.get(key), value)
        return new
    if isinstance(patch, list) and all(isinstance(item, dict) and "name" in item for item in patch):
        by_name = {item["name"]: item for item in old or []}
        for item in patch:
            if item.get("$patch") == "delete":
                by_name.pop(item["name"], None)
            else:
                by_name[item["name"]] = merged(by_name.get(item["name"], {}), item)
        return list(by_name.values())
    return patch


def _list(version: str, kind: str, items: list[Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items}


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message,
    }  # fmt: skip


def _send(request: BaseHTTPRequestHandler, answer: Any, code: int = 200) -> None:
    content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    kind = "text/plain" if isinstance(answer, str) else "application/json"
    reply(request, code, content, {"Content-Type": kind, "Content-Length": str(len(content))})
