"""The shape of a model: what its config.json says, checked and made explicit.

In: the object in config.json (or the folder it is in). Out: a `ModelConfig`, all the decoder needs
to know.

One decoder serves Llama 2/3.x, Mistral, Qwen2/2.5, Qwen3, SmolLM3 and the many models published under
these types; they differ by the fields below. Every field of the file is used, known to be harmless
(`HARMLESS`, with the reason) or refused by name: a field that is silently left aside gives a wrong
score that looks right. Defaults are those of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from fam_engine.data.plain_files import plain_file, read_json_object
from fam_engine.model.fields import Fields
from fam_engine.model.layer_config import MAX_LAYERS, read_uses_rope, read_windows
from fam_engine.model.rope_config import DEFAULT_THETA, MAX_POSITIONS, RopeConfig, read_rope

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HARMLESS", "ModelConfig", "RopeConfig"]

ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "smollm3"]
CODE: Final = "E_MODEL_CONFIG"
MAX_WIDTH: Final = 65536
MAX_INTERMEDIATE: Final = 2**20
MAX_VOCAB: Final = 2**20

ARCHITECTURES: Final[dict[str, str]] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}

# Name -> why leaving it aside cannot change a score. The values are not looked at.
HARMLESS: Final[dict[str, str]] = {
    "transformers_version": "who wrote the file",
    "_name_or_path": "where the writer had the model",
    "torch_dtype": "the tensors carry their own dtypes",
    "dtype": "the tensors carry their own dtypes",
    "use_cache": "a choice of the generation loop",
    "initializer_range": "for new weights only; ours are all read",
    "attention_dropout": "acts in transformers' training mode only; we use no attention dropout",
    "pad_token_id": "nothing is padded with a token that could be attended to",
    "_attn_implementation": "names a transformers code path; ours is our own",
    "_attn_implementation_autoset": "names a transformers code path; ours is our own",
    "attn_implementation": "names a transformers code path; ours is our own",
    "output_attentions": "what transformers returns, not what it computes",
    "output_hidden_states": "what transformers returns, not what it computes",
    "return_dict": "what transformers returns, not what it computes",
    "chunk_size_feed_forward": "memory of transformers' MLP, not its result",
    "id2label": "for classifiers; the architecture is checked",
    "label2id": "for classifiers; the architecture is checked",
    "problem_type": "for classifiers; the architecture is checked",
    "is_llama_config": "a note of SmolLM's exporter",
    "transformers.js_config": "settings of a browser runtime",
    "unsloth_fixed": "a mark of re-uploads",
    "unsloth_version": "a mark of re-uploads",
    "model_max_length": "the tokenizer's limit, read with the tokenizer",
    "temperature": "a generation setting",
    "top_p": "a generation setting",
    "top_k": "a generation setting",
    "do_sample": "a generation setting",
    "max_length": "a generation setting",
    "max_new_tokens": "a generation setting",
    "repetition_penalty": "a generation setting",
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder.

    Attributes:
        model_type: `llama`, `mistral`, `qwen2`, `qwen3` or `smollm3`.
        vocab_size: Rows of the embedding and of the head.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; divides `num_attention_heads`.
        head_dim: Width of a head; need not be hidden_size / num_attention_heads.
        rms_norm_eps: Added to the mean square in every norm.
        rope: Rotary position settings.
        uses_rope: For each layer, whether positions turn its queries and keys (SmolLM3: not in all).
        attention_bias: Whether q, k, v have biases.
        attention_output_bias: Whether o has one.
        mlp_bias: Whether gate, up, down have biases.
        qk_norm: Whether q and k heads are normed before rope (Qwen3).
        tie_word_embeddings: Whether the head is the embedding table.
        sliding_windows: For each layer, how many keys a query sees, itself included; None: all
            before it.
        max_position_embeddings: Context length, tokens.
        quantization: How the checkpoint itself is quantized, or None.
        bos_token_id: Beginning-of-text token, or None.
        eos_token_ids: Tokens that end a text; may be empty.
    """

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    uses_rope: tuple[bool, ...]
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    max_position_embeddings: int
    quantization: Literal["bnb-nf4"] | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str | None = None) -> ModelConfig:
        """Read the object in a config.json.

        Args:
            values: The object.
            where: The file's name, for messages.

        Raises:
            ModelRefusedError: Code E_MODEL_CONFIG; names the field, its value and what is
                supported.
        """
        fields = Fields(values, where=where, code=CODE)
        model_type = _read_model_type(fields)
        _refuse_other_architectures(fields)
        num_layers = fields.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
        max_positions = fields.integer("max_position_embeddings", low=1, high=MAX_POSITIONS)
        vocab_size = fields.integer("vocab_size", low=1, high=MAX_VOCAB)
        attention_bias = _read_attention_bias(fields, model_type)
        if model_type not in ("llama", "smollm3"):
            fields.only("mlp_bias", [False])
        uses_rope = read_uses_rope(fields, model_type, num_layers)
        config = cls(
            model_type=model_type,
            vocab_size=vocab_size,
            hidden_size=fields.integer("hidden_size", low=1, high=MAX_WIDTH),
            intermediate_size=fields.integer("intermediate_size", low=1, high=MAX_INTERMEDIATE),
            num_layers=num_layers,
            num_attention_heads=fields.integer("num_attention_heads", low=1, high=MAX_WIDTH),
            num_key_value_heads=_read_num_key_value_heads(fields, model_type),
            head_dim=_read_head_dim(fields, model_type),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            rope=read_rope(
                fields,
                max_position_embeddings=max_positions,
                default_theta=2e6 if model_type == "smollm3" else DEFAULT_THETA,
            ),
            uses_rope=uses_rope,
            attention_bias=attention_bias,
            attention_output_bias=attention_bias and model_type != "qwen2",
            mlp_bias=fields.boolean("mlp_bias", default=False),
            qk_norm=model_type == "qwen3",
            tie_word_embeddings=fields.boolean(
                "tie_word_embeddings", default=model_type == "smollm3"
            ),
            sliding_windows=read_windows(fields, model_type, uses_rope),
            max_position_embeddings=max_positions,
            quantization=_read_quantization(fields),
            bos_token_id=next(iter(read_token_ids(fields, "bos_token_id", vocab_size)), None),
            eos_token_ids=read_token_ids(fields, "eos_token_id", vocab_size),
        )
        fields.finish(HARMLESS)
        return config

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `config.json` in a model's folder.

        Raises:
            ModelRefusedError: See `from_dict`; also a file that is not there or not JSON.
        """
        hint = "a model's folder has config.json and *.safetensors"
        path = plain_file(folder, "config.json", code=CODE, hint=hint)
        return cls.from_dict(read_json_object(path, code=CODE), where=str(path))


def _read_model_type(fields: Fields) -> ModelType:
    value = fields.get("model_type")
    if not isinstance(value, str) or value not in ARCHITECTURES:
        fields.refuse("model_type", ", ".join(ARCHITECTURES))
    return value  # type: ignore[return-value]


def _refuse_other_architectures(fields: Fields) -> None:
    """Refuse what is not a plain causal language model of one of the types.

    `auto_map` names Python code that comes with a model, which we never run. It is harmless where
    `architectures` names a class of transformers' own: without trust_remote_code transformers runs
    its class too. Else the code is the model.
    """
    model_type = fields.get("model_type")
    name = ARCHITECTURES[model_type]
    fields.only("architectures", [[name], None])
    if not fields.is_null("auto_map") and fields.is_null("architectures"):
        fields.refuse("auto_map", f'no code of the model\'s own, or `architectures` ["{name}"]')
    fields.only("hidden_act", ["silu"])
    if model_type == "smollm3":
        fields.get("pretraining_tp", None)  # 2 in SmolLM3-3B, where nothing reads it
    else:
        fields.only("pretraining_tp", [1, None])
    fields.only("rope_interleaved", [False])
    fields.only("is_decoder", [False, True])
    for other in ("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"):
        fields.only(other, [False])
    fields.only("pruned_heads", [{}, None])


def _read_num_key_value_heads(fields: Fields, model_type: ModelType) -> int:
    """Read the key heads. Null, and in Llama an absent field, mean one for each query head."""
    heads = fields.integer("num_attention_heads", low=1, high=MAX_WIDTH)
    name = "num_key_value_heads"
    if fields.get(name, *([None] if model_type == "llama" else [])) is None:
        return heads
    number = fields.integer(name, low=1, high=heads)
    if heads % number:
        fields.refuse(name, f"a divisor of `num_attention_heads`, {heads}")
    return number


def _read_head_dim(fields: Fields, model_type: ModelType) -> int:
    """Read the width of a head, by default hidden_size / num_attention_heads, in Qwen3 128."""
    hidden = fields.integer("hidden_size", low=1, high=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", low=1, high=MAX_WIDTH)
    if fields.get("head_dim", 128 if model_type == "qwen3" else None) is not None:
        head_dim = fields.integer("head_dim", 128, low=2, high=1024)
    elif hidden % heads:
        fields.refuse("hidden_size", f"a multiple of `num_attention_heads`, {heads}")
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        name = "head_dim" if "head_dim" in fields.values else "num_attention_heads"
        fields.refuse(name, f"heads of an even width (it is {head_dim}): rope turns pairs")
    return head_dim


def _read_attention_bias(fields: Fields, model_type: ModelType) -> bool:
    """Whether q, k, v have biases: always in Qwen2, never in Mistral, elsewhere a field."""
    if model_type in ("qwen2", "mistral"):
        fields.only("attention_bias", [model_type == "qwen2"])
        return model_type == "qwen2"
    return fields.boolean("attention_bias", default=False)


def _read_quantization(fields: Fields) -> Literal["bnb-nf4"] | None:
    """Read `quantization_config`: bitsandbytes NF4, double quantization, bytes; or nothing."""
    values = fields.get("quantization_config", None)
    if values is None:
        return None
    if not isinstance(values, dict):
        fields.refuse("quantization_config", "an object or null")
    inner = Fields(values, where=fields.where, code=CODE, prefix="quantization_config.")
    for name, supported in (
        ("quant_method", "bitsandbytes"),
        ("load_in_4bit", True),
        ("bnb_4bit_quant_type", "nf4"),
        ("bnb_4bit_use_double_quant", True),
    ):
        inner.get(name)  # the defaults of bitsandbytes are other ones (fp4, no double quantization)
        inner.only(name, [supported])
    inner.only("bnb_4bit_quant_storage", ["uint8"])
    inner.only("load_in_8bit", [False])
    inner.only("_load_in_4bit", [True])
    inner.only("_load_in_8bit", [False])
    # The rest steers 8-bit layers, or which layers were quantized, which the tensors themselves
    # show.
    inner.finish(
        (
            "bnb_4bit_compute_dtype",
            "llm_int8_enable_fp32_cpu_offload",
            "llm_int8_has_fp16_weight",
            "llm_int8_skip_modules",
            "llm_int8_threshold",
        )
    )
    return "bnb-nf4"


def read_token_ids(fields: Fields, name: str, vocab_size: int) -> tuple[int, ...]:
    """Read a token id or a list of them; null is none."""
    value = fields.get(name, None)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or not 0 <= token < vocab_size for token in ids):
        fields.refuse(name, f"ids from 0 to {vocab_size - 1}")
    return tuple(ids)
