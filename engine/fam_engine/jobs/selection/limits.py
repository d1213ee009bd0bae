"""Records taken in order while every question has one answer at most and every source so many.

In: source and question of each record, in the order of taking, the room of each source, and how many are wanted. Out:
which record each question has. Records are taken one after the other. Where that leaves a question without an answer
because its sources are full, an answered one goes over to another of its sources, which has room or gets it the same
way (augmenting paths, the shortest first). So as many questions have an answer as can have one.

What goes over falls back in the order as little as any that could. The most familiar of all selections of that size is
not looked for: a minimum-cost flow takes minutes where this takes seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from fam_engine.measure.statistics import Ints


class Taking:
    """Takes records.

    Args:
        sources: int64[k], source of each record, in the order of taking.
        questions: int64[k], its question, any numbering from 0; None: each is its own.
        room: Most records of each source.
        size: Most records in all.

    Attributes:
        room: What is left of it.
        count: Records taken.
        closed: Sources that are full and can get no room, where fewer than `size` are taken.
    """

    def __init__(
        self, sources: Ints, questions: Ints | None, room: Sequence[int], size: int
    ) -> None:
        self.room = list(room)
        self.count = 0
        self.closed: set[int] = set()
        self._size = size
        self._sources: list[int] = sources.tolist()
        own = np.arange(len(sources)) if questions is None else questions
        self._questions: list[int] = own.tolist()
        # The place of the record each question has.
        self._held = [-1] * (int(own.max(initial=-1)) + 1)
        # To a source, from another: places lost in the order, and the record gone over to.
        self._moves: dict[int, dict[int, list[tuple[int, int]]]] = {}
        self._ways: dict[int, int] = {}
        self._take_in_order()
        if questions is None:
            self.closed = {source for source, left in enumerate(self.room) if not left}
        elif self.count < size:
            self._make_room()

    def held(self) -> Ints:
        """Give, for each record, the place of the one that its question has, -1: none."""
        return np.array(self._held, np.int64)[self._questions]

    def _take_in_order(self) -> None:
        for place, (source, question) in enumerate(
            zip(self._sources, self._questions, strict=True)
        ):
            if self.count == self._size:
                return
            if self._held[question] < 0 and self.room[source]:
                self._held[question] = place
                self.room[source] -= 1
                self.count += 1

    def _make_room(self) -> None:
        self._answers: list[list[int]] = [[] for _ in self._held]
        for place, question in enumerate(self._questions):
            answers = self._answers[question]
            if all([self._sources[other] != self._sources[place] for other in answers]):
                answers.append(place)
        for question, place in enumerate(self._held):
            if place >= 0:
                self._note_moves(question)
        self._find_ways()
        for question in dict.fromkeys(self._questions):
            if self.count == self._size:
                return
            if self._held[question] < 0:
                self._answer(question)
        self.closed = set(range(len(self.room))) - self._ways.keys()

    def _note_moves(self, question: int) -> None:
        """Note where a question could go over to, and how many places it would lose in the order."""
        held = self._held[question]
        source = self._sources[held]
        for place in self._answers[question]:
            if (target := self._sources[place]) != source:
                moves = self._moves.setdefault(target, {}).setdefault(source, [])
                heappush(moves, (place - held, place))

    def _first_move(self, source: int, target: int) -> int:
        """Give the record of the target that one of the source is given up for; -1: there is none."""
        moves = self._moves.get(target, {}).get(source, [])
        while moves:
            place = moves[0][1]
            if self._sources[self._held[self._questions[place]]] == source:
                return place
            heappop(moves)  # that question has gone elsewhere since
        return -1

    def _find_ways(self) -> None:
        """Find, for each source, the next one on its shortest way to room; those without a way never get one."""
        self._ways = {source: source for source, left in enumerate(self.room) if left}
        queue = deque(self._ways)
        while queue:
            target = queue.popleft()
            for source in self._moves.get(target, ()):
                if source not in self._ways and self._first_move(source, target) >= 0:
                    self._ways[source] = target
                    queue.append(source)

    def _answer(self, question: int) -> None:
        """Give a question the first of its records whose source has room or can get it."""
        while True:
            answers = (p for p in self._answers[question] if self._sources[p] in self._ways)
            place = next(answers, -1)
            if place < 0:
                return
            if path := self._path(place):
                self.room[self._sources[path[-1]]] -= 1
                self.count += 1
                for taken in path:
                    self._held[self._questions[taken]] = taken
                for taken in path:
                    self._note_moves(self._questions[taken])
                return
            self._find_ways()

    def _path(self, place: int) -> list[int]:
        """Give the records to take so that this one may be; none where a way no longer holds."""
        path = [place]
        source = self._sources[place]
        while not self.room[source]:
            target = self._ways[source]
            place = self._first_move(source, target)
            if place < 0:
                return []
            path.append(place)
            source = target
        return path
