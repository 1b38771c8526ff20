"""JetStream, asked through its own API ($JS.API.*): the consumer's leader answers, with its own timestamp.

The raw replies are used because the client's dataclasses drop the server's `ts`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client, RawCredentials

from runbook_lib.model.finding import Reason
from runbook_lib.settings import NatsAccess, several
from runbook_lib.sources import ReadCost, SourceError

CONNECT_TIMEOUT_S = 3
REQUEST_TIMEOUT_S = 2
_NO_MESSAGE = "10037"
#: Places of a stream that are looked at together while a moment is searched in it.
_PROBES = 16
_NO_TLS = "no TLS"
#: A user's seed, as it stands in a creds or in an nkey file.
_SEED = re.compile(r"\bSU[A-Z2-7]{56}\b")

T = TypeVar("T")

# What asyncio says of a broker that hangs up during TLS is no news for whoever reads a notebook.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())


@dataclass(frozen=True)
class Message:
    """A stored message: its stream sequence, when it was stored, its headers by name, and the body."""

    seq: int
    time: datetime
    subject: str
    headers: dict[str, str]
    body: bytes


def headers_of(text: str) -> dict[str, str]:
    """The headers of a message as the broker stores them: a line each after the one that names the protocol.

    >>> headers_of("NATS/1.0\\r\\nNats-Msg-Id: 7")
    {'Nats-Msg-Id': '7'}
    """
    lines = [line.partition(":") for line in text.splitlines()[1:] if ":" in line]
    return {name.strip(): value.strip() for name, _, value in lines}


class _Client(Client):
    """Sends nothing, no password above all, to a broker without TLS where TLS is asked for."""

    tls_wanted = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self.tls_wanted and initial_connection and not info.get("tls_required"):
            raise ssl.SSLError(_NO_TLS)
        await super()._process_info(info, initial_connection)


class JetStream:
    """A broker that is asked in short connections; none is held between them. `url` may name several of its nodes."""

    def __init__(self, url: str, name: str, read_cost: ReadCost, access: NatsAccess | None = None) -> None:
        self._urls, self._name, self._read_cost, self._access = several(url), name, read_cost, access or NatsAccess()
        own = f"$JS.{self._access.domain}.API" if self._access.domain else "$JS.API"
        self._prefix = (self._access.api_prefix or own).rstrip(".")
        self._down: tuple[float, SourceError] | None = None

    @property
    def user(self) -> str:
        """The user that asks, where it is one of a name; alone in a URL it would be a token."""
        parts = urlsplit(self._urls[0])
        return self._access.user or (unquote(parts.username or "") if parts.password else "")

    def stream(self, stream: str) -> dict[str, Any]:
        """STREAM.INFO: config, state{messages, first_seq, last_seq, last_ts}; where the server has them ts, cluster."""
        return _whole(self._api(f"STREAM.INFO.{stream}"), "config", "state")

    def consumer(self, stream: str, durable: str) -> dict[str, Any]:
        """CONSUMER.INFO: config, delivered, ack_floor, num_pending, num_ack_pending, num_redelivered.

        Where the server has them push_bound, paused, ts, cluster.

        `push_bound` is absent when nobody is bound; treat it as False.
        """
        counts = ("num_pending", "num_ack_pending", "num_redelivered")
        return _whole(self._api(f"CONSUMER.INFO.{stream}.{durable}"), "config", "delivered", "ack_floor", *counts)

    def names(self, stream: str | None = None) -> list[str]:
        """STREAM.NAMES, or CONSUMER.NAMES of a stream: the first 1,024."""
        call, kind = (f"CONSUMER.NAMES.{stream}", "consumers") if stream else ("STREAM.NAMES", "streams")
        return list(self._api(call).get(kind) or [])

    def message(self, stream: str, seq: int, subject: str | None = None) -> Message | None:
        """The stored message at that sequence, or with `subject` the next one at or after it; None if gone."""
        ask: dict[str, Any] = {"seq": seq}
        if subject is not None:
            ask["next_by_subj"] = subject
        try:
            return _message(self._api(f"STREAM.MSG.GET.{stream}", ask)["message"])
        except SourceError as e:
            if e.code == _NO_MESSAGE:
                return None
            raise

    def messages(self, stream: str, seqs: Sequence[int]) -> list[Message]:
        """The stored messages at those sequences, asked over one connection; those that are gone are left out."""
        subject = f"{self._prefix}.STREAM.MSG.GET.{stream}"

        async def request(client: Client) -> list[dict[str, Any]]:
            asked = [
                client.request(subject, json.dumps({"seq": seq}).encode(), timeout=REQUEST_TIMEOUT_S) for seq in seqs
            ]
            return [dict(json.loads(reply.data)) for reply in await asyncio.gather(*asked)]

        if not seqs:
            return []
        with self._read_cost.question(
            "jetstream", f"STREAM.MSG.GET.{stream}", f"{subject} seq {min(seqs)} to {max(seqs)}, {len(seqs)} of them"
        ) as asked:
            replies = self._run(request)
            for reply in replies:
                if "error" in reply and str(reply["error"].get("err_code")) != _NO_MESSAGE:
                    raise _refusal(reply["error"])
            found = [_message(reply["message"]) for reply in replies if "message" in reply]
            asked.rows = len(found)
        return found

    def positions(self, stream: str, times: Sequence[datetime]) -> list[int]:
        """For each moment a sequence: all that the stream stored before it lies below, all from it on at or above."""

        async def search(client: Client) -> list[list[int]] | dict[str, Any]:
            async def ask(call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
                payload = json.dumps(body).encode() if body else b""
                subject = f"{self._prefix}.{call}.{stream}"
                return dict(json.loads((await client.request(subject, payload, timeout=REQUEST_TIMEOUT_S)).data))

            info = await ask("STREAM.INFO")
            if "error" in info:
                return dict(info["error"])
            found = [[int(info["state"]["first_seq"]), int(info["state"]["last_seq"]) + 1] for _ in times]
            while open_ := [(t, at) for t, at in zip(times, found, strict=True) if at[0] < at[1]]:
                probes = sorted({lo + (hi - lo) * n // _PROBES for _, (lo, hi) in open_ for n in range(_PROBES)})
                # The next one there is: messages may have been deleted.
                asked = (ask("STREAM.MSG.GET", {"seq": probe, "next_by_subj": ">"}) for probe in probes)
                replies = await asyncio.gather(*asked)
                for probe, reply in zip(probes, replies, strict=True):
                    if "error" in reply and str(reply["error"].get("err_code")) != _NO_MESSAGE:
                        return dict(reply["error"])
                    message = _message(reply["message"]) if "message" in reply else None
                    for moment, at in open_:
                        if not at[0] <= probe < at[1]:
                            continue
                        if message is None or message.time >= moment:
                            at[1] = probe
                        else:
                            at[0] = message.seq + 1
            return found

        if not times:
            return []
        with self._read_cost.question(
            "jetstream", f"STREAM.MSG.GET.{stream}", f"by time, {min(times)} to {max(times)}, {len(times)} of them"
        ) as asked:
            found = self._run(search)
            if isinstance(found, dict):
                raise _refusal(found)
            asked.rows = len(found)
        return [at[0] for at in found]

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Publish and wait until a stream has it: its sequence there. For actions alone, with their own user."""

        async def send(client: Client) -> int:
            js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
            return int((await js.publish(subject, body, headers=dict(headers))).seq)

        with self._read_cost.question("jetstream", "PUBLISH", f"{subject}, headers {', '.join(headers)}") as asked:
            seq = self._run(send)
            asked.rows = 1
        return seq

    def server(self) -> dict[str, Any]:
        """What the broker says of itself on connect: version, server_name, jetstream, max_payload."""

        async def info(client: Client) -> dict[str, Any]:
            return dict(client._server_info)

        with self._read_cost.question("jetstream", "server", "CONNECT / INFO") as asked:
            reply = self._run(info)
            asked.rows = 1
        return reply

    def ready(self) -> None:
        """Whether streams and consumers could be made; in a cluster that takes a leader. Raises SourceError if not."""
        try:
            self._api("INFO")
        except SourceError as e:
            if e.code != "permission_denied":
                raise
            self.server()  # as far as this user can tell

    def _api(self, call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        subject = f"{self._prefix}.{call}"

        async def request(client: Client) -> dict[str, Any]:
            payload = json.dumps(body).encode() if body else b""
            reply = await client.request(subject, payload, timeout=REQUEST_TIMEOUT_S)
            return dict(json.loads(reply.data))

        with self._read_cost.question("jetstream", call, f"{subject} {json.dumps(body) if body else ''}") as asked:
            reply = self._run(request)
            if error := reply.get("error"):
                raise _refusal(error)
            asked.rows = 1
        return reply

    def _run(self, ask: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Connect, ask, close, in a thread of its own: a notebook's thread already runs an event loop."""
        if self._down and time.monotonic() - self._down[0] < 15:
            raise self._down[1]
        answer: list[T] = []
        problem: list[SourceError] = []

        async def session() -> None:
            errors: list[Exception] = []
            try:
                client = await self._connect(errors)
            except SourceError as e:
                problem.append(e)
                self._down = (time.monotonic(), e)
                return
            try:
                answer.append(await asyncio.wait_for(ask(client), REQUEST_TIMEOUT_S + 1))
            except nats.errors.NoRespondersError:
                problem.append(self._nobody())
            except (TimeoutError, nats.errors.TimeoutError):
                if any("permissions violation" in str(e).lower() for e in errors):
                    # The broker says so on the side and leaves the request without an answer.
                    problem.append(
                        SourceError("jetstream", Reason.DENIED, "this user may not ask that", "permission_denied")
                    )
                else:
                    problem.append(await _unanswered(client))
                    self._down = (time.monotonic(), problem[0])
            except nats.errors.Error as e:
                problem.append(SourceError("jetstream", Reason.ERROR, str(e)))
            finally:
                with suppress(TimeoutError, nats.errors.Error):  # a hung broker cannot say goodbye
                    await asyncio.wait_for(client.close(), 1)

        thread = threading.Thread(target=lambda: asyncio.run(session()), daemon=True)
        thread.start()
        thread.join((CONNECT_TIMEOUT_S + 1) * len(self._urls) + REQUEST_TIMEOUT_S + 6)
        if answer:
            return answer[0]
        raise (problem[0] if problem else SourceError("jetstream", Reason.TIMEOUT, "the broker did not answer", "hung"))

    async def _connect(self, errors: list[Exception]) -> Client:
        """A connection to the first node that lets us in; what the broker says on the side goes to `errors`.

        Raises SourceError: that of a node which answered, before that of one which did not.
        """

        async def on_error(e: Exception) -> None:
            errors.append(e)

        options, refused = self._options(), list[SourceError]()
        for url in list(self._urls):
            client = _Client()
            client.tls_wanted = "tls" in options or urlsplit(url).scheme == "tls"
            errors.clear()
            try:
                await asyncio.wait_for(
                    client.connect(
                        _address(url),
                        name=self._name,
                        connect_timeout=CONNECT_TIMEOUT_S,
                        allow_reconnect=False,
                        # The first connection is "reconnected" too, 60 times 2 s apart if nothing is said.
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        error_cb=on_error,
                        **(_of_url(url) | options),
                    ),
                    CONNECT_TIMEOUT_S + 1,
                )
            except Exception as e:
                refused.append(_connect_error([*errors, e], asks_for_ours=bool(client._server_info.get("tls_verify"))))
            else:
                self._urls = [url, *(u for u in self._urls if u != url)]  # the next question begins there
                return client
        raise min(refused, key=lambda e: (e.reason is not Reason.DENIED, e.reason is not Reason.TIMEOUT))

    def _options(self) -> dict[str, Any]:
        """What the client is told of TLS and of who asks. Raises SourceError for a file that does not serve."""
        access, options = self._access, dict[str, Any]()
        if access.creds_file:
            creds = _read(access.creds_file, "nats_creds_file")
            if "BEGIN NATS USER JWT" not in creds or not _SEED.search(creds):
                raise _unfit("nats_creds_file", access.creds_file, "a user's JWT and its seed")
            options["user_credentials"] = RawCredentials(creds)
        elif access.nkey_file:
            if not (seed := _SEED.search(_read(access.nkey_file, "nats_nkey_file"))):
                raise _unfit("nats_nkey_file", access.nkey_file, "a user's seed (SU...)")
            options["nkeys_seed_str"] = seed[0]
        elif access.token:
            options["token"] = access.token.get_secret_value()
        elif access.password:
            options |= {"user": access.user, "password": access.password.get_secret_value()}
        if access.ca_file or access.cert_file:
            options["tls"] = self._tls()
        return options

    def _tls(self) -> ssl.SSLContext:
        access = self._access
        authorities = _read(access.ca_file, "nats_ca_file") if access.ca_file else None
        try:
            if authorities == "":  # would mean those of this machine
                raise ValueError
            context = ssl.create_default_context(cadata=authorities)
        except (ssl.SSLError, ValueError):
            raise _unfit("nats_ca_file", access.ca_file, "certificates in PEM") from None
        if access.cert_file and access.key_file:
            _read(access.cert_file, "nats_cert_file")
            _read(access.key_file, "nats_key_file")
            try:
                # Without a word for it OpenSSL would ask whoever sits at the terminal.
                context.load_cert_chain(access.cert_file, access.key_file, password="")
            except (ssl.SSLError, ValueError):
                what = f"a certificate that fits nats_key_file, {access.key_file}, a key without a password"
                raise _unfit("nats_cert_file", access.cert_file, what) from None
        return context

    def _nobody(self) -> SourceError:
        """Nobody takes questions for JetStream; where the target says where it is, that may be what is wrong."""
        if self._access.domain or self._access.api_prefix:
            detail = f"nothing answers at {self._prefix}: are nats_domain and nats_api_prefix right?"
            return SourceError("jetstream", Reason.DENIED, detail, "no_prefix")
        return SourceError("jetstream", Reason.ERROR, "JetStream is not enabled", "no_jetstream")


async def _unanswered(client: Client) -> SourceError:
    """A question without an answer: does the node answer at all, and is it one of a cluster?"""
    with suppress(TimeoutError, nats.errors.Error, OSError):
        await asyncio.wait_for(client.flush(1), 2)
        if client._server_info.get("cluster"):
            detail = "the node answers, and the cluster's JetStream does not"
            return SourceError("jetstream", Reason.TIMEOUT, detail, "unanswered")
    return SourceError("jetstream", Reason.TIMEOUT, "the broker did not answer", "hung")


def _of_url(url: str) -> dict[str, str]:
    """Who asks, where the URL says it; a user alone is a token. The client takes it as it is, so it is decoded here."""
    parts = urlsplit(url)
    if parts.password:
        return {"user": unquote(parts.username or ""), "password": unquote(parts.password)}
    return {"token": unquote(parts.username)} if parts.username else {}


def _address(url: str) -> str:
    """The URL without who asks."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _read(file: Path, setting: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise SourceError("jetstream", Reason.DENIED, f"{setting}: cannot read {file} ({why})", "no_file") from None


def _unfit(setting: str, file: Path | None, what: str) -> SourceError:
    return SourceError("jetstream", Reason.DENIED, f"{setting}: {file} does not hold {what}", "no_file")


def _message(reply: dict[str, Any]) -> Message:
    return Message(
        reply["seq"],
        datetime.fromisoformat(_microseconds(reply["time"])),
        reply["subject"],
        headers_of(base64.b64decode(reply.get("hdrs", "")).decode(errors="replace")),
        base64.b64decode(reply.get("data", "")),
    )


def _whole(reply: dict[str, Any], *fields: str) -> dict[str, Any]:
    """The answer, where it holds what everybody relies on: what a server does not say is not seen, and no zero."""
    if lacking := [field for field in fields if field not in reply]:
        raise SourceError("jetstream", Reason.NO_DATA, f"this server does not say {', '.join(lacking)}", "unsaid")
    return reply


def _refusal(error: dict[str, Any]) -> SourceError:
    missing = {10059: "stream_not_found", 10014: "consumer_not_found", 10008: "no_leader"}
    code: Any = error.get("err_code", error.get("code"))
    reason = Reason.DENIED if error.get("code") == 403 else Reason.ERROR
    return SourceError("jetstream", reason, error["description"], missing.get(code, str(code)))


def _microseconds(timestamp: str) -> str:
    """RFC 3339 with nanoseconds, as NATS writes it, cut to what datetime holds."""
    head, dot, tail = timestamp.rstrip("Z").partition(".")
    return f"{head}{dot}{tail[:6]}+00:00"


def _connect_error(errors: list[Exception], *, asks_for_ours: bool) -> SourceError:
    """What kept us out. What is wrong on our side is "denied": it says nothing about the broker."""
    words = " ".join(str(e) for e in errors).lower()
    if tls := next((e for e in errors if isinstance(e, ssl.SSLError)), None):
        return SourceError("jetstream", Reason.DENIED, *_of_tls(tls))
    if "authorization" in words or "authentication" in words:
        return SourceError("jetstream", Reason.DENIED, "the broker refuses these credentials", "wrong_credentials")
    if any(isinstance(e, ConnectionRefusedError) for e in errors) or "refused" in words or "111" in words:
        return SourceError("jetstream", Reason.UNREACHABLE, "connection refused", "no_connection")
    if any(isinstance(e, TimeoutError | nats.errors.TimeoutError) for e in errors):
        return SourceError("jetstream", Reason.TIMEOUT, "no answer to the connection", "no_connection")
    if asks_for_ours:  # it hangs up without a word
        detail = "the broker takes no client without a certificate of its CA: see nats_cert_file and nats_key_file"
        return SourceError("jetstream", Reason.DENIED, detail, "no_certificate")
    detail = next((str(e) for e in errors if str(e)), type(errors[-1]).__name__)
    return SourceError("jetstream", Reason.UNREACHABLE, detail, "no_connection")


def _of_tls(e: ssl.SSLError) -> tuple[str, str]:
    """What is wrong between us and the broker's TLS, and its code."""
    if isinstance(e, ssl.SSLCertVerificationError):
        hint = "the URL must name it as its certificate does" if "mismatch" in e.verify_message else "see nats_ca_file"
        return f"the broker's certificate is not trusted ({e.verify_message}): {hint}", "wrong_ca"
    if e.args == (_NO_TLS,):
        return "the target asks for TLS and the broker offers none", "no_tls"
    return f"no TLS with the broker ({e.reason or e}): see nats_cert_file and nats_key_file", "no_certificate"
