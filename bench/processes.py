"""Processes: started, watched by the operating system's own counts, and surely ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import signals

ROOT = Path(__file__).resolve().parent.parent

#: seconds; a program on valgrind takes 5 to start, on a machine with other work several times that
START_TIMEOUT = 60.0

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TCP_LISTEN = "0A"
_libc = ctypes.CDLL(None)


class Failed(Exception):
    """A contender could not be measured; the text says why, in the results too."""


# --- starting and ending --------------------------------------------------------------------


def adopt_orphans() -> None:
    """Become the parent of whatever a contender leaves behind, so that it is found and ended."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def raise_descriptor_limit() -> int:
    """Up to what the system allows; what we start inherits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def start(
    argv: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> subprocess.Popen[bytes]:
    """Start a program in ``folder``; it dies with us, however we die."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        # dante keeps files there, and removes them only if it is ended gently
        "TMPDIR": str(folder),
    }
    env |= environment or {}
    with signals.held() as blocked:

        def prepare() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

        return subprocess.Popen(
            list(argv), cwd=folder, env=env, preexec_fn=prepare, start_new_session=True, **kwargs
        )


@contextlib.contextmanager
def ended_after(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Kill them and all their children at the end, on Ctrl-C too."""
    try:
        yield
    finally:
        with signals.held():
            _end(processes)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for pid in family([process.pid for process in processes]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    _reap_adopted()


def _reap_adopted() -> None:
    """Take the children of killed contenders, which we have adopted, out of the process table."""
    for pid in _children().get(os.getpid(), []):
        if _stat(pid)[0] == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


# --- ports ----------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Unused ports, from below the range that the kernel takes for outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(20_000, 32_000)
        with socket.socket() as sock:
            try:
                sock.bind(("0.0.0.0", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when a program listens on ``port``.  Raises Failed.

    Looks into the kernel's table instead of connecting: a connection that says nothing is
    work for a proxy, and may be taken for a prober.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        signals.check()
        if process.poll() is not None:
            raise Failed(f"ended with status {process.returncode} at start: {_last_words(log)}")
        if _listening(port):
            return
        time.sleep(0.01)
    raise Failed(f"did not listen on port {port} within {START_TIMEOUT:g} s: {_last_words(log)}")


def _listening(port: int) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table) as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == _TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
    return False


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][-200:] if lines else "it said nothing"


# --- what they use --------------------------------------------------------------------------


def family(pids: Sequence[int]) -> list[int]:
    """The processes and all that descend from them, of those that live."""
    children = _children()
    found: list[int] = []
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if os.path.exists(f"/proc/{pid}"):
            found.append(pid)
            todo += children.get(pid, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of the processes and all their descendants, the ended ones too."""
    return sum(_cpu_clock(pid) + _cpu_of_ended_children(pid) for pid in family(pids))


def _cpu_clock(pid: int) -> float:
    # clock_getcpuclockid(3), which Python does not have: /proc/PID/stat would do, but counts in
    # hundredths of a second where this counts in nanoseconds
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has just ended
        return 0.0


def _cpu_of_ended_children(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS if len(fields) > 14 else 0.0


def memory_bytes(pids: Sequence[int]) -> int:
    """Memory of the processes and their descendants; what several share counts once (PSS)."""
    return sum(_rollup(pid, "Pss") for pid in family(pids))


def largest_rss_bytes(pids: Sequence[int]) -> int:
    """Resident memory of the largest process."""
    return max((_rollup(pid, "Rss") for pid in family(pids)), default=0)


def _rollup(pid: int, name: str) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            for line in lines:
                key, _, rest = line.partition(":")
                if key == name:
                    return int(rest.split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        pass
    except PermissionError:
        raise Failed("its memory may not be read (it runs as another user)") from None
    return 0


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            found.setdefault(int(fields[1]), []).append(int(entry))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (state, parent, ...)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # the second is the name, which may hold spaces and brackets
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["gone", "0"]
