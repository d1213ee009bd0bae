"""The ways our own engine computes a model with its adapter, those it may be served in.

In: a model, an adapter, the answers. Out: what each way says about them, the reference first: the precision the adapter
was trained over. The model without the adapter is among them: it shows how much there is to lose, and what a server
answers that has not loaded the adapter.

Merged checkpoints are really written, to a temporary folder, and read again. One model is in memory at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fam_engine.config import Precision, VerifyConfig
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.progress import Progress
from fam_engine.jobs.verifying.probe import Probe
from fam_engine.measure.agreement import TokenLogprobs
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.loading import load_model, with_adapter
from fam_engine.model.merging import MergeBase, plan_merge, served_precision


@dataclass(frozen=True)
class Way:
    """A way of computing.

    Attributes:
        name: What it is called.
        precision: Of its weights; None: not ours to know.
        rounding: The coarsest rounding that lies between it and the reference.
        has_adapter: Whether the adapter is in it.
    """

    name: str
    precision: Precision | None
    rounding: Precision
    has_adapter: bool = True


Answered = tuple[Way, TokenLogprobs]


@dataclass(frozen=True)
class OwnEngine:
    """Our engine asked about the answers.

    Attributes:
        config: Which adapter, precision and device.
        folder: The model's.
        probe: The answers.
        progress: Told what is computed.
        check: Called between batches.
    """

    config: VerifyConfig
    folder: Path
    probe: Probe
    progress: Progress
    interrupts: Interrupts

    def ways(self) -> Iterator[Answered]:
        """Compute the answers in every way there is.

        Raises:
            FamEngineError: A model, an adapter or a disk that does not do.
        """
        trained = self.config.precision
        served = served_precision(trained)
        is_quantized = ModelConfig.from_folder(self.folder).quantization is not None
        yield from self._attached(trained, served)
        if trained == "nf4" and not is_quantized:
            yield from self._attached(served, trained)
        if not is_quantized:
            yield self._merged("original", trained)
        if trained == "nf4":
            yield self._merged("dequantized", served)

    def _attached(self, precision: Precision, rounding: Precision) -> Iterator[Answered]:
        """Compute with the adapter beside the weights, and without it."""
        decoder = self._load(self.folder, self.config.verify, precision)
        way = Way(f"{precision} + adapter", precision, rounding)
        yield way, self._asked(way.name, decoder)
        alone = Way(f"{precision} alone", precision, rounding, has_adapter=False)
        yield alone, self._asked(alone.name, with_adapter(decoder, None))

    def _merged(self, base: MergeBase, rounding: Precision) -> Answered:
        served = served_precision(self.config.precision)
        way = Way(f"merged {base}", served, rounding)
        with tempfile.TemporaryDirectory(prefix="fam-engine-") as name:
            self.progress.start(f"merging into {base} weights", None, "")
            merged = Path(name) / "merged"
            plan_merge(self.folder, self.config.verify, base=base).write(merged)
            return way, self._asked(way.name, self._load(merged, None, served))

    def _load(self, model: Path, adapter: Path | None, precision: Precision) -> Decoder:
        return load_model(
            model,
            adapter=adapter,
            precision=precision,
            compute_dtype=self.config.compute_dtype,
            device=self.config.device,
        )

    def _asked(self, name: str, decoder: Decoder) -> TokenLogprobs:
        self.progress.start(name, len(self.probe.ids), "answers")
        return self.probe.answers(decoder, self.interrupts.after(self.progress.advance))
