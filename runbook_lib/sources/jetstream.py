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
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pandas as pd

from runbook_lib.model.finding import Reason
from runbook_lib.sources import broker_client
from runbook_lib.sources.broker_client import Client, RawCredentials
from runbook_lib.sources.settings import NatsAccess, TargetFacts, split_urls
from runbook_lib.sources.source import ClockOffset, Opening, ReadCost, SourceError

_error = partial(SourceError, "jetstream")
CONNECT_TIMEOUT_S = 3
REQUEST_TIMEOUT_S = 2
#: Messages that are read together have a second more for each of these.
MESSAGES_PER_S = 50
_NO_MESSAGE = "10037"
#: Sequences of a stream that are read together while a moment is searched in it.
_PROBES = 16
_NO_TLS = "no TLS"
#: A user's seed, as it stands in a creds or in an nkey file.
_SEED = re.compile(r"\bSU[A-Z2-7]{56}\b")

T = TypeVar("T")

# asyncio's message about a broker that hangs up during TLS is noise in a notebook.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())


@dataclass(frozen=True)
class Message:
    """A stored message: its stream sequence, when it was stored, its headers by name, and the body."""

    seq: int
    time: datetime
    subject: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Consumer:
    """A consumer's CONSUMER.INFO: counts, stream sequences, and the whole answer in `info`."""

    info: dict[str, Any]
    num_pending: int
    num_ack_pending: int
    num_redelivered: int
    deliveries: int
    delivered_seq: int
    ack_floor_seq: int

    @classmethod
    def read(cls, info: dict[str, Any]) -> Consumer:
        """Read an answer. Raises SourceError for one that lacks what everybody relies on."""
        counts = ("num_pending", "num_ack_pending", "num_redelivered")
        _require_fields(info, "config", "delivered", "ack_floor", *counts)
        return cls(
            info,
            **{name: info[name] for name in counts},
            deliveries=info["delivered"]["consumer_seq"],
            delivered_seq=info["delivered"]["stream_seq"],
            ack_floor_seq=info["ack_floor"]["stream_seq"],
        )

    @property
    def config(self) -> dict[str, Any]:
        """The consumer's configuration."""
        return dict(self.info["config"])

    @property
    def bound(self) -> bool:
        """Whether a subscriber is bound to it: the server leaves the field out if none is."""
        return bool(self.info.get("push_bound"))

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects that it filters by; () for all."""
        return tuple(self.config.get("filter_subjects") or filter(None, [self.config.get("filter_subject")]))


def headers_of(text: str) -> dict[str, str]:
    """Parse the headers of a stored message: one per line, after the line that names the protocol.

    >>> headers_of("NATS/1.0\\r\\nNats-Msg-Id: 7")
    {'Nats-Msg-Id': '7'}
    """
    lines = [line.partition(":") for line in text.splitlines()[1:] if ":" in line]
    return {name.strip(): value.strip() for name, _, value in lines}


class _TlsClient(Client):
    """Sends nothing, no password above all, to a broker without TLS where TLS is asked for."""

    tls_wanted = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self.tls_wanted and initial_connection and not info.get("tls_required"):
            raise ssl.SSLError(_NO_TLS)
        await super()._process_info(info, initial_connection)


class JetStream:
    """A broker, read over short connections; none is kept between them. `url` may name several nodes."""

    def __init__(self, url: str, name: str, read_cost: ReadCost, access: NatsAccess | None = None) -> None:
        self._urls, self._name, self._read_cost, self._access = split_urls(url), name, read_cost, access or NatsAccess()
        own = f"$JS.{self._access.domain}.API" if self._access.domain else "$JS.API"
        self._prefix = (self._access.api_prefix or own).rstrip(".")
        self.down: tuple[float, SourceError] | None = None

    @classmethod
    def declared(cls, opening: Opening) -> JetStream | None:
        """Return the target's broker; None where it declares none."""
        url = opening.target.url("nats_url")
        return cls(url, opening.run, opening.read_cost, opening.target.nats) if url else None

    def clock(self, facts: TargetFacts) -> dict[str, ClockOffset]:
        """Measure the broker's clock by one answer about the system's stream that carries it."""
        if facts.clock_stream is None:
            return {}
        sent = pd.Timestamp.now("UTC")
        server = self.stream(facts.clock_stream).get("ts")
        rtt = (pd.Timestamp.now("UTC") - sent).total_seconds()
        return {"nats": ClockOffset((pd.Timestamp(server) - sent).total_seconds() - rtt / 2, rtt / 2)} if server else {}

    @property
    def user(self) -> str:
        """The user that asks, where it is one of a name; alone in a URL it would be a token."""
        parts = urlsplit(self._urls[0])
        return self._access.user or (unquote(parts.username or "") if parts.password else "")

    def stream(self, stream: str) -> dict[str, Any]:
        """Return STREAM.INFO: config, state{messages, first_seq, last_seq, last_ts}; perhaps ts and cluster."""
        return _require_fields(self._call_api(f"STREAM.INFO.{stream}"), "config", "state")

    def consumer(self, stream: str, durable: str) -> Consumer:
        """Ask CONSUMER.INFO."""
        return Consumer.read(self._call_api(f"CONSUMER.INFO.{stream}.{durable}"))

    def account(self) -> dict[str, Any]:
        """Return the account's INFO: limits{max_memory, max_storage, max_streams, max_consumers, ...}."""
        return _require_fields(self._call_api("INFO"), "limits")

    def message(self, stream: str, seq: int, subject: str | None = None) -> Message | None:
        """Return the stored message at that sequence, or with `subject` the next one at or after it.

        None if it is gone.
        """
        call, ask = f"STREAM.MSG.GET.{stream}", {"seq": seq} | ({} if subject is None else {"next_by_subj": subject})
        text = f"{self._prefix}.{call} {json.dumps(ask)}"
        return self._run_session(call, text, lambda client: self._get_message(client, call, ask))

    def messages(self, stream: str, seqs: Sequence[int]) -> list[Message]:
        """Return the stored messages at those sequences, read over one connection; those that are gone are left out."""
        call = f"STREAM.MSG.GET.{stream}"

        async def read(client: Client) -> list[Message]:
            found = await asyncio.gather(*(self._get_message(client, call, {"seq": n}, len(seqs)) for n in seqs))
            return [message for message in found if message]

        if not seqs:
            return []
        text = f"{self._prefix}.{call} seq {min(seqs)} to {max(seqs)}, {len(seqs)} of them"
        return self._run_session(call, text, read, len(seqs))

    def positions(self, stream: str, times: Sequence[datetime]) -> list[int]:
        """Return for each moment a sequence: what the stream stored before it lies below, the rest at or above."""
        call, of_batch = f"STREAM.MSG.GET.{stream}", _PROBES * len(times)

        async def search(client: Client) -> list[int]:
            state = (await self._send_request(client, f"STREAM.INFO.{stream}"))["state"]
            found = [[int(state["first_seq"]), int(state["last_seq"]) + 1] for _ in times]
            while open_ := [(t, at) for t, at in zip(times, found, strict=True) if at[0] < at[1]]:
                probes = sorted({lo + (hi - lo) * n // _PROBES for _, (lo, hi) in open_ for n in range(_PROBES)})
                # The next one there is: messages may have been deleted.
                asks = ({"seq": probe, "next_by_subj": ">"} for probe in probes)
                asked = (self._get_message(client, call, ask, of_batch) for ask in asks)
                for probe, message in zip(probes, await asyncio.gather(*asked), strict=True):
                    for moment, at in open_:
                        if not at[0] <= probe < at[1]:
                            continue
                        if message is None or message.time >= moment:
                            at[1] = probe
                        else:
                            at[0] = message.seq + 1
            return [at[0] for at in found]

        if not times:
            return []
        return self._run_session(call, f"by time, {min(times)} to {max(times)}, {len(times)} of them", search, of_batch)

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Publish and wait until a stream has it: its sequence there. For actions alone, with their own user."""

        async def send(client: Client) -> int:
            js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
            return int((await js.publish(subject, body, headers=dict(headers))).seq)

        return self._run_session("PUBLISH", f"{subject}, headers {', '.join(headers)}", send)

    def server(self) -> dict[str, Any]:
        """Return the broker's INFO on connect: version, server_name, jetstream, max_payload."""

        async def info(client: Client) -> dict[str, Any]:
            return dict(client._server_info)

        return self._run_session("server", "CONNECT / INFO", info)

    def ready(self) -> None:
        """Check that streams could be made, which takes a leader in a cluster. Raises SourceError if not."""
        try:
            self._call_api("INFO")
        except SourceError as e:
            if e.code != "permission_denied":
                raise
            self.server()  # as far as this user can tell

    def _call_api(self, call: str) -> dict[str, Any]:
        return self._run_session(call, f"{self._prefix}.{call} ", lambda client: self._send_request(client, call))

    async def _send_request(
        self, client: Client, call: str, body: dict[str, Any] | None = None, of_batch: int = 0
    ) -> dict[str, Any]:
        """Ask one question over an open connection, alone or of a batch. Raises SourceError for a refusal."""
        payload = json.dumps(body).encode() if body else b""
        reply = await client.request(f"{self._prefix}.{call}", payload, timeout=_timeout_s(of_batch))
        answer: dict[str, Any] = json.loads(reply.data)
        if "error" in answer:
            raise _refused_error(answer["error"])
        return answer

    async def _get_message(self, client: Client, call: str, body: dict[str, Any], of_batch: int = 0) -> Message | None:
        """Ask for a stored message, alone or of a batch; None if gone."""
        try:
            return _parse_message((await self._send_request(client, call, body, of_batch))["message"])
        except SourceError as e:
            if e.code == _NO_MESSAGE:
                return None
            raise

    def _run_session(
        self, name: str, text: str, ask: Callable[[Client], Coroutine[Any, Any, T]], of_batch: int = 0
    ) -> T:
        """Connect, ask, close, in a thread of its own: a notebook's thread already runs an event loop.

        The query is recorded by its name and text. A broker that did not answer is not asked again for 15 seconds.
        `of_batch` is the number of messages that are read together, which gives them time.
        """
        answer: Future[T] = Future()

        async def run() -> None:
            # The loop ends later than its answer is there, if the name server does not answer.
            try:
                answer.set_result(await self._ask_once(ask, of_batch))
            except Exception as e:
                answer.set_exception(e)

        with self._read_cost.query("jetstream", name, text) as asked:
            if self.down and time.monotonic() - self.down[0] < 15:
                raise self.down[1]
            threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
            try:
                found = answer.result((CONNECT_TIMEOUT_S + 1) * len(self._urls) + _timeout_s(of_batch) + 6)
            except SourceError:
                raise
            except TimeoutError:
                raise _error(Reason.TIMEOUT, "no answer in time, and no reason for it", "no_connection") from None
            except Exception as e:  # of our own, or an answer has another form: no evidence about the broker
                detail = " ".join(f"{type(e).__name__}: {e}".split())
                raise _error(Reason.ERROR, detail, "unexpected") from None
            asked.rows = len(found) if isinstance(found, list) else int(found is not None)
        return found

    async def _ask_once(self, ask: Callable[[Client], Coroutine[Any, Any, T]], of_batch: int) -> T:
        """Connect, ask and close. Raises SourceError."""
        errors: list[Exception] = []
        try:
            client = await self._connect_to_node(errors)
        except SourceError as e:
            self.down = (time.monotonic(), e)
            raise
        try:
            return await asyncio.wait_for(ask(client), _timeout_s(of_batch) + 1)
        except broker_client.errors.NoRespondersError:
            raise self._no_responder_error() from None
        except (TimeoutError, broker_client.errors.TimeoutError):
            if any("permissions violation" in str(e).lower() for e in errors):
                # The broker says so on the side and leaves the request without an answer.
                raise _error(Reason.DENIED, "this user may not ask that", "permission_denied") from None
            unanswered = await _unanswered_error(client, of_batch)
            if unanswered.code != "slow":
                self.down = (time.monotonic(), unanswered)
            raise unanswered from None
        except broker_client.errors.Error as e:
            raise _error(Reason.ERROR, str(e)) from None
        finally:
            with suppress(TimeoutError, broker_client.errors.Error):  # a hung broker cannot say goodbye
                await asyncio.wait_for(client.close(), 1)

    async def _connect_to_node(self, errors: list[Exception]) -> Client:
        """Connect to the first node that accepts us; the broker's asynchronous errors are added to `errors`.

        Raises SourceError: that of a node which answered, before that of one which did not.
        """

        async def on_error(e: Exception) -> None:
            errors.append(e)

        options, refused = self._options(), list[SourceError]()
        for url in list(self._urls):
            try:
                broker_client.load_transport(url)
            except ModuleNotFoundError as e:
                refused.append(_error(Reason.DENIED, f"ws:// needs the package {e.name}", "no_package"))
                continue
            client = _TlsClient()
            client.tls_wanted = "tls" in options or urlsplit(url).scheme == "tls"
            errors.clear()
            try:
                await asyncio.wait_for(
                    client.connect(
                        _url_without_login(url),
                        name=self._name,
                        connect_timeout=CONNECT_TIMEOUT_S,
                        allow_reconnect=False,
                        # The first connection is "reconnected" too, 60 times 2 s apart if nothing is said.
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        error_cb=on_error,
                        **(_login_from_url(url) | options),
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
        """Return the client's options for TLS and login. Raises SourceError for a file that cannot be used."""
        access, options = self._access, dict[str, Any]()
        if access.creds_file:
            creds = _read_file(access.creds_file, "nats_creds_file")
            if "BEGIN NATS USER JWT" not in creds or not _SEED.search(creds):
                raise _unfit_file("nats_creds_file", access.creds_file, "a user's JWT and its seed")
            options["user_credentials"] = RawCredentials(creds)
        elif access.nkey_file:
            if not (seed := _SEED.search(_read_file(access.nkey_file, "nats_nkey_file"))):
                raise _unfit_file("nats_nkey_file", access.nkey_file, "a user's seed (SU...)")
            options["nkeys_seed_str"] = seed[0]
        elif access.token:
            options["token"] = access.token.get_secret_value()
        elif access.password:
            options |= {"user": access.user, "password": access.password.get_secret_value()}
        if access.ca_file or access.cert_file:
            options["tls"] = self._tls_context()
        return options

    def _tls_context(self) -> ssl.SSLContext:
        access = self._access
        authorities = _read_file(access.ca_file, "nats_ca_file") if access.ca_file else None
        try:
            if authorities == "":  # would mean those of this machine
                raise ValueError
            context = ssl.create_default_context(cadata=authorities)
        except (ssl.SSLError, ValueError):
            raise _unfit_file("nats_ca_file", access.ca_file, "certificates in PEM") from None
        if access.cert_file and access.key_file:
            _read_file(access.cert_file, "nats_cert_file")
            _read_file(access.key_file, "nats_key_file")
            try:
                # Without a password here OpenSSL would prompt at the terminal.
                context.load_cert_chain(access.cert_file, access.key_file, password="")
            except (ssl.SSLError, ValueError):
                what = f"a certificate that fits nats_key_file, {access.key_file}, a key without a password"
                raise _unfit_file("nats_cert_file", access.cert_file, what) from None
        return context

    def _no_responder_error(self) -> SourceError:
        """Return the error of a broker without a JetStream responder; a configured prefix may be wrong."""
        if self._access.domain or self._access.api_prefix:
            detail = f"nothing answers at {self._prefix}: are nats_domain and nats_api_prefix right?"
            return _error(Reason.DENIED, detail, "no_prefix")
        return _error(Reason.ERROR, "JetStream is not enabled", "no_jetstream")


def _timeout_s(of_batch: int) -> float:
    """Return the seconds for the answer to one request, or to each of a batch that is sent at once."""
    return REQUEST_TIMEOUT_S + of_batch / MESSAGES_PER_S


async def _unanswered_error(client: Client, of_batch: int) -> SourceError:
    """Return the error of a request without an answer: the whole node hangs, its cluster's JetStream, or it is slow."""
    try:
        await asyncio.wait_for(client.flush(1), 2)
    except (TimeoutError, broker_client.errors.Error, OSError):
        return _error(Reason.TIMEOUT, "the broker did not answer", "hung")
    if client._server_info.get("cluster") and not of_batch:
        return _error(Reason.TIMEOUT, "the node answers, and the cluster's JetStream does not", "unanswered")
    return _error(Reason.TIMEOUT, "the broker answers, and its JetStream did not in time", "slow")


def _login_from_url(url: str) -> dict[str, str]:
    """Return user and password, or token, of a URL, decoded; a user without a password is a token."""
    parts = urlsplit(url)
    if parts.password:
        return {"user": unquote(parts.username or ""), "password": unquote(parts.password)}
    return {"token": unquote(parts.username)} if parts.username else {}


def _url_without_login(url: str) -> str:
    """Return the URL without user, password and token."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _read_file(file: Path, setting: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise _error(Reason.DENIED, f"{setting}: cannot read {file} ({why})", "no_file") from None


def _unfit_file(setting: str, file: Path | None, what: str) -> SourceError:
    return _error(Reason.DENIED, f"{setting}: {file} does not hold {what}", "no_file")


def _parse_message(reply: dict[str, Any]) -> Message:
    return Message(
        reply["seq"],
        datetime.fromisoformat(reply["time"]),
        reply["subject"],
        headers_of(base64.b64decode(reply.get("hdrs", "")).decode(errors="replace")),
        base64.b64decode(reply.get("data", "")),
    )


def _require_fields(reply: dict[str, Any], *fields: str) -> dict[str, Any]:
    """Return the answer if it has these fields. Raises SourceError (no_data).

    A field that is missing is unknown, not zero.
    """
    if lacking := [field for field in fields if field not in reply]:
        raise _error(Reason.NO_DATA, f"this server does not say {', '.join(lacking)}", "unsaid")
    return reply


def _refused_error(error: dict[str, Any]) -> SourceError:
    missing = {10059: "stream_not_found", 10014: "consumer_not_found", 10008: "no_leader"}
    code: Any = error.get("err_code", error.get("code"))
    reason = Reason.DENIED if error.get("code") == 403 else Reason.ERROR
    return _error(reason, error["description"], missing.get(code, str(code)))


def _connect_error(errors: list[Exception], *, asks_for_ours: bool) -> SourceError:
    """Return the error of a refused connection. A problem on our side is "denied".

    It is no evidence about the broker.
    """
    words = " ".join(str(e) for e in errors).lower()
    if tls := next((e for e in errors if isinstance(e, ssl.SSLError)), None):
        return _error(Reason.DENIED, *_tls_problem(tls))
    if "authentication timeout" in words:  # the broker did not hear who we are in time
        return _error(Reason.TIMEOUT, "no answer to the connection", "no_connection")
    if "authorization" in words or "authentication" in words:
        return _error(Reason.DENIED, "the broker refuses these credentials", "wrong_credentials")
    if any(isinstance(e, ConnectionRefusedError) for e in errors) or re.search(
        r"connection refused|errno (?:111|61)\b", words
    ):
        return _error(Reason.UNREACHABLE, "connection refused", "no_connection")
    if any(isinstance(e, TimeoutError | broker_client.errors.TimeoutError) for e in errors):
        return _error(Reason.TIMEOUT, "no answer to the connection", "no_connection")
    if asks_for_ours:  # it hangs up without a word
        detail = "the broker takes no client without a certificate of its CA: see nats_cert_file and nats_key_file"
        return _error(Reason.DENIED, detail, "no_certificate")
    detail = next((str(e) for e in errors if str(e)), type(errors[-1]).__name__)
    return _error(Reason.UNREACHABLE, detail, "no_connection")


def _tls_problem(e: ssl.SSLError) -> tuple[str, str]:
    """Return what is wrong with TLS to the broker, and its code."""
    if isinstance(e, ssl.SSLCertVerificationError):
        hint = "the URL must name it as its certificate does" if "mismatch" in e.verify_message else "see nats_ca_file"
        return f"the broker's certificate is not trusted ({e.verify_message}): {hint}", "wrong_ca"
    if e.args == (_NO_TLS,):
        return "the target asks for TLS and the broker offers none", "no_tls"
    return f"no TLS with the broker ({e.reason or e}): see nats_cert_file and nats_key_file", "no_certificate"
