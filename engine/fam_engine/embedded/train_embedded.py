"""Train the embedded model: tokenizer and weights, from text we may ship, on a CPU within an hour.

In: GSM8K's training split (MIT) and our own generated problems. Out: a Hugging Face folder. The budget is CPU time, and
the learning rate follows the share of it that is spent, so that a slower machine gives a worse model and not a longer
wait. Half of GSM8K's answers keep their calculator marks (`<<1+2=3>>`) and half lose them: real answers come both ways,
and a model that saw only one would find the other unfamiliar for its marks alone.

    python -m fam_engine.embedded.train_embedded --gsm8k train.jsonl --out model --cpu-minutes 45
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fam_engine.embedded.problems import training_texts

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

VOCAB_SIZE = 2048
NUM_GENERATED = 12000
HELD_OUT_SHARE = 0.05
ROW_TOKENS = 512
ROWS_A_STEP = 6
PEAK_LEARNING_RATE = 3e-3
WARM_UP_SHARE = 0.03

# About 2 million parameters: at a few million tokens of training more of them would only learn less each.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def gsm8k_documents(file: Path) -> list[tuple[str, str]]:
    """Read (question, answer) pairs, the last line of an answer as in the demo's records."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = []
    for number, row in enumerate(rows):
        answer = re.sub(r"####\s*", "A: ", row["answer"])
        if number % 2:
            answer = re.sub(r"<<.*?>>", "", answer)
        pairs.append((row["question"], answer))
    return pairs


def split(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Give documents for training and held-out ones."""
    texts = [f"{question}\n{answer}" for question, answer in pairs]
    random.Random(0).shuffle(texts)
    held_out = int(len(texts) * HELD_OUT_SHARE)
    return texts[held_out:], texts[:held_out]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE whose numbers are single digits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Encode documents, each begun with `<s>` and ended with `</s>`."""
    return [[*encoding.ids, 1] for encoding in tokenizer.encode_batch(texts)]


def batches(documents: list[list[int]]) -> Iterator[torch.Tensor]:
    """Give rows of packed documents, int64 [rows, tokens + 1], epoch after epoch, shuffled anew."""
    import torch

    rng = random.Random(1)
    stream: list[int] = []
    need = ROWS_A_STEP * (ROW_TOKENS + 1)
    while True:
        rng.shuffle(documents)
        for document in documents:
            stream += document
            if len(stream) >= need:
                yield torch.tensor(stream[:need]).view(ROWS_A_STEP, ROW_TOKENS + 1)
                stream = stream[need:]


def learning_rate(spent: float) -> float:
    """Give the rate at a share of the budget: warm-up, then a cosine to a tenth."""
    if spent < WARM_UP_SHARE:
        return PEAK_LEARNING_RATE * spent / WARM_UP_SHARE
    return PEAK_LEARNING_RATE * (0.55 + 0.45 * math.cos(math.pi * min(spent, 1.0)))


def loss_of(model: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - transformers' model
    """Give the mean loss of packed rows, nats a token."""
    import torch

    # On a CPU with AVX512-BF16 a step is 15 to 40 % faster than in fp32.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def train(documents: list[list[int]], budget_seconds: float) -> tuple[Any, float]:
    """Train until the CPU time is spent.

    Returns:
        The model and the CPU seconds it took.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        lr=1.0,
    )
    start = time.process_time()
    for step, rows in enumerate(batches(documents)):
        spent = (time.process_time() - start) / budget_seconds
        if spent >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spent)
        loss = loss_of(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"{spent:6.1%} step {step} loss {float(loss.detach()):.3f}", flush=True)
    return model.eval(), time.process_time() - start


def bits_per_byte(model: Any, tokenizer: Tokenizer, texts: list[str]) -> float:  # noqa: ANN401
    """Measure the model on documents, each alone after `<s>`, the end not counted."""
    import torch

    nats, num_bytes = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            row = torch.tensor([tokenizer.encode(text).ids])
            nats += float(loss_of(model, row)) * (row.shape[1] - 1)
            num_bytes += len(text.encode())
    return nats / math.log(2) / num_bytes


def save(model: Any, tokenizer: Tokenizer, out: Path) -> None:  # noqa: ANN401
    """Write the folder: bf16 weights, configuration, tokenizer."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": SHAPE["max_position_embeddings"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-minutes", type=float, default=45.0)
    options = parser.parse_args()
    real, real_held_out = split(gsm8k_documents(options.gsm8k))
    made, made_held_out = split(sorted(set(training_texts(NUM_GENERATED))))
    tokenizer = train_tokenizer(real + made)
    model, seconds = train(encode(tokenizer, real + made), options.cpu_minutes * 60)
    report = {
        "cpu_minutes": seconds / 60,
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_bits_per_byte": {
            "gsm8k": bits_per_byte(model, tokenizer, real_held_out),
            "generated": bits_per_byte(model, tokenizer, made_held_out[:300]),
        },
    }
    save(model, tokenizer, options.out)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
