"""Names of incidents that are the product's own."""

from __future__ import annotations

import re

#: The incident of a run or an action for which none is named, and the word for the newest one.
ADHOC, LATEST = "adhoc", "latest"
#: How the folders beside the incidents begin: a target's baseline, a recording that was opened.
BASELINE, REPLAY = "baseline-", "replay-"
#: The names of Windows' devices, whatever follows a dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def is_reserved(incident: str) -> bool:
    """Return whether no new incident may have this name: it is the product's own, or some stores change it."""
    name = incident.casefold()
    own = name in (ADHOC, LATEST) or name.startswith((BASELINE, REPLAY, ".", "_"))
    return own or name != name.rstrip(". ") or bool(_DEVICE.fullmatch(name))
