"""What must not leave: secrets are scrubbed, people are replaced by tokens.

Everything that a run prints, writes or logs passes through one `Masker`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pandas as pd

from runbook_lib.model.finding import Frames

#: Columns that name a person, and columns of free text in which a person or a secret may stand.
PERSON_COLUMNS = ("user_id",)
KEYED_COLUMNS = ("aggregate_key",)  # "<user_id>:<sku>"
TEXT_COLUMNS = ("last_error", "error_message", "reason", "query", "detail")

# Not the place of a parameter in a question.
_USER_IN_TEXT = re.compile(
    r"(?P<key>\buser_?id\s*[=:]\s*['\"]?)(?!<user>|[:$%]\w|%\()(?P<user>[^\s,;)}\"']+)",
    re.IGNORECASE,
)
# As JSON, and as JSON within a text within JSON: the token is a string, so that the line stays what it was.
_USER_IN_JSON = re.compile(
    r"(?P<key>\buser_?id(?P<quote>\\?[\"'])\s*:\s*)(?P<open>\\?[\"'])?(?P<user>(?!null\b)[^\s,;)}\"'\\]+)",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@", re.IGNORECASE)
_WORD_PASSWORD = re.compile(
    r"(?P<key>(?:\b|_)(?:password|passwd|token|secret)\s*[=:]\s*)(?!\*\*\*)[^\s,;&'\"]+", re.IGNORECASE
)


def secrets_of(urls: Iterable[str]) -> tuple[str, ...]:
    """The passwords and tokens that stand in the given URLs, as written and decoded."""
    found: set[str] = set()
    for url in urls:
        parts = urlsplit(url)
        password = parts.password or (parts.username if parts.scheme in ("nats", "tls") else None)
        asked = [v for k, v in parse_qsl(parts.query) if "password" in k]  # PostgreSQL's: password, sslpassword
        for secret in filter(None, (password, *asked)):
            found |= {secret, unquote(secret), quote(secret, safe="")}
    return tuple(sorted((s for s in found if len(s) > 2), key=len, reverse=True))


#: What `Masker.person` makes of a person.
TOKEN = re.compile(r"\buser-[0-9a-f]{8}\b")
#: So many people a masker remembers, the latest of them.
REMEMBERED = 10_000
#: So many salts an incident has, each of as many hexadecimal digits as a token: then each token follows from some salt,
#: and trying all of them tells nothing. Whose was replaced, they do not tell.
SALTS, DIGITS = 4096, 8


def fresh_salts() -> bytes:
    """Salts of an incident that begins."""
    return _random(SALTS)


def without(salts: bytes, user: str) -> bytes:
    """The same salts with a fresh one for a person: the token so far follows from nothing any more.

    So does that of whoever shares the salt, one in 4096.
    """
    at = _salt_of(user)
    return salts[: at.start] + _random(1) + salts[at.stop :]


def _salt_of(user: str) -> slice:
    """Where a person's salt is; by no secret, so that it is found when the target's passwords have changed."""
    number = int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest()) % SALTS
    return slice(number * DIGITS, (number + 1) * DIGITS)


def _random(count: int) -> bytes:
    return os.urandom(count * DIGITS // 2).hex().encode()


@dataclass(frozen=True)
class Masker:
    """Scrubs the secrets of one target and gives people stable tokens within one incident.

    `people` is who stands behind each token, in memory only; None where nobody may ask. `salts` are asked for when
    somebody is met: those of the incident, or b"" where it has none and tokens follow from `key` alone.
    """

    secrets: tuple[str, ...] = ()
    key: bytes = b""
    salts: Callable[[], bytes] = field(default=bytes, compare=False, repr=False)
    people: dict[str, str] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, urls: Iterable[str], incident_id: str, salts: Callable[[], bytes] = bytes, *, remembers: bool = False
    ) -> Masker:
        """Key the tokens by the target's own secrets: nobody without them can guess a user back."""
        urls = list(urls)
        key = hashlib.sha256("\n".join([*sorted(urls), incident_id]).encode()).digest()
        return cls(secrets_of(urls), key, cache(salts), {} if remembers else None)

    def person(self, user: object) -> object:
        """The token that stands for a user in this incident; empty values stay as they are."""
        if user is None or user != user or user == "":
            return user
        key = self.key + self.salts()[_salt_of(str(user))]
        token = "user-" + hashlib.blake2b(str(user).encode(), key=key, digest_size=4).hexdigest()
        if self.people is not None:
            self.people[token] = str(user)
            if len(self.people) > REMEMBERED:
                del self.people[next(iter(self.people))]
        return token

    def without_secrets(self, text: str) -> str:
        """Take secrets out of a text; once more changes nothing."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        text = _URL_PASSWORD.sub(r"\g<head>:***@", text)
        return _WORD_PASSWORD.sub(r"\g<key>***", text)

    def scrub(self, text: str) -> str:
        """Take secrets and user ids out of a text."""
        text = self.without_secrets(text)
        text = _USER_IN_JSON.sub(self._in_json, text)
        return _USER_IN_TEXT.sub(lambda m: m["key"] + str(self.person(m["user"])), text)

    def _in_json(self, found: re.Match[str]) -> str:
        token = str(self.person(found["user"]))
        quote = "" if found["open"] else found["quote"]
        return f"{found['key']}{found['open'] or quote}{token}{quote}"

    def frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A copy with people replaced and free text scrubbed."""
        masked = frame.copy()
        for column in masked.columns:
            name = str(column)
            if name in PERSON_COLUMNS:
                masked[column] = pd.Series([self.person(v) for v in frame[column]], frame.index, object)
            elif name in KEYED_COLUMNS:
                masked[column] = pd.Series([_keyed(self, v) for v in frame[column]], frame.index, object)
            elif name in TEXT_COLUMNS:
                masked[column] = [self.scrub(v) if isinstance(v, str) else v for v in frame[column]]
        return masked

    def own(self, frame: pd.DataFrame, columns: Sequence[str | None], written: str) -> pd.DataFrame:
        """A copy of what a person has asked in words of their own, masked by where each column comes from.

        `columns` are the tables' columns behind the frame's. A text that is computed (None) may hold anybody: it is a
        token, unless it stands in the question as it was `written`.
        """
        literals = set(re.findall(r"'([^']*)'", written))
        shown = {}
        for n, name in enumerate(columns):
            column = frame.iloc[:, n]
            texts = [_as_text(v) for v in column]
            if not any(isinstance(v, str) for v in texts):
                shown[n] = column
            elif name is None:
                shown[n] = pd.Series([self.person(v) if v not in literals else v for v in texts], dtype=object)
            else:
                own = self.frame(pd.DataFrame({name: pd.Series(texts, dtype=object)}))[name]
                shown[n] = own.map(lambda v: self.scrub(v) if isinstance(v, str) else v)
        masked = pd.DataFrame(shown).set_axis(frame.columns, axis=1)
        masked.attrs = frame.attrs
        return masked

    def named(self, value: object) -> object:
        """Who a token stands for, where that is remembered; anything else as it is."""
        return (self.people or {}).get(value, value) if isinstance(value, str) else value

    def frames(self, frames: Frames) -> Frames:
        """All frames of a finding, masked."""
        return {name: self.frame(frame) for name, frame in frames.items()}


def _as_text(value: object) -> object:
    """What may hold a text, as one; numbers and times as they are."""
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value) if isinstance(value, tuple | bytes) else value


def _keyed(masker: Masker, value: object) -> object:
    if not isinstance(value, str):
        return value
    user, sep, rest = value.rpartition(":")
    return f"{masker.person(user)}{sep}{rest}" if sep else masker.person(value)
