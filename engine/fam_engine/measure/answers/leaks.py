"""Whether a rewritten answer betrays that there was another one.

In: a text. Out: the words that do, or None. A model asked to restate a reference answer should give an answer, not
talk about the reference: "the reference answer", "the ground truth", "as provided", "here is the rewritten solution".
Data trained on such texts teaches to speak of an answer nobody has seen. Talk of the *question*'s content ("as given
in the problem", "the given information") is fine, and so are salt solutions.
"""

from __future__ import annotations

import re

_ANSWER = r"(?:answers?|solutions?|responses?|explanations?|rationales?|predictions?)"
_ABOUT = r"(?!\s+(?:options?|choices?|set|space|key)\b)"
_PATTERNS = re.compile(
    rf"""(?ix)
      \bground[ _-]?truths?\b
    | \b(?:reference|gold(?:en)?|model|sample|provided|suggested|human[- ]written)\s+{_ANSWER}\b{_ABOUT}
    | \b(?:original|previous|prior|official)\s+(?:answer|response|explanation|rationale|prediction)s?\b{_ABOUT}
    | \b(?:the|your)\s+previous\s+(?:solution|attempt)\b
    | \b(?:the|your|this|that)\s+given\s+(?:answer|explanation|rationale|response)\b{_ABOUT}
    | \b(?:the|your)\s+given\s+solution\b(?!\s+(?:of|is\s+(?:acidic|basic|neutral|saturated|diluted)))
    | \b{_ANSWER}\s+(?:(?:that\s+)?(?:was|were|is|you(?:['\u2019]ve|\s+have)?)\s+)?(?:provided|supplied)\b
        (?!\s+(?:that|by\s+the\s+(?:question|problem)|in\s+the\s+(?:question|problem|passage|text)))
    | \bas\s+(?:provided|supplied)\b(?!\s+(?:in|by|to|for)\s+(?:the|this|each|a)\b)
    | \b(?:re-?written|rephrased|restated|paraphrased|re-?worded|corrected|transformed|revised)\s+{_ANSWER}\b
    | \bhere(?:\s+is|['\u2019]s)\s+(?:the|a|my)\s+(?:\w+\s+)?
        (?:re-?written|rephrased|restated|paraphrased|re-?worded|corrected|transformed|revised|modified)\b
    | \bin\s+(?:my|your)\s+own\s+words\b
    | \bminimum[ ]changed?\b
    """
)


def mentions_reference(text: str) -> str | None:
    """Give the first words of a text that refer to an answer it was made from; None if there are none."""
    found = _PATTERNS.search(text)
    return found[0] if found else None
