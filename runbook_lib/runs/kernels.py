"""Kernels that are forked from a process that has imported what notebooks need, instead of started from nothing.

A runner forks one at its very beginning, while it has one thread, no event loop and no connection; the child waits for
its connection file and then becomes an IPython kernel. If no kernel was forked, one starts as usual.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty
from typing import Any, NoReturn

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

#: The name under which jupyter_client finds `ForkedKernel` (pyproject.toml).
PROVISIONER = "runbook-forked"
#: Seconds for which the end of a killed kernel is waited for.
KILLED_S = 1.0


class _Child:
    """A forked process with the face of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, order: int) -> None:
        self.pid, self._order = pid, order
        self.returncode: int | None = None
        self.taken = False

    def start(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Tell the waiting child what to become."""
        self.taken = True
        with os.fdopen(self._order, "w", encoding="utf-8") as pipe:
            json.dump({"command": command, "environment": dict(environment)}, pipe)

    def give_up(self) -> None:
        """End a child that no notebook has taken."""
        self.taken = True
        with suppress(OSError):
            os.close(self._order)
        self.wait()

    def poll(self) -> int | None:
        """Return its exit code; None while it lives."""
        if self.returncode is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid == 0:
                    return None
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None and (until is None or time.monotonic() < until):
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


_forked: _Child | None = None


def fork_one() -> None:
    """Fork the kernel of the next notebook. Call it before anything that starts a thread or a connection."""
    global _forked
    from ipykernel.kernelapp import IPKernelApp  # noqa: F401 - imported before the fork, for the child

    order, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _run_kernel(order)
    os.close(order)
    _forked = _Child(pid, told)


def end_unused_kernel() -> None:
    """End a forked kernel that no notebook has taken."""
    if _forked is not None and not _forked.taken:
        _forked.give_up()


def interrupt() -> None:
    """Interrupt the cell that the forked kernel is at."""
    if _forked is not None:
        _forked.send_signal(signal.SIGINT)


def kill_kernel() -> None:
    """End the forked kernel, and what it has started, at once."""
    if _forked is not None and _forked.returncode is None:
        for kill in (os.killpg, os.kill):  # it may not be the first of its own group yet
            with suppress(ProcessLookupError):
                kill(_forked.pid, signal.SIGKILL)


def _run_kernel(order: int) -> NoReturn:
    try:
        os.setpgid(0, 0)  # and no session of its own, which would not be as polite
        parent = os.getppid()
        # Signals are for the runner until here; from here on the kernel decides when it can be interrupted.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        # What the runner had open is the runner's; a pipe that stays open here would not end with it.
        os.closerange(3, order)
        os.closerange(order + 1, 4096)
        with os.fdopen(order, encoding="utf-8") as pipe:
            text = pipe.read()
        if not text:
            os._exit(0)  # no notebook needs a kernel
        said = json.loads(text)
        os.environ.update(said["environment"])
        random.seed()  # or all of them would wait in step
        asyncio.set_event_loop(asyncio.new_event_loop())
        arguments = said["command"][said["command"].index("-f") :]
        arguments.append(f"--IPKernelApp.parent_handle={parent}")  # it ends when this one is gone
        # Its log goes to the terminal: the interrupt at the end of every kernel is not worth a line.
        arguments.append("--IPKernelApp.log_level=CRITICAL")
        sys.argv = ["ipykernel_launcher", *arguments]
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(argv=arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


class ForkedKernel(LocalProvisioner):
    """Gives a notebook the kernel that was forked for it; without one, a kernel starts as usual."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Tell the forked child its connection file."""
        if _forked is None or _forked.taken or "-f" not in cmd:
            return await super().launch_kernel(cmd, **kwargs)
        _forked.start(cmd, kwargs.get("env") or {})
        self.process = _forked  # type: ignore[assignment]
        self.pid = self.pgid = _forked.pid
        return self.connection_info

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel and wait for its end, which takes milliseconds; jupyter_client looks every 100 ms."""
        await super().kill(restart)
        if isinstance(self.process, _Child):
            self.process.wait(KILLED_S)


class QuickKernelClient(AsyncKernelClient):
    """A client that waits for its kernel only until it answers.

    jupyter_client then listens until the kernel says nothing for 0.2 s. The messages of a start belong to no cell, and
    are ignored by whoever executes one.
    """

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        """Wait for the answer on the shell, and for a sign of the channel of outputs. Raises RuntimeError."""
        until = time.monotonic() + (timeout or float("inf"))
        while time.monotonic() < until:
            self.kernel_info()
            with suppress(Empty):
                said = await self.get_shell_msg(timeout=1)
                if said["msg_type"] == "kernel_info_reply":
                    await self.get_iopub_msg(timeout=0.2)  # else it is not connected yet, and outputs would be lost
                    self._handle_kernel_info_reply(said)
                    return
            if not await self.is_alive():
                raise RuntimeError("the kernel died before it answered")
        raise RuntimeError(f"the kernel did not answer within {timeout:g} s")
