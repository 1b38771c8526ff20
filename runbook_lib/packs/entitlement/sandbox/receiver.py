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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .pod import set_up_logging
from .settings import read_env, seconds
from .state import load

log = logging.getLogger(__name__)


class Destination(BaseHTTPRequestHandler):
    """Accepts every notification, after `delay` seconds; of one user in `refuses` none, always the same users."""

    delay = 0.0
    refuses = 0

    def do_POST(self) -> None:
        """Take one notification."""
        time.sleep(self.delay)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuses and zlib.crc32(body["user_id"].encode()) % self.refuses == 0:
            self.send_response(503)
            self.end_headers()
            return
        log.info("received id=%s eventId=%s", body["notification_id"], body["event_id"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `do_POST` logs what counts."""


def main(directory: Path) -> None:
    """Serve until stopped; RECEIVER_DELAY in the pods' environment makes it slow, RECEIVER_REFUSES choosy."""
    set_up_logging("receiver")
    env = read_env(directory / "pods.env")
    Destination.delay = seconds(env.get("RECEIVER_DELAY", "0s"))
    Destination.refuses = int(env.get("RECEIVER_REFUSES", "0"))
    ThreadingHTTPServer(("127.0.0.1", load(directory).addresses.receiver_port), Destination).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
