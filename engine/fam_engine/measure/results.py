"""What a model says about each token of a record: the raw material of every score.

In: the columns the head computed, one value a predicted token. Out: `TokenFacts`, cut per record; where somebody asks
what the model would have said instead, `TopTokens` too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenFacts:
    """Facts about n predicted tokens, in the order of a batch's rows.

    Attributes:
        logprobs: float64[n], nats.
        ranks: int32[n]: 1 + the number of other tokens with a strictly larger logit, at most 100.
        entropies: float64[n], nats, of the model's prediction at that place.
        margins: float64[n], nats: log-prob of the token minus that of the best other token.
    """

    logprobs: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int32]
    entropies: npt.NDArray[np.float64]
    margins: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return n."""
        return len(self.logprobs)

    def slice(self, start: int, stop: int) -> TokenFacts:
        """Return the facts of tokens start to stop - 1, as views."""
        return TokenFacts(
            logprobs=self.logprobs[start:stop],
            ranks=self.ranks[start:stop],
            entropies=self.entropies[start:stop],
            margins=self.margins[start:stop],
        )


@dataclass(frozen=True)
class TopTokens:
    """The k most probable tokens at n places, the most probable first.

    Attributes:
        token_ids: int32[n, k].
        logprobs: float64[n, k], nats.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float64]

    def slice(self, start: int, stop: int) -> TopTokens:
        """Return places start to stop - 1, as views."""
        return TopTokens(self.token_ids[start:stop], self.logprobs[start:stop])
