"""Post an incident's messages to Slack as one thread, and read who reacted to the first one, through its Web API.

apprise can post there as well, but does not return a message's id, which the replies need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from runbook_lib.privacy.masking import Masker
from runbook_lib.receiver.journal import Notice
from runbook_lib.sources.http import HttpServer
from runbook_lib.sources.source import ReadCost, SourceError

#: Seconds in which Slack must answer a message.
POST_S = 25.0
_CHANNEL = re.compile(r"[+#]?([\w-]+)")


@dataclass(frozen=True)
class Bot:
    """A bot of Slack that posts to one channel, by its name or (+ID) its id."""

    api: str
    token: str = field(repr=False)
    channel: str

    @classmethod
    def of(cls, plugin: Any) -> Bot | None:
        """Return the bot of an apprise plug-in; None if it is something else."""
        is_bot = plugin.service_name == "Slack" and plugin.mode == "bot"
        if not (is_bot and len(plugin.channels) == 1 and _CHANNEL.fullmatch(plugin.channels[0])):
            return None
        return cls(plugin.api_url.format(""), plugin.access_token, plugin.channels[0])

    @property
    def server(self) -> HttpServer:
        """Return the API with the bot's token; it is no cost of a run, since the target is not queried."""
        return HttpServer("slack", self.api, ReadCost(Masker()), {"Authorization": f"Bearer {self.token}"})


def post(bot: Bot, message: Notice) -> tuple[str, str]:
    """Post a message; return "" or why it was not accepted, and the id of the message that its thread starts with.

    A reply is shown in the channel too. A thread that does not exist any more is replaced by a new one.
    """
    name = bot.channel
    lines, _, link = message.body.rpartition("\n")
    lines = lines.strip().replace("```", "'''")
    text = (
        f"*{escape(message.title, quote=False)}*\n```\n{escape(lines, quote=False)}\n```\n{escape(link, quote=False)}"
    )
    content = {"channel": name[1:] if name[0] == "+" else f"#{name.lstrip('#')}", "text": text, "unfurl_links": False}
    if message.thread:
        problem, _ = _post_message(bot, content | {"thread_ts": message.thread, "reply_broadcast": True})
        if not re.search("thread|message", problem):
            return problem, message.thread
    return _post_message(bot, content)


def acknowledgements(bot: Bot, threads: Sequence[str]) -> dict[str, tuple[list[str], str]]:
    """Return by thread the Slack ids of those who reacted to its first message, and "" or why they cannot be read.

    The channel must have an id, and the bot the right `reactions:read`.
    """
    return {thread: _read_reactions(bot, thread) for thread in threads}


def _read_reactions(bot: Bot, thread: str) -> tuple[list[str], str]:
    params = {"channel": bot.channel[1:], "timestamp": thread, "full": "true"}
    try:
        answer = bot.server.get_json("reactions.get", params)
    except SourceError as e:
        return [], e.detail
    if not isinstance(answer, dict) or not answer.get("ok"):
        return [], f"answered {_error_of(answer) or 'without a result'}"
    found = (answer.get("message") or {}).get("reactions", [])
    return list(dict.fromkeys(str(user) for reaction in found for user in reaction.get("users", ()))), ""


def _error_of(answer: Any) -> str:
    """Return the word by which Slack says what is wrong; "" for none."""
    word = re.match(r"\w{1,60}", str(answer.get("error", ""))) if isinstance(answer, dict) else None
    return word[0] if word else ""


def _post_message(bot: Bot, content: dict[str, Any]) -> tuple[str, str]:
    try:
        # A message whose answer is not waited for is posted again.
        api = replace(bot.server, timeout_s=(2.0, POST_S), whole_s=POST_S)
        status, answer = api.post_json("chat.postMessage", content)
    except SourceError as e:
        return f"Slack: {e.detail}", ""
    except Exception as e:  # its text may contain the token
        return f"Slack: {type(e).__name__}", ""
    if isinstance(answer, dict) and answer.get("ok") and answer.get("ts"):
        return "", str(answer["ts"])
    return f"Slack answered {_error_of(answer) or f'HTTP {status}'}", ""
