"""Redis, where a target has it: whether it answers, and as what."""

from __future__ import annotations

from typing import Any

from runbook_lib.model.finding import Reason
from runbook_lib.sources.source import Opening, ReadCost, SourceError


class Redis:
    """INFO, and nothing that touches a key."""

    def __init__(self, url: str, read_cost: ReadCost) -> None:
        self._url, self._read_cost = url, read_cost

    @classmethod
    def declared(cls, opening: Opening) -> Redis | None:
        """Return the target's Redis; None where it declares none."""
        url = opening.target.url("redis_url")
        return cls(url, opening.read_cost) if url else None

    def info(self) -> dict[str, Any]:
        """Ask INFO: redis_version, role, uptime_in_seconds, used_memory, connected_clients. Raises SourceError."""
        import redis  # few targets have one

        with self._read_cost.query("redis", "info", "INFO") as asked:
            client = redis.Redis.from_url(self._url, socket_connect_timeout=2, socket_timeout=2)
            try:
                reply: dict[str, Any] = client.info()
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as e:
                raise SourceError("redis", Reason.DENIED, str(e)) from None
            except redis.TimeoutError:
                raise SourceError("redis", Reason.TIMEOUT, "no answer in time", "hung") from None
            except (redis.RedisError, ValueError, OSError) as e:
                raise SourceError("redis", Reason.UNREACHABLE, str(e), "no_connection") from None
            finally:
                client.close()
            asked.rows = 1
        return reply
