"""What a config.json says of single layers: which of them use rope, and how far each looks back.

In: the top level of the file. Out: one value a layer, the defaults filled in as transformers 5.23 fills
them. What transformers reads in one attention path and not in the other (a window in `layer_types` that
`use_sliding_window` switches off) is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fam_engine.model.rope_config import MAX_POSITIONS

if TYPE_CHECKING:
    from fam_engine.model.config import ModelType
    from fam_engine.model.fields import Fields

MAX_LAYERS: Final = 512
# Types that have windows only where `use_sliding_window` says so.
_SWITCHED_WINDOWS: Final = ("qwen2", "qwen3", "smollm3")


def read_uses_rope(fields: Fields, model_type: ModelType, num_layers: int) -> tuple[bool, ...]:
    """Give which layers use rope: all but those that SmolLM3 marks with 0.

    Without marks these are every `no_rope_layer_interval`-th. There may be marks beyond the layers.
    """
    if model_type != "smollm3":
        return (True,) * num_layers
    marks = fields.get("no_rope_layers", None)
    if marks is None:
        interval = fields.integer("no_rope_layer_interval", 4, low=1, high=2**31)
        return tuple((layer + 1) % interval != 0 for layer in range(num_layers))
    fields.get("no_rope_layer_interval", None)
    if (
        not isinstance(marks, list)
        or len(marks) < num_layers
        or any(type(mark) is not int or mark not in (0, 1) for mark in marks)
    ):
        fields.refuse("no_rope_layers", f"{num_layers} numbers 0 or 1")
    return tuple(mark == 1 for mark in marks[:num_layers])


def read_windows(
    fields: Fields, model_type: ModelType, uses_rope: tuple[bool, ...]
) -> tuple[int | None, ...]:
    """Give each layer's sliding window.

    Mistral: `sliding_window` in every layer (absent means 4096, null none). Qwen and SmolLM3: only
    with `use_sliding_window`, in the layers `layer_types` names, by default in Qwen those from
    `max_window_layers` on, in SmolLM3, which has no default window, those without rope. Llama: none.
    """
    num_layers = len(uses_rope)
    if model_type in _SWITCHED_WINDOWS:
        return _read_switched_windows(fields, model_type, uses_rope)
    fields.only("use_sliding_window", [False, None])
    fields.only("layer_types", [None, ["full_attention"] * num_layers])
    if model_type == "llama":
        fields.only("sliding_window", [None])
        return (None,) * num_layers
    fields.get("max_window_layers", None)
    window = _read_window(fields, 4096)
    if window is not None:
        fields.only("layer_types", [None])
    return (window,) * num_layers


def _read_switched_windows(
    fields: Fields, model_type: ModelType, uses_rope: tuple[bool, ...]
) -> tuple[int | None, ...]:
    fields.get("max_window_layers", None)
    window = _read_window(fields, None if model_type == "smollm3" else 4096)
    if not fields.boolean("use_sliding_window", default=False):
        window = None
    if not fields.is_null("layer_types"):
        return _read_named_windows(fields, window, len(uses_rope))
    if model_type == "smollm3":
        return tuple(None if turns else window for turns in uses_rope)
    first = len(uses_rope)
    if window is not None:
        first = fields.integer("max_window_layers", 28, low=0, high=MAX_LAYERS)
    return tuple(window if layer >= first else None for layer in range(len(uses_rope)))


def _read_window(fields: Fields, default: int | None) -> int | None:
    if fields.get("sliding_window", default) is None:
        return None
    return fields.integer("sliding_window", default, low=1, high=MAX_POSITIONS)


def _read_named_windows(
    fields: Fields, window: int | None, num_layers: int
) -> tuple[int | None, ...]:
    names = fields.get("layer_types")
    known = ("full_attention",) if window is None else ("full_attention", "sliding_attention")
    if (
        not isinstance(names, list)
        or len(names) != num_layers
        or any(n not in known for n in names)
    ):
        fields.refuse("layer_types", f"{num_layers} names of: {', '.join(known)}")
    return tuple(window if name == "sliding_attention" else None for name in names)
