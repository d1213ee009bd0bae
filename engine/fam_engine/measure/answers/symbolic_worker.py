"""The child process that compares formulas with math-verify.

In (standard input): JSON lines, `[gold, other]`. Out (standard output): `ready`, then `true` or `false` for each. A
comparison that takes more than 5 s of CPU time or 2 GiB of address space ends the process: nothing gentler stops
arithmetic on huge integers. It has no network and writes no file.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys

from fam_engine.measure.answers.confined import lockdown

SECONDS = 5.0
MEMORY_BYTES = 2 << 30


def compare(gold: str, other: str) -> bool:
    """Whether two formulas are equal; False for what cannot be read as one."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[object]:
        text = text.strip().removeprefix("$").removesuffix("$").strip("$")
        read: list[object] = parse(
            f"${text}$",
            extraction_config=[LatexExtractionConfig()],
            parsing_timeout=None,
        )
        return read

    return bool(verify(read(gold), read(other), timeout_seconds=None))


def main() -> None:
    """Serve comparisons until standard input ends."""
    import math_verify  # noqa: F401 - loaded before rights are taken away

    logging.disable()
    sys.set_int_max_str_digits(4300)
    compare("1", "1")  # loads what is loaded at first use
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lockdown.limit(cpu_seconds=resource.RLIM_INFINITY, memory_bytes=MEMORY_BYTES, file_bytes=0)
    lockdown.leave_network()
    lockdown.refuse_system_calls()
    print("ready", flush=True)
    for line in sys.stdin:
        # The signal's default action ends the process, whatever it is busy with.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            result = compare(*json.loads(line))
        except Exception:
            # Whatever a formula makes math-verify raise, it is not shown to be equal.
            result = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
