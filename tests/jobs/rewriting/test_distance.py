from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fam_engine.jobs.rewriting.distance import edit_distance, similarity, words


def plain_distance(first: list[str], second: list[str]) -> int:
    """Levenshtein's recursion as it stands in books."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row = row, [i]
        for j, b in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
    return row[-1]


texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


@given(texts, texts)
def test_it_is_levenshteins(first: list[str], second: list[str]) -> None:
    assert edit_distance(first, second) == plain_distance(first, second)
    assert edit_distance(second, first) == edit_distance(first, second)


def test_words_and_signs_are_what_is_counted() -> None:
    assert words("She pays $18.") == ["She", "pays", "$", "18", "."]
    assert similarity("She pays $18.", "She pays $27.") == (1, 0.8)
    assert similarity("one two", "one two") == (0, 1.0)
    assert similarity("one", "two three") == (2, 0.0)
    assert similarity("", "one two") == (2, 0.0)
    assert similarity("", " ") == (0, 1.0)
