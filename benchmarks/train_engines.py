"""The engines that train an adapter on an NF4 model, side by side: ours, PEFT, PEFT with Liger, TRL, Unsloth.

In: a folder of an NF4 model, then documents as token ids. Out: losses, seconds and memory of whole optimizer steps, or
the first step's gradients. All read the same bytes, begin with the same adapter (`adapter_values`: B is not zero, so
every gradient has something to say), train rank 16 on all seven matrices with AdamW on fp32 leaves and clip at 1. A
step's loss is the mean over all its supervised tokens, however the documents are spread over micro-batches.

Peers get documents sorted by length and padded on the right without a mask, which under causal attention changes no
loss and keeps SDPA on its fast path, and compute under bf16 autocast. Packing without flash-attn would give them a
dense mask, which is slower. TRL runs its own SFTTrainer, timed from its callbacks.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from engines import load_transformers, spooled
from timing import forget_peak, synchronize
from workloads import Question

RANK, ALPHA, MAX_NORM = 16, 16, 1.0
LEARNING_RATE = 1e-4
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GIB = 1 << 30


@dataclass(frozen=True)
class Setting:
    """How an engine is to run.

    Attributes:
        cap_gib: Memory the process may have, GiB; 0: all.
        docs: Documents of a micro-batch; 0: all of a step. Ours makes one of all.
        is_checkpointing: Whether layers are computed twice. Ours plans that by itself; Unsloth's is
            part of its name.
    """

    cap_gib: float = 0.0
    docs: int = 0
    is_checkpointing: bool = False


@dataclass(frozen=True)
class Steps:
    """What steps found.

    Attributes:
        losses: Of each, nats a supervised token.
        seconds: Of each.
        peak_bytes: Most the allocator gave out.
        reserved_bytes: Most it held.
        gradients: By PEFT's name, fp32, of the first and last layer, before clipping; where asked.
        plan: What the engine chose by itself.
    """

    losses: list[float]
    seconds: list[float]
    peak_bytes: int
    reserved_bytes: int
    gradients: dict[str, np.ndarray]
    plan: str = ""


def supervised(documents: list[Question]) -> int:
    """Count tokens to predict."""
    return sum(len(answer) for question in documents for answer in question.answers)


def adapter_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Give the first values of a leaf by PEFT's name of it in a file: the same for every engine."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if ".lora_A." in name:
        bound = 1 / math.sqrt(shape[1])
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    return (1e-3 * rng.standard_normal(shape)).astype(np.float32)


def cap_memory(device: str, gib: float) -> None:
    """Let this process have only so much of the card's memory; 0: all."""
    import torch

    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total) if gib else 1.0)


def _set_adapter(leaves: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(torch.from_numpy(adapter_values(name, tuple(leaf.shape))))


def _gradients(leaves: dict[str, Any], num_layers: int) -> dict[str, np.ndarray]:
    places = (".layers.0.", f".layers.{num_layers - 1}.")
    return {
        name: leaf.grad.float().cpu().numpy().copy()
        for name, leaf in leaves.items()
        if any(place in name for place in places) and leaf.grad is not None
    }


@dataclass(frozen=True)
class Stepper:
    """What makes an engine's steps.

    Attributes:
        device: `cpu` or `cuda`.
        num_layers: Of the model.
        leaves: What is trained, by PEFT's names.
        add_gradients: Adds those of a step's documents and gives the loss.
        update: Clips, moves the leaves and forgets the gradients.
    """

    device: str
    num_layers: int
    leaves: dict[str, Any]
    add_gradients: Callable[[list[Question]], float]
    update: Callable[[], None]

    def run(self, steps: list[list[Question]], wants_gradients: bool) -> Steps:
        """Run whole optimizer steps, each timed with the device empty before and after."""
        forget_peak(self.device)
        losses, seconds, gradients = [], [], {}
        for documents in steps:
            synchronize(self.device)
            start = time.perf_counter()
            losses.append(self.add_gradients(documents))
            if wants_gradients and not gradients:
                gradients = _gradients(self.leaves, self.num_layers)
            self.update()
            synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return Steps(losses, seconds, *_peaks(self.device), gradients)


def _peaks(device: str) -> tuple[int, int]:
    import torch

    if device != "cuda":
        return 0, 0
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def or_out_of_memory(run: Callable[[], Steps], leaves: dict[str, Any]) -> Steps | None:
    """Run; None where memory did not suffice, and then all of it is given back."""
    import torch

    try:
        return run()
    except torch.OutOfMemoryError:
        pass
    for leaf in leaves.values():
        leaf.grad = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class OursTraining:
    """fam-engine: the step written out by hand, layers kept as memory allows."""

    def __init__(self, folder: str, device: str) -> None:
        from fam_engine.model.loading import load_model
        from fam_engine.model.trainable import LoraSpec, TrainableModel

        dtype = "bf16" if device == "cuda" else "fp32"
        self.decoder = load_model(folder, precision="nf4", compute_dtype=dtype, device=device)
        self.spec = LoraSpec(RANK, ALPHA, 0.0, MODULES, False)
        self.model = TrainableModel(self.decoder, self.spec, seed=0)
        self.device, self.setting = device, Setting()
        self.plan = ""

    def run(
        self, steps: list[list[Question]], setting: Setting, wants_gradients: bool = False
    ) -> Steps | None:
        """Run optimizer steps from the first values of the adapter on; None: out of memory."""
        from fam_engine.jobs.training.optim import AdamW

        self.setting, leaves = setting, self.model.parameters
        cap_memory(self.device, setting.cap_gib)
        _set_adapter(leaves)
        self.optimizer = AdamW("adamw", leaves, weight_decay=0.0)
        num_layers = self.decoder.config.num_layers
        stepper = Stepper(self.device, num_layers, leaves, self._one, self._update)
        found = or_out_of_memory(lambda: stepper.run(steps, wants_gradients), leaves)
        return found and replace(found, plan=self.plan)

    def _update(self) -> None:
        from fam_engine.jobs.training.optim import clip_grad_norm

        clip_grad_norm(self.model.parameters, MAX_NORM)
        self.optimizer.step(LEARNING_RATE)

    def _one(self, documents: list[Question]) -> float:
        """Add a step's gradients, its documents in one micro-batch."""
        import tempfile

        import torch

        from fam_engine._rust_tokenize import pack_batch
        from fam_engine.data.packing import PackedBatch

        num_targets = supervised(documents)
        with tempfile.TemporaryDirectory() as folder:
            spool = spooled(folder, documents)
            batch = PackedBatch(**pack_batch(spool, np.arange(len(spool), dtype=np.int64)))
        num_whole = self._whole_layers(len(batch.input_ids))
        self.plan = f"{num_whole} of {self.decoder.config.num_layers} layers keep their activations"
        nll_R = self.model.forward_backward(
            batch,
            lambda nll_R: torch.full_like(nll_R, 1 / num_targets),
            dropout_seed=None,
            num_whole=num_whole,
        )
        return float(nll_R.sum()) / num_targets

    def _whole_layers(self, num_tokens: int) -> int:
        """Plan from what the process may still have: how many layers keep their activations."""
        import torch

        from fam_engine.model.training.forward import attention_dtype
        from fam_engine.model.training.recomputation import token_bytes, whole_layers

        dtype, place = self.decoder.compute_dtype, self.decoder.device
        each = token_bytes(
            self.decoder.config,
            self.spec,
            dtype=dtype,
            attention_dtype=attention_dtype(dtype, place),
        )
        if self.device != "cuda":
            return self.decoder.config.num_layers
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if self.setting.cap_gib:
            free = min(free, int(self.setting.cap_gib * GIB) - torch.cuda.memory_allocated())
        # A tenth for the allocator's gaps; the scratch of augmented matrices is made at the first step.
        return whole_layers(
            each,
            num_layers=self.decoder.config.num_layers,
            num_tokens=num_tokens,
            free=int(0.9 * free) - GIB,
        )


class PeerTraining:
    """PEFT on transformers and bitsandbytes, plain, with Liger's kernels, or as Unsloth patches it."""

    def __init__(self, folder: str, device: str, kind: str) -> None:
        self.model = _peer_model(folder, device, kind)
        self.leaves = peer_leaves(self.model)
        self.device, self.kind, self.setting = device, kind, Setting()

    def run(
        self, steps: list[list[Question]], setting: Setting, wants_gradients: bool = False
    ) -> Steps | None:
        """Run optimizer steps from the first values of the adapter on; None: out of memory."""
        self.setting = setting
        cap_memory(self.device, setting.cap_gib)
        _set_adapter(self.leaves)
        self.optimizer = _adamw(list(self.leaves.values()), self.device)
        if not self.kind.startswith("unsloth"):
            _checkpoint(self.model, setting.is_checkpointing)
        self.model.train()
        num_layers = self.model.config.num_hidden_layers
        stepper = Stepper(self.device, num_layers, self.leaves, self._one, self._update)
        return or_out_of_memory(lambda: stepper.run(steps, wants_gradients), self.leaves)

    def _update(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _one(self, documents: list[Question]) -> float:
        """Add a step's gradients, micro-batch by micro-batch."""
        import torch

        num_targets = supervised(documents)
        total = torch.zeros((), device=self.device)
        for ids, labels in _padded(documents, self.setting.docs, self.device):
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.model(
                    input_ids=ids, labels=labels, num_items_in_batch=num_targets, use_cache=False
                ).loss
            loss.backward()
            total += loss.detach()
        return float(total)


class TrlTraining:
    """TRL's SFTTrainer over the same PEFT model, one micro-batch a step."""

    def __init__(self, folder: str, device: str) -> None:
        self.model = _peer_model(folder, device, "peft")
        self.leaves = peer_leaves(self.model)
        self.folder, self.device, self.setting = folder, device, Setting()

    def run(
        self, steps: list[list[Question]], setting: Setting, wants_gradients: bool = False
    ) -> Steps | None:
        """Train on the steps' documents in their order; None: out of memory."""
        import tempfile

        self.setting = setting
        cap_memory(self.device, setting.cap_gib)
        _set_adapter(self.leaves)
        _checkpoint(self.model, setting.is_checkpointing)
        forget_peak(self.device)
        with tempfile.TemporaryDirectory() as folder:
            return or_out_of_memory(
                lambda: self._train(steps, folder, wants_gradients), self.leaves
            )

    def _train(self, steps: list[list[Question]], folder: str, wants_gradients: bool) -> Steps:
        import datasets
        import transformers
        import trl

        per_step = {len(documents) for documents in steps}
        assert len(per_step) == 1, "TRL takes as many documents in every step"
        documents = [question for one in steps for question in _by_length(one)]
        rows = [
            {
                "input_ids": [*q.prompt.tolist(), *q.answers[0].tolist()],
                "completion_mask": [0] * len(q.prompt) + [1] * len(q.answers[0]),
            }
            for q in documents
        ]
        is_gpu = self.device == "cuda"
        num_docs = per_step.pop()
        docs = self.setting.docs or num_docs
        config = trl.SFTConfig(
            output_dir=folder,
            max_steps=len(steps),
            per_device_train_batch_size=docs,
            gradient_accumulation_steps=-(-num_docs // docs),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_NORM,
            weight_decay=0.0,
            optim="adamw_torch_fused" if is_gpu else "adamw_torch",
            bf16=True,
            use_cpu=not is_gpu,
            gradient_checkpointing=self.setting.is_checkpointing,
            completion_only_loss=True,
            max_length=None,
            train_sampling_strategy="sequential",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=is_gpu,
        )
        watch = _watch(self, wants_gradients)
        trainer = trl.SFTTrainer(
            model=self.model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(self.folder),
            callbacks=[watch],
        )
        trainer.train()
        return Steps(
            losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
            seconds=watch.seconds,
            peak_bytes=_peaks(self.device)[0],
            reserved_bytes=_peaks(self.device)[1],
            gradients=watch.gradients,
        )


def _watch(training: TrlTraining, wants_gradients: bool) -> Any:  # noqa: ANN401 - made of a late import
    """Make a callback that times steps and keeps the first gradients."""
    import transformers

    class Watch(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.gradients: dict[str, np.ndarray] = {}
            self.start = 0.0

        def on_step_begin(self, *_: object, **__: object) -> None:
            synchronize(training.device)
            self.start = time.perf_counter()

        def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
            # Clipped by now: the norm is told apart from the direction by whoever compares.
            if wants_gradients and not self.gradients:
                num_layers = training.model.config.num_hidden_layers
                self.gradients = _gradients(training.leaves, num_layers)

        def on_step_end(self, *_: object, **__: object) -> None:
            synchronize(training.device)
            self.seconds.append(time.perf_counter() - self.start)

    return Watch()


def _peer_model(folder: str, device: str, kind: str) -> Any:  # noqa: ANN401
    """Load the model and put PEFT's adapter on it."""
    if kind.startswith("unsloth"):
        return _unsloth_model(folder, kind)
    if kind == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(
            rope=True, swiglu=True, rms_norm=True, fused_linear_cross_entropy=True
        )
    import peft

    spec = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(MODULES),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(load_transformers(folder, "nf4", device), spec)


def _checkpoint(model: Any, is_checkpointing: bool) -> None:  # noqa: ANN401
    """Have layers computed twice or not."""
    if is_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()


# What Unsloth is asked to do about activations, by our name of it: its default offloads layers' inputs to the host.
_UNSLOTH = {"unsloth": "unsloth", "unsloth-layer": True, "unsloth-none": False}


def _unsloth_model(folder: str, kind: str) -> Any:  # noqa: ANN401
    import unsloth

    model, _ = unsloth.FastLanguageModel.from_pretrained(
        folder,
        load_in_4bit=True,
        max_seq_length=16384,
        local_files_only=True,
        use_exact_model_name=True,
    )
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=list(MODULES),
        use_gradient_checkpointing=_UNSLOTH[kind],
    )


def peer_leaves(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """Give what is trained by its name in an adapter's file, in fp32."""
    leaves = {}
    for name, leaf in model.named_parameters():
        if leaf.requires_grad:
            leaf.data = leaf.data.float()
            leaves[name.replace(".default.", ".")] = leaf
    return leaves


def _adamw(leaves: list[Any], device: str) -> Any:  # noqa: ANN401
    import torch

    return torch.optim.AdamW(leaves, lr=LEARNING_RATE, weight_decay=0.0, fused=device == "cuda")


def _padded(documents: list[Question], docs: int, device: str) -> Iterator[tuple[Any, Any]]:
    """Yield micro-batches of ids and labels, documents of like length together."""
    import torch

    ordered = _by_length(documents)
    size = docs or len(ordered)
    for start in range(0, len(ordered), size):
        chosen = ordered[start : start + size]
        longest = max(len(q.prompt) + len(q.answers[0]) for q in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
        labels = torch.full_like(ids, -100)
        for row, q in enumerate(chosen):
            whole = torch.from_numpy(np.concatenate([q.prompt, q.answers[0]]).astype(np.int64))
            ids[row, : len(whole)] = whole
            labels[row, len(q.prompt) : len(whole)] = whole[len(q.prompt) :]
        yield ids.to(device), labels.to(device)


def _by_length(documents: list[Question]) -> list[Question]:
    return sorted(documents, key=lambda q: len(q.prompt) + len(q.answers[0]))
