"""The peers that train an adapter on an NF4 model: PEFT on transformers and bitsandbytes, with Liger, TRL, Unsloth.

In and out as of `train_engines`. Peers get documents sorted by length and padded on the right without a mask, which
under causal attention changes no loss and keeps SDPA on its fast path, and compute under bf16 autocast. Packing without
flash-attn would give them a dense mask, which is slower; Unsloth, which has attention of its own for that, packs all
documents of a step where no other number of them is asked for. TRL runs its own SFTTrainer, timed from its callbacks;
it turns the adapter to bf16 and masks padding. Unsloth must be imported before transformers, so everything is imported
late.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from engines import load_transformers, load_unsloth
from timing import forget_peak, synchronize
from train_engines import (
    ALPHA,
    LEARNING_RATE,
    MAX_NORM,
    MODULES,
    RANK,
    Setting,
    Stepper,
    Steps,
    cap_memory,
    or_out_of_memory,
    outer_gradients,
    peaks,
    set_adapter,
    supervised,
)
from workloads import Question


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
        set_adapter(self.leaves)
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

    def _one(self, documents: list[Question]) -> Any:  # noqa: ANN401 - torch is imported late
        """Add a step's gradients, micro-batch by micro-batch."""
        import torch

        num_targets = supervised(documents)
        total = torch.zeros((), device=self.device)
        for batch in self._micro_batches(documents):
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.model(**batch, num_items_in_batch=num_targets, use_cache=False).loss
            loss.backward()
            total += loss.detach()
        return total

    def _micro_batches(self, documents: list[Question]) -> Iterator[dict[str, Any]]:
        if self.kind.startswith("unsloth") and not self.setting.docs:
            yield _packed(documents, self.device)
        else:
            for chosen in _groups(documents, self.setting.docs):
                yield _padded(chosen, self.device)


class TrlTraining:
    """TRL's SFTTrainer over the same PEFT model, one micro-batch a step."""

    def __init__(self, folder: str, device: str) -> None:
        import transformers

        self.model = _peer_model(folder, device, "peft")
        self.leaves = peer_leaves(self.model)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.device, self.setting = device, Setting()

    def run(
        self, steps: list[list[Question]], setting: Setting, wants_gradients: bool = False
    ) -> Steps | None:
        """Train on the steps' documents in their order; None: out of memory."""
        import tempfile

        self.setting = setting
        cap_memory(self.device, setting.cap_gib)
        set_adapter(self.leaves)
        _checkpoint(self.model, setting.is_checkpointing)
        forget_peak(self.device)
        with tempfile.TemporaryDirectory() as folder:
            return or_out_of_memory(
                lambda: self._train(steps, folder, wants_gradients), self.leaves
            )

    def _train(self, steps: list[list[Question]], folder: str, wants_gradients: bool) -> Steps:
        import datasets
        import trl

        per_step = {len(documents) for documents in steps}
        assert len(per_step) == 1, "TRL takes as many documents in every step"
        num_docs = per_step.pop()
        docs = self.setting.docs or num_docs
        # Every micro-batch has as many rows: empty ones fill up that of the shortest documents.
        empty = [{"input_ids": [0], "completion_mask": [0]}] * (-num_docs % docs)
        rows = [row for one in steps for row in (*empty, *map(_row, sorted(one, key=_length)))]
        is_gpu = self.device == "cuda"
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
            processing_class=self.tokenizer,
            callbacks=[watch],
        )
        trainer.train()
        return Steps(
            losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
            seconds=watch.seconds,
            peak_bytes=peaks(self.device)[0],
            reserved_bytes=peaks(self.device)[1],
            gradients=watch.gradients,
        )


def _row(question: Question) -> dict[str, list[int]]:
    """Give a document as TRL wants it."""
    prompt, answer = question.prompt.tolist(), question.answers[0].tolist()
    mask = [0] * len(prompt) + [1] * len(answer)
    return {"input_ids": [*prompt, *answer], "completion_mask": mask}


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
                self.gradients = outer_gradients(training.leaves, num_layers)

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
    else:
        model.gradient_checkpointing_disable()
    # Enabling has gradients flow into the embeddings; only reentrant checkpointing needs that, and disabling keeps it.
    model.disable_input_require_grads()


# What Unsloth is asked to do about activations, by our name of it: its default offloads layers' inputs to the host.
_UNSLOTH = {"unsloth": "unsloth", "unsloth-layer": True, "unsloth-none": False}


def _unsloth_model(folder: str, kind: str) -> Any:  # noqa: ANN401
    import unsloth

    return unsloth.FastLanguageModel.get_peft_model(
        load_unsloth(folder),
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


def padded_tokens(documents: list[Question], docs: int) -> int:
    """Count the tokens a step computes in micro-batches of so many documents, padding included."""
    return sum(len(chosen) * _length(chosen[-1]) for chosen in _groups(documents, docs))


def _groups(documents: list[Question], docs: int) -> Iterator[list[Question]]:
    """Yield the documents of micro-batches, those of like length together; 0: all in one."""
    ordered = sorted(documents, key=_length)
    size = docs or len(ordered)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _length(question: Question) -> int:
    return len(question.prompt) + len(question.answers[0])


def _padded(documents: list[Question], device: str) -> dict[str, Any]:
    """Give ids and labels of documents, a row each."""
    import torch

    ids = torch.zeros(len(documents), max(map(_length, documents)), dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, q in enumerate(documents):
        whole = torch.from_numpy(np.concatenate([q.prompt, q.answers[0]]).astype(np.int64))
        ids[row, : len(whole)] = whole
        labels[row, len(q.prompt) : len(whole)] = whole[len(q.prompt) :]
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def _packed(documents: list[Question], device: str) -> dict[str, Any]:
    """Give ids, labels and positions of documents, all in one row: where positions begin again, so does a document."""
    import torch

    rows = [_padded([question], "cpu") for question in documents]
    batch = {name: torch.cat([row[name] for row in rows], dim=1) for name in rows[0]}
    positions = torch.cat([torch.arange(_length(question)) for question in documents])
    return {name: x.to(device) for name, x in (*batch.items(), ("position_ids", positions[None]))}
