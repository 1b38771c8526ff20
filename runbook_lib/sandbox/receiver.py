"""The destination of the notifications, the sandbox's own addition: a receiver outage is then a real one.

The real sender only writes a log line. Here it posts to this server, which answers 204 and logs the id, so
that a notification that was sent twice can be seen.
"""

from __future__ import annotations

import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .pod import set_up_logging

log = logging.getLogger(__name__)


class Receiver(BaseHTTPRequestHandler):
    """Accepts every notification."""

    def do_POST(self) -> None:
        """Take one notification."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        log.info("received id=%s eventId=%s", body["notification_id"], body["event_id"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `do_POST` logs what counts."""


def main(port: int) -> None:
    """Serve until stopped."""
    set_up_logging("receiver")
    ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
