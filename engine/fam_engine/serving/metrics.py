"""What the server counts, for `/metrics`.

In: increments from any thread. Out: text in the format of Prometheus.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final

_HELP: Final = {
    "scored_tokens": "Tokens whose log-prob was computed for scores",
    "generated_tokens": "Tokens generated",
    "score_batches": "Times that waiting scores were computed together",
    "rejected_requests": "Requests refused because too many were waiting",
}


class Metrics:
    """Counters."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(_HELP, 0))
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def add(self, name: str, count: int = 1) -> None:
        """Add to one of the counters."""
        assert name in _HELP, name
        with self._lock:
            self._counts[name] += count

    def finished(self, path: str, status: int, seconds: float) -> None:
        """Note a request that was answered."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]  # a sum of floats

    def text(self, *, in_flight: int) -> str:
        """Give all of it.

        Args:
            in_flight: Requests being answered.
        """
        with self._lock:
            lines = [
                *_gauge("up_seconds", "Since the server started", time.monotonic() - self._start),
                *_gauge("requests_in_flight", "Requests being answered", in_flight),
            ]
            for name, count in self._counts.items():
                lines += _header(f"{name}_total", _HELP[name], "counter")
                lines.append(f"fam_engine_{name}_total {count}")
            lines += _header("requests_total", "Requests answered", "counter")
            for (path, status), count in sorted(self._requests.items()):
                labels = f'path="{path}",status="{status}"'
                lines.append(f"fam_engine_requests_total{{{labels}}} {count}")
            lines += _header("request_seconds_total", "Time they took", "counter")
            for path, seconds in sorted(self._seconds.items()):
                lines.append(f'fam_engine_request_seconds_total{{path="{path}"}} {seconds:.6f}')
        return "\n".join(lines) + "\n"


def _gauge(name: str, text: str, value: float) -> list[str]:
    return [*_header(name, text, "gauge"), f"fam_engine_{name} {value:.6g}"]


def _header(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP fam_engine_{name} {text}", f"# TYPE fam_engine_{name} {kind}"]
