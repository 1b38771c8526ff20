"""Run an incident runbook as notebooks; see README.md. A notebook needs `open_section` alone."""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, which the command need not wait for
if TYPE_CHECKING:
    from typing import Any

    from runbook_lib.notebook.session import Session, open_section

__version__ = "0.6.0"
__all__ = ["Session", "open_section"]


def __getattr__(name: str) -> Any:
    # The command and the sandbox's processes need none of the analysis stack: it is imported when it is used.
    if name in __all__:
        from runbook_lib.notebook import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
