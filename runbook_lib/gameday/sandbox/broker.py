"""JetStream as the applications use it: streams, durables, and a client that gives up for good."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig

STREAM = "entitlement-events"
SUBJECT = "entitlement.events"
CONSUMER = "notification-entitlement-consumer"

ADVISORY_STREAM = "notification-advisory-dlq"
ADVISORY_CONSUMER = "notification-advisory-consumer"
ADVISORY_SUBJECT = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STREAM}.{CONSUMER}"

TERMINATED_STREAM = "notification-terminated-advisory-dlq"
TERMINATED_CONSUMER = "notification-terminated-advisory-consumer"
TERMINATED_SUBJECT = f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{STREAM}.{CONSUMER}"

MATCH_STREAM = "matchmaking-events"
MATCH_SUBJECT = "matchmaking.events"
MATCH_CONSUMER = "notification-matchmaking-consumer"

# durable: (stream, the one subject it takes)
CONSUMERS = {
    CONSUMER: (STREAM, SUBJECT),
    MATCH_CONSUMER: (MATCH_STREAM, MATCH_SUBJECT),
    ADVISORY_CONSUMER: (ADVISORY_STREAM, ADVISORY_SUBJECT),
    TERMINATED_CONSUMER: (TERMINATED_STREAM, TERMINATED_SUBJECT),
}

RECONNECT_TRIES = 60
RECONNECT_WAIT = 2.0
#: A client that tries once: without reconnects it would still try its first connection sixty times.
_ONCE: dict[str, Any] = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0}

log = logging.getLogger(__name__)

Handler = Callable[[Msg], Awaitable[None]]
T = TypeVar("T")


class PublishError(Exception):
    """A publish that JetStream did not confirm; the text is what ends up in `last_error`."""


async def ensure_stream(js: JetStreamContext, name: str, duplicate_window: float | None = None) -> None:
    """Update the stream, and add it when there is none."""
    config = StreamConfig(name=name, subjects=[dict(CONSUMERS.values())[name]])
    if duplicate_window is not None:
        config.duplicate_window = duplicate_window
    try:
        await js.update_stream(config)
    except nats.js.errors.NotFoundError:
        await js.add_stream(config)


async def ensure_streams(js: JetStreamContext, duplicate_window: float = 120.0) -> None:
    """Ensure all four streams; the two that hold advisories leave the duplicate window to the server."""
    for name in (STREAM, MATCH_STREAM):
        await ensure_stream(js, name, duplicate_window)
    for name in (ADVISORY_STREAM, TERMINATED_STREAM):
        await ensure_stream(js, name)


async def ensure_consumer(
    js: JetStreamContext, durable: str, ack_wait: float = 10.0, max_deliver: int = 10
) -> ConsumerConfig:
    """Create the durable push consumer without a deliver group; its random inbox is fixed at creation."""
    stream, subject = CONSUMERS[durable]
    config = ConsumerConfig(
        durable_name=durable,
        deliver_subject=f"_INBOX.{secrets.token_hex(11)}",
        filter_subject=subject,
        ack_wait=ack_wait,
        max_deliver=max_deliver,
    )
    try:
        existing = (await js.consumer_info(stream, durable)).config
    except nats.js.errors.NotFoundError:
        await js.add_consumer(stream, config)
        return config
    if (existing.ack_wait, existing.max_deliver) != (ack_wait, max_deliver):
        raise RuntimeError("[SUB-90016] Existing consumer cannot be modified.")
    return config.evolve(deliver_subject=existing.deliver_subject)


def visit(url: str, scene: Callable[[JetStreamContext], Awaitable[T]], connect_timeout: int = 2) -> T:
    """Run a function on a short connection of its own."""

    async def play() -> T:
        client = await nats.connect(url, **_ONCE, connect_timeout=connect_timeout, error_cb=silent)
        try:
            return await scene(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(play())


async def silent(_: Exception) -> None:
    """Print nothing: the client would print what it also raises."""


class Broker:
    """One NATS connection with the life of the applications' client.

    It reconnects 60 times, 2 s apart; after the last try it is closed for good and only a restart of the
    process helps. (The Python client's own reconnect stops at the first refused login, hence this one.)
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self.closed = False
        self._bound: dict[str, tuple[ConsumerConfig, Handler]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> JetStreamContext:
        """Connect once; a failure is the caller's, as at the start of an application."""
        client = await nats.connect(
            self._url,
            **_ONCE,
            connect_timeout=max(1, round(self._timeout)),
            closed_cb=self._on_closed,
            error_cb=_log_client_error,
        )
        js = client.jetstream(timeout=self._timeout)
        try:
            for durable, (config, handler) in self._bound.items():
                await self._bind_subscription(js, durable, config, handler)
        except BaseException:
            await client.close()
            raise
        self._client = client
        self._connected.set()
        return js

    async def bind(self, durable: str, handler: Handler, ack_wait: float, max_deliver: int) -> None:
        """Bind as the one subscriber of a durable; the broker refuses a second one."""
        js = self._jetstream()
        config = await ensure_consumer(js, durable, ack_wait, max_deliver)
        if (await js.consumer_info(CONSUMERS[durable][0], durable)).push_bound:
            raise RuntimeError("[SUB-90012] Consumer is already bound to a subscription.")
        await self._bind_subscription(js, durable, config, handler)
        self._bound[durable] = (config, handler)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Publish and wait for the broker's receipt; PublishError with the reference client's words."""
        if self.closed:
            raise PublishError("Connection is Closed")
        try:
            await asyncio.wait_for(self._connected.wait(), self._timeout)
            await self._jetstream().publish(subject, body, headers=dict(headers), timeout=self._timeout)
        except nats.js.errors.NoStreamResponseError:
            raise PublishError("Error Publishing: 503 No Responders Available For Request") from None
        except nats.js.errors.APIError as error:
            raise PublishError(f"{error.description} [{error.err_code}]") from None
        except (TimeoutError, nats.errors.Error) as error:
            if self.closed:
                raise PublishError("Connection is Closed") from error
            raise PublishError("Timeout or no response waiting for NATS JetStream server") from error

    async def give_up(self) -> None:
        """Close for good, as after the last reconnect attempt: the process stays alive without a connection."""
        self.closed = True
        log.error("exceptionOccurred: NATS connection closed, no further reconnect")
        if self._client is not None:
            await self._client.close()

    def give_up_on_signal(self) -> None:
        """Let SIGUSR1 do what two minutes without a broker would do."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: self._start_task(self.give_up()))

    def _jetstream(self) -> JetStreamContext:
        if self._client is None:
            raise nats.errors.ConnectionClosedError
        return self._client.jetstream(timeout=self._timeout)

    async def _bind_subscription(
        self, js: JetStreamContext, durable: str, config: ConsumerConfig, handler: Handler
    ) -> None:
        await js.subscribe_bind(CONSUMERS[durable][0], config, durable, cb=handler, manual_ack=True)

    async def _on_closed(self) -> None:
        if self._connected.is_set() and not self.closed:
            self._connected.clear()
            self._start_task(self._try_reconnects())

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _try_reconnects(self) -> None:
        for _ in range(RECONNECT_TRIES):
            await asyncio.sleep(RECONNECT_WAIT)
            if self.closed:
                return
            with contextlib.suppress(Exception):
                await self.open()
                return
        await self.give_up()


async def _log_client_error(error: Exception) -> None:
    if isinstance(error, ConnectionRefusedError):
        log.error("exceptionOccurred, Connection: 1, Exception: java.net.ConnectException: Connection refused")
    else:
        log.warning("errorOccurred, Connection: 1, Error: %s", error or type(error).__name__)
