"""The destination of the notifications, the sandbox's own addition: a receiver outage is then a real one.

The real sender only writes a log line. Here it posts to this server, which answers 204 and logs the id, so
that a notification that was sent twice can be seen.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from .pod import server, set_up_logging
from .settings import AROUND_FILE, read_env, seconds
from .state import load

log = logging.getLogger(__name__)


def main(directory: Path) -> None:
    """Accept every notification until stopped; by its environment after RECEIVER_DELAY, and some users' never.

    Of RECEIVER_REFUSES users one is refused, always the same ones; 0 is none. More than RECEIVER_LIMIT a second are
    refused, too. With a RECEIVER_ERROR_BODY none is delivered, and the status does not show it. With a RECEIVER_STATUS
    each gets that answer and is delivered if it is 2xx; from 500 on every other request gets it too. An answer is at
    least RECEIVER_LENGTH long.
    """
    set_up_logging("receiver")
    env = read_env(directory / AROUND_FILE)
    delay = seconds(env.get("RECEIVER_DELAY", "0s"))
    refuses, limit = int(env.get("RECEIVER_REFUSES", "0")), int(env.get("RECEIVER_LIMIT", "0"))
    padding = " " * int(env.get("RECEIVER_LENGTH", "0"))
    error, status = env.get("RECEIVER_ERROR_BODY", ""), int(env.get("RECEIVER_STATUS", "0"))
    asked: Counter[int] = Counter()  # by the second

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, str]:
        time.sleep(delay)
        if request.command != "POST":
            return status if status >= 500 else 204, "text/plain", ""
        if status >= 300:
            return status, "text/plain", padding
        notification = json.loads(body)
        if refuses and zlib.crc32(notification["user_id"].encode()) % refuses == 0:
            return 503, "text/plain", ""
        asked[second := int(time.time())] += 1
        if limit and asked[second] > limit:
            return 429, "text/plain", ""
        if error:
            return 200, "application/json", json.dumps({"error": error})
        log.info("received id=%s eventId=%s", notification["notification_id"], notification["event_id"])
        return status or (200 if padding else 204), "text/plain", padding

    server(load(directory).addresses.receiver_port, answer).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
