"""Several servers of one model as one engine: work goes to whoever is free, a dead one costs no record."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from labeling.engines.protocol import Engine, FirstToken, Identity, LabelCode, LabelScores, Tokens
from labeling.engines.structured import Schema
from schemas.errors import EngineError, EngineUnavailable

FIRST_REST_S = 15.0
LONGEST_REST_S = 600.0
MOST_DOUBLINGS = 6
MOST_USELESS = 3
Answer = TypeVar("Answer")


class Fleet:
    """Engines that are the same model, quantization and version.

    Each lane of work belongs to one member. A member that does not answer rests, longer each time; its lanes ask the
    others meanwhile, and one of them looks whether it is back. Lanes of a slow member simply take fewer records. After
    an answer that cannot be used, a lane tries another member, and one that gives several in a row rests too.

    Raises:
        EngineError: the members are not the same engine.
        EngineUnavailable: none of them answers.
    """

    def __init__(self, members: Sequence[Engine]) -> None:
        self._members = list(members)
        self._rests_until = [0.0] * len(members)
        self._rests = [0] * len(members)  # how often in a row
        self._looked_at = [0.0] * len(members)  # whether it is back
        self._useless = [0] * len(members)  # answers in a row that could not be used
        self._elsewhere: dict[int, int] = {}  # lane: the member that gave it one
        self._answered: set[int] = set()  # since the identity was last asked for
        self._lock = threading.Lock()
        self.slots = sum(member.slots for member in members)
        self.context = min(member.context for member in members)
        self.counts = all(member.counts for member in members)
        self.tells = min((member.tells for member in members if member.tells is not None), default=None)
        self.measures_weights = all(member.measures_weights for member in members)
        self.control_marks: Collection[str] = sorted(
            {mark for member in members for mark in member.control_marks}
        )
        # Slots of all members in turn, so that fewer lanes than slots still use every member.
        turns = max(member.slots for member in members)
        self._lanes = [
            (index, slot)
            for slot in range(turns)
            for index, member in enumerate(members)
            if slot < member.slots
        ]
        self._identity = members[0].identity()
        for member in members[1:]:
            self._same(member.identity())

    def _same(self, other: Identity) -> None:
        if other != self._identity:
            differs = [
                f"{key} {value!r} and {other.as_dict()[key]!r}"
                for key, value in self._identity.as_dict().items()
                if value != other.as_dict()[key]
            ]
            raise EngineError(
                "engine.endpoints",
                found=f"servers that differ: {'; '.join(differs)}",
                expected="the same model, quantization, context and version behind every address",
                next_step="Start them alike, or name only those that are.",
            )

    def identity(self) -> Identity:
        """Of the members that answer; one that differs from the rest is told as it is, so that the run halts.

        Raises:
            EngineUnavailable: none answers, or one that has answered since the last time does not: whose those
                answers were cannot be known any more.
        """
        answered, self._answered = self._answered, set()
        answers, gone = [], None
        for index in dict.fromkeys([*self._order(0), *answered]):
            asked = time.monotonic()
            try:
                answers.append(self._members[index].identity())
                self._woke(index)
            except EngineUnavailable as error:
                self._rest(index, asked)
                gone = error if index in answered else gone
        differs = next((answer for answer in answers if answer != self._identity), None)
        if differs is not None:
            return differs
        if gone is not None:
            raise gone
        if not answers:
            raise self._none()
        return self._identity

    def tokenize(self, text: str) -> Tokens:
        return self._told(lambda member: member.tokenize(text))

    def first_token(self, text: str) -> FirstToken:
        return self._told(lambda member: member.first_token(text))

    def _told(self, ask: Callable[[Engine], Answer]) -> Answer:
        """What any member says of a text. Some say it without their server, so that it tells nothing of who is back."""
        members = range(len(self._members))
        for index in [index for index in members if not self._rests[index]] or members:
            asked = time.monotonic()
            try:
                return ask(self._members[index])
            except EngineUnavailable:
                self._rest(index, asked)
        raise self._none()

    def _on_lane(self, slot: int, ask: Callable[[Engine, int], Answer]) -> Answer:
        lane = slot % len(self._lanes)
        own, inner = self._lanes[lane]
        turns = self._order(own)
        avoided = self._elsewhere.pop(lane, None)
        if len(turns) > 1 and avoided in turns:
            turns.remove(avoided)
            turns.append(avoided)
        for index in turns:
            member, asked = self._members[index], time.monotonic()
            try:
                answer = ask(member, inner % member.slots)
            except EngineUnavailable:
                self._rest(index, asked)
            except EngineError as error:
                if type(error) is EngineError:
                    self._elsewhere[lane] = index
                    self._useless[index] += 1
                    if self._useless[index] >= MOST_USELESS:
                        self._rest(index, asked)
                raise
            else:
                self._useless[index] = 0
                self._answered.add(index)
                self._woke(index)
                return answer
        raise self._none()

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        return self._on_lane(slot, lambda member, inner: member.score(prompt, codes, slot=inner))

    def generate(self, prompt: Tokens, schema: Schema, *, most_tokens: int, slot: int) -> Any:
        return self._on_lane(
            slot, lambda member, inner: member.generate(prompt, schema, most_tokens=most_tokens, slot=inner)
        )

    def _order(self, own: int) -> list[int]:
        """The lane's own member, then the others; those at rest only when nobody else is left."""
        now = time.monotonic()
        count = len(self._members)
        turns = [(own + step) % count for step in range(count)]
        with self._lock:
            awake = []
            for index in turns:
                if self._rests_until[index] > now:
                    continue
                if self._rests[index]:
                    # One lane of its own looks whether it is back, the others leave it alone.
                    if index != own or self._looked_at[index] + FIRST_REST_S > now:
                        continue
                    self._looked_at[index] = now
                awake.append(index)
        return awake or turns

    def _rest(self, index: int, asked: float) -> None:
        """Sends a member to rest that failed on what it was asked then; lanes that fail at once are one failure."""
        with self._lock:
            if asked < self._rests_until[index]:
                return
            now = time.monotonic()
            self._rests_until[index] = now + min(FIRST_REST_S * 2 ** self._rests[index], LONGEST_REST_S)
            self._rests[index] = min(self._rests[index] + 1, MOST_DOUBLINGS)

    def _woke(self, index: int) -> None:
        if self._rests[index]:
            with self._lock:
                self._rests[index], self._rests_until[index] = 0, 0.0

    def _none(self) -> EngineUnavailable:
        return EngineUnavailable(
            "engine.endpoints",
            found="none of the servers answers",
            expected="at least one",
            next_step="Check that the engines run.",
        )

    def prefill(self, prompt: Tokens, *, slot: int) -> tuple[int, int]:
        return self._on_lane(slot, lambda member, inner: member.prefill(prompt, slot=inner))

    def warm(self, prefix: Tokens) -> None:
        for index, member in enumerate(self._members):
            asked = time.monotonic()
            try:
                member.warm(prefix)
            except EngineUnavailable:
                self._rest(index, asked)

    def memory_mb(self) -> int | None:
        """Of one of its members; all serve the same model."""
        return self._members[0].memory_mb()

    def close(self) -> None:
        for member in self._members:
            member.close()
