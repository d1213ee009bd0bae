"""Takes rights away from the process that calls it, for good.

In: limits. Out: the names of the guards that hold. On Linux (x86-64, aarch64) two guards of the kernel apply: new user,
network and IPC namespaces, where the system allows them, and a seccomp filter that refuses, with EPERM, what a pure
computation never needs: sockets (but for connected pairs, by which asyncio wakes itself), new processes, signals to
anyone, other processes' memory, and every way to create, change or remove a file. Signals are also what the kernel
sends for a file to whoever was named its owner, by `fcntl` or `ioctl`, so those two are refused by what they are asked
to do. It lists what is refused, not what is allowed: an allow-list would have to follow every version of Python and
libc. Which files can be read is `landlock`'s business. Elsewhere (macOS) an audit hook of Python refuses the same,
which stops honest code from doing harm by accident and is not proof against native code.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from typing import NamedTuple

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What has the kernel signal the owner of a file, and so anyone whom `fcntl` or `ioctl` name its owner. Leases and
# notices about folders signal too. Numbers from include/uapi/asm-generic/fcntl.h, sockios.h and ioctls.h.
_SIGNALLING_FCNTL = (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
_SIGNALLING_IOCTL = (0x8901, 0x8902, 0x5452)  # FIOSETOWN, SIOCSPGRP, FIOASYNC
_F_SETFL, _O_ASYNC = 4, 0x2000
# A pair of any type but SOCK_STREAM (1) can still send to a third socket that it finds by name.
_AF_UNIX, _NO_STREAM = 1, 0xE

# Instructions of classic BPF, and offsets into `struct seccomp_data` (include/uapi/linux/seccomp.h).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_X32_BIT = 0x40000000


class _Machine(NamedTuple):
    """The numbers of a machine's system calls, and of its architecture for audits.

    Args:
        refused: Whatever their arguments.
        opening: Call that opens a file -> the argument with its flags.
    """

    architecture: int
    refused: tuple[int, ...]
    opening: dict[int, int]
    clone: int
    prlimit: int
    fcntl: int
    ioctl: int
    socketpair: int


# Numbers from arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; from 424 on they agree.
_SINCE_424 = (
    *(424, 425, 428, 429, 430, 431, 432, 433, 434),
    *(437, 438, 440, 442, 447, 452, 463, 466, 469),
)
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        (
            *(41, 57, 58, 59, 322),  # socket, fork, vfork, execve, execveat
            *(42, 43, 288, 49, 50),  # connect, accept, accept4, bind, listen
            *(62, 200, 234, 129, 297),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
            *(101, 310, 311, 109, 112),  # ptrace, process_vm_*, setpgid, setsid
            *(272, 308, 165, 166, 155, 161),  # unshare, setns, mount, umount2, pivot_root, chroot
            *(321, 298, 323, 248, 249, 250),  # bpf, perf_event_open, userfaultfd, keys
            *(246, 175, 313, 176, 169, 167),  # kexec_load, modules, reboot, swapon
            *(312, 256, 279),  # kcmp, migrate_pages, move_pages
            *(29, 64, 68, 240, 319),  # shmget, semget, msgget, mq_open, memfd_create
            # An identifier, which can be guessed, is all that these need.
            *(30, 31, 65, 66, 220),  # shmat, shmctl, semop, semctl, semtimedop
            *(69, 70, 71, 241),  # msgsnd, msgrcv, msgctl, mq_unlink
            *(141, 142, 144, 203, 251, 314),  # priorities and schedulers
            *(85, 76, 77, 82, 264, 316),  # creat, truncate, ftruncate, rename*
            *(83, 258, 84, 86, 265, 87, 263),  # mkdir*, rmdir, link*, unlink*
            *(88, 266, 133, 259, 304),  # symlink*, mknod*, open_by_handle_at
            *(90, 91, 268, 92, 93, 94, 260),  # chmod*, chown*
            *(132, 235, 280, 261),  # utime*
            *(188, 189, 190, 197, 198, 199),  # setxattr*, removexattr*
            *_SINCE_424,
        ),
        opening={2: 1, 257: 2},  # open, openat
        clone=56,
        prlimit=302,
        fcntl=72,
        ioctl=16,
        socketpair=53,
    ),
    "aarch64": _Machine(
        0xC00000B7,
        (
            *(198, 221, 281),
            *(203, 202, 242, 200, 201),
            *(129, 130, 131, 138, 240),
            *(117, 270, 271, 154, 157),
            *(97, 268, 40, 39, 41, 51),
            *(280, 241, 282, 217, 218, 219),
            *(104, 105, 273, 106, 142, 224),
            *(272, 238, 239),
            *(194, 190, 186, 180, 279),
            *(196, 195, 193, 191, 192),
            *(189, 188, 187, 181),
            *(140, 118, 119, 122, 30, 274),
            *(45, 46, 38, 276),
            *(34, 37, 35),
            *(36, 33, 265),
            *(52, 53, 54, 55),
            *(88,),
            *(5, 6, 7, 14, 15, 16),
            *_SINCE_424,
        ),
        opening={56: 2},
        clone=220,
        prlimit=261,
        fcntl=25,
        ioctl=29,
        socketpair=199,
    ),
}
_CLONE3 = 435


def limit(*, cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Bound CPU time, address space, the size of any file written, open files, and forbid core dumps."""
    limits = (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in limits:
        with contextlib.suppress(ValueError, OSError):  # not every system limits everything
            resource.setrlimit(kind, (value, value))


def leave_network() -> bool:
    """Move into empty user, network and IPC namespaces; False where the system does not allow it."""
    if sys.platform != "linux":
        return False
    return bool(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0)


def refuse_system_calls() -> str:
    """Refuse what a computation never needs; give the name of the guard that does it."""
    if sys.platform == "linux":
        libc = _libc()
        libc.prctl(
            _PR_SET_DUMPABLE, 0, 0, 0, 0
        )  # no other process of this user may look into this one
        program = _filter_program(platform.machine())
        if program is not None and _install(libc, program):
            return "seccomp"
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    sys.addaudithook(_refuse_event)
    return "audit hook"


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


_Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if not, value
_NO: _Instruction = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_YES: _Instruction = (_RETURN, 0, 0, _ALLOW)


def _filter_program(machine: str) -> bytes | None:
    """Assemble the filter; None for a machine whose system calls are not known here."""
    if machine not in _MACHINES or sys.byteorder != "little":
        return None
    calls = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, calls.architecture),
        (_RETURN, 0, 0, _KILL),
    ]
    code += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32_BIT), _NO]
    # glibc asks for clone3 first and takes ENOSYS as a reason to use clone, whose flags a filter can see.
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    code += _refuse_equal(calls.refused)
    for number, argument in calls.opening.items():
        code += _for_call(number, _argument(argument), (_ANY_BIT, 0, 1, _WRITING), _NO, _YES)
    code += _for_call(calls.clone, _argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), _YES, _NO)
    code += _for_call(calls.prlimit, _argument(0), (_EQUAL, 0, 1, 0), _YES, _NO)
    code += _for_call(calls.ioctl, _argument(1), *_refuse_equal(_SIGNALLING_IOCTL), _YES)
    flags = [(_EQUAL, 0, 3, _F_SETFL), _argument(2), (_ANY_BIT, 0, 1, _O_ASYNC), _NO]
    code += _for_call(calls.fcntl, _argument(1), *_refuse_equal(_SIGNALLING_FCNTL), *flags, _YES)
    family = [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _NO]
    kind = [_argument(1), (_ANY_BIT, 0, 1, _NO_STREAM), _NO]
    code += _for_call(calls.socketpair, *family, *kind, _YES)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in [*code, _YES])


def _for_call(number: int, *body: _Instruction) -> list[_Instruction]:
    """Run `body`, which decides, for one system call: arguments take the place of the number."""
    return [(_EQUAL, 0, len(body), number), *body]


def _argument(place: int) -> _Instruction:
    """Load the lower half of an argument, all that the kernel reads of an `int`."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * place)


def _refuse_equal(values: tuple[int, ...]) -> list[_Instruction]:
    return [step for value in values for step in ((_EQUAL, 0, 1, value), _NO)]


def _install(libc: ctypes.CDLL, program: bytes) -> bool:
    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    code = ctypes.create_string_buffer(program, len(program))
    wanted = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(wanted), 0, 0) == 0)


_REFUSED_EVENTS = (
    *("socket.", "subprocess.", "ctypes.", "shutil.", "os.fork", "os.exec", "os.posix_spawn"),
    *("os.spawn", "os.system", "os.kill", "os.remove", "os.rename", "os.mkdir", "os.rmdir"),
    *("os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr"),
    *("pty.spawn", "resource.prlimit", "signal.pthread_kill", "fcntl."),
)


def _refuse_event(event: str, arguments: tuple[object, ...]) -> None:
    flags = arguments[2] if event == "open" and len(arguments) == 3 else 0
    writes = isinstance(flags, int) and flags & _WRITING
    if writes or event.startswith(_REFUSED_EVENTS):
        raise PermissionError(errno.EPERM, f"{event} is refused here")
