"""What a response says once it has thought.

In: a response. Out: the answer in it. Models that reason write what they think between `<think>` and `</think>` (Qwen3,
SmolLM3, the distillations of DeepSeek-R1, whose templates write the first themselves); what they consider there is no
answer, and may hold any number of boxes, options and programs that they drop again.
"""

from __future__ import annotations

from typing import Final

_BEGIN: Final = "<think>"
_END: Final = "</think>"


def after_thoughts(response: str) -> str:
    """Give what follows the thoughts; nothing where they never end, all of it where there are none."""
    _, end, answer = response.rpartition(_END)
    if end:
        return answer
    return "" if response.lstrip().startswith(_BEGIN) else response
