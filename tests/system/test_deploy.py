"""The manifests, without a cluster: against the schemas of Kubernetes, and what they promise each other."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from runbook_lib.book import catalog
from runbook_lib.packs.entitlement import ROOT
from runbook_lib.packs.entitlement.facts import EntitlementWorkloads
from runbook_lib.privacy.masking import Masker
from runbook_lib.receiver import routes, server
from runbook_lib.sources import settings
from runbook_lib.sources.source import ReadCost
from runbook_lib.sources.workloads import KubectlRunner
from tests.kit.cluster import NAMESPACE, Asked, Cluster
from tests.kit.programs import DEPLOY, tool

README = (DEPLOY / "README.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8"))
FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.32"  # a release that is in use; the newest schemas would allow more than clusters know

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    return [m for f in FILES for m in yaml.safe_load_all(f.read_text(encoding="utf-8"))]


ALL = manifests()
IDS = [f"{m['kind']}/{m['metadata']['name']}" for m in ALL]


def one(kind: str, name: str) -> Manifest:
    (found,) = [m for m in ALL if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> Iterator[tuple[str, Manifest]]:
    """Every pod that is described: who, and its template or itself."""
    for name, m in zip(IDS, ALL, strict=True):
        match m["kind"]:
            case "Deployment":
                yield name, m["spec"]["template"]
            case "CronJob":
                yield name, m["spec"]["jobTemplate"]["spec"]["template"]
            case "Pod":
                yield name, m


PODS = dict(pods())


@pytest.mark.parametrize("manifest", ALL, ids=IDS)
def test_a_manifest_fits_its_schema(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_kustomize_joins_what_is_meant_to_be_applied() -> None:
    kubectl = tool("kubectl", "RUNBOOK_REQUIRE_KUBECTL", "kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", str(DEPLOY)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    joined = list(yaml.safe_load_all(done.stdout))
    for manifest in joined:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    config, fixed = [m for m in joined if m["kind"] == "ConfigMap"]
    assert config["data"]["runbook.toml"] == (DEPLOY / "runbook.toml").read_text(encoding="utf-8")
    assert (fixed["metadata"]["name"], fixed["data"]) == ("runbook-responder", config["data"])
    (receiver,) = [m for m in joined if m["kind"] == "Deployment"]
    spec = receiver["spec"]["template"]["spec"]
    assert config["metadata"]["name"] in [v.get("configMap", {}).get("name") for v in spec["volumes"]]
    assert spec["containers"][0]["image"] == f"runbook-notebooks:{VERSION}"


def test_every_file_is_applied_or_by_hand() -> None:
    applied = {Path(r).name for r in KUSTOMIZATION["resources"]}
    by_hand = {f.name for f in FILES if "Not part of the kustomization" in f.read_text(encoding="utf-8")}
    assert applied | by_hand == {f.name for f in FILES} and not applied & by_hand
    assert all(f"(kubernetes/{f.name})" in README for f in FILES)


def test_versions_are_those_of_the_project() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert image["newTag"] == VERSION
    texts = [README, *(f.read_text(encoding="utf-8") for f in (*FILES, *DEPLOY.glob("Containerfile*")))]
    named = {v for text in texts for v in re.findall(r"runbook-notebooks(?:-lab)?:([\w.]+)", text)}
    assert named == {VERSION}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] and own["capabilities"] == {"drop": ["ALL"]}
        assert not own["allowPrivilegeEscalation"]
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        mounts = {m["mountPath"] for m in container["volumeMounts"]}
        assert {"/data", "/tmp"} <= mounts  # all that a run writes to
    assert not any("hostPath" in v for v in spec["volumes"])
    assert PODS[name]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "runbook"  # what policies let out


def secrets_of(spec: Manifest) -> set[str]:
    volumes = {v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    env = [e["valueFrom"]["secretKeyRef"] for c in spec["containers"] for e in c["env"] if "valueFrom" in e]
    return volumes | {e["name"] for e in env}


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_mounts_exists_or_is_made_by_the_documents(name: str) -> None:
    spec = PODS[name]["spec"]
    made = set(re.findall(r"-n runbook create secret generic (\S+)", README))
    assert secrets_of(spec) <= made
    assert {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v} <= {
        g["name"] for g in KUSTOMIZATION["configMapGenerator"]
    }
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert all(one("PersistentVolumeClaim", c) for c in claims)
    assert one("ServiceAccount", spec["serviceAccountName"])
    named = {v["name"] for v in spec["volumes"]}
    assert {m["name"] for c in spec["containers"] for m in c["volumeMounts"]} == named


def test_every_secret_file_that_is_read_is_a_key_of_a_mounted_secret() -> None:
    keys = {
        secret: set(re.findall(r"--from-\w+=([\w-]+)=", made))
        for secret, made in re.findall(r"-n runbook create secret generic (\S+)((?:.*\\\n)*.*)", README)
    }
    spec = PODS["Deployment/runbook-receiver"]["spec"]
    (container,) = spec["containers"]
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    files = {
        f"{mounted[v['name']]}/{key}"
        for v in spec["volumes"]
        if "secret" in v
        for key in keys[v["secret"]["secretName"]]
    }
    config = (DEPLOY / "runbook.toml").read_text(encoding="utf-8")
    read = set(re.findall(r'_file = "(/run/secrets/[^"]+)"', config))
    read |= {e["value"] for e in container["env"] if e["name"].endswith("_FILE")}
    assert read and read <= files
    refs = [
        e["valueFrom"]["secretKeyRef"]
        for e in PODS["Pod/responder"]["spec"]["containers"][0]["env"]
        if "valueFrom" in e
    ]
    assert all(ref["key"] in keys[ref["name"]] for ref in refs)


def test_the_configuration_loads_and_each_route_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "database-url").write_text("postgresql://runbook:x@postgres:5432/miniserversystem\n")
    (tmp_path / "nats-url").write_text("nats://runbook:x@nats:4222\n")
    (tmp_path / "notify-urls").write_text("json://127.0.0.1:1/\n")
    text = (DEPLOY / "runbook.toml").read_text(encoding="utf-8")
    (tmp_path / "runbook.toml").write_text(re.sub(r"/run/secrets/\w+/", "", text), encoding="utf-8")
    for name in [n for n in os.environ if n.startswith("RUNBOOK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNBOOK_CONFIG", str(tmp_path / "runbook.toml"))
    config = settings.load()
    routes.check(config, catalog.load())
    assert config.receiver.notify_urls() == ["json://127.0.0.1:1/"]
    assert config.target("default").facts.workloads.namespace == NAMESPACE
    assert config.target("default").action_database_url is None


def test_who_acts_in_the_responders_pod_keeps_the_rules_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = PODS["Pod/responder"]["spec"]["containers"]
    assert {"name": "RUNBOOK_CONFIG", "value": "/etc/runbook/runbook.toml"} in container["env"]
    assert {"name": "config", "mountPath": "/etc/runbook", "readOnly": True} in container["volumeMounts"]
    (tmp_path / "runbook.toml").write_text(
        '[targets.default]\ndatabase_url_file = "url"\nactions_per_hour = 2\nnats_monitor_url = "http://own:8222"\n'
    )
    (tmp_path / "url").write_text("postgresql://reader@postgres/d\n")
    for name, value in {
        "CONFIG": str(tmp_path / "runbook.toml"),
        "DATABASE_URL": "postgresql://other@elsewhere/d",
        "NATS_MONITOR_URL": "http://elsewhere:8222",
        "ACTION_DATABASE_URL": "postgresql://acting@postgres/d",
        "LEDGER": str(tmp_path / "ledger"),
    }.items():
        monkeypatch.setenv(f"RUNBOOK_{name}", value)
    found = settings.load().target("default")
    addresses = {url: found.address(url) for url in ("database_url", "nats_monitor_url", "action_database_url")}
    assert addresses == {
        "database_url": "postgresql://reader@postgres/d",
        "nats_monitor_url": "http://own:8222",
        "action_database_url": "postgresql://acting@postgres/d",
    }
    assert (found.actions_per_hour, found.ledger) == (2, str(tmp_path / "ledger"))


def test_an_image_is_built_from_all_that_the_package_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    held = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sent and all(any(Path(path).is_relative_to(kept) for kept in sent) for path in held)


def test_the_receiver_is_alone_and_may_end_in_order() -> None:
    receiver = one("Deployment", "runbook-receiver")["spec"]
    assert receiver["replicas"] == 1 and receiver["strategy"] == {"type": "Recreate"}
    spec = receiver["template"]["spec"]
    # Requests, then investigations, then messages; and as much again.
    assert spec["terminationGracePeriodSeconds"] >= 2 * (2 * server.STOP_S + 1)
    (container,) = spec["containers"]
    assert {"name": "RUNBOOK_UNATTENDED", "value": "1"} in container["env"]
    port = container["args"][container["args"].index("--port") + 1]
    assert str(container["ports"][0]["containerPort"]) == port
    assert one("Service", "runbook-receiver")["spec"]["selector"] == receiver["selector"]["matchLabels"]
    url = f"http://runbook-receiver.runbook.svc:{port}/alertmanager"
    assert url in (DEPLOY / "alertmanager.yaml").read_text(encoding="utf-8")


def test_policies_are_of_the_pods_that_they_are_meant_for() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}

    def selected(policy: str) -> set[str]:
        wanted = one("NetworkPolicy", policy)["spec"]["podSelector"].get("matchLabels", {})
        return {name for name, own in labels.items() if wanted.items() <= own.items()}

    assert selected("closed") == selected("runbook-out") == set(PODS)
    assert selected("receiver-in") == {"Deployment/runbook-receiver"}
    (rule,) = one("NetworkPolicy", "receiver-in")["spec"]["ingress"]
    assert [p["port"] for p in rule["ports"]] == [9095] and len(rule["from"]) == 1
    out = one("NetworkPolicy", "runbook-out")["spec"]["egress"]
    ports = {
        p["port"]: to["podSelector"]["matchLabels"]["app"]
        for rule in out
        for to in rule.get("to", [])
        for p in rule["ports"]
        if "podSelector" in to
    }
    assert ports == {5432: "postgres", 6432: "pgbouncer", 4222: "nats", 8222: "nats", 9090: "prometheus"}
    assert {p["port"] for rule in out if "to" not in rule for p in rule["ports"]} == {443, 6443}


def test_no_policy_that_is_applied_touches_a_pod_of_the_system() -> None:
    """The first policy that selects a pod closes it to everybody else."""
    for file in KUSTOMIZATION["resources"]:
        for m in yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8")):
            assert m["kind"] != "NetworkPolicy" or m["metadata"]["namespace"] == "runbook"


# Rights: what the real kubectl asks for, against the roles.


def rights(account: str) -> list[Manifest]:
    """The rules of an account."""
    bound = [m for m in ALL if m["kind"] == "RoleBinding" and account in [s["name"] for s in m["subjects"]]]
    return [rule for b in bound for rule in one("Role", b["roleRef"]["name"])["rules"]]


def allowed(rules: list[Manifest], asked: Asked) -> bool:
    """Whether a request to the API would be allowed."""
    m = re.fullmatch(rf"/(?:api|apis/(\w+))/v1/namespaces/{NAMESPACE}/(\w+)(?:/([\w.-]+))?(?:/(\w+))?", asked.path)
    assert m, asked.path
    group, kind, name, sub = m[1] or "", m[2], m[3], m[4]
    read = "watch" if asked.query.get("watch") else "get" if name else "list"
    verb = {"GET": read, "PATCH": "patch", "PUT": "update", "POST": "create", "DELETE": "delete"}[asked.method]
    return any(
        group in r["apiGroups"]
        and (f"{kind}/{sub}" if sub else kind) in r["resources"]
        and verb in r["verbs"]
        and name in r.get("resourceNames", [name])
        for r in rules
    )


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Asked]]]:
    """What kubectl asks the API for all that the runbook lets it do: reading, and acting."""
    tool("kubectl", "RUNBOOK_REQUIRE_KUBECTL", "kubernetes-client")
    with Cluster() as cluster, pytest.MonkeyPatch.context() as patched:
        for name in ("notification", "entitlement"):
            cluster.add(name)
        config = tmp_path_factory.mktemp("kube") / "config"
        cluster.write_config(config)
        patched.setenv("KUBECONFIG", str(config))
        runner = KubectlRunner(EntitlementWorkloads(), ReadCost(Masker.of([], "INC-1")))
        for name in ("notification", "entitlement"):
            runner.logs(name, 5)
            runner.pods(name)
            runner.replicas(name)
            runner.environment(name)
            runner.wait_ready(name, 10)
        reading = list(cluster.asked)
        for name in ("notification", "entitlement"):
            runner.restart(name)
            runner.set_environment(name, {"X_BATCH_SIZE": "10"})
        runner.scale("notification", 0)
        yield {"reading": reading, "acting": cluster.asked[len(reading) :]}


def test_a_question_about_the_clusters_version_is_no_right(asked: dict[str, list[Asked]], tmp_path: Path) -> None:
    """A vendor's kubectl may ask it before anything else; to discover an API needs no role."""
    with Cluster() as cluster:
        cluster.write_config(tmp_path / "config")
        command = ["kubectl", f"--kubeconfig={tmp_path / 'config'}", "version", "--output=json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["serverVersion"]["gitVersion"].startswith(f"v{KUBERNETES}.")
        assert cluster.asked == []


def test_the_receiver_may_read_and_nothing_else(asked: dict[str, list[Asked]]) -> None:
    assert {v for rule in rights("runbook-read") for v in rule["verbs"]} == {"get", "list", "watch"}
    assert all(allowed(rights("runbook-read"), a) for a in asked["reading"])
    changes = [a for a in asked["acting"] if a.method != "GET"]
    assert len(changes) == 5 and not any(allowed(rights("runbook-read"), a) for a in changes)
    for pod in ("Deployment/runbook-receiver", "CronJob/runbook-check"):
        assert PODS[pod]["spec"]["serviceAccountName"] == "runbook-read"


def test_a_person_may_do_what_an_action_needs(asked: dict[str, list[Asked]]) -> None:
    assert all(allowed(rights("runbook-act"), a) for a in [*asked["reading"], *asked["acting"]])
    assert PODS["Pod/responder"]["spec"]["serviceAccountName"] == "runbook-act"
    elsewhere = [Asked("PATCH", a.path.replace("notification", "gateway"), {}, "", None) for a in asked["acting"]]
    assert not any(allowed(rights("runbook-act"), a) for a in elsewhere if "gateway" in a.path)


# A job per system -------------------------------------------------------------------------------------------

JOBS = DEPLOY / "jobs"


def job_scripts() -> dict[str, tuple[list[str], dict[str, str]]]:
    """What each scheduler runs for the target `us`: the words after `sh`, and its variables."""
    tree = ast.parse((JOBS / "airflow.py").read_text(encoding="utf-8"))
    (triage,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "TRIAGE"]
    named = {"TARGET": "us", "INCIDENT": "INC-1"}
    return {
        "slurm": ([str(JOBS / "slurm.sh"), "INC-1", "eu", "us", "ap"], {"SLURM_ARRAY_TASK_ID": "1"}),
        "airflow": (["-c", ast.literal_eval(triage)], named),
    }


@pytest.mark.parametrize("scheduler", ["slurm", "airflow"])
@pytest.mark.parametrize(("code", "fails"), [(0, False), (2, False), (3, False), (64, True), (70, True), (137, True)])
def test_a_job_triages_one_target_and_fails_only_without_a_verdict(
    scheduler: str, code: int, fails: bool, tmp_path: Path
) -> None:
    stand_in = tmp_path / "runbook"
    stand_in.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    stand_in.chmod(0o755)
    words, variables = job_scripts()[scheduler]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
    done = subprocess.run(["sh", *words], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "triage --target us --incident INC-1-us\n", done.stderr
    assert bool(done.returncode) == fails
