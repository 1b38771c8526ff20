"""The `runbook` command, also as `python -m runbook_lib`."""

import atexit
import gc

from runbook_lib.cli import interrupts


def main() -> None:
    """Run it. From the first moment it can be interrupted: what it imports takes its time."""
    interrupts.exit_on_signal()
    # Imports make many objects and little garbage: looking for it at the default pace takes a fifth of their time.
    gc.set_threshold(400_000)
    atexit.register(gc.freeze)  # looking for garbage at the end would take a third of a second
    from runbook_lib.cli import main as command

    command.main()


if __name__ == "__main__":
    main()
