"""JetStream, asked through its own API ($JS.API.*): the consumer's leader answers, with its own timestamp.

The raw replies are used because the client's dataclasses drop the server's `ts`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client

from runbook_lib.model.finding import Reason
from runbook_lib.sources import ReadCost, SourceError

CONNECT_TIMEOUT_S = 3
REQUEST_TIMEOUT_S = 2
_NO_MESSAGE = "10037"

T = TypeVar("T")


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


class JetStream:
    """A broker that is asked in short connections; none is held between them."""

    def __init__(self, url: str, name: str, read_cost: ReadCost) -> None:
        self._url, self._name, self._read_cost = url, name, read_cost
        self._down: tuple[float, SourceError] | None = None

    def stream(self, stream: str) -> dict[str, Any]:
        """STREAM.INFO: config, state{messages, first_seq, last_seq, last_ts}, ts."""
        return self._api(f"STREAM.INFO.{stream}")

    def consumer(self, stream: str, durable: str) -> dict[str, Any]:
        """CONSUMER.INFO: config, delivered, ack_floor, num_pending, num_ack_pending, push_bound, ts.

        `push_bound` is absent when nobody is bound; treat it as False.
        """
        return self._api(f"CONSUMER.INFO.{stream}.{durable}")

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
        subject = f"$JS.API.STREAM.MSG.GET.{stream}"

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

    def _api(self, call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        subject = f"$JS.API.{call}"

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

            async def on_error(e: Exception) -> None:
                errors.append(e)

            client = Client()
            try:
                await asyncio.wait_for(
                    client.connect(
                        self._url,
                        name=self._name,
                        connect_timeout=CONNECT_TIMEOUT_S,
                        allow_reconnect=False,
                        # The first connection is "reconnected" too, 60 times 2 s apart if nothing is said.
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        error_cb=on_error,
                    ),
                    CONNECT_TIMEOUT_S + 1,
                )
            except Exception as e:
                problem.append(_connect_error([*errors, e]))
                self._down = (time.monotonic(), problem[0])
                return
            try:
                answer.append(await asyncio.wait_for(ask(client), REQUEST_TIMEOUT_S + 1))
            except nats.errors.NoRespondersError:
                problem.append(SourceError("jetstream", Reason.ERROR, "JetStream is not enabled", "no_jetstream"))
            except (TimeoutError, nats.errors.TimeoutError):
                if any("permissions violation" in str(e).lower() for e in errors):
                    # The broker says so on the side and leaves the request without an answer.
                    problem.append(
                        SourceError("jetstream", Reason.DENIED, "this user may not ask that", "permission_denied")
                    )
                else:
                    problem.append(SourceError("jetstream", Reason.TIMEOUT, "the broker did not answer", "hung"))
                    self._down = (time.monotonic(), problem[0])
            except nats.errors.Error as e:
                problem.append(SourceError("jetstream", Reason.ERROR, str(e)))
            finally:
                with suppress(TimeoutError, nats.errors.Error):  # a hung broker cannot say goodbye
                    await asyncio.wait_for(client.close(), 1)

        thread = threading.Thread(target=lambda: asyncio.run(session()), daemon=True)
        thread.start()
        thread.join(CONNECT_TIMEOUT_S + REQUEST_TIMEOUT_S + 4)
        if answer:
            return answer[0]
        raise (problem[0] if problem else SourceError("jetstream", Reason.TIMEOUT, "the broker did not answer", "hung"))


def _message(reply: dict[str, Any]) -> Message:
    return Message(
        reply["seq"],
        datetime.fromisoformat(_microseconds(reply["time"])),
        reply["subject"],
        headers_of(base64.b64decode(reply.get("hdrs", "")).decode(errors="replace")),
        base64.b64decode(reply.get("data", "")),
    )


def _refusal(error: dict[str, Any]) -> SourceError:
    missing = {10059: "stream_not_found", 10014: "consumer_not_found"}
    code: Any = error.get("err_code", error.get("code"))
    reason = Reason.DENIED if error.get("code") == 403 else Reason.ERROR
    return SourceError("jetstream", reason, error["description"], missing.get(code, str(code)))


def _microseconds(timestamp: str) -> str:
    """RFC 3339 with nanoseconds, as NATS writes it, cut to what datetime holds."""
    head, dot, tail = timestamp.rstrip("Z").partition(".")
    return f"{head}{dot}{tail[:6]}+00:00"


def _connect_error(errors: list[Exception]) -> SourceError:
    words = " ".join(str(e) for e in errors).lower()
    if "authorization" in words or "authentication" in words:
        return SourceError("jetstream", Reason.DENIED, "the broker refuses these credentials", "wrong_credentials")
    if any(isinstance(e, ConnectionRefusedError) for e in errors) or "refused" in words or "111" in words:
        return SourceError("jetstream", Reason.UNREACHABLE, "connection refused", "no_connection")
    if any(isinstance(e, TimeoutError | nats.errors.TimeoutError) for e in errors):
        return SourceError("jetstream", Reason.TIMEOUT, "no answer to the connection", "no_connection")
    detail = next((str(e) for e in errors if str(e)), type(errors[-1]).__name__)
    return SourceError("jetstream", Reason.UNREACHABLE, detail, "no_connection")
