"""What a job may open, and what a trace of it shows.

In: the events of an audit hook, or the lines of `strace -f -y`. Out: what was reached for although it is not among the
roots: the job's own folder, the program and its interpreter, and whatever a harmless job opens too (libraries, `/proc`
files of its own, the clock).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.watched import MARK

CALLS = "%network,open,openat,openat2,creat,execve,execveat"
ROOT = Path(__file__).parents[2]
_PROGRAM = tuple(os.path.realpath(path) for path in (ROOT, sys.prefix, sys.base_prefix))
_PROCESS = re.compile(r"/(proc|task)/\d+")
_STRING = r'"((?:[^"\\]|\\.)*)"'
_OPEN = re.compile(rf"^\d+ +(?:open|openat|openat2|creat)\((?:AT_FDCWD<([^>]*)>, )?{_STRING}")
_EXEC = re.compile(rf"^\d+ +execve(?:at)?\({_STRING}")
_OPENED = re.compile(r"= \d+<(.*)>$")
_NETWORK = re.compile(r"^\d+ +(\w+)\(.*(AF_INET6?|AF_NETLINK|AF_UNIX|AF_PACKET)")


@dataclass(frozen=True)
class Roots:
    """What a job may open: everything below some folders, and some files."""

    folders: tuple[str, ...]
    files: frozenset[str] = frozenset()

    def hold(self, path: str) -> bool:
        """Whether a path, links in it followed, may be opened."""
        real = _process_free(os.path.realpath(path))
        return real in self.files or any(
            real == f or real.startswith(f"{f}/") for f in self.folders
        )


def roots_of(inside: Path, cache: Path, harmless: Iterable[str] = ()) -> Roots:
    """Give the roots of a job.

    Args:
        inside: Its folder.
        cache: Where kept definitions of tokenizers lie.
        harmless: What a harmless job opened.
    """
    own = (os.path.realpath(inside), os.path.realpath(cache))
    return Roots((*own, *_PROGRAM), frozenset(map(_process_free, harmless)))


def _process_free(path: str) -> str:
    return _PROCESS.sub(r"/\1/N", path)


def events_opened(events: Iterable[list]) -> list[str]:
    """Give the files that an audit hook saw opened."""
    return [details[0] for event, details in events if event == "open" and type(details[0]) is str]


def forbidden_events(events: Iterable[list], inside: Path, roots: Roots) -> list[str]:
    """Give what an audit hook saw that must not be: files outside, sockets, programs, unpickling."""
    found = []
    for event, details in events:
        if event == "open" and type(details[0]) is str:
            if not roots.hold(str(inside / details[0])):
                found.append(f"open {details[0]}")
        elif event == "subprocess.Popen":
            if os.path.realpath(details[0]) != os.path.realpath(sys.executable):
                found.append(f"start {details[0]}")
        elif event not in ("open", "sqlite3.connect", "socket.gethostname", "os.fork_exec"):
            found.append(f"{event} {details}")
    return found


def split_trace(lines: Iterable[str]) -> dict[str, list[str]]:
    """Cut a trace at its marks: the lines of each job."""
    jobs: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _whole(lines):
        mark = re.search(rf'"{MARK}/([^"]*)"', line)
        if mark:
            current = jobs.setdefault(mark[1], [])
        else:
            current.append(line)
    return jobs


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Join calls that another process interrupted."""
    begun: dict[str, str] = {}
    for line in lines:
        process = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[process] = line.removesuffix("<unfinished ...>")
        elif " resumed>" in line:
            yield begun.pop(process, "") + line.split(" resumed>", 1)[1]
        else:
            yield line


def trace_opened(lines: Iterable[str]) -> list[str]:
    """Give the files a trace shows opened, links followed; a failed attempt by the name it used."""
    return [path for line in lines if (path := _opened(line)) is not None]


def _opened(line: str) -> str | None:
    call = _OPEN.match(line)
    if call is None:
        return None
    if done := _OPENED.search(line):
        return done[1]
    name = call[2].encode("latin-1", "replace").decode("unicode_escape")
    return os.path.join(call[1] or "/", name)


def forbidden_calls(lines: Iterable[str], roots: Roots) -> list[str]:
    """Give what a trace shows that must not be: files outside, sockets, other programs."""
    found = []
    for line in lines:
        path = _opened(line)
        program = _EXEC.match(line)
        if path is not None and not roots.hold(path):
            found.append(f"open {path}")
        elif program and os.path.realpath(program[1]) != os.path.realpath(sys.executable):
            found.append(f"start {program[1]}")
        elif _NETWORK.match(line):
            found.append(line)
    return found
