"""What the model card says: nothing that is not so on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fam_engine.jobs.training.card import metadata, model_card
from tests.jobs.training.conftest import Train


@pytest.fixture
def summary(train: Train) -> dict[str, Any]:
    return train(steps=2, validation_share=0.3, patience=3).summary


def card_with(summary: dict[str, Any], **settings: object) -> str:
    return model_card({**summary, "settings": summary["settings"] | settings})


def test_a_folder_is_no_id_of_the_hub(summary: dict[str, Any]) -> None:
    card = card_with(summary, model="models/Qwen2.5-0.5B")
    assert "base_model" not in card
    assert "Trained with fam-engine" in card
    assert " on `Qwen2.5-0.5B`." in card
    assert 'from_pretrained("Qwen2.5-0.5B")' in card
    assert "models/" not in card


def test_an_id_of_the_hub_is_whole(summary: dict[str, Any]) -> None:
    settings = {"model": "Qwen/Qwen2.5-0.5B", "revision": "060db64", "download": True}
    card = card_with(summary, **settings)
    assert card.startswith("---\nbase_model: Qwen/Qwen2.5-0.5B\nbase_model_relation: adapter\n")
    assert " on `Qwen/Qwen2.5-0.5B` (revision `060db64`)." in card
    assert 'from_pretrained("Qwen/Qwen2.5-0.5B")' in card
    assert "score --model Qwen/Qwen2.5-0.5B --adapter adapter --download --data" in card
    told = metadata({**summary, "settings": summary["settings"] | settings})
    assert '"model": "Qwen/Qwen2.5-0.5B"' in told


def test_prompts_and_length_of_the_training_are_told(summary: dict[str, Any]) -> None:
    card = card_with(
        summary, template="/home/me/chatml.jinja", chat_template_kwargs={"enable_thinking": False}
    )
    assert "| template | chatml.jinja |" in card
    assert '| chat_template_kwargs | {"enable_thinking": false} |' in card
    assert (
        "--template chatml.jinja --chat-template-kwargs '{\"enable_thinking\": false}' --data"
        in card
    )
    assert "/home" not in card
    assert "| steps | 2 |" in card
    assert "| validation_share | 0.3 |" in card
    assert "| patience | 3 |" in card
    plain = model_card(summary)
    assert "| template | auto |" in plain
    assert "--template" not in plain
    assert "chat_template_kwargs" not in plain
    assert "| epochs |" not in plain


def test_the_length_is_told_also_if_nobody_chose_one(summary: dict[str, Any]) -> None:
    card = card_with(summary, steps=None)
    assert "| epochs | 3.0 |" in card
    assert "| steps |" not in card
    assert "| epochs | 0.5 |" in card_with(summary, steps=None, epochs=0.5)


def test_a_loss_that_keeps_no_token_is_remarked_on(
    train: Train, summary: dict[str, Any], tmp_path: Path
) -> None:
    assert "next to nothing" not in model_card(summary)
    changes = {"loss": "stm", "max_token_perplexity": 1.0, "out": tmp_path / "stm"}
    card = model_card(train(steps=2, **changes).summary)
    assert "gave the tokens 0% of their weight, so next to nothing was learnt" in card


def test_answers_that_grew_more_surprising_are_remarked_on(train: Train) -> None:
    card = model_card(train(learning_rate=30.0, schedule="constant", steps=3).summary)
    assert "more surprising at the end than at first: a lower --learning-rate" in card
