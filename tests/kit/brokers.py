"""Real nats-servers as they are found elsewhere: with TLS, keys, users of an operator, and as nodes of a cluster."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nkeys
import pandas as pd
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runbook_lib.gameday.sandbox.servers import nats_binary
from runbook_lib.gameday.sandbox.state import free_ports
from tests.kit.waiting import is_listening, until


def refused_within(monitor_url: str, seconds: float) -> bool:
    """Whether the server has refused a login within so many seconds."""
    with urlopen(f"{monitor_url}/connz?state=closed&sort=stop") as answer:
        seen = json.load(answer)
    since = pd.Timestamp(seen["now"]) - pd.Timedelta(seconds=seconds)
    return any("Auth" in c["reason"] and pd.Timestamp(c["stop"]) > since for c in seen["connections"])


@dataclass
class Node:
    """One nats-server on 127.0.0.1."""

    folder: Path
    port: int
    monitor: int
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            command = [os.environ.get("RUNBOOK_TEST_NATS_SERVER") or nats_binary(), "-c", str(self.folder / "conf")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._up, f"nats-server, see {self.folder}/log")

    def _up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()[-2000:]
        return is_listening(self.port)

    def signal(self, how: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, how)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor}"

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def node(folder: Path, config: str, monitoring: str = "http") -> Iterator[Node]:
    """A server with JetStream and this configuration beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    port, monitor = free_ports(2)
    (folder / "conf").write_text(f'listen: "127.0.0.1:{port}"\n{monitoring}: "127.0.0.1:{monitor}"\n{config}')
    one = Node(folder, port, monitor)
    try:
        one.start()
        yield one
    finally:
        one.stop()


# Certificates -----------------------------------------------------------------------------------------------


@dataclass
class Authority:
    """A private CA, and what it signs, as files of a folder."""

    folder: Path
    name: str
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def file(self) -> Path:
        path = self.folder / f"{self.name}.pem"
        if not path.is_file():
            own = self._certificate(self.name, self._key.public_key(), authority=True)
            path.write_bytes(own.public_bytes(serialization.Encoding.PEM))
        return path

    def sign(self, name: str, *, word: bytes | None = None) -> tuple[Path, Path]:
        """Files of a certificate for this machine and of its key, encrypted where a word is given."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, own = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        signed = self._certificate(name, key.public_key())
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        lock = serialization.BestAvailableEncryption(word) if word else serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        own.touch(0o600)
        own.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, lock))
        return certificate, own

    def _certificate(self, name: str, key: ec.EllipticCurvePublicKey, *, authority: bool = False) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_called(name))
            .issuer_name(_called(self.name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


# Keys and an operator ---------------------------------------------------------------------------------------


def seed(kind: int = nkeys.PREFIX_BYTE_USER) -> str:
    return str(nkeys.encode_seed(os.urandom(32), prefix=kind).decode())


def public(seed: str) -> str:
    return str(nkeys.from_seed(seed.encode()).public_key.decode())


def token_of(issuer: str, subject: str, name: str, nats: dict[str, Any]) -> str:
    """A JWT as the server takes it: signed by the issuer's key."""
    claims = {"iat": int(time.time()), "iss": public(issuer), "jti": name, "name": name, "sub": subject, "nats": nats}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)
    ]
    signature = nkeys.from_seed(issuer.encode()).sign(b".".join(parts))
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


class Operator:
    """An operator with the account of its system, and another one that has JetStream."""

    def __init__(self) -> None:
        self._operator, self._account = seed(nkeys.PREFIX_BYTE_OPERATOR), seed(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = public(seed(nkeys.PREFIX_BYTE_ACCOUNT))

    @property
    def config(self) -> str:
        """What the server is told."""
        limits = dict.fromkeys(
            ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage",
             "streams", "consumer"), -1
        )  # fmt: skip
        own = token_of(self._operator, public(self._operator), "operator", {"type": "operator", "version": 2})
        facts = {"type": "account", "version": 2, "limits": limits | {"wildcards": True}}
        account = token_of(self._operator, public(self._account), "account", facts)
        system = token_of(self._operator, self._system, "SYS", {"type": "account", "version": 2})
        accounts = f"{public(self._account)}: {account}, {self._system}: {system}"
        return (
            f"operator: {own}\nsystem_account: {self._system}\nresolver: MEMORY\nresolver_preload: {{ {accounts} }}\n"
        )

    def creds(self, name: str, *, account: str = "") -> str:
        """A creds file of a user of the account, or of another one that the server does not know."""
        own, facts = seed(), {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
        token = token_of(account or self._account, public(own), name, facts)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{own}\n------END USER NKEY SEED------\n"
        )


# A cluster --------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Three nodes, each with JetStream."""

    nodes: dict[str, Node]

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes.values())

    @property
    def monitor_url(self) -> str:
        return ",".join(node.monitor_url for node in self.nodes.values())


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Three nodes that know of each other."""
    ports = free_ports(9)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[6:])
    nodes = {}
    for n in range(3):
        own = folder / f"n{n}"
        own.mkdir()
        (own / "conf").write_text(
            f'server_name: n{n}\nlisten: "127.0.0.1:{ports[n]}"\nhttp: "127.0.0.1:{ports[3 + n]}"\n'
            f'jetstream {{ store_dir: "{own}" }}\n'
            f'cluster {{ name: ours, listen: "127.0.0.1:{ports[6 + n]}", routes: [{routes}] }}\n'
        )
        nodes[f"n{n}"] = Node(own, ports[n], ports[3 + n])
    try:
        for one in nodes.values():
            one.start()
        yield Cluster(nodes)
    finally:
        for one in nodes.values():
            one.stop()
