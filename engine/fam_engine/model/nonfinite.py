"""Where in a model a record's numbers stop being finite: for records whose log-probs are not.

In: a batch that gave such log-probs. Out: a line a record that names the layer, and says whether its weights or only
the values are to blame. The batch is computed once more and looked at after each layer; nothing of this is in the way
of batches that are well. What is said of a record depends on the record alone, like its bits: its own tokens and its
prompt's are looked at, not its neighbours'.

What is not finite stays so in the residual stream and reaches the log-probs. The one place where it may be lost is the
softmax: of a query whose scores are nan torch's CPU kernel makes 0 (seen with 2.15, without a mask). Weights are
checked when they are read, so it takes queries that overflow by themselves.

Letters: T tokens, R rows, D hidden size, E entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model.decoder import Decoder
from fam_engine.model.varlen_plan import segments_of
from fam_engine.model.weights import LayerWeights

Flags = npt.NDArray[np.bool_]


@torch.inference_mode()
def first_nonfinite(decoder: Decoder, batch: PackedBatch) -> list[str]:
    """Say for each entry where its values are not finite for the first time.

    Args:
        decoder: The model.
        batch: The batch.

    Returns:
        E lines such as "layer 3 gives it first, its weights (down) are not finite"; of an entry whose hidden
        states are all finite, that it is the head.
    """
    looks: list[Flags] = []
    hidden_RD = decoder.hidden_rows(batch, look=lambda x: looks.append(_bad_rows(x)))
    looks.append(_bad_rows(hidden_RD))
    lines: dict[int, str] = {}
    for stage in (stages := _first_stages(looks, batch)):
        if stage not in lines:
            lines[stage] = _line(decoder, stage)
    return [lines[stage] for stage in stages]


def _bad_rows(x: torch.Tensor) -> Flags:
    flags: Flags = (~x.isfinite().all(-1)).cpu().numpy()
    return flags


def _first_stages(looks: list[Flags], batch: PackedBatch) -> list[int]:
    """Give the number of the first look with a bad row of the entry; that of none is the number of looks."""
    segments_T = segments_of(batch, np.arange(len(batch.input_ids), dtype=np.int32))
    segments_R = segments_of(batch, batch.rows)
    stages = []
    for start, stop in zip(batch.entry_rows[:-1], batch.entry_rows[1:], strict=True):
        # The first row of an entry is its prompt's, the last its response's.
        own_T = np.isin(segments_T, segments_R[start:stop])
        # The last layer and the final norm have rows for what predicts only.
        bad = [look[own_T] for look in looks[:-2]] + [look[start:stop] for look in looks[-2:]]
        stages.append(next((i for i, flags in enumerate(bad) if flags.any()), len(looks)))
    return stages


def _line(decoder: Decoder, stage: int) -> str:
    """Name a look: the embedding, the layers, the final norm; beyond the last one it is the head."""
    num_layers, weights = decoder.config.num_layers, decoder.weights
    if 1 <= stage <= num_layers:
        bad = list(_bad_parts(decoder, weights.layers[stage - 1]))
        which = f" ({', '.join(bad)})" if bad else ""
        return _say(f"layer {stage - 1}", which, are_finite=not bad)
    name, table = {
        0: ("the embedding", weights.embed_VD),
        num_layers + 1: ("the final norm", weights.final_norm_D),
    }.get(stage, ("the head", weights.head_VD))
    return _say(name, "", are_finite=_is_finite(table))


def _say(name: str, which: str, *, are_finite: bool) -> str:
    return f"{name} gives it first, its weights{which} are {'' if are_finite else 'not '}finite"


def _bad_parts(decoder: Decoder, layer: LayerWeights) -> Iterator[str]:
    """Yield names of a layer's matrices and norms with a value that is not finite, adapter merged."""
    for name, linear in layer.linears().items():
        if not (_is_finite(decoder.dense(linear)) and _is_finite(linear.bias)):
            yield name
    for name in ("input_norm_D", "post_norm_D", "q_norm", "k_norm"):
        if not _is_finite(getattr(layer, name)):
            yield name.removesuffix("_D")


def _is_finite(tensor: torch.Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())
