"""Post an incident's messages to Slack as one thread, and read who reacted to the first one, through its Web API.

apprise can post there as well, but does not return a message's id, which the replies need.
"""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from typing import Any

from runbook_lib.masking import Masker
from runbook_lib.model.finding import Reason
from runbook_lib.receiver.journal import Notice
from runbook_lib.sources import ReadCost, SourceError
from runbook_lib.sources.http import HttpServer

#: Seconds in which Slack must answer a message.
POST_S = 25.0
_CHANNEL = re.compile(r"[+#]?([\w-]+)")


def makes_threads(plugin: Any) -> bool:
    """Return whether an apprise plug-in is a bot of Slack that posts to one channel, by its name or id."""
    is_bot = plugin.service_name == "Slack" and plugin.mode == "bot"
    return is_bot and len(plugin.channels) == 1 and bool(_CHANNEL.fullmatch(plugin.channels[0]))


def post(plugin: Any, message: Notice) -> tuple[str, str]:
    """Post a message; return "" or why it was not accepted, and the id of the message that its thread starts with.

    A reply is shown in the channel too. A thread that does not exist any more is replaced by a new one.
    """
    name = plugin.channels[0]
    lines, _, link = message.body.rpartition("\n")
    lines = lines.strip().replace("```", "'''")
    text = (
        f"*{escape(message.title, quote=False)}*\n```\n{escape(lines, quote=False)}\n```\n{escape(link, quote=False)}"
    )
    content = {"channel": name[1:] if name[0] == "+" else f"#{name.lstrip('#')}", "text": text, "unfurl_links": False}
    if message.thread:
        problem, _ = _post_message(plugin, content | {"thread_ts": message.thread, "reply_broadcast": True})
        if not re.search("thread|message", problem):
            return problem, message.thread
    return _post_message(plugin, content)


def acknowledgements(plugin: Any, thread: str) -> list[str]:
    """Return the Slack ids of those who reacted to the first message of a thread; [] if the channel has no id (+ID).

    Raises SourceError, also without the right `reactions:read`.
    """
    name = plugin.channels[0]
    if name[0] != "+":
        return []
    params = {"channel": name[1:], "timestamp": thread, "full": "true"}
    answer = _open_api(plugin).get_json("reactions.get", params)
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise SourceError("slack", Reason.ERROR, f"answered {_error_of(answer) or 'without a result'}")
    found = (answer.get("message") or {}).get("reactions", [])
    return list(dict.fromkeys(str(user) for reaction in found for user in reaction.get("users", ())))


def _open_api(plugin: Any) -> HttpServer:
    """Return the API with the bot's token; it is no cost of a run, since the target is not queried."""
    headers = {"Authorization": f"Bearer {plugin.access_token}"}
    return HttpServer("slack", plugin.api_url.format(""), ReadCost(Masker()), headers)


def _error_of(answer: Any) -> str:
    """Return the word by which Slack says what is wrong; "" for none."""
    word = re.match(r"\w{1,60}", str(answer.get("error", ""))) if isinstance(answer, dict) else None
    return word[0] if word else ""


def _post_message(plugin: Any, content: dict[str, Any]) -> tuple[str, str]:
    try:
        # A message whose answer is not waited for is posted again.
        api = replace(_open_api(plugin), timeout_s=(2.0, POST_S), whole_s=POST_S)
        status, answer = api.post_json("chat.postMessage", content)
    except SourceError as e:
        return f"Slack: {e.detail}", ""
    except Exception as e:  # its text may contain the token
        return f"Slack: {type(e).__name__}", ""
    if isinstance(answer, dict) and answer.get("ok") and answer.get("ts"):
        return "", str(answer["ts"])
    return f"Slack answered {_error_of(answer) or f'HTTP {status}'}", ""
