"""Models of random weights in the shapes of real ones, as folders that every engine loads: the same bytes for all.

    python benchmarks/random_models.py --models DIR --shapes 8b 1b    # NF4, written before they are asked for

In: a shape's name, a folder. Out: a Hugging Face folder, bf16 (`write_random_model`) or quantized to NF4 by
bitsandbytes on the device at hand (`write_nf4_model`: what a GPU's benchmarks load; quantizing in every process would
take longer than the benchmarks). Weights are spread as a trained model's, which changes nothing about speed but keeps
activations of ordinary size. A tokenizer with a text for every id lies beside them: some engines want one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

QWEN_05B: dict[str, Any] = {
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


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, **others: object
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": hidden // heads,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | others


# Llama 3.2 1B and 3B, Llama 3.1 8B; `tiny` is for trying the benchmarks themselves on a CPU.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": _llama(2048, 8192, 16, 32),
    "3b": _llama(3072, 8192, 28, 24),
    "8b": _llama(4096, 14336, 32, 32, tie_word_embeddings=False),
    "qwen2.5-0.5b": QWEN_05B,
    "tiny": _llama(128, 256, 2, 8, vocab_size=600),
}


def nf4_model(models: Path, shape: str, device: str) -> Path:
    """Give the folder of a shape below `models`, written now if it is not there yet."""
    import torch

    folder = models / shape
    if not folder.is_dir():
        unfinished = models / f"{shape}.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        write_nf4_model(unfinished, SHAPES[shape], device)
        unfinished.rename(folder)
        torch.cuda.empty_cache()  # for the processes beside this one
    return folder


def write_nf4_model(folder: Path, config: dict[str, Any], device: str) -> None:
    """Write a random model, its decoder's matrices in bitsandbytes' NF4, the rest in bf16."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from fam_engine.model.nf4 import bitsandbytes_functional

    torch.manual_seed(0)
    quantize = bitsandbytes_functional().quantize_4bit
    tensors = {}
    for name, weight in _empty_model(config).named_parameters():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue  # transformers 5.0 lists it, although it is the embedding
        values = _random_like(weight, name, device)
        if values.ndim == 2 and ".layers." in name:
            packed, state = quantize(
                values, blocksize=64, compress_statistics=True, quant_type="nf4"
            )
            tensors[name] = packed.cpu()
            for end, part in state.as_dict(packed=True).items():
                tensors[f"{name}.{end}"] = part.cpu().contiguous()
        else:
            tensors[name] = values.cpu()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    described = {**config, "quantization_config": scheme.to_dict()}
    (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n")
    write_tokenizer(folder, config["vocab_size"])


def write_random_model(folder: Path, config: dict[str, Any]) -> None:
    """Write a random model as a Hugging Face folder, bf16."""
    import torch

    torch.manual_seed(0)
    model = _empty_model(config)
    model.to_empty(device="cpu")
    for name, weight in model.named_parameters():
        with torch.no_grad():
            weight.copy_(_random_like(weight, name, "cpu"))
    model.tie_weights()
    model.save_pretrained(folder)


def _empty_model(config: dict[str, Any]) -> Any:  # noqa: ANN401 - transformers is imported late
    import torch
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16
        )


def _random_like(weight: Any, name: str, device: str) -> Any:  # noqa: ANN401 - torch is imported late
    import torch

    values = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
    return values.fill_(1.0) if "norm" in name else values.normal_(0.0, 0.02)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a byte-level tokenizer that knows every id; 1 and 2 begin and end a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = ["<unk>", "<s>", "</s>", *alphabet]
    texts += [f"word{number}" for number in range(len(texts), vocab_size)]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(texts[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def main() -> None:
    """Write models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder where models are kept")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=[])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    for shape in options.shapes:
        nf4_model(options.models, shape, options.device)


if __name__ == "__main__":
    main()
