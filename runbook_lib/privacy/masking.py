"""Masking: secrets are removed, user ids are replaced by tokens.

Everything that a run prints, writes or logs passes through one `Masker`. What leaves the machine in a recording also
passes through `hide_names`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.privacy import redaction
from runbook_lib.privacy.urls import secrets_in

#: Columns of user ids, of keys that contain one, and of SQL statements.
PERSON_COLUMNS = ("user_id",)
PEOPLE_COLUMNS = ("users",)  # several ids, one a line
KEYED_COLUMNS = ("aggregate_key",)  # "<user_id>:<sku>"
SQL_COLUMNS = ("query", "statement")
#: Columns of responders and field names, and of texts that were masked when they were written.
OWN_COLUMNS = ("who", "approved_by", "text", "detail_en", "detail_ja", "shape", "fields")


def secrets_of(urls: Iterable[str]) -> tuple[str, ...]:
    """Return the passwords and tokens of the given URLs, as written and decoded."""
    found = {way for url in urls for secret in secrets_in(url) for way in (secret, quote(secret, safe=""))}
    return tuple(sorted((s for s in found if len(s) > 2), key=len, reverse=True))


#: The form of the tokens of `Masker.person`.
TOKEN = re.compile(r"\buser-[0-9a-f]{8}\b")
#: How many user ids a masker remembers, the latest.
REMEMBERED = 10_000


def new_salt() -> bytes:
    """Return the salt of an incident that begins."""
    return os.urandom(16).hex().encode()


@dataclass(frozen=True)
class Masker:
    """Scrubs the secrets of one target and gives people stable tokens within one incident.

    `people` has the user id of each token, in memory only; None if it is not kept. `salt` returns the salt of
    the incident when the first token is made, or b"" if it has none, and tokens then depend on `key` alone.
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    key: bytes = field(default=b"", repr=False)
    salt: Callable[[], bytes] = field(default=bytes, compare=False, repr=False)
    people: dict[str, str] | None = field(default=None, compare=False, repr=False)
    _issued: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    @classmethod
    def of(
        cls, urls: Iterable[str], incident_id: str, salt: Callable[[], bytes] = bytes, *, remembers: bool = False
    ) -> Masker:
        """Make a masker whose tokens depend on the target's secrets, so that nobody else can guess a user id."""
        urls = list(urls)
        key = hashlib.sha256("\n".join([*sorted(urls), incident_id]).encode()).digest()
        return cls(secrets_of(urls), key, cache(salt), {} if remembers else None)

    def person(self, user: object) -> object:
        """Return the token of a user in this incident; empty values and known tokens stay as they are."""
        if user is None or user != user or user == "" or user in self._issued:
            return user
        key = (self.key + self.salt())[: hashlib.blake2b.MAX_KEY_SIZE]
        token = "user-" + hashlib.blake2b(str(user).encode(), key=key, digest_size=4).hexdigest()
        self._issued.add(token)
        if self.people is not None:
            self.people[token] = str(user)
            if len(self.people) > REMEMBERED:
                del self.people[next(iter(self.people))]
        return token

    def without_secrets(self, text: str) -> str:
        """Take secrets out of a text; once more changes nothing."""
        return redaction.redact_secrets(self._remove_own_secrets(text))

    def scrub(self, text: str) -> str:
        """Take secrets and user ids out of a text; once more changes nothing."""
        return redaction.redact(self._remove_own_secrets(text), self._person_token)

    def scrub_once(self, text: str) -> str:
        """Scrub a text that another process may have scrubbed: the tokens in it stay, so that a person has one."""
        self.keep_tokens(text)
        return self.scrub(text)

    def keep_tokens(self, text: str) -> None:
        """Let the tokens in a text that another process has scrubbed stay, wherever they are met."""
        self._issued.update(TOKEN.findall(text))

    def issued(self) -> str:
        """Return all tokens that it has made or kept, for `keep_tokens` of another process."""
        return " ".join(self._issued)

    def statement(self, text: str) -> str:
        """Take the literals out of an SQL statement; user ids among them become tokens."""
        return redaction.redact_sql(self._remove_own_secrets(text), self._person_token)

    def bound(self, name: str, value: object) -> str:
        """Return the value of a query parameter as it may be shown."""
        if "user" in name:
            return str([self.person(v) for v in value] if isinstance(value, list) else self.person(value))
        return self.scrub(str(value))

    def _remove_own_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, redaction.SECRET)
        return text

    def _person_token(self, user: str) -> str:
        return str(self.person(user))

    def frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a copy with user ids masked and every text scrubbed."""
        masked = frame.copy()
        for column in masked.columns:
            masked[column] = self._mask_column(frame[column], str(column))
        return masked

    def _mask_column(self, column: pd.Series[Any], name: str) -> pd.Series[Any]:
        """Return a column masked as the table column of this name; a user id may have any type."""
        of = cache(self._column_masker(name))
        if name in (*PERSON_COLUMNS, *KEYED_COLUMNS):
            ids = [_id_text(v) for v in column]
            return pd.Series([of(v) if isinstance(v, str) else v for v in ids], column.index, object)
        if column.dtype.kind != "O":  # numbers or times
            return column
        return pd.Series([_mask_cell(v, of) for v in column], column.index, column.dtype)

    def _column_masker(self, name: str) -> Callable[[Any], Any]:
        if name in PERSON_COLUMNS:
            return self.person
        if name in PEOPLE_COLUMNS:
            return lambda ids: "\n".join(str(self.person(user)) for user in ids.split("\n"))
        if name in KEYED_COLUMNS:
            return lambda key: redaction.key_token(name, key, self._person_token)
        if name in SQL_COLUMNS:
            return self.statement
        return self.without_secrets if name in OWN_COLUMNS else self.scrub

    def own(self, frame: pd.DataFrame, columns: Sequence[str | None], written: str) -> pd.DataFrame:
        """Return a masked copy of the result of a person's own query.

        The origin of each column decides how it is masked: `columns` has the table column behind each column of the
        frame. A computed text (None) may contain any user id and becomes a token, unless it is a literal of the query
        as `written`.
        """
        literals = set(re.findall(r"'([^']*)'", written))
        shown = {}
        for n, name in enumerate(columns):
            column = frame.iloc[:, n]
            texts = [_to_text(v) for v in column]
            if name is not None and name in (*PERSON_COLUMNS, *KEYED_COLUMNS):
                shown[n] = self._mask_column(column, name)
            elif not any(isinstance(v, str) for v in texts):
                shown[n] = column
            elif name is None:
                shown[n] = pd.Series([self.person(v) if v not in literals else v for v in texts], dtype=object)
            else:
                own = self._mask_column(pd.Series(texts, dtype=object), name)
                shown[n] = own.map(lambda v: self.scrub(v) if isinstance(v, str) else v)
        masked = pd.DataFrame(shown).set_axis(frame.columns, axis=1)
        masked.attrs = frame.attrs
        return masked

    def named(self, value: object) -> object:
        """Return the user id of a token, if it is remembered; any other value as it is."""
        return (self.people or {}).get(value, value) if isinstance(value, str) else value

    def frames(self, frames: Frames) -> Frames:
        """Return all frames of a finding, masked."""
        return {name: self.frame(frame) for name, frame in frames.items()}


def _to_text(value: object) -> object:
    """Return a value that may contain text as a string; numbers and times as they are."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value) if isinstance(value, tuple | bytes) else value


def _id_text(value: object) -> object:
    """Return a user id of any type as the text from which its token is made; a missing one as it is."""
    if isinstance(value, float) and value.is_integer():  # pandas makes these of integers if one is missing
        value = int(value)
    text = _to_text(value)
    return text if isinstance(text, str) or pd.isna(text) else str(text)  # type: ignore[call-overload]


def _mask_cell(value: object, mask: Callable[[str], str]) -> object:
    """Return a cell with the texts in it masked; a cell without such texts as it is."""
    text = _to_text(value)
    if not isinstance(text, str) or (masked := mask(text)) == text:
        return value
    with suppress(ValueError):
        return json.loads(masked) if isinstance(value, dict | list) else masked
    return masked


# Names of machines, pods and people ----------------------------------------------------------------------------

#: What a column of a frame, or a key of a JSON object, names.
_KINDS = {
    **dict.fromkeys(("locked_by", "worker", "workers", "pod", "holder", "instance"), "pod"),
    **dict.fromkeys(("host", "hostname", "server", "server_name", "node", "leader", "peer", "context"), "host"),
    **dict.fromkeys(("who", "approved_by", "role", "usename", "user"), "person"),
}
_KUBERNETES = "[bcdfghjklmnpqrstvwxz2456789]"  # the characters of its random suffixes
_HOST = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_DOMAINS = "com|net|org|io|dev|cloud|jp|uk|de|fr|eu|cn|kr|local|internal|intranet|corp|lan|svc|example|invalid"
#: The name of a group is a kind and a number.
_NAMES = re.compile(
    rf"""
    (?<![\w.-])(?P<pod1>[a-z][a-z0-9-]*-{_KUBERNETES}{{6,10}}-{_KUBERNETES}{{5}})(?![A-Za-z0-9_-])
    | ://(?:[^\s/@"'<>]*@)?(?P<host1>{_HOST})
    | (?<![\w.])(?P<host2>(?:\d{{1,3}}\.){{3}}\d{{1,3}})(?![A-Za-z0-9_]|\.\d)
    | (?<![\w:.])(?P<host3>(?=[0-9a-f:]*\d)[0-9a-f]{{0,4}}(?::[0-9a-f]{{0,4}}){{2,8}})(?![\w:])
    | (?P<person1>{redaction.MAIL})
    | (?<![\w.@/-])(?P<host4>(?:(?:[^\W_]|-)+\.)+(?:{_DOMAINS}))(?![A-Za-z0-9_-]|\.\w)
    | \b(?:server\ at|host(?:\ name)?|server|address|node)\ ["'](?P<host5>{_HOST})["']
    | (?:\bhost(?:name|addr)?=|UnknownHostException:\ |\blookup\ (?=\S+\ on\ ))(?P<host6>{_HOST})
    | (?<![\w./:-])(?!(?:cid|id|line|n|offset|pid|port|seq):)(?P<host7>[a-z][\w.-]*)(?=:\d{{4,5}}(?!\d))
    | \b(?P<host8>ip-\d+-\d+-\d+-\d+|N[A-Z2-7]{{55}})\b
    | --context[ =]["']?(?P<host9>[^\s"']+)
    | /(?:home|Users)/(?P<person2>[^/\s"']+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_POD_SUFFIX = re.compile(rf"-{_KUBERNETES}{{6,10}}-{_KUBERNETES}{{5}}$")
#: Roles and users of programs, and words of the runbook, which are no names.
_COMMON_NAMES = frozenset(
    # "unknown" is a person without a name (a pod's user), "alert" who wrote the receiver's notes.
    (
        *("", "-", "?", "admin", "alert", "app", "broker", "database", "localhost", "nats", "postgres", "root"),
        *("runbook", "service", "unknown"),
    )
)


def hide_names(content: Any, known: Mapping[str, Iterable[str]], keep: Container[str]) -> tuple[Any, dict[str, int]]:
    """Return JSON in which tokens replace the names of hosts, pods and people, and how many of each kind were hidden.

    The names are `known` ones by kind ("host", "pod", "person"), those of columns that hold names, and those that their
    form shows. Tokens are numbered in the order of the names: what is equal stays equal, and what is sorted stays
    sorted. A host of one plain word, such as "primary", is replaced where it is known to be one, not in every text.
    `keep` has the words that stay: streams, workloads, service accounts.
    """
    names: dict[str, dict[str, None]] = {"host": {}, "pod": {}, "person": {}}

    def add(kind: str, name: str) -> None:
        if name.lower() not in _COMMON_NAMES and name not in keep and not TOKEN.fullmatch(name):
            names[kind][name] = None

    def collect(text: str, kind: str) -> str:
        for name in filter(None, re.split(r"[,\s]+", text) if kind == "pod" else [text] if kind else []):
            add(kind, name)
        for found in _NAMES.finditer(text):
            if _is_name(found):
                add(_kind(found), found[str(found.lastgroup)])
        return text

    for kind, given in known.items():
        for name in given:
            add(kind, name)
    _change_texts(content, cache(collect))
    tokens: dict[str, str] = {}
    for kind, found in names.items():
        for n, name in enumerate(sorted(found), 1):
            workload = f"{name[: suffix.start()]}-" if (suffix := _POD_SUFFIX.search(name)) else ""
            tokens.setdefault(name, f"{workload}{kind}-{n:0{len(str(len(found)))}}")
    everywhere = [n for n in tokens if n in names["person"] or re.search(r"[\d.-]", n)]
    listed = "|".join(map(re.escape, sorted(everywhere, key=len, reverse=True))) or r"(?!)"
    words = re.compile(rf"(?<![A-Za-z0-9_-])(?:{listed})(?![A-Za-z0-9_-])")
    used = set[str]()

    def token(name: str) -> str:
        used.add(name)
        return tokens.get(name, name)

    def replace(text: str, kind: str) -> str:
        if kind and text in tokens:
            return token(text)
        text = words.sub(lambda m: token(str(m[0])), redaction.redact_secrets(text))
        return _NAMES.sub(lambda m: str(m[0]).replace(n := m[str(m.lastgroup)], token(n)), text)

    return _change_texts(content, cache(replace)), {kind: len(used & found.keys()) for kind, found in names.items()}


def _kind(found: re.Match[str]) -> str:
    return str(found.lastgroup).rstrip("0123456789")


def _is_name(found: re.Match[str]) -> bool:
    """Return whether what looks like an IPv6 address is one; other matches are names."""
    if found.lastgroup != "host3":
        return True
    with suppress(ValueError):
        return bool(ipaddress.IPv6Address(found["host3"]))
    return False


def _change_texts(value: Any, change: Callable[[str, str], str], kind: str = "") -> Any:
    """Return JSON with each text changed; `change` gets the text and the kind of names in its column or key."""
    if isinstance(value, str):
        return change(value, kind)
    if isinstance(value, list):
        return [_change_texts(v, change, kind) for v in value]
    if not isinstance(value, dict):
        return value
    if not {"columns", "rows"} <= value.keys():
        return {change(k, ""): _change_texts(v, change, _KINDS.get(k, "")) for k, v in value.items()}
    columns = [c["name"] for c in value["columns"]]
    # A role is a database's only beside its sessions.
    kinds = ["" if c == "role" and "score" in columns else _KINDS.get(c, "") for c in columns]
    rows = [[_change_texts(v, change, k) for k, v in zip(kinds, row, strict=True)] for row in value["rows"]]
    return value | {"rows": rows, "attrs": _change_texts(value.get("attrs", {}), change)}
