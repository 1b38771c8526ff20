"""Targets and limits, from runbook.toml and the environment.

A secret never stands in a notebook or in runbook.toml: the file names where it is (secret.py). The environment alone is
enough for one target, named `default`; a sandbox that is up is the target `sandbox`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource
from pydantic_settings.exceptions import SettingsError

from runbook_lib.book import pack
from runbook_lib.model.usage import (
    SANDBOX_TARGET,
    UsageError,
    config_file,
    config_folder,
    did_you_mean,
    first_problem,
    sandbox_folder,
)
from runbook_lib.privacy import redaction
from runbook_lib.privacy.urls import secrets_in
from runbook_lib.sources import secret

#: Settings that may hold several URLs, separated by commas or as a list.
MULTI_URLS = ("nats_url", "nats_monitor_url", "action_nats_url")
#: Rules of a target for actions (governance/approval.py, ledger.py).
_RULES = ("approval", "ledger")
NATS_SCHEMES = ("nats", "tls", "ws", "wss")
#: An argument of supervisorctl that holds a password, or an address with one.
_PASSWORD_ARGUMENT = re.compile(r"-p|--pass|(-s|--serverurl=)?\w+://[^/@\s]*@")
#: The form of each address, and its schemes.
_ADDRESS_FORMS = {
    "database_url": ("postgresql://USER@HOST:5432/DATABASE", ("postgresql", "postgres")),
    "replica_url": ("postgresql://USER@HOST:5432/DATABASE", ("postgresql", "postgres")),
    "nats_url": ("nats://HOST:4222", NATS_SCHEMES),
    "nats_monitor_url": ("http://HOST:8222", ("http", "https")),
    "redis_url": ("redis://HOST:6379/0", ("redis", "rediss", "unix")),
    "prometheus_url": ("http://HOST:9090", ("http", "https")),
    "grafana_link": ("https://HOST/d/UID?from={from_ms}&to={to_ms}&var-hop={hop}", ("http", "https")),
    "trace_link": ("https://HOST/trace/{trace_id}", ("http", "https")),
    "service_url": ("http://HOST:8080", ("http", "https")),
}
#: A variable that a setting names, itself or in a command; those that any program may need, whoever names them.
_VARIABLE = re.compile(r"\benv:\s*([\w.-]+)|(?:\$\{?|\bprintenv )(\w+)")
_SHARED_VARIABLES = re.compile(
    "HOME|PATH|PYTHONPATH|VIRTUAL_ENV|USER|LOGNAME|SHELL|PWD|TMPDIR|TERM|TZ|LANG|LC_.*|XDG_.*|HOSTNAME|KUBECONFIG"
    "|.*_(?:PROXY|proxy)|SSL_CERT_.*|REQUESTS_CA_BUNDLE|AWS_PROFILE|AWS_(?:DEFAULT_)?REGION"
)
#: What needs the keys of a store, in the text of a target; and their names.
_NEEDS_KEYS = re.compile(r'"cmd:|ledger": "\w+://', re.IGNORECASE)
_STORE_KEYS = "FSSPEC_|AWS_.*(?:KEY|TOKEN)|AZURE_STORAGE_|GOOGLE_APPLICATION_CREDENTIALS"
#: The upper limit of every duration setting, in seconds.
DAY_S = 86_400


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Strict(BaseModel):
    """A model that rejects unknown keys, and infinite or NaN numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def _require_together(self, *names: str, prefix: str = "") -> None:
        """Raise ValueError where one of two fields is set and the other is not."""
        if len({bool(getattr(self, name)) for name in names}) > 1:
            raise ValueError(f"{prefix}{f' and {prefix}'.join(names)} go together")


def _beside_config(file: Path) -> Path:
    """Return a file whose relative name is beside runbook.toml. Raises ValueError for the ~ of an unknown user."""
    try:
        return config_folder() / file.expanduser()
    except RuntimeError:
        raise ValueError(f"{file}: this user has no home folder") from None


#: A file by its name: a relative one is beside runbook.toml.
_File = Annotated[Path, AfterValidator(_beside_config)]


class _SourceAddresses(BaseModel):
    """The addresses of a system's parts; those of one target may come from the environment alone."""

    database_url: SecretStr | None = None
    #: A streaming replica, for queries about the window.
    replica_url: SecretStr | None = None
    nats_url: SecretStr | None = None
    nats_monitor_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    prometheus_url: SecretStr | None = None
    #: Credentials with write access, for actions only; readers cannot write.
    action_database_url: SecretStr | None = None
    action_nats_url: SecretStr | None = None


URLS = (*_SourceAddresses.model_fields,)


class WorkloadSettings(_Strict):
    """How the workloads are run, so that a proposal is an exact command; a pack adds the names of its workloads."""

    runner: Literal["kubectl", "supervisorctl"] = "kubectl"
    namespace: str = "default"
    context: str = ""
    #: The command that opens psql on the system's database; "" is the default of its pack, with `database`.
    psql: str = ""
    database: str = "postgres"
    supervisorctl: list[str] = ["supervisorctl"]
    #: kubectl: what `runbook connect` forwards an address to, such as {"nats_url": "deploy/nats:4222"}.
    forwards: dict[str, Annotated[str, Field(pattern=r"^(?:svc|deploy|pod|statefulset)/[a-z0-9.-]+:[0-9]{1,5}$")]] = {}
    #: kubectl: a workload's own container, where its name is not the workload's.
    containers: dict[str, str] = {}
    #: supervisorctl: a workload's log file, and the file of NAME=VALUE lines that its programs read at their start.
    log_files: dict[str, str] = {}
    env_file: str = ""

    @field_validator("supervisorctl")
    @classmethod
    def _hold_no_password(cls, words: list[str]) -> list[str]:
        # The command stands in proposals, in the read cost and in what is archived.
        if any(_PASSWORD_ARGUMENT.match(word) for word in words[1:]):
            raise ValueError("holds a password: write it into the file that `supervisorctl -c FILE` names")
        return words

    @field_validator("psql")
    @classmethod
    def _check_psql(cls, command: str) -> str:
        if redaction.redact_secrets(command) != command:
            raise ValueError("holds a password: write it into a file that psql reads, such as ~/.pgpass")
        shlex.split(command)  # raises ValueError
        return command

    @property
    def kubectl(self) -> list[str]:
        """The words of kubectl in the target's cluster and namespace."""
        return ["kubectl", *(["--context", self.context] if self.context else []), "-n", self.namespace]

    @property
    def psql_words(self) -> list[str]:
        """The words of psql on the system's database; a pack whose database runs elsewhere has its own default."""
        return shlex.split(self.psql) or ["psql", "-d", self.database]

    @property
    def programs(self) -> dict[str, str]:
        """The names of the system's workloads, by what the pack calls them."""
        return {
            which: getattr(self, which)
            for which in type(self).model_fields
            if which not in WorkloadSettings.model_fields
        }

    def program(self, which: str) -> str:
        """Return the name of one workload. Raises KeyError."""
        return self.programs[which]


class TargetFacts(_Strict):
    """The facts of the system in a target's settings, in the same table as its addresses; a pack adds its own."""

    #: The system's services with metrics: each may have an address, `<name>_url`.
    services: ClassVar[tuple[str, ...]] = ()
    #: Addresses of the pack's own sources (`Pack.sources`), such as kafka_url: how each is written, and its schemes.
    addresses: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {}

    workloads: WorkloadSettings = WorkloadSettings()

    @property
    def clock_stream(self) -> str | None:
        """A stream whose answers carry the broker's clock, if the system has one."""
        return None


class NatsAccess(_Strict):
    """Login and TLS of a broker, beside its URLs, and the prefix of its JetStream API; `nats_*` in a target's table.

    Files are read when they are used, so that one that is missing hides the broker alone.
    """

    creds_file: _File | None = None
    nkey_file: _File | None = None
    ca_file: _File | None = None
    cert_file: _File | None = None
    key_file: _File | None = None
    user: str = ""
    password: SecretStr | None = None
    token: SecretStr | None = None
    domain: str = Field("", pattern=r"^[^\s.*>]*$")
    api_prefix: str = Field("", pattern=r"^[^\s*>]*$")

    @model_validator(mode="after")
    def _check_login(self) -> NatsAccess:
        ways = {
            "creds_file": self.creds_file,
            "nkey_file": self.nkey_file,
            "token": self.token,
            "user": self.user or self.password,
        }
        if len(given := [f"nats_{name}" for name, value in ways.items() if value]) > 1:
            raise ValueError(f"{' and '.join(given)} are set: a broker accepts one login method, set only one")
        self._require_together("user", "password", prefix="nats_")
        self._require_together("cert_file", "key_file", prefix="nats_")
        if self.domain and self.api_prefix:
            raise ValueError("nats_domain and nats_api_prefix both set the prefix of JetStream: set only one of them")
        return self

    def login_url(self) -> str:
        """Return its password or token as a URL would hold it, for the masker; "" where there is none."""
        word = self.password or self.token
        return f"nats://{quote(self.user, safe='')}:{quote(word.get_secret_value(), safe='')}@nats" if word else ""


_LINK_KEYS = ("grafana_link", "trace_link")
#: The login settings of a target's broker, for readers and for actions; some are secrets.
_NATS_KEYS = tuple(f"{who}nats_{field}" for who in ("", "action_") for field in NatsAccess.model_fields)
_SECRETS = (*(key for key in _NATS_KEYS if key.endswith(("_password", "_token"))), "database_password")
#: What a command prints for these is short-lived: it is run when the database is connected to.
_AT_CONNECT = ("database_url", "database_password")
#: The fields of a link to a dashboard, written in braces.
LINK_FIELDS = {
    "grafana_link": ("from_ms", "to_ms", "hop", "target", "incident"),
    "trace_link": ("trace_id",),
}
#: Settings that an action's user inherits from the readers' user.
_SHARED_NATS_KEYS = ("ca_file", "cert_file", "key_file", "domain", "api_prefix")


def split_urls(urls: str) -> list[str]:
    """Split a setting that may hold several URLs.

    >>> split_urls("nats://a:4222, nats://b:4222")
    ['nats://a:4222', 'nats://b:4222']
    """
    return [url.strip() for url in re.split(r",(?=\s*[a-z]+://)", urls)]


def facts_of(values: dict[str, Any]) -> TargetFacts:
    """Build the facts of a target with the class of the system's pack. Raises ValidationError."""
    return _facts_class()(**values)


def _facts_class() -> type[TargetFacts]:
    kind: type[TargetFacts] = next(iter(pack.active_runbook().every("facts")), TargetFacts)
    return kind


def _pack_addresses() -> dict[str, str]:
    """Return the addresses that the system's pack knows, by name, with the form of each."""
    facts = _facts_class()
    return {f"{name}_url": "service_url" for name in facts.services} | {url: url for url in facts.addresses}


def _address_names() -> tuple[str, ...]:
    """Return every address that a target may have, those of the system's pack among them."""
    return (*URLS, *_pack_addresses())


def _address_form(kind: str) -> tuple[str, tuple[str, ...]]:
    return _ADDRESS_FORMS[kind] if kind in _ADDRESS_FORMS else _facts_class().addresses[kind]


class Target(_SourceAddresses, _Strict):
    """One system to investigate: where its parts answer, and the facts that its settings fix."""

    #: The password of `database_url`, where that has none. A command that prints one of them is run at each connect.
    database_password: SecretStr | None = None
    #: Whether to read PgBouncer's console: PgBouncer 1.18 exits where `auth_query` provides the role's password.
    pgbouncer_console: bool = False
    nats: NatsAccess = NatsAccess()
    action_nats: NatsAccess = NatsAccess()
    #: Links to a dashboard and to an event's trace, with `LINK_FIELDS`.
    grafana_link: str = ""
    trace_link: str = ""
    #: The URLs of the system's services, and of the sources of its pack, by name.
    services: dict[str, SecretStr] = {}
    facts: TargetFacts = TargetFacts()
    #: Whether a second person must approve each action.
    approval: bool = False
    #: The ledger of actions (governance/ledger.py): a folder, or a URL that fsspec knows.
    ledger: str = Field("", validate_default=True)
    #: The target's own thresholds, which replace those of docs/slo.md (`Catalog.tuned`).
    thresholds: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for name in (*_address_names(), *_SECRETS):
            written = data.get(name)
            written = written.get_secret_value() if isinstance(written, SecretStr) else written
            if isinstance(written, str) and not (name in _AT_CONNECT and secret.is_command(written)):
                try:
                    data[name] = secret.read(written)
                except ValueError as e:
                    raise ValueError(f"{name}: {e}") from None
        for url in MULTI_URLS:
            if isinstance(data.get(url), list):
                data[url] = ",".join(map(str, data[url]))
        own, acting = (
            {f: data.pop(f"{who}nats_{f}") for f in NatsAccess.model_fields if data.get(f"{who}nats_{f}")}
            for who in ("", "action_")
        )
        if own or acting:
            data |= {"nats": own, "action_nats": {f: own[f] for f in _SHARED_NATS_KEYS if f in own} | acting}
        services = {}
        for url, kind in _pack_addresses().items():
            if not (address := data.pop(url, None)):
                continue
            if wrong := url_problem(str(address), kind):
                raise ValueError(f"{url}: {wrong}: write it like {_address_form(kind)[0]}")
            services[url.removesuffix("_url")] = address
        return data | ({"services": services} if services else {})

    @field_validator(*URLS)
    @classmethod
    def _check_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value and not secret.is_command(value.get_secret_value()):
            written, kind = value.get_secret_value(), str(info.field_name).removeprefix("action_")
            for url in split_urls(written) if info.field_name in MULTI_URLS else [written]:
                if wrong := url_problem(url, kind):
                    raise ValueError(f"{wrong}: write it like {_ADDRESS_FORMS[kind][0]}")
        return value

    @field_validator(*LINK_FIELDS)
    @classmethod
    def _check_link(cls, link: str, info: ValidationInfo) -> str:
        kind = str(info.field_name)
        if link and (wrong := url_problem(link, kind) or ("it has a password" if secrets_in(link) else "")):
            raise ValueError(f"{wrong}: write it like {_ADDRESS_FORMS[kind][0]}")
        if unknown := set(re.findall(r"\{(\w+)\}", link)) - {*LINK_FIELDS[kind]}:
            raise ValueError(f"it names {', '.join(sorted(unknown))}: known are {', '.join(LINK_FIELDS[kind])}")
        return link

    @field_validator("thresholds", mode="before")
    @classmethod
    def _check_thresholds(cls, own: Any) -> Any:
        if not isinstance(own, dict) or not own:
            return own
        from runbook_lib.book import catalog  # the documents are read for a target that needs them

        return catalog.load().tuned(own).own

    @field_validator("ledger")
    @classmethod
    def _resolve_ledger(cls, place: str) -> str:
        if "://" in place:
            return place
        return str((_beside_config(Path(place)) if place else _default_ledger()).absolute())

    @model_validator(mode="after")
    def _check_sources(self) -> Target:
        if not self.database_url and not self.nats_url:
            raise ValueError("neither database_url nor nats_url is set")
        if self.replica_url and not self.database_url:
            raise ValueError("replica_url needs database_url beside it; for a replica alone, set database_url")
        return self

    def url(self, name: str) -> str | None:
        """Return the URL of one of `URLS` with its secrets; for the sources and actions only."""
        return _reveal_secret(getattr(self, name))

    def service(self, name: str) -> str | None:
        """Return the URL of a service, or of a source of the pack, with its secrets; for the sources only."""
        return _reveal_secret(self.services.get(name))

    def address(self, name: str) -> str | None:
        """Return the URL of that name, or of that service, with its secrets; None if there is none."""
        return self.url(name) if name in URLS else self.service(name.removesuffix("_url"))

    def urls(self) -> list[str]:
        """Return every configured URL in the clear, for the masker; separate passwords and tokens as URLs, too."""
        own = [(name, self.url(name)) for name in URLS]
        each = [u for name, urls in own if urls for u in (split_urls(urls) if name in MULTI_URLS else [urls])]
        if password := _reveal_secret(self.database_password):
            each.append(f"postgresql://runbook:{quote(password, safe='')}@database")
        each += [service.get_secret_value() for service in self.services.values()]
        each += [self.nats.login_url(), self.action_nats.login_url()]
        return [url for url in each if url and not secret.is_command(url)]


def _reveal_secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


def _default_ledger() -> Path:
    """Return the default ledger: beside runbook.toml, else in the user's state folder."""
    if config_file():
        return config_folder() / "runbook-ledger"
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "runbook" / "ledger"
    except RuntimeError:  # a user without a home
        return Path("runbook-ledger")


class Budget(_Strict):
    """The limits of a run's queries, since the database may already be overloaded."""

    statement_timeout_ms: int = Field(3000, ge=50, le=DAY_S * 1000)
    lock_timeout_ms: int = Field(200, ge=10, le=DAY_S * 1000)
    idle_timeout_ms: int = Field(10_000, ge=100, le=DAY_S * 1000)
    connect_timeout_s: int = Field(3, ge=2, le=DAY_S)
    max_plan_cost: float = Field(50_000, gt=0)
    max_rows: int = Field(500, ge=1, le=1_000_000)
    readers: int = Field(4, ge=1, le=1000, description="runs that may read one database at once")


class Route(_Strict):
    """The sections that an alert runs: those of the first matching route, else the triage and those it points to."""

    alertname: str = ""
    labels: dict[str, str] = {}
    sections: list[str] = Field(min_length=1)
    target: str = ""
    parameters: dict[str, Any] = {}


class ReceiverSettings(_Strict):
    """Settings of the alert receiver; secrets come from the environment or a file (docs/operations.md)."""

    window_minutes: float = Field(30.0, gt=0, le=7 * 24 * 60, description="a repeat within it is only counted")
    workers: int = Field(
        default_factory=lambda: max(2, min(available_cores(), 4)),
        ge=1,
        le=64,
        description="investigations at once, one per target",
    )
    public_url: str = Field("", description="base URL of links in messages")
    keep_runs: int = Field(10_000, ge=100, description="runs, messages and seals that the journal retains, the newest")
    notify_urls: SecretStr | None = Field(
        None, description="channels for messages, an apprise URL a line; default: `RUNBOOK_NOTIFY_URLS`"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_gone(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            pack.hook("gone")(name, "settings: receiver.")
        return values

    def channels(self) -> list[str]:
        """Return the apprise URLs of messages, one per line; each may contain a secret. Raises UsageError."""
        _refuse_secrets("receiver")
        try:
            text = secret.read(_reveal_secret(self.notify_urls) or os.environ.get("RUNBOOK_NOTIFY_URLS", ""))
        except ValueError as e:
            raise UsageError(f"receiver.notify_urls: {e}") from None
        return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def locale_language() -> Literal["ja", "en"]:
    """Return the language of this machine's locale: "ja" for a Japanese one, otherwise "en"."""
    named = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "ja" if named.startswith("ja") else "en"


class Settings(_SourceAddresses, BaseSettings):
    """Everything configurable; `load()` makes it."""

    model_config = SettingsConfigDict(
        env_prefix="RUNBOOK_", env_nested_delimiter="__", extra="ignore", allow_inf_nan=False
    )

    output: str = "outputs"
    lang: Literal["ja", "en"] = Field(default_factory=locale_language)
    deadline_s: float = Field(180.0, gt=0, le=DAY_S, description="a whole run, all its sections")
    budget: Budget = Budget()
    #: As written: a target is checked when it is used, so that an invalid one does not block another.
    targets: dict[str, dict[str, Any]] = {}
    receiver: ReceiverSettings = ReceiverSettings()
    #: A recording that replaces every source (`runbook lab --replay`).
    replay: str = ""
    routes: list[Route] = []

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the environment first, then the file."""
        file = config_file()
        toml = (TomlSource(settings_cls, file),) if file else ()
        return (init_settings, env_settings, *toml)

    def target(self, name: str) -> Target:
        """Return the target of that name.

        Raises UsageError when it is not known or not complete.
        """
        if name in self.targets:
            table = self.targets[name]
            return _target_from_table(name, self._lacking(table) | table if name == "default" else table)
        if name == "default":
            urls = {u: getattr(self, u) for u in URLS if getattr(self, u)}
            if "database_url" in urls or "nats_url" in urls:
                others = [*_pack_addresses(), *_NATS_KEYS, *_LINK_KEYS, "database_password", "ledger"]
                named = {name: os.environ.get(f"RUNBOOK_{name.upper()}") for name in others}
                return _build_target("settings", urls | {u: v for u, v in named.items() if v})
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

    def environment_of(self, name: str) -> dict[str, str]:
        """Return this environment for a program that works on one target, or on none ("").

        It lacks the receiver's secrets, what only other targets use, and the keys of an object store unless the
        target's ledger or one of its commands may need them.
        """
        keys = (*_address_names(), *_NATS_KEYS, *_LINK_KEYS, "database_password", "ledger")
        of_default = {v: os.environ[v] for key in keys if (v := f"RUNBOOK_{key.upper()}") in os.environ}
        tables: dict[str, dict[str, Any]] = {"default": {}} | self.targets
        used = {n: json.dumps([t, of_default if n == "default" else ""], default=str) for n, t in tables.items()}
        own = used.pop(name, "")
        others = json.dumps([*used.values(), _reveal_secret(self.receiver.notify_urls)])
        named = {"".join(groups) for groups in _VARIABLE.findall(others)} | {*of_default}
        theirs = (v for v in named if not _SHARED_VARIABLES.fullmatch(v))
        foreign = {v for v in theirs if not re.search(rf"\b{re.escape(v)}\b", own)}
        secret_names = "RUNBOOK_(?:RECEIVER|NOTIFY|TARGETS)" + ("" if _NEEDS_KEYS.search(own) else f"|{_STORE_KEYS}")
        kept = {k: v for k, v in os.environ.items() if k not in foreign and not re.match(secret_names, k)}
        if name in self.targets and any(k.startswith("RUNBOOK_TARGETS") for k in os.environ):
            kept["RUNBOOK_TARGETS"] = json.dumps({name: self.targets[name]}, default=str)
        return kept

    def _lacking(self, table: dict[str, Any]) -> dict[str, Any]:
        """Return the addresses and the ledger that the environment names for `default` and its table does not.

        A pod in which people act shares the table with the receiver, and adds its own.
        """
        here = {url: getattr(self, url) for url in URLS} | {"ledger": os.environ.get("RUNBOOK_LEDGER")}
        return {key: value for key, value in here.items() if value and key not in table}


#: What to write instead of a secret.
_INSTEAD = 'write where it is instead: "env:VARIABLE", "file:PATH" or "cmd:PROGRAM ARGUMENT ..."'


def _check_top_level() -> None:
    """Refuse a misspelt table or key at the top of runbook.toml. Raises UsageError, and the reader's own errors."""
    file = config_file()
    known = [*Settings.model_fields, "packs"]
    for name in (key.removeprefix("RUNBOOK_") for key in os.environ if key.startswith("RUNBOOK_")):
        pack.hook("gone")(name.partition("__")[0].lower(), "settings: ")
    for name in tomllib.loads(file.read_text(encoding="utf-8")) if file else ():
        if name not in known:
            pack.hook("gone")(name, f"{file}: ")
            raise UsageError(f"{file}: '{name}' is no setting: {did_you_mean(name, known)}")


def load() -> Settings:
    """Read the settings.

    Raises UsageError, one line that names the setting, when a value is not acceptable.
    """
    try:
        _check_top_level()
        _refuse_secrets()
        return Settings()
    except ValidationError as e:
        raise UsageError(_format_problem("settings", e)) from None
    except SettingsError as e:  # of a variable whose setting is a table or a list
        field = re.search(r'field "(\w+)"', str(e))
        raise UsageError(f"settings: RUNBOOK_{field[1].upper()} is not JSON" if field else f"settings: {e}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        wrong = "it is not UTF-8" if isinstance(e, UnicodeDecodeError) else e
        raise UsageError(f"{config_file()}: not valid TOML: {wrong}") from None


def _refuse_secrets(*path: str) -> None:
    """Refuse a secret in a table of runbook.toml, or at its top. Raises UsageError."""
    file, table = config_file(), dict[str, Any]()
    with suppress(OSError, ValueError):  # it was changed since it was read
        table = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    for part in path:
        table = table.get(part, {})
    for key, value in table.items():
        for text in map(str, value if isinstance(value, list) else [value]):
            wrong = ""
            with suppress(ValueError):  # what cannot be read is refused where it is used
                if secret.shows_secret(text):
                    wrong = "has a secret among the words of its command"
                elif key in _address_names() and secrets_in(text):
                    wrong = "has a password"
                elif key in (*_SECRETS, "notify_urls") and text and not secret.is_named(text):
                    wrong = "stands"
            if wrong:
                raise UsageError(f"{'.'.join((*path, key))} {wrong} in {file}: {_INSTEAD}")


def _target_from_table(name: str, written: dict[str, Any]) -> Target:
    _refuse_secrets("targets", name)
    return _build_target(f"settings: targets.{name}", written)


def _build_target(where: str, values: dict[str, Any]) -> Target:
    """Build a target from its settings; those that are not addresses or rules of the engine are the pack's facts."""
    for name in values:
        pack.hook("gone")(name, f"{where}.")
    addresses = {*_address_names(), *_SECRETS, *_NATS_KEYS, *_LINK_KEYS, *_RULES, "pgbouncer_console", "thresholds"}
    try:
        facts = facts_of({k: v for k, v in values.items() if k not in addresses})
        if facts.workloads.runner == "supervisorctl":
            pack.hook("supervisorctl")
        return Target(**{k: v for k, v in values.items() if k in addresses}, facts=facts)
    except ValidationError as e:
        raise UsageError(_format_problem(where, e)) from None


def url_problem(url: str, kind: str) -> str:
    """Return what is wrong with a URL, without any part of it, since it may contain a password; "" if nothing is."""
    _, schemes = _address_form(kind)
    try:
        parts = urlsplit(url)
        # PostgreSQL's may name several hosts, each with its port.
        addresses = parts.netloc.rpartition("@")[2].split(",") if "postgresql" in schemes else [parts.netloc]
        hosts = [urlsplit(f"//{one}") for one in addresses]
        host, _ = all(one.hostname for one in hosts), [one.port for one in hosts]
    except ValueError:
        return "its host or its port cannot be read (in a password, / ? # @ : [ are written %2F %3F %23 %40 %3A %5B)"
    if parts.scheme.partition("+")[0] not in schemes:
        return f"it does not begin with {' or '.join(f'{s}://' for s in schemes)}"
    if any(c.isspace() or not c.isprintable() for c in url):
        return "it contains a space or an invisible character"
    # A PostgreSQL or a Redis on this machine may be found by the folder, or the file, of its socket.
    asked = "host=" in parts.query or "service=" in parts.query
    local = ("postgresql" in schemes and (not parts.netloc or asked)) or parts.scheme == "unix"
    return "" if host or local else "it names no host"


def _format_problem(where: str, e: ValidationError) -> str:
    path, problem = first_problem(e)
    joint = ": " if where == "settings" else "."
    return f"{where}{joint + path if path else ''}: {problem}"


def sandbox_target() -> Target | None:
    """Return the target of the sandbox that runs in this folder (or in RUNBOOK_SANDBOX_DIR); None if none runs."""
    try:
        written = json.loads((sandbox_folder() / SANDBOX_TARGET).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UsageError(f"the sandbox's {SANDBOX_TARGET} cannot be read: {e}") from None
    return _build_target("the sandbox", {"ledger": str(sandbox_folder().absolute() / "runbook-ledger")} | written)
