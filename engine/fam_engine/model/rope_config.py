"""Rotary position settings: what a config.json says about them, made explicit.

In: the top-level fields `rope_theta`, `rope_scaling` (transformers 4; also with the older name
`type`) and `rope_parameters` (transformers 5). Out: one `RopeConfig` in which every default is
filled in as transformers 5.23 `modeling_rope_utils.py` fills it, so that the code which makes the
frequencies has no cases of its own. Types whose frequencies depend on the length of the sequence
(`dynamic`, `longrope`) are refused: a record's scores would depend on more than the tokens before
each position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from fam_engine.model.fields import Fields, Json

if TYPE_CHECKING:
    from collections.abc import Callable

RopeType = Literal["default", "linear", "llama3", "yarn"]
DEFAULT_THETA: Final = 10000.0
MAX_FACTOR: Final = 2.0**16
MAX_POSITIONS: Final = 2**24


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """How positions turn queries and keys; fields beyond the type's own keep their neutral values.

    Attributes:
        type: Which frequencies: `default`, `linear` (all divided by `factor`), `llama3` or `yarn`.
        theta: Base of the frequencies.
        factor: How many times longer the context got (linear, llama3, yarn).
        original_max_position_embeddings: Context length before that, tokens (llama3, yarn).
        low_freq_factor: llama3: wavelengths above original / this are divided by `factor`.
        high_freq_factor: llama3: wavelengths below original / this are kept.
        beta_fast: yarn: rotations over the original context above which a dimension is kept.
        beta_slow: yarn: rotations below which a dimension is divided by `factor`.
        truncate: yarn: whether the bounds of the ramp between them are rounded to whole dimensions.
        attention_factor: What cos and sin are multiplied by; 1.0 except for yarn.
    """

    type: RopeType = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def read_rope(
    config: Fields, *, max_position_embeddings: int, default_theta: float = DEFAULT_THETA
) -> RopeConfig:
    """Read the rotary settings of a config.json.

    Args:
        config: The top level of the file.
        max_position_embeddings: Context length, tokens: the default of the original length, as in
            transformers.
        default_theta: The base where none is given.

    Raises:
        ModelRefusedError: An unknown type or field, a bad value, or two places that disagree.
    """
    old, new = config.get("rope_scaling", None), config.get("rope_parameters", None)
    config.only("partial_rotary_factor", [1.0, 1, None])
    theta = default_theta
    if not config.is_null("rope_theta"):
        theta = config.number("rope_theta", low=1.5, high=1e15)
    found = [
        _read_one(config, name, value, theta, max_position_embeddings)
        for name, value in (("rope_scaling", old), ("rope_parameters", new))
        if value is not None and value != {}
    ]
    if not found:
        return RopeConfig(theta=theta)
    if found[0] != found[-1]:
        config.refuse("rope_parameters", "the same settings as `rope_scaling`, or one of the two")
    return found[0]


def _read_one(
    config: Fields, name: str, value: Json, theta: float, max_position_embeddings: int
) -> RopeConfig:
    """Read one of the two dictionaries; `theta` is that of the top level, or the default."""
    if not isinstance(value, dict):
        config.refuse(name, "an object or null")
    fields = Fields(value, where=config.where, code=config.code, prefix=f"{name}.")
    if not fields.is_null("rope_theta"):
        own = fields.number("rope_theta", low=1.5, high=1e15)
        if own != theta and not config.is_null("rope_theta"):
            fields.refuse("rope_theta", f"the same as the `rope_theta` beside it, {theta:g}")
        theta = own
    fields.only("partial_rotary_factor", [1.0, 1, None])
    rope_type = _read_type(fields)
    result = _READERS[rope_type](fields, theta, max_position_embeddings)
    fields.finish(())
    return result


def _read_type(fields: Fields) -> RopeType:
    """Read `rope_type` or its older name `type`; both may be there if they agree."""
    legacy = fields.get("type", None)
    name = "rope_type" if "rope_type" in fields.values else "type"
    rope_type = fields.get("rope_type", "default" if legacy is None else legacy)
    if not isinstance(rope_type, str) or rope_type not in _READERS:
        fields.refuse(name, ", ".join(_READERS))
    if legacy not in (None, rope_type):
        fields.refuse("type", f"the same as `rope_type`, {rope_type}")
    return rope_type


def _read_default(fields: Fields, theta: float, max_position_embeddings: int) -> RopeConfig:
    """Read plain rotary embeddings; a `factor` of 1 is what some exporters write beside them."""
    fields.only("factor", [1.0, 1, None])
    return RopeConfig(theta=theta)


def _read_linear(fields: Fields, theta: float, max_position_embeddings: int) -> RopeConfig:
    return RopeConfig(
        type="linear", theta=theta, factor=fields.number("factor", low=1.0, high=MAX_FACTOR)
    )


def _read_llama3(fields: Fields, theta: float, max_position_embeddings: int) -> RopeConfig:
    low = fields.number("low_freq_factor", low=1e-6, high=1e6)
    high = fields.number("high_freq_factor", low=1e-6, high=1e6)
    if high <= low:
        fields.refuse("high_freq_factor", f"more than `low_freq_factor`, {low:g}")
    return RopeConfig(
        type="llama3",
        theta=theta,
        factor=fields.number("factor", low=1.0, high=MAX_FACTOR),
        original_max_position_embeddings=_original(fields, max_position_embeddings),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_yarn(fields: Fields, theta: float, max_position_embeddings: int) -> RopeConfig:
    """Read YaRN (arXiv 2309.00071). A null factor means the ratio of the two lengths."""
    original = _original(fields, max_position_embeddings)
    if fields.get("factor") is None:
        factor = max_position_embeddings / original
    else:
        factor = fields.number("factor", low=1.0, high=MAX_FACTOR)
    beta_fast = _optional(fields, "beta_fast", high=1e6) or 32.0
    beta_slow = _optional(fields, "beta_slow", high=1e6) or 1.0
    if beta_fast < beta_slow:
        fields.refuse("beta_fast", f"no less than `beta_slow`, {beta_slow:g}")
    return RopeConfig(
        type="yarn",
        theta=theta,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=fields.boolean("truncate", default=True),
        attention_factor=_yarn_attention_factor(fields, factor),
    )


def _yarn_attention_factor(fields: Fields, factor: float) -> float:
    """Give the explicit value, else the paper's (equation 22), weighted if asked."""
    explicit = _optional(fields, "attention_factor", high=1e3)
    numerator = _optional(fields, "mscale", high=1e3)
    denominator = _optional(fields, "mscale_all_dim", high=1e3)
    if explicit is not None:
        return explicit
    if numerator and denominator:  # one of the two alone is without effect in transformers
        return _mscale(factor, numerator) / _mscale(factor, denominator)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _original(fields: Fields, max_position_embeddings: int) -> int:
    name = "original_max_position_embeddings"
    return fields.integer(name, max_position_embeddings, low=1, high=MAX_POSITIONS)


def _optional(fields: Fields, name: str, *, high: float) -> float | None:
    return None if fields.is_null(name) else fields.number(name, low=0.0, high=high)


_READERS: Final[dict[RopeType, Callable[[Fields, float, int], RopeConfig]]] = {
    "default": _read_default,
    "linear": _read_linear,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}
