"""Targets and limits, from runbook.toml and the environment.

A secret never stands in a notebook or in runbook.toml: the file names the environment variable
(`database_url_env`) or the file (`database_url_file`) that holds it. The environment alone is enough for one
target, named `default`; a sandbox that is up is the target `sandbox`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tomllib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource

from runbook_lib import freeze, pack
from runbook_lib.usage import SANDBOX_TARGET, UsageError, config_file, config_folder, did_you_mean, sandbox_folder

URLS = ("database_url", "replica_url", "nats_url", "nats_monitor_url", "redis_url", "prometheus_url", "grafana_url")
#: Credentials that may change something: for actions alone, so that whatever reads can not write.
ACTION_URLS = ("action_database_url", "action_nats_url")
#: Of these there may be several, with commas between them or as a list.
SEVERAL = ("nats_url", "nats_monitor_url", "action_nats_url")
#: What a target says to every action (actions/guard.py, actions/approval.py), and of its dossiers (archive/keeping.py).
_RULES = ("freeze", "actions_per_hour", "approval", "break_glass", "keep_days")
#: How each is written, and with which schemes.
_WRITTEN = {
    "database_url": ("postgresql://USER@HOST:5432/DATABASE", ("postgresql", "postgres")),
    "replica_url": ("postgresql://USER@HOST:5432/DATABASE", ("postgresql", "postgres")),
    "nats_url": ("nats://USER@HOST:4222", ("nats", "tls", "ws", "wss")),
    "nats_monitor_url": ("http://HOST:8222", ("http", "https")),
    "redis_url": ("redis://HOST:6379/0", ("redis", "rediss", "unix")),
    "prometheus_url": ("http://HOST:9090", ("http", "https")),
    "grafana_url": ("https://HOST", ("http", "https")),
    "grafana_link": ("https://HOST/d/UID?from={from_ms}&to={to_ms}&var-hop={hop}", ("http", "https")),
    "service_url": ("http://HOST:8080", ("http", "https")),
}
#: The longest that anything may be told to take, in seconds.
DAY_S = 86_400


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Strict(BaseModel):
    """What is not known is refused, and so is what is no number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Workloads(_Strict):
    """How the system's parts are run, so that a proposal is an exact command; a pack adds its workloads' names."""

    runner: Literal["kubectl", "supervisorctl"] = "kubectl"
    namespace: str = "default"
    context: str = ""
    #: psql: the database, and its owner of the same name.
    database: str = "postgres"
    supervisorctl: list[str] = ["supervisorctl"]
    #: kubectl: what `runbook connect` forwards an address to, such as {"nats_url": "deploy/nats:4222"}.
    forwards: dict[str, Annotated[str, Field(pattern=r"^(?:svc|deploy|pod|statefulset)/[a-z0-9.-]+:[0-9]{1,5}$")]] = {}
    #: kubectl: a workload's own container, where its name is not the workload's.
    containers: dict[str, str] = {}
    #: supervisorctl: a workload's log file, and the file of NAME=VALUE lines that its programs read at their start.
    log_files: dict[str, str] = {}
    env_file: str = ""

    @property
    def programs(self) -> dict[str, str]:
        """The names of the system's workloads, by what the pack calls them."""
        return {which: getattr(self, which) for which in type(self).model_fields if which not in Workloads.model_fields}

    def program(self, which: str) -> str:
        """The name of one workload. Raises KeyError."""
        return self.programs[which]


class Facts(_Strict):
    """What a target's settings say of the system itself, in the same table as its addresses; a pack adds its own."""

    #: The system's services that say of themselves how they are: each may have an address, `<name>_url`.
    services: ClassVar[tuple[str, ...]] = ()

    workloads: Workloads = Workloads()

    @property
    def clock_stream(self) -> str | None:
        """A stream whose answers carry the broker's clock, if the system has one."""
        return None


class NatsAccess(_Strict):
    """How a broker lets one in, beside what its URLs say, and where its JetStream is; `nats_*` in a target's table.

    Files are read when they are used, so that one that is missing hides the broker alone.
    """

    creds_file: Path | None = None
    nkey_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    password: SecretStr | None = None
    token: SecretStr | None = None
    domain: str = Field("", pattern=r"^[^\s.*>]*$")
    api_prefix: str = Field("", pattern=r"^[^\s*>]*$")

    @field_validator("creds_file", "nkey_file", "ca_file", "cert_file", "key_file")
    @classmethod
    def _from_the_configuration(cls, file: Path | None) -> Path | None:
        return file and config_folder() / file.expanduser()

    @model_validator(mode="after")
    def _one_way(self) -> NatsAccess:
        ways = {
            "creds_file": self.creds_file,
            "nkey_file": self.nkey_file,
            "token": self.token,
            "user": self.user or self.password,
        }
        if len(given := [f"nats_{name}" for name, value in ways.items() if value]) > 1:
            raise ValueError(f"{' and '.join(given)} are set: a broker takes one of them")
        for a, b in (("user", "password"), ("cert_file", "key_file")):
            if bool(getattr(self, a)) != bool(getattr(self, b)):
                raise ValueError(f"nats_{a} and nats_{b} go together")
        if self.domain and self.api_prefix:
            raise ValueError("nats_domain and nats_api_prefix both say where JetStream is: set one of them")
        return self

    def secret(self) -> str:
        """Its password or token as a URL would hold it, for the masker; "" where there is none."""
        word = self.password or self.token
        return f"nats://{quote(self.user, safe='')}:{quote(word.get_secret_value(), safe='')}@nats" if word else ""


_GRAFANA_KEYS = ("grafana_token", "grafana_link")
#: What may stand in a target's table of each broker, the readers' and that of actions; some of it is a secret.
_NATS_KEYS = tuple(f"{who}nats_{field}" for who in ("", "action_") for field in NatsAccess.model_fields)
_SECRETS = (*(key for key in _NATS_KEYS if key.endswith(("_password", "_token"))), "grafana_token")
#: What a link to a dashboard may name in braces.
LINKED = ("from_ms", "to_ms", "hop", "target", "incident")
#: What an action's user shares with the readers', unless it has its own.
_SHARED = ("ca_file", "cert_file", "key_file", "domain", "api_prefix")


def several(urls: str) -> list[str]:
    """The URLs of a setting that may name several.

    >>> several("nats://a:4222, nats://b:4222")
    ['nats://a:4222', 'nats://b:4222']
    """
    return [url.strip() for url in re.split(r",(?=\s*[a-z]+://)", urls)]


def facts_of(values: dict[str, Any]) -> Facts:
    """The facts of a target, as the system's pack has them. Raises ValidationError."""
    return _facts()(**values)


def _facts() -> type[Facts]:
    kind: type[Facts] = next(iter(pack.in_force().every("facts")), Facts)
    return kind


def _addresses() -> tuple[str, ...]:
    """Every address that a target may have, those of the system's services among them."""
    return (*URLS, *ACTION_URLS, *(f"{name}_url" for name in _facts().services))


class Target(_Strict):
    """One system to investigate: where its parts answer, and the facts that its settings fix."""

    database_url: SecretStr | None = None
    #: An argument vector that prints the URL, or the password alone for the URL that stands beside it.
    database_url_command: list[str] | None = Field(None, min_length=1)
    #: A streaming replica of it, for questions about the window.
    replica_url: SecretStr | None = None
    nats_url: SecretStr | None = None
    nats_monitor_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    prometheus_url: SecretStr | None = None
    grafana_url: SecretStr | None = None
    action_database_url: SecretStr | None = None
    action_nats_url: SecretStr | None = None
    nats: NatsAccess = NatsAccess()
    action_nats: NatsAccess = NatsAccess()
    #: What may write annotations there, and nothing else; a link to a dashboard, with places for `LINKED`.
    grafana_token: SecretStr | None = None
    grafana_link: str = ""
    #: Where the system's services answer over HTTP, by name.
    services: dict[str, SecretStr] = {}
    facts: Facts = Facts()
    #: When no action is carried out (freeze.py), how many in an hour, whether a second person has to approve each;
    #: whether `--break-glass` may pass all of these.
    freeze: list[str] = []
    actions_per_hour: int | None = Field(None, ge=1, le=1000)
    approval: bool = False
    break_glass: bool = False
    #: Its own in the place of docs/slo.md's, by name (`Catalog.tuned`).
    thresholds: dict[str, str] = {}
    #: Days after its last line in which a dossier is kept; without it, for ever.
    keep_days: int | None = Field(None, ge=1, le=36_500)

    @model_validator(mode="before")
    @classmethod
    def _from_env_or_file(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for url in (*_addresses(), *_SECRETS):
            env, file = data.pop(f"{url}_env", None), data.pop(f"{url}_file", None)
            if env is not None:
                if not os.environ.get(env):
                    raise ValueError(f"{url}_env names {env}, which is not set")
                data[url] = os.environ[env]
            elif file is not None:
                try:
                    data[url] = (config_folder() / file).read_text(encoding="utf-8").strip()
                except OSError as e:
                    raise ValueError(f"{url}_file: cannot read {file} ({e.strerror})") from e
        for url in SEVERAL:
            if isinstance(data.get(url), list):
                data[url] = ",".join(map(str, data[url]))
        own, acting = (
            {f: data.pop(f"{who}nats_{f}") for f in NatsAccess.model_fields if data.get(f"{who}nats_{f}")}
            for who in ("", "action_")
        )
        if own or acting:
            data |= {"nats": own, "action_nats": {f: own[f] for f in _SHARED if f in own} | acting}
        services = {name: data.pop(f"{name}_url") for name in _facts().services if data.get(f"{name}_url")}
        for name, address in services.items():
            if wrong := wrong_with(str(address), "service_url"):
                raise ValueError(f"{name}_url: {wrong}: write it like {_WRITTEN['service_url'][0]}")
        return data | ({"services": services} if services else {})

    @field_validator(*URLS, *ACTION_URLS)
    @classmethod
    def _is_a_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value:
            written, kind = value.get_secret_value(), str(info.field_name).removeprefix("action_")
            for url in several(written) if info.field_name in SEVERAL else [written]:
                if wrong := wrong_with(url, kind):
                    raise ValueError(f"{wrong}: write it like {_WRITTEN[kind][0]}")
        return value

    @field_validator("grafana_link")
    @classmethod
    def _is_a_link(cls, link: str) -> str:
        if link and (wrong := wrong_with(link, "grafana_link") or ("it has a password" if _has_password(link) else "")):
            raise ValueError(f"{wrong}: write it like {_WRITTEN['grafana_link'][0]}")
        if unknown := set(re.findall(r"\{(\w+)\}", link)) - {*LINKED}:
            raise ValueError(f"it names {', '.join(sorted(unknown))}: known are {', '.join(LINKED)}")
        return link

    @field_validator("thresholds", mode="before")
    @classmethod
    def _are_thresholds(cls, own: Any) -> Any:
        if not isinstance(own, dict) or not own:
            return own
        from runbook_lib import catalog  # the documents are read for a target that needs them

        return catalog.load().tuned(own).own

    @field_validator("freeze")
    @classmethod
    def _are_windows(cls, windows: list[str]) -> list[str]:
        freeze.until(windows, datetime.now(UTC))
        return windows

    @model_validator(mode="after")
    def _needs_a_source(self) -> Target:
        if not self.database_url and not self.database_url_command and not self.nats_url:
            raise ValueError("neither database_url nor nats_url is set")
        if self.replica_url and not self.database_url and not self.database_url_command:
            raise ValueError("replica_url stands beside database_url: a replica alone is the database_url")
        if bool(self.grafana_url) != bool(self.grafana_token):
            raise ValueError("grafana_url and grafana_token go together")
        return self

    def url(self, name: str) -> str | None:
        """The URL of one of `URLS` or `ACTION_URLS` in the clear; for the sources and actions alone."""
        secret: SecretStr | None = getattr(self, name)
        return secret.get_secret_value() if secret else None

    def service(self, name: str) -> str | None:
        """Where a service of the system answers, in the clear; for the sources alone."""
        secret = self.services.get(name)
        return secret.get_secret_value() if secret else None

    def address(self, name: str) -> str | None:
        """The URL of that name in the clear, of a service as well; None where there is none."""
        return self.url(name) if name in (*URLS, *ACTION_URLS) else self.service(name.removesuffix("_url"))

    def urls(self) -> list[str]:
        """Every configured URL in the clear, for the masker; passwords and tokens that stand apart as one."""
        own = [(name, self.url(name)) for name in (*URLS, *ACTION_URLS)]
        each = [u for name, urls in own if urls for u in (several(urls) if name in SEVERAL else [urls])]
        return [u for u in (*each, *map(self.service, self.services), *self._apart()) if u]

    def _apart(self) -> tuple[str, ...]:
        token = self.grafana_token.get_secret_value() if self.grafana_token else ""
        grafana = f"https://:{quote(token, safe='')}@grafana" if token else ""
        return self.nats.secret(), self.action_nats.secret(), grafana


class Budget(_Strict):
    """What a run may ask of a database that may be struggling."""

    statement_timeout_ms: int = Field(3000, ge=50, le=DAY_S * 1000)
    lock_timeout_ms: int = Field(200, ge=10, le=DAY_S * 1000)
    idle_timeout_ms: int = Field(10_000, ge=100, le=DAY_S * 1000)
    connect_timeout_s: int = Field(3, ge=2, le=DAY_S)
    max_plan_cost: float = Field(50_000, gt=0)
    max_rows: int = Field(500, ge=1, le=1_000_000)
    readers: int = Field(4, ge=1, le=1000, description="runs that may read one database at once")


class Route(_Strict):
    """Which sections an alert runs: the first route that fits; none is section 3 and what it points to."""

    alertname: str = ""
    labels: dict[str, str] = {}
    sections: list[str] = Field(min_length=1)
    target: str = ""
    parameters: dict[str, Any] = {}


class ReceiverSettings(_Strict):
    """How alerts are received; secrets come from the environment or a file (docs/operations.md)."""

    window_minutes: float = Field(30.0, gt=0, le=7 * 24 * 60, description="a repeat within it is only counted")
    workers: int = Field(
        default_factory=lambda: max(2, min(cores(), 4)),
        ge=1,
        le=64,
        description="investigations at once, one per target",
    )
    public_url: str = Field("", description="what links in messages start with")
    notify_urls_env: str = "RUNBOOK_NOTIFY_URLS"
    notify_urls_file: str = ""
    user_header: str = Field("", pattern=r"^[A-Za-z0-9-]*$", description="in which a reverse proxy says who reads")
    trusted_proxies: list[IPvAnyNetwork] = Field([], description="where that proxy asks from; no other is believed")

    @field_validator("trusted_proxies")
    @classmethod
    def _are_few(cls, networks: list[IPvAnyNetwork]) -> list[IPvAnyNetwork]:
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("this trusts everybody: name the proxy's own addresses")
        return networks

    @model_validator(mode="after")
    def _go_together(self) -> ReceiverSettings:
        if bool(self.user_header) != bool(self.trusted_proxies):
            raise ValueError("user_header and trusted_proxies go together")
        return self

    def notify_urls(self) -> list[str]:
        """Where messages go, one apprise URL a line; each may hold a secret. Raises UsageError."""
        text = os.environ.get(self.notify_urls_env, "")
        if self.notify_urls_file:
            try:
                text += "\n" + (config_folder() / self.notify_urls_file).read_text(encoding="utf-8")
            except OSError as e:
                raise UsageError(
                    f"receiver.notify_urls_file: cannot read {self.notify_urls_file} ({e.strerror})"
                ) from None
        return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


#: An Ed25519 public key as DER begins so; 32 bytes follow.
_ED25519 = bytes.fromhex("302a300506032b6570032100")


def raw_key(public: str) -> bytes:
    """The 32 bytes of a public key that is written as in PEM, without its first and last line. Raises ValueError."""
    der = b""
    with suppress(ValueError):
        der = base64.b64decode(public, validate=True)
    if not der.startswith(_ED25519) or len(der) != len(_ED25519) + 32:
        raise ValueError("no Ed25519 public key: write the middle line of `openssl pkey -in key.pem -pubout`")
    return der.removeprefix(_ED25519)


def _are_keys(keys: dict[str, str]) -> dict[str, str]:
    for name, public in keys.items():
        try:
            raw_key(public)
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None
    return keys


#: Public keys by the name of whoever holds the other half.
_Keys = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], str],
    AfterValidator(_are_keys),
]


class Signing(_Strict):
    """Who signs seals here, and whose signatures are known (docs/operations.md)."""

    #: Where the private key is, PEM: a file, or an argument vector that prints it.
    key_file: Path | None = None
    key_command: list[str] | None = Field(None, min_length=1)
    keys: _Keys = {}

    @field_validator("key_file")
    @classmethod
    def _from_the_configuration(cls, file: Path | None) -> Path | None:
        return file and config_folder() / file.expanduser()

    @model_validator(mode="after")
    def _one_key(self) -> Signing:
        if self.key_file and self.key_command:
            raise ValueError("key_file and key_command are set: a key is in one place")
        return self


class Settings(BaseSettings):
    """Everything configurable; `load()` makes it."""

    model_config = SettingsConfigDict(
        env_prefix="RUNBOOK_", env_nested_delimiter="__", extra="ignore", allow_inf_nan=False
    )

    output: str = "outputs"
    lang: Literal["ja", "en"] = "en"
    deadline_s: float = Field(180.0, gt=0, le=DAY_S, description="a whole run, all its sections")
    budget: Budget = Budget()
    #: As written: a target is checked when it is used, so that one in disorder does not block another.
    targets: dict[str, dict[str, Any]] = {}
    receiver: ReceiverSettings = ReceiverSettings()
    sign: Signing = Signing()
    #: Who may approve an action of somebody else, by login.
    approvers: _Keys = {}
    routes: list[Route] = []
    # The environment's one target.
    database_url: SecretStr | None = None
    replica_url: SecretStr | None = None
    nats_url: SecretStr | None = None
    nats_monitor_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    prometheus_url: SecretStr | None = None
    grafana_url: SecretStr | None = None
    action_database_url: SecretStr | None = None
    action_nats_url: SecretStr | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file."""
        file = config_file()
        toml = (TomlSource(settings_cls, file),) if file else ()
        return (init_settings, env_settings, *toml)

    def target(self, name: str) -> Target:
        """The target of that name.

        Raises UsageError when it is not known or not complete.
        """
        if name in self.targets:
            return _written_target(name, self.targets[name])
        if name == "default":
            urls = {u: getattr(self, u) for u in (*URLS, *ACTION_URLS) if getattr(self, u)}
            if "database_url" in urls or "nats_url" in urls:
                others = [*(f"{s}_url" for s in _facts().services), *_NATS_KEYS, *_GRAFANA_KEYS]
                others += [f"{k}_file" for k in _SECRETS]
                named = {name: os.environ.get(f"RUNBOOK_{name.upper()}") for name in others}
                return _target("settings", urls | {u: v for u, v in named.items() if v})
            hint = " (a sandbox is up: --target sandbox)" if sandbox_target() else ""
            raise UsageError(
                "target 'default' has no address: set RUNBOOK_DATABASE_URL, RUNBOOK_NATS_URL and "
                f"RUNBOOK_NATS_MONITOR_URL, or name another with --target{hint}"
            )
        if name == "sandbox":
            if (sandbox := sandbox_target()) is not None:
                return sandbox
            raise UsageError("no sandbox is up: start one with `runbook sandbox up`")
        known = [*dict.fromkeys(("default", "sandbox", *self.targets))]
        raise UsageError(f"unknown target '{name}': {did_you_mean(name, known)}")


def load() -> Settings:
    """Read the settings.

    Raises UsageError, one line that names the setting, when a value is not acceptable.
    """
    try:
        return Settings()
    except ValidationError as e:
        raise UsageError(_first_problem("settings", e)) from None
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{config_file()}: not valid TOML: {e}") from None


def _written_target(name: str, written: dict[str, Any]) -> Target:
    file = config_file()
    text = file.read_text(encoding="utf-8") if file else ""
    for url in _addresses():
        with suppress(ValueError):  # what cannot be read is refused below
            value = written.get(url)
            if any(
                u and _has_password(str(u)) and str(u) in text for u in (value if isinstance(value, list) else [value])
            ):
                raise UsageError(
                    f"targets.{name}.{url} has a password in {file}: "
                    f"name an environment variable ({url}_env) or a file ({url}_file) instead"
                )
    for secret in _SECRETS:
        if (value := written.get(secret)) and str(value) in text:
            raise UsageError(
                f"targets.{name}.{secret} stands in {file}: "
                f"name an environment variable ({secret}_env) or a file ({secret}_file) instead"
            )
    return _target(f"settings: targets.{name}", written)


def _target(where: str, values: dict[str, Any]) -> Target:
    """A target of what is written: its addresses are the engine's, all else is for the pack to know."""
    addresses = {f"{url}{how}" for url in (*_addresses(), *_SECRETS) for how in ("", "_env", "_file")}
    addresses |= {*_NATS_KEYS, *_GRAFANA_KEYS, *_RULES, "database_url_command", "thresholds"}
    try:
        facts = facts_of({k: v for k, v in values.items() if k not in addresses})
        return Target(**{k: v for k, v in values.items() if k in addresses}, facts=facts)
    except ValidationError as e:
        raise UsageError(_first_problem(where, e)) from None


def _has_password(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.password) or "password=" in parts.query


def wrong_with(url: str, kind: str) -> str:
    """What is wrong with a URL, without a word of it: it may hold a password."""
    _, schemes = _WRITTEN[kind]
    try:
        parts = urlsplit(url)
        # PostgreSQL's may name several hosts, each with its port.
        several = parts.netloc.rpartition("@")[2].split(",") if "postgresql" in schemes else [parts.netloc]
        hosts = [urlsplit(f"//{one}") for one in several]
        host, _ = all(one.hostname for one in hosts), [one.port for one in hosts]
    except ValueError:
        return "its host or its port cannot be read (in a password, / ? # @ : [ are written %2F %3F %23 %40 %3A %5B)"
    if parts.scheme.partition("+")[0] not in schemes:
        return f"it does not begin with {' or '.join(f'{s}://' for s in schemes)}"
    if any(c.isspace() or not c.isprintable() for c in url):
        return "it holds a space, or what cannot be seen"
    # A PostgreSQL or a Redis on this machine may be found by the folder, or the file, of its socket.
    asked = "host=" in parts.query or "service=" in parts.query
    local = ("postgresql" in schemes and (not parts.netloc or asked)) or parts.scheme == "unix"
    return "" if host or local else "it names no host"


def _first_problem(where: str, e: ValidationError) -> str:
    first = e.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(p) for p in first["loc"])
    joint = ": " if where == "settings" else "."
    return f"{where}{joint + path if path else ''}: {first['msg'].removeprefix('Value error, ')}"


def sandbox_target() -> Target | None:
    """The sandbox that is up in this folder (or in RUNBOOK_SANDBOX_DIR), as the target that it has left there."""
    try:
        written = json.loads((sandbox_folder() / SANDBOX_TARGET).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UsageError(f"the sandbox's {SANDBOX_TARGET} cannot be read: {e}") from None
    return _target("the sandbox", written)
