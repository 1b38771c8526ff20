"""Post an incident's messages to Slack as one thread, through its Web API.

apprise can post there as well, but does not return a message's id, which the replies need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from runbook_lib.privacy.masking import Masker
from runbook_lib.receiver.work import Notice
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


def _post_message(bot: Bot, content: dict[str, Any]) -> tuple[str, str]:
    api = HttpServer("slack", bot.api, ReadCost(Masker()), {"Authorization": f"Bearer {bot.token}"})
    try:
        # A message whose answer is not waited for is posted again.
        status, answer = replace(api, timeout_s=(2.0, POST_S), whole_s=POST_S).post_json("chat.postMessage", content)
    except SourceError as e:
        return f"Slack: {e.detail}", ""
    except Exception as e:  # its text may contain the token
        return f"Slack: {type(e).__name__}", ""
    answer = answer if isinstance(answer, dict) else {}
    if answer.get("ok") and answer.get("ts"):
        return "", str(answer["ts"])
    word = re.match(r"\w{1,60}", str(answer.get("error", "")))
    return f"Slack answered {word[0] if word else f'HTTP {status}'}", ""
