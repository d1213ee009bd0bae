"""Make the demo's records from GSM8K's released example solutions (MIT).

In: `example_model_solutions.jsonl` of OpenAI's grade-school-math. Out: `demo/answers.jsonl`, five answers a question,
one by a person and four by models, each marked right or wrong.

    python -m fam_engine.embedded.make_demo_records example_model_solutions.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fam_engine.embedded import DEMO_RECORDS

NUM_QUESTIONS = 200
# A few solutions run away (0.333333...), past the positions the embedded model was trained on.
MAX_CHARS = 600
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def records(solutions: Path) -> Iterator[dict[str, Any]]:
    """Give the records of the first questions that have all five answers."""
    count = 0
    with solutions.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            solutions_of = [row[model]["solution"] for model in MODELS]
            if count == NUM_QUESTIONS or not all(0 < len(s) <= MAX_CHARS for s in solutions_of):
                continue
            count += 1
            answers = {"human": (row["ground_truth"], True)}
            for model in MODELS:
                answers[f"gpt3-{model.replace('_', '-')}"] = (
                    row[model]["solution"],
                    row[model]["is_correct"],
                )
            for source, (response, correct) in answers.items():
                yield {
                    "id": f"gsm8k-test-{number}/{source}",
                    "prompt": f"{row['question']}\n",
                    "response": response,
                    "source": source,
                    "correct": correct,
                }


def main() -> None:
    """Write the file."""
    DEMO_RECORDS.parent.mkdir(exist_ok=True)
    with DEMO_RECORDS.open("w", encoding="utf-8", newline="\n") as file:
        for record in records(Path(sys.argv[1])):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
