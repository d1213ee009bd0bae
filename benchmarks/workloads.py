"""The fixed scoring workloads G1, G8 and L8, and random models in the shape of real ones.

In: a workload's name and how many questions. Out: token ids of prompts and answers, the same for every engine.
Lengths are those of real GSM8K records; ids are random, which changes nothing about speed: every engine does the same
arithmetic on any ids. Weights are random too, written once as a Hugging Face folder that all engines load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

QWEN_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Question:
    """One prompt and its answers, as token ids."""

    prompt: np.ndarray
    answers: list[np.ndarray]


def make_workload(name: str, num_questions: int, vocab_size: int) -> list[Question]:
    """Make a workload: `G1`, `G8` (GSM8K lengths, 1 or 8 answers) or `L8` (600 + 8 x 150)."""
    rng = np.random.default_rng(0)
    lengths = json.loads((HERE / "gsm8k_lengths.json").read_text())
    prompts, answers = lengths["prompt"], lengths["answer"]
    num_answers = int(name[1:])
    questions = []
    for index in range(num_questions):
        long = name.startswith("L")
        prompt = 600 if long else prompts[index % len(prompts)]
        sizes = [
            150 if long else answers[(index + 16 * step) % len(answers)]
            for step in range(num_answers)
        ]
        questions.append(
            Question(
                rng.integers(0, vocab_size, prompt, dtype=np.int32),
                [rng.integers(0, vocab_size, size, dtype=np.int32) for size in sizes],
            )
        )
    return questions


def count_tokens(questions: list[Question]) -> dict[str, int]:
    """Count what an engine without sharing would compute, and the answers alone."""
    answers = sum(len(answer) for question in questions for answer in question.answers)
    prompts = sum(len(question.prompt) * len(question.answers) for question in questions)
    return {"effective": prompts + answers, "answer": answers}


def write_random_model(folder: Path, config: dict[str, object]) -> None:
    """Write a random model as a Hugging Face folder, bf16, with statistics like a trained one's."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    for name, weight in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.02)
    model.tie_weights()
    model.save_pretrained(folder)
