"""What lies beside the adapter's two files: a model card for people, `fam_engine.json` for programs.

In: the summary of a finished run. Out: texts. The card says what was measured and nothing else: no field is filled with
a placeholder, no number is given without what it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from fam_engine.jobs.training.order import DEFAULT_EPOCHS
from fam_engine.measure.metrics import perplexity
from fam_engine.report.wording import plain

CARD, METADATA = "README.md", "fam_engine.json"

_SHOWN = (
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "rslora",
    "loss",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup",
    "weight_decay",
    "optimizer",
    "max_grad_norm",
    "precision",
    "compute_dtype",
    "train_on",
    "template",
    "chat_template_kwargs",
    "epochs",
    "steps",
    "validation_share",
    "validate_every",
    "patience",
    "seed",
)
_PLACES = ("out", "data", "validation")
_LOSS_SETTINGS = {
    "stm": ("max_token_perplexity",),
    "soft": ("max_token_perplexity",),
    "excess": ("min_excess",),
}


def metadata(summary: Mapping[str, Any]) -> str:
    """Give `fam_engine.json`: what the adapter was made from and how, for programs."""
    names = ("examples", "training", "validation", "key")
    chosen = {name: summary[name] for name in names}
    told = {**chosen, "settings": _portable(summary["settings"])}
    return json.dumps(told, indent=1, allow_nan=False) + "\n"


def model_card(summary: Mapping[str, Any]) -> str:
    """Give the model card, Markdown with the hub's YAML header."""
    settings = _portable(summary["settings"])
    shown = [*_SHOWN, *_LOSS_SETTINGS.get(settings["loss"], ())]
    in_force = _with_length(settings)
    sections = [
        _header(settings),
        "# LoRA adapter",
        f"Trained with fam-engine {summary['key']['versions']['fam-engine']} "
        f"on `{settings['model']}`"
        + (f" (revision `{settings['revision']}`)." if settings["revision"] else "."),
        "## Data",
        _data(summary),
        "## Results",
        _results(summary),
        "## Settings",
        _table(
            ("setting", "value"),
            [(name, _plain(in_force[name])) for name in shown if in_force[name] not in (None, {})],
        ),
        "## Use",
        _use(settings),
        "## Limits",
        "The figures above are about these answers only. Whether the model got better at a task, "
        "or worse at others, is for `fam-engine eval` to measure."
        + (_NF4_LIMIT if settings["precision"] == "nf4" else ""),
    ]
    return "\n\n".join(sections) + "\n"


_NF4_LIMIT = (
    " It was trained over 4-bit weights (NF4): over 16-bit weights the same adapter gives slightly "
    "other figures; `fam-engine export --verify` measures them."
)


def _header(settings: Mapping[str, Any]) -> str:
    lines = ["library_name: peft", "tags:", "- lora", "- fam-engine"]
    # The hub takes an id there, never a path.
    if settings["revision"]:
        lines = [f"base_model: {settings['model']}", "base_model_relation: adapter", *lines]
    return "\n".join(["---", *lines, "---"])


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings without folders, which stay on their machine; the key names the files by their hashes."""
    kept = {name: value for name, value in settings.items() if name not in _PLACES}
    template = PurePath(settings["template"]).name
    # With a revision it is an id of the hub.
    model = settings["model"] if settings["revision"] else PurePath(settings["model"]).name
    return {**kept, "model": model, "template": template}


def _with_length(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the settings with the length of the training, also where nobody chose one."""
    is_default = settings["epochs"] is None and settings["steps"] is None
    return {**settings, "epochs": DEFAULT_EPOCHS} if is_default else settings


def _data(summary: Mapping[str, Any]) -> str:
    examples = summary["examples"]
    rows = [(plain(name), f"{count:,}") for name, count in summary["sources"].items()]
    files = zip(summary["settings"]["data"], summary["key"]["data"], strict=True)
    hashes = "\n".join(
        f"- {plain(PurePath(name).name)}, SHA-256 `{digest}`" for name, digest in files
    )
    said = (
        f"{examples['trained']:,} answers, {summary['training']['tokens_an_epoch']:,} supervised "
        f"tokens an epoch (answers and end of turn); {examples['validation']:,} more for "
        f"validation; {examples['quarantined']:,} left out."
    )
    return f"{said}\n\n{_table(('source', 'answers trained on'), rows)}\n\n{hashes}"


def _results(summary: Mapping[str, Any]) -> str:
    training, validation = summary["training"], summary["validation"]
    rows = [
        ("training answers, first steps", _nats(training["nll_first"])),
        (f"training answers, last steps (of {training['steps']:,})", _nats(training["nll_last"])),
    ]
    if validation is not None:
        chosen = f"validation answers, this adapter (step {validation['best_step']:,})"
        rows += [
            ("validation answers, before", _nats(validation["before"])),
            (chosen, _nats(validation["best"])),
        ]
    table = _table(("token-weighted perplexity", "value"), rows)
    notes = "".join(f"\n\n{note}" for note in summary["remarks"])
    return table + notes


def _use(settings: Mapping[str, Any]) -> str:
    base = settings["model"]
    options = ["--download"] if settings["revision"] else []
    # Other prompts than it was trained on would give other figures.
    if settings["template"] != "auto":
        options.append(f"--template {settings['template']}")
    if settings["chat_template_kwargs"]:
        options.append(f"--chat-template-kwargs '{json.dumps(settings['chat_template_kwargs'])}'")
    line = " ".join([f"--model {base} --adapter adapter", *options, "--data FILE --out OUT"])
    ours = f"`fam-engine score {line}`"
    if base == "embedded":  # it comes with fam-engine alone
        return ours
    return (
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "adapter")\n'
        "```\n\n"
        f"or {ours}."
    )


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {a} | {b} |" for a, b in (head, ("---", "---"), *rows)]
    return "\n".join(line.replace("\n", " ") for line in lines)


def _nats(nll: float) -> str:
    value = perplexity(nll)
    return f"{'beyond float64' if value is None else f'{value:,.3f}'} ({nll:.4f} nats a token)"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
