"""Commands as processes of their own, forked where torch and librosa are loaded: a start costs 0.1 s, not 5.

``python -m tests.forked HALT -m module …`` runs a module in a process that halts; see :class:`Halt`.
"""

import atexit
import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "tests.forked infer.export.export infer.predict.tables infer.report.data pipeline.build pipeline.pool train.launch"
)
PRELOADED += " h5py joblib librosa numba soundfile sklearn.model_selection soxr"
GUARD_SECONDS = 300  # against a hang; no test counts on anything to be quicker
_PORTS = itertools.count(20_000 + os.getpid() % 100 * 100)  # below those that systems give away by themselves


@functools.cache
def server() -> Any:
    """The multiprocessing context of the server; started in the checkout, it imports what is there."""
    import pytest

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")  # read where it is imported
        multiprocessing.forkserver.ensure_running()
    return context


def _body(call: Callable[[], object], environment: dict[str, str], folder: str, output: DupFd, errors: DupFd) -> None:
    """What the forked process does: take on the streams, the environment and the folder, then call."""
    import torch

    for number, handle in enumerate((output, errors), start=1):
        os.dup2(handle.detach(), number)
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 - for the process's lifetime
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.current_process()._config["daemon"] = False  # it may have workers of its own
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        call()
    except KeyboardInterrupt:  # as an interpreter ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:  # multiprocessing leaves both out
        threading._shutdown()
        atexit._run_exitfuncs()


class Halt:
    """Where a process halts (SIGSTOP), once: before it gives a file its final name, or opens it.

    A test that interrupts a command waits for this instead of for the right moment.

    Parameters
    ----------
    name : end of the file's name
    times : of the writes of it, before which to halt
    note : a file that must not exist; it is made by the process that halts and holds its id
    """

    def __init__(self, name: str, times: int, note: Path | str) -> None:
        self.name, self.times, self.note = name, int(times), Path(note)

    def __str__(self) -> str:
        return f"{self.name}:{self.times}:{self.note}"

    def arm(self) -> None:
        """Watch what this process renames and opens for writing."""
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple) -> None:
        path = arguments[1] if event == "os.rename" else arguments[0] if event == "open" else None
        if path is None or not str(path).endswith(self.name) or (event == "open" and "r" in (arguments[1] or "r")):
            return
        self.times -= 1
        if self.times == 0 and not self.note.exists():
            self.note.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)

    def reached(self) -> int:
        """The id of the process that has halted, or 0."""
        if not self.note.exists() or not (pid := self.note.read_text()):
            return 0
        with contextlib.suppress(OSError):
            return int(pid) if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T" else 0
        return 0


def _main(module: str, argv: list[str], halt: Halt | None = None) -> None:
    """``python -m module argv``."""
    sys.argv = [module, *argv]
    if halt:
        halt.arm()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Forked:
    """A process of the server, with what tests use of ``subprocess.Popen``.

    Parameters
    ----------
    call : picklable; what the process does
    cwd, env : working directory and whole environment
    stdout, stderr : file descriptors; by default a pipe that :attr:`stdout` reads as text, and the same pipe
    """

    def __init__(
        self,
        call: Callable[[], object],
        *,
        cwd: Path | str = ROOT,
        env: dict[str, str] | None = None,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.STDOUT,
    ) -> None:
        piped, reader = stdout == subprocess.PIPE, -1
        if piped:
            reader, stdout = os.pipe()
        handles = DupFd(stdout), DupFd(stdout if stderr == subprocess.STDOUT else stderr)
        arguments = (call, dict(os.environ if env is None else env), str(cwd), *handles)
        self._process = server().Process(target=_body, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid
        self.stdout = None
        if piped:
            os.close(stdout)
            self.stdout = open(reader, encoding="utf-8", errors="replace")  # noqa: SIM115 - read by the tests

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float = GUARD_SECONDS) -> int:
        """Wait for the end; returns the exit status."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still at work after {timeout} s"
        return self._process.exitcode

    def communicate(self, timeout: float = GUARD_SECONDS) -> tuple[str, None]:
        """Read the output to its end and wait; a process that takes longer is killed, and has status -9."""
        guard = threading.Timer(timeout, self.kill)
        guard.start()
        output = self.stdout.read()
        guard.cancel()
        self.wait()
        return output, None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended; one that has halted goes on."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)
                os.kill(self.pid, signal.SIGCONT)

    def wait_for(self, halt: Halt) -> None:
        """Wait until this process, or one below it, has halted; it must not end before."""
        deadline = time.monotonic() + GUARD_SECONDS
        while not halt.reached():
            if self.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"not at {halt} after {GUARD_SECONDS} s, or at the end:\n{self._printed()}")
            time.sleep(0.005)

    def _printed(self) -> str:
        """What lies in the pipe now."""
        if self.stdout is None:
            return ""
        os.set_blocking(self.stdout.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self.stdout.fileno(), 1 << 16).decode(errors="replace")
        return ""

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(module: str, *flags: object, halt: Halt | None = None, **settings: Any) -> Forked:
    """Start ``python -m module``; `settings` are those of :class:`Forked`."""
    return Forked(functools.partial(_main, module, list(map(str, flags)), halt), **settings)


def command(module: str, folder: Path | str, *flags: object, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run ``python -m module`` in `folder`; returns exit status and output."""
    process = start(module, *flags, cwd=folder, env=env)
    output, _ = process.communicate()
    return process.returncode, output


def world(count: int) -> list[dict[str, str]]:
    """The environment of each of `count` ranks, as torchrun would set it."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def ranks(count: int, module: str, folder: Path | str, *flags: object) -> tuple[list[int], str]:
    """Run ``torchrun --nproc_per_node count -m module`` without torchrun; returns the exit statuses and the output."""
    processes = [start(module, *flags, cwd=folder, env=environment) for environment in world(count)]
    output = "".join(process.communicate()[0] for process in processes)
    return [process.returncode for process in processes], output


def free_port() -> int:
    """A TCP port that nobody listens on, and that this process has not given away before."""
    for port in _PORTS:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


if __name__ == "__main__":
    _main(sys.argv[3], sys.argv[4:], Halt(*sys.argv[1].split(":")))
