"""The `runbook` command, also as `python -m runbook_lib`."""

from runbook_lib import interrupts


def main() -> None:
    """Run it. From the first moment it can be interrupted: what it imports takes its time."""
    interrupts.exit_on_signal()
    from runbook_lib.cli import main as command

    command.main()


if __name__ == "__main__":
    main()
