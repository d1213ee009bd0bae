"""The filter of system calls, as the kernel would run it: on every machine it is written for, whatever this one is."""

from __future__ import annotations

import struct

import pytest

from fam_engine.measure.answers.confined import lockdown

MACHINES = sorted(lockdown._MACHINES)
ALLOWED, REFUSED = 0x7FFF0000, 0x00050001  # the latter with EPERM
HIGH = 1 << 32  # the kernel reads the lower half of an `int`


def decide(machine: str, number: int, *arguments: int) -> int:
    """Run the filter on a call: a reader of the five instructions of classic BPF it is made of."""
    program = lockdown._filter_program(machine)
    assert program is not None
    architecture = lockdown._MACHINES[machine].architecture
    padded = [*arguments, *[0] * (6 - len(arguments))]
    call = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    code, place, value = list(struct.iter_unpack("<HBBI", program)), 0, 0
    while True:
        operation, if_true, if_not, operand = code[place]
        place += 1
        if operation == lockdown._RETURN:
            return int(operand)
        if operation == lockdown._LOAD:
            value = struct.unpack_from("<I", call, operand)[0]
            continue
        holds = {
            lockdown._EQUAL: value == operand,
            lockdown._AT_LEAST: value >= operand,
            lockdown._ANY_BIT: bool(value & operand),
        }
        place += if_true if holds[operation] else if_not


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_looked_into(machine: str) -> None:
    calls = lockdown._MACHINES[machine]
    asked: list[tuple[tuple[int, ...], bool]] = [
        ((calls.clone, 0x00010000), True),  # CLONE_THREAD
        ((calls.clone, 17), False),  # SIGCHLD: a new process
        ((calls.prlimit, 0), True),
        ((calls.prlimit, 7), False),
    ]
    for number, place in calls.opening.items():
        asked += [((number, *[0] * place, 0o2000000), True), ((number, *[0] * place, 1), False)]
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL with O_NONBLOCK, F_GETOWN, F_DUPFD_CLOEXEC.
    for command in ((0,), (1,), (2, 1), (3,), (4, 0o4000), (9,), (1030,)):
        asked.append(((calls.fcntl, 3, *command), True))
    # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETFL with O_ASYNC.
    for command in ((8, 1), (10, 9), (15,), (1024,), (1026,), (4, 0x2000), (4, 0x2000 | 0o4000)):
        asked.append(((calls.fcntl, 3, *command), False))
    asked += [((calls.ioctl, 3, request), True) for request in (0x5401, 0x5413, 0x5421, 0x541B)]
    asked += [((calls.ioctl, 3, request), False) for request in (0x8901, 0x8902, 0x5452)]
    # AF_UNIX with SOCK_STREAM, SOCK_CLOEXEC and SOCK_NONBLOCK; SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET; AF_INET, AF_TIPC.
    asked += [((calls.socketpair, 1, kind), True) for kind in (1, 1 | 0o2000000, 1 | 0o4000)]
    asked += [((calls.socketpair, 1, kind), False) for kind in (2, 3, 5, 2 | 0o2000000)]
    asked += [((calls.socketpair, family, 1), False) for family in (2, 30)]
    for call, allowed in asked:
        expected = ALLOWED if allowed else REFUSED
        assert decide(machine, *call) == expected, call
        number, *arguments = call
        assert decide(machine, number, *[a | HIGH for a in arguments]) == expected, call


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_looked_into(machine: str) -> None:
    calls = lockdown._MACHINES[machine]
    assert all(decide(machine, number) == REFUSED for number in calls.refused)
    assert decide(machine, calls.refused[0] | 0x40000000) == REFUSED  # the x32 form of a call
    assert decide(machine, 435) == 0x00050000 | 38  # clone3 is said not to be there
    assert decide(machine, 1000) == ALLOWED
