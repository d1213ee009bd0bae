"""Leaves the process that calls it only the files a Python program needs, for good: Landlock, Linux 5.13 and later.

In: folders and files that may be read. Out: whether the kernel holds it. Everything else of the file system can
neither be opened nor listed, and nothing anywhere can be written, made or removed (`/dev/null` aside). What is open
already stays open. From Linux 6.12 on no signal leaves it and what it starts, whatever asks the kernel to send one:
`lockdown` lists the ways, and a list can have gaps. A kernel without Landlock, or one started without it, says so, and
the caller goes on unconfined: see `unit_tests` for why. Constants and structures are those of
include/uapi/linux/landlock.h; the three system calls have the same numbers on every machine.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
# Rights a kernel knows, by the version of its interface: the first 13 bits, then refer, truncate, ioctl on devices.
_NUM_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
_SCOPES_SINCE, _SCOPE_SIGNAL = 6, 1 << 1


def version() -> int:
    """Give the version of the kernel's interface; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))


def python_files() -> list[Path]:
    """Give what a bare interpreter reads after its start: its library, shared objects, the time zones, this folder."""
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/urandom")
    settings = ("/etc/ld.so.cache", "/etc/localtime")
    own = [*sys.path, str(Path(sys.base_prefix, "lib")), os.getcwd()]
    return [Path(name) for name in (*own, *system, *settings) if name]


def confine(readable: Iterable[Path]) -> bool:
    """Take away every file but `readable` and what is below it, and signals to others; False where the kernel cannot.

    Raises:
        OSError: The kernel knows Landlock and refused all the same; nothing may run then.
    """
    known = version()
    if not known:
        return False
    rights = (1 << max(count for since, count in _NUM_RIGHTS if since <= known)) - 1
    # Rights to files and to the network, scopes: a kernel that knows fewer takes a shorter structure.
    scopes = (0, _SCOPE_SIGNAL) if known >= _SCOPES_SINCE else ()
    attributes = struct.pack(f"={1 + len(scopes)}Q", rights, *scopes)
    ruleset = _checked(_call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | (_READ_DIR if path.is_dir() else 0))
        _allow(ruleset, Path(os.devnull), _READ_FILE | _WRITE_FILE)
        _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_call(_RESTRICT_SELF, ctypes.c_int(ruleset), 0))
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: Path, rights: int) -> None:
    """Add a rule; a path that is not there needs none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(_call(_ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    syscall = _libc().syscall
    syscall.restype = ctypes.c_long
    return int(syscall(ctypes.c_long(number), *arguments))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
