"""The manifests, without a cluster: against the schemas of Kubernetes, and what they promise each other."""

from __future__ import annotations

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
from tests.kit.cluster import NAMESPACE, Asked, Cluster, discovery
from tests.kit.programs import DEPLOY, tool

README = (DEPLOY / "README.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8"))
NAMES = (DEPLOY / "names.yaml").read_text(encoding="utf-8")
#: The overlay of a company that the documents show.
COMPANY = ROOT / "examples" / "deploy"
BY_HAND = [DEPLOY / "kubernetes" / "responder.yaml", DEPLOY / "system-ingress" / "system-ingress.yaml"]
FILES = sorted({*(DEPLOY / "kubernetes").glob("*.yaml"), *BY_HAND})
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


def built(folder: Path) -> str:
    """What kustomize makes of a folder."""
    kubectl = tool("kubectl", "RUNBOOK_REQUIRE_KUBECTL", "kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kustomize_joins_what_is_meant_to_be_applied() -> None:
    joined = list(yaml.safe_load_all(built(DEPLOY)))
    applied = {(m["kind"], m["metadata"]["name"]) for m in joined if m["kind"] != "ConfigMap"}
    assert applied == {
        (m["kind"], m["metadata"]["name"])
        for f in set(FILES) - set(BY_HAND)
        for m in yaml.safe_load_all(f.read_text(encoding="utf-8"))
    }
    configs = {re.sub("-[0-9a-z]{10}$", "", m["metadata"]["name"]): m for m in joined if m["kind"] == "ConfigMap"}
    assert configs["runbook"]["data"]["runbook.toml"] == (DEPLOY / "runbook.toml").read_text(encoding="utf-8")
    for kind in ("", "-environment"):  # the responder's have a name that stays
        fixed = configs[f"runbook-responder{kind}"]
        assert fixed["metadata"]["name"] == f"runbook-responder{kind}"
        assert fixed["data"] == configs[f"runbook{kind}"]["data"]
    (receiver,) = [m for m in joined if m["kind"] == "Deployment"]
    spec = receiver["spec"]["template"]["spec"]
    assert configs["runbook"]["metadata"]["name"] in [v.get("configMap", {}).get("name") for v in spec["volumes"]]
    (container,) = spec["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": configs["runbook-environment"]["metadata"]["name"]}}]
    assert container["image"] == f"runbook-notebooks:{VERSION}"
    assert all(f"({f.relative_to(DEPLOY)})" in README for f in FILES)


@pytest.mark.parametrize("folder", [DEPLOY, COMPANY], ids=["base", "company"])
def test_what_is_applied_fits_the_schemas_and_kubectl_takes_it(folder: Path, tmp_path: Path) -> None:
    objects = list(yaml.safe_load_all(built(folder)))
    for manifest in objects:
        if "monitoring.coreos.com" not in manifest["apiVersion"]:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    with Cluster(discovery=discovery(objects)) as cluster:
        cluster.write_config(tmp_path / "config")
        # The schemas are checked above: this API has none.
        command = ["kubectl", f"--kubeconfig={tmp_path / 'config'}", f"--cache-dir={tmp_path}", "apply"]
        command += ["--dry-run=client", "--validate=false", "-k", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" created (dry run)\n") == len(objects)


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no table and no list, with the key that it has or that its list has."""
    match tree:
        case dict():
            for name, value in tree.items():
                yield from leaves(value, name)
        case list():
            for value in tree:
                yield from leaves(value, key)
        case _:
            yield key, tree


def test_an_overlay_changes_each_name_everywhere() -> None:
    (patch,) = yaml.safe_load((COMPANY / "kustomization.yaml").read_text(encoding="utf-8"))["patches"]
    base, company = (set(leaves(n["spec"])) for n in map(yaml.safe_load, (NAMES, patch["patch"])))
    (shown,) = map(yaml.safe_load, re.findall(r"```yaml\n(resources:.*?)```", README, re.DOTALL))
    assert set(leaves(yaml.safe_load(shown["patches"][0]["patch"])["spec"])) <= company
    text = built(COMPANY)
    found = set(leaves([*yaml.safe_load_all(text)]))
    assert all(value in text for _, value in company if value)
    labels = {(key, value) for key, value in base if key == "app"}
    assert len(labels) == 5 and not labels & found
    namespaces = {value for key, value in found if key in ("namespace", "kubernetes.io/metadata.name")}
    assert namespaces == {value for key, value in company if key == "namespace"} | {"kube-system"}
    assert ("name", "oncall") in found  # the Namespace itself
    left = {"miniserversystem", ".runbook.svc", *(value for key, value in base if key == "documents" or "_URL" in key)}
    assert not [name for name in left - {""} if name in text]


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
    configs = {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v}
    configs |= {source["configMapRef"]["name"] for c in spec["containers"] for source in c["envFrom"]}
    assert len(configs) == 2 and configs <= {g["name"] for g in KUSTOMIZATION["configMapGenerator"]}
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
    read = set(re.findall(r'"file:(/run/secrets/[^"]+)"', config))
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
    for name, value in yaml.safe_load(NAMES)["spec"]["environment"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNBOOK_TARGETS__DEFAULT__WORKLOADS__NAMESPACE", "shop")
    creds = re.search(r"`(RUNBOOK_\w+NATS_CREDS_FILE): (\S+)`", README)
    assert creds
    monkeypatch.setenv(creds[1], creds[2])
    config = settings.load()
    routes.check(config, catalog.load())
    assert config.receiver.channels() == ["json://127.0.0.1:1/"]
    found = config.target("default")
    assert (found.facts.workloads.namespace, found.action_database_url) == ("shop", None)
    assert found.nats.creds_file == Path(creds[2])
    assert found.address("nats_monitor_url") == f"http://nats-monitor.{NAMESPACE}.svc:8222"


def test_who_acts_in_the_responders_pod_keeps_the_rules_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = PODS["Pod/responder"]["spec"]["containers"]
    assert {"name": "RUNBOOK_CONFIG", "value": "/etc/runbook/runbook.toml"} in container["env"]
    assert {"name": "config", "mountPath": "/etc/runbook", "readOnly": True} in container["volumeMounts"]
    (tmp_path / "runbook.toml").write_text(
        '[targets.default]\ndatabase_url = "file:url"\napproval = true\nnats_monitor_url = "http://own:8222"\n'
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
    assert (found.approval, found.ledger) == (True, str(tmp_path / "ledger"))


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
    assert [p["port"] for p in rule["ports"]] == [9095]
    senders = [sender["podSelector"]["matchLabels"]["app"] for sender in rule["from"]]
    assert senders == ["prometheus", "alertmanager"]  # the order that names/replacements.yaml relies on
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
