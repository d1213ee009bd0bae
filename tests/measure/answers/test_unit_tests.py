"""Code against tests: right verdicts, none that can be forged, and limits that hold."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fam_engine.measure.answers import judge, programs, unit_tests
from fam_engine.measure.answers.confined import landlock
from fam_engine.measure.answers.unit_tests import TestsRun, confines_files, run_tests

LOCKDOWN = "from fam_engine.measure.answers.confined import lockdown\n"


def run(code: str, *tests: str) -> TestsRun:
    return run_tests(textwrap.dedent(code), tests)


def test_right_and_wrong() -> None:
    assert run("def f(x): return x + 1", "assert f(1) == 2", "assert f(2) == 3").passed is True
    result = run("def f(x): return x + 1", "assert f(1) == 2", "assert f(2) == 4")
    assert result.passed is False
    assert result.reason == "test 2 of 2 failed: AssertionError at `assert f(2) == 4`"
    assert "does not load: SyntaxError" in run("def f(x) return", "f(1)").reason
    assert "NameError" in run("x = 1", "assert f(1) == 2").reason


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(x):\n  import os; os._exit(0)",
        "def f(x):\n  raise SystemExit(0)",
        "print('passed'); print('{\"passed\": true}')\ndef f(x): print('passed', flush=True)",
        "import builtins; builtins.AssertionError = None; __debug__",
        "class Yes:\n  def __eq__(self, other): return True\ndef f(x): return Yes()",
        "class Yes(int):\n  def __eq__(self, other): return True\n  __hash__ = None\ndef f(x): return Yes(5)",
        "class Yes:\n  __class__ = int\n  def __eq__(self, other): return True\ndef f(x): return Yes()",
        "def f(x): return 2\nimport sys\nsys.modules['__main__'].__dict__.clear()",
        "import gc\nfor o in gc.get_objects():\n  if isinstance(o, dict) and 'passed' in o: o['passed'] = True",
        'import os\nfor d in range(3, 64):\n  try: os.write(d, b\'{"passed": true, "reason": "", "guards": []}\')\n'
        "  except OSError: pass",
        "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
    ],
)
def test_a_verdict_cannot_be_forged(code: str) -> None:
    assert run(code, "assert f(1) == 3").passed is False


def test_code_cannot_replace_what_it_is_checked_with() -> None:
    code = """
        import math as genuine
        def f(x): return 100.0
        def abs(x): return 0
        def check(x): return True
        def set(x): return 1
        class math:
            isclose = staticmethod(lambda a, b: True)
    """
    for test in (
        "assert abs(f(1) - 3) < 1e-6",
        "assert set([f(1)]) == set([3])",
        "import math\nassert math.isclose(f(1), 3)",
        "assert math.isclose(f(1), 3)",
        "def check(c):\n    assert c(1) == 3\ncheck(f)",
    ):
        assert run(code, test).passed is False, test


# Code that answers with more names than it was asked for; `NAME` is where they go.
ANSWERS_WITH_MORE = """
import sys
wire = sys.modules["fam_engine.measure.answers.confined.wire"]
frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
keep, genuine = frame.f_locals["self"]._keep, wire.json.dumps
def dumps(message):
    wire.json.dumps = genuine
    fakes = {"abs": lambda *x: 0.0, "set": lambda *x: 1, "len": lambda x: 3, "__import__": lambda *x: 1}
    pairs = [[["str", name], keep(fake)] for name, fake in fakes.items()]
    message["value"][1] += [[["str", "__builtins__"], ["dict", pairs]], *pairs]
    return genuine(message)
wire.json.dumps = dumps
def f(x): return 100.0
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert abs(f(1) - 3) < 1e-6",
        "assert set([f(1)]) == set([3])",
        "assert len(str(f(1))) == 3",
        "assert __builtins__ and abs(f(1) - 3) < 1e-6",
        "import operator\nassert abs(operator.sub(f(1), 3)) < 1e-6",
    ],
)
def test_code_cannot_answer_with_what_it_was_not_asked_for(test: str) -> None:
    assert run(ANSWERS_WITH_MORE, test).passed is False
    assert run(ANSWERS_WITH_MORE.replace("100.0", "3.0"), test).passed is True


def test_nonsense_instead_of_names_is_no_pass() -> None:
    code = ANSWERS_WITH_MORE.replace('message["value"][1] +=', 'message["value"] = 5; _ =')
    result = run(code, "assert True")
    assert result.passed is False
    assert result.reason == "the code does not load: TypeError: expected dict"


def test_code_that_ends_its_process_does_not_pass_where_tests_catch_everything() -> None:
    result = run(
        "import os\ndef f(): os._exit(0)", "try:\n    f()\nexcept:\n    pass", "assert True"
    )
    assert result.passed is False
    assert result.reason == "test 1 of 2: the code ended its process"


def test_a_task_may_ask_for_the_name_of_a_builtin() -> None:
    code = "def sum(a, b): return a * b\n"
    assert run(code, "assert sum(2, 5) == 10").passed is True
    # Of two such names one is what the other is checked with.
    wrong = "def abs(x): return 0\ndef sum(a, b): return 1\n"
    assert run(wrong, "assert abs(sum(2, 5) - 10) < 1e-6").passed is False


def test_modules_come_from_the_code_under_their_own_names() -> None:
    code = "import math\ndef f(x): return x / 2\n"
    assert run(code, "assert math.isclose(f(1), 0.5)").passed is True
    assert run(code + "import cmath as math", "assert math.isclose(f(1), 0.5)").passed is False
    assert run(code + "import math as m", "assert m.isclose(f(1), 0.5)").passed is True


def test_values_of_many_kinds_come_back() -> None:
    code = """
        import collections, math
        def echo(x): return x
        def counts(x): return collections.Counter(x)
        def sort(x): x.sort()
        def numbers():
            n = 0
            while True:
                yield n
                n += 1
        def fail(x): raise KeyError(x)
        def ints(x, kind): return [v for v in x if type(v) is kind]
    """
    tests = """
        import itertools
        for x in (1, -1.5, float("inf"), 1 << 400, "a\\ud800", b"a", None, True,
                  2j, range(3), (1, [2, {3}]), {1: {"a": ()}}):
            y = echo(x)
            assert y == x and type(y) is type(x), x
        assert echo(float("nan")) != 0
        assert counts("aab") == {"a": 2, "b": 1}
        x = [3, 1, 2]
        assert sort(x) is None and x == [1, 2, 3]
        assert list(itertools.islice(numbers(), 3)) == [0, 1, 2]
        assert ints([1, "a", 2], int) == [1, 2]
        assert math.floor(echo(1.5)) == 1
        try:
            fail("k")
        except KeyError as error:
            pass
        else:
            assert False
    """
    result = run(code, textwrap.dedent(tests))
    assert result.passed is True, result.reason


def test_objects_of_the_code_can_be_used() -> None:
    code = """
        class Node:
            def __init__(self, value): self.value, self.left = value, None
            def __len__(self): return 7
            def __str__(self): return "node"
        def depth(node): return 1 + depth(node.left) if node else 0
    """
    tests = "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)\nassert depth(root) == 3"
    more = "assert root.left.value == 2 and len(root) == 7 and str(root) == 'node' and root.left == root.left"
    result = run(code.replace("if node else", "if node is not None else"), tests, more)
    assert result.passed is True, result.reason


def test_what_tests_cannot_pass_cannot_be_judged() -> None:
    result = run("def f(g): return g(1)", "assert f(lambda x: x) == 1")
    assert result.passed is None
    assert "cannot be passed" in result.reason
    assert run("def f(x): return x", "assert f(1 ==").passed is None


def test_humaneval_form() -> None:
    code = (
        "```python\ndef f(x: List[int]) -> int:\n    return sum(x)\n```"  # `typing` needs no import
    )
    test = "def check(candidate):\n    assert candidate([1, 2]) == 3\ncheck(f)"
    verdict = judge(code, kind="code", answer=None, tests=[test])
    assert verdict.correct is True
    assert judge(code, kind="code", answer=None).correct is None
    assert judge("", kind="code", answer=None, tests=[test]).correct is False


REFUSED = {
    "network": "import socket; socket.socket()",
    "pair of datagram sockets": "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "name of a socket": "import socket; socket.socketpair()[0].bind('here')",
    "connection": "import socket; socket.socketpair()[0].connect('here')",
    "server": "import socket; socket.socketpair()[0].listen()",
    "fork": "import os; os.fork()",
    "process": "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
    "write": "open('here', 'w')",
    "append": "import os; os.open('here', os.O_WRONLY | os.O_CREAT | os.O_APPEND)",
    "make folder": "import os; os.mkdir('here')",
    "remove": "import os; os.remove(VICTIM)",
    "rename": "import os; os.rename(VICTIM, VICTIM + '2')",
    "mode": "import os; os.chmod(VICTIM, 0)",
    "truncate": "import os; os.truncate(VICTIM, 0)",
    "signal": "import os; os.kill(os.getpid(), 9)",
    "owner of a file": "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "owner of a file, new form": "import fcntl, os; fcntl.fcntl(os.pipe()[0], 15, bytes(8))",
    "owner of a socket": "import fcntl, socket; fcntl.ioctl(socket.socketpair()[0], 0x8901, bytes(4))",
    "group that owns a socket": "import fcntl, socket; fcntl.ioctl(socket.socketpair()[0], 0x8902, bytes(4))",
    "signal of a file": "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)",
    "signals of a file": "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC)",
    "signals of a file, new form": "import fcntl, os; fcntl.ioctl(os.pipe()[0], 0x5452, bytes([1, 0, 0, 0]))",
    "lease": "import fcntl, os; fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "notices": "import fcntl, os; fcntl.fcntl(os.open('.', os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)",
    "leave group": "import os; os.setsid()",
    "limits of others": "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter")
@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_is_refused(what: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("here")
    action = REFUSED[what].replace("VICTIM", repr(str(victim)))
    code = f"def f():\n    try:\n        {action}\n    except OSError as error:\n        return error.errno"
    result = run(code, "assert f() == 1, f()")  # EPERM
    assert result.passed is True, result.reason
    assert result.guards[-1] == "seccomp"
    assert victim.read_text() == "here"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter")
@pytest.mark.parametrize("opening", ["os.pipe()", "[s.detach() for s in socket.socketpair()]"])
def test_no_signal_reaches_another_process(opening: str) -> None:
    """Through what signals the owner of a file: raw calls, with bits the kernel does not read, and by its own names."""
    code = """
        import contextlib, ctypes, fcntl, os, platform, socket, struct
        FCNTL = {"x86_64": 72, "aarch64": 25}[platform.machine()]
        def f(victim):
            call = ctypes.CDLL(None).syscall
            reading, writing = OPENING
            pid = struct.pack("i", victim)
            for attempt in (
                lambda: call(FCNTL, reading, ctypes.c_ulong(8 | 1 << 32), victim),
                lambda: fcntl.ioctl(reading, 0x8901, pid),
                lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, victim),
                lambda: call(FCNTL, reading, ctypes.c_ulong(10 | 1 << 32), 9),
                lambda: fcntl.fcntl(reading, fcntl.F_SETSIG, 9),
                lambda: fcntl.ioctl(reading, 0x5452, struct.pack("i", 1)),
                lambda: fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC),
            ):
                with contextlib.suppress(OSError):
                    attempt()
            return os.write(writing, b"x"), fcntl.fcntl(reading, fcntl.F_GETOWN)
    """
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        result = run(code.replace("OPENING", opening), f"assert f({victim.pid}) == (1, 0)")
        assert result.passed is True, result.reason
        time.sleep(0.1)  # a signal takes a moment to arrive
        assert victim.poll() is None
        victim.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter")
def test_nothing_is_sent_to_a_socket_of_this_machine(tmp_path: Path) -> None:
    """Such as /dev/log; an empty network namespace keeps no socket apart that has a path."""
    code = """
        import socket
        def f(path):
            sender, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            sender.sendto(b"x", path)
    """
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(address)
        assert "PermissionError" in run(code, f"f({address!r})").reason
        with pytest.raises(BlockingIOError):
            receiver.recv(1)


HAS_LANDLOCK = pytest.mark.skipif(
    not confines_files(), reason="this kernel has no Landlock (Linux 5.13 and later)"
)


@HAS_LANDLOCK
@pytest.mark.parametrize(
    "action",
    [
        "open(SECRET).read()",
        "import os; os.listdir(os.path.dirname(SECRET))",
        "import os; os.listdir('/')",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "import os; open(f'/proc/{os.getppid()}/cmdline').read()",
        "import os; os.open(SECRET, os.O_RDONLY)",
        "import os; os.chdir('/'); os.listdir('.')",
    ],
)
def test_files_of_the_machine_cannot_be_read(action: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    lines = [f"SECRET = {str(secret)!r}", "def f():", f"    {action}"]
    test = "try:\n    f()\nexcept OSError as error:\n    assert 'Permission denied' in str(error), error"
    result = run("\n".join(lines), f"{test}\nelse:\n    assert False, 'it was read'")
    assert result.passed is True, result.reason
    assert "landlock" in result.guards


@HAS_LANDLOCK
def test_the_tests_cannot_read_them_either(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    result = run("x = 1", f"open({str(secret)!r})")
    assert result.passed is False
    assert "PermissionError" in result.reason


def test_what_python_itself_needs_can_be_read() -> None:
    code = """
        def f():
            import bz2, ctypes, decimal, hashlib, json, random, sqlite3, ssl, statistics, zoneinfo
            from concurrent.futures import ThreadPoolExecutor
            import datetime, fractions, heapq, importlib, inspect, itertools, unicodedata
            open("/dev/null").read()
            return [len(random.SystemRandom().randbytes(3)), inspect.getsource(json.loads)[:3]]
    """
    result = run(code, "assert f() == [3, 'def'], f()")
    assert result.passed is True, result.reason


def test_landlock_holds_writing_and_what_is_below_too(tmp_path: Path) -> None:
    """The guard alone, without the filter that refuses all writing before it."""
    if not confines_files():
        pytest.skip("this kernel has no Landlock (Linux 5.13 and later)")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    program = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from fam_engine.measure.answers.confined import landlock
        folder = Path({str(tmp_path)!r})
        assert landlock.confine([folder / "open", folder / "missing"])
        assert (folder / "open" / "a").read_text() == "a"
        for action in (
            lambda: (folder / "b").read_text(),
            lambda: (folder / "open" / "a").write_text("x"),
            lambda: (folder / "open" / "new").mkdir(),
            lambda: (folder / "open" / "a").unlink(),
            lambda: (folder / "open" / "a").rename(folder / "open" / "c"),
            lambda: (folder / "open" / "s").symlink_to("a"),
            lambda: os.truncate(folder / "open" / "a", 0),
        ):
            try:
                action()
            except PermissionError:
                pass
            else:
                raise SystemExit("not refused")
        Path(os.devnull).write_text("x")
    """)
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert (tmp_path / "open" / "a").read_text() == "a"


@pytest.mark.skipif(landlock.version() < 6, reason="this kernel scopes no signals (Linux 6.12)")
def test_landlock_holds_signals_too() -> None:
    """The guard alone, however the signal is sent; to itself it still can."""
    program = textwrap.dedent("""
        import fcntl, os, sys
        from fam_engine.measure.answers.confined import landlock
        assert landlock.confine([])
        victim, (reading, writing) = int(sys.argv[1]), os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, victim)
        fcntl.fcntl(reading, fcntl.F_SETSIG, 9)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b"x")
        os.kill(os.getpid(), 0)
        try:
            os.kill(victim, 9)
        except PermissionError:
            print("refused")
    """)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        command = [sys.executable, "-c", program, str(victim.pid)]
        child = subprocess.run(command, capture_output=True, text=True)
        assert child.stdout == "refused\n", child.stderr
        time.sleep(0.1)  # a signal takes a moment to arrive
        assert victim.poll() is None
        victim.kill()


def test_without_landlock_the_code_runs_and_the_verdict_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(landlock, "_call", lambda *_: -1)
    assert confines_files() is False
    assert landlock.confine([tmp_path]) is False
    monkeypatch.setattr(
        programs, "run_tests", lambda *_: TestsRun(True, "passed 1 test", ("seccomp",))
    )
    verdict = judge("def f(): return 1", kind="code", answer=None, tests=["f()"])
    assert verdict.correct is True
    assert verdict.reason == "passed 1 test; file access not confined"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter")
def test_raw_system_calls_are_refused_too() -> None:
    code = """
        import ctypes
        def f(*numbers):
            libc = ctypes.CDLL(None, use_errno=True)
            return [(libc.syscall(n, 0, 0, 0, 0), ctypes.get_errno()) for n in numbers]
    """
    # pidfd_open, io_uring_setup, openat2, memfd_secret, setxattrat, removexattrat, file_setattr: the same numbers on
    # every machine; clone3 says it is not there.
    test = (
        "r = f(434, 425, 437, 447, 463, 466, 469, 435)\nassert r == [(-1, 1)] * 7 + [(-1, 38)], r"
    )
    result = run(code, test)
    assert result.passed is True, result.reason


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter")
def test_other_processes_and_what_they_share_are_out_of_reach() -> None:
    """Segments, semaphores and queues are found by small numbers; the namespace for them is not always to be had."""
    code = """
        import ctypes, platform
        NUMBERS = {"x86_64": (312, 256, 279), "aarch64": (272, 238, 239)}  # kcmp, migrate_pages, move_pages
        NAMES = ("shmat", "shmctl", "semop", "semctl", "semtimedop", "msgsnd", "msgrcv", "msgctl")
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            calls = [getattr(libc, name) for name in NAMES]
            calls += [lambda *a, n=n: libc.syscall(n, *a) for n in NUMBERS[platform.machine()]]
            return {(call(0, 0, 0, 0, 0), ctypes.get_errno()) for call in calls}
    """
    result = run(code, "assert f() == {(-1, 1)}, f()")
    assert result.passed is True, result.reason


def test_the_surroundings_are_empty() -> None:
    code = """
        import os, sys
        def f():
            packages = [p for p in sys.path if "site-" in p and not p.endswith("/answers/confined")]
            return os.listdir("."), dict(os.environ), packages
    """
    result = run(code, "assert f() == ([], {}, []), f()")
    assert result.passed is True, result.reason


@pytest.mark.skipif(sys.platform != "linux", reason="the audit hook refuses all sockets")
def test_asyncio_works() -> None:
    """Its loop wakes itself through a pair of sockets."""
    code = """
        import asyncio
        async def g(x): return await asyncio.to_thread(int, x)
        def f(x): return asyncio.run(g(x))
    """
    result = run(code, "assert f('3') == 3")
    assert result.passed is True, result.reason


def test_threads_work_and_recursion_has_its_usual_limit() -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor
        def f(n):
            with ThreadPoolExecutor(2) as pool:
                return sum(pool.map(int, range(n)))
        def g(n): return g(n + 1)
    """
    test = "assert f(4) == 6\ntry:\n    g(0)\nexcept RecursionError:\n    pass"
    result = run(code, test)
    assert result.passed is True, result.reason


def test_memory_is_limited() -> None:
    assert "MemoryError" in run("def f(): return 'a' * (1 << 30)", "f()").reason


def test_huge_results_are_refused() -> None:
    result = run("def f(): return 'a' * (40 << 20)", "assert f() == 1")
    assert result.passed is False


def running_in_group(group: int) -> list[str]:
    """Find the processes of a group that still run; the dead may wait to be reaped."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(str(file))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_time_is_limited_and_the_group_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Recording(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **named)  # type: ignore[call-overload]
            started.append(self.pid)

    monkeypatch.setattr(unit_tests.subprocess, "Popen", Recording)
    monkeypatch.setattr(unit_tests, "WALL_SECONDS", 1.0)
    result = run("import time\ndef f(): time.sleep(1000)", "f()")
    assert result.passed is False
    assert "ran for more than 1 s" in result.reason
    for _ in range(200):  # a signal takes a moment to arrive
        if not running_in_group(started[0]):
            return
        time.sleep(0.05)
    pytest.fail("a process of the group lives on")


def test_cpu_time_is_limited() -> None:
    limits = "lockdown.limit(cpu_seconds=1, memory_bytes=1 << 30, file_bytes=100)\n"
    child = subprocess.run(
        [sys.executable, "-c", LOCKDOWN + limits + "while True: pass"], timeout=60
    )
    assert -child.returncode in (signal.SIGXCPU, signal.SIGKILL)


def test_files_have_a_limit(tmp_path: Path) -> None:
    limits = "lockdown.limit(cpu_seconds=9, memory_bytes=1 << 30, file_bytes=100)\n"
    write = f"open({str(tmp_path / 'big')!r}, 'wb', 0).write(bytes(1000))"
    subprocess.run([sys.executable, "-c", LOCKDOWN + limits + write], stderr=subprocess.DEVNULL)
    assert (tmp_path / "big").stat().st_size <= 100


def test_without_the_kernels_filter_python_refuses(tmp_path: Path) -> None:
    program = LOCKDOWN + textwrap.dedent(f"""
        lockdown._install = lambda *_: False
        assert lockdown.refuse_system_calls() == "audit hook"
        import os, socket, subprocess
        for action in (
            lambda: socket.socket(), lambda: open({str(tmp_path / "a")!r}, "w"), lambda: os.system("true"),
            lambda: subprocess.run(["true"]), lambda: os.fork(), lambda: os.remove("x"), lambda: os.kill(1, 0),
        ):
            try:
                action()
            except OSError as error:
                assert error.errno in (1, 11), error
            else:
                raise SystemExit("not refused")
        open({str(Path(__file__))!r}).read()
    """)
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_output_is_not_kept_and_does_not_block() -> None:
    code = "import sys\ndef f():\n  for i in range(20000): print('x' * 100); sys.stderr.write('y' * 100)\n  return 3"
    assert run(code, "print('from the test'); assert f() == 3").passed is True


def test_no_folder_stays_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("def f(): return 3", "assert f() == 3").passed is True
    assert os.listdir(tmp_path) == []
