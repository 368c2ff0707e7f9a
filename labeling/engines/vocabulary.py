"""The first token of a text by a model's own vocabulary, for engines that tell tokens by their text only."""

import re
from collections.abc import Sequence

from labeling.engines.protocol import FirstToken

# As byte-level models cut a text before they merge: "_" is a sign like others, and the last space goes with the word.
_WORD = re.compile(r" ?[^\W\d_]+| ?\d| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


class Vocabulary:
    """Byte pair encoding of the first word of a text.

    Args:
        tokens: Token texts as GGUF has them.
        byte_level: Texts are printable stand-ins of bytes (GPT-2's kind); otherwise U+2581 stands for a space.
        merges: Pairs of pieces in the order in which they are merged (byte-level vocabularies).
        scores: One a token; pieces that make the highest one are merged first (SentencePiece vocabularies).

    Source: Sennrich et al. (2016), ACL; GPT-2's byte map.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        byte_level: bool,
        merges: Sequence[str] | None = None,
        scores: Sequence[float] | None = None,
    ) -> None:
        self._byte_level = byte_level
        self._known = set(tokens)
        self._ranks: dict[str, float] = {}
        if merges:
            for rank, merge in enumerate(merges):
                self._ranks.setdefault(merge, float(rank))
        elif scores:
            self._scores = dict(zip(tokens, scores, strict=False))
        self._by_scores = not merges and bool(scores)

    def first_token(self, text: str) -> FirstToken:
        """The token a text starts with; its text holds U+FFFD where the token is a part of a character."""
        word = _WORD.match(text)
        pieces = self._pieces(word[0] if word else text)
        first = self._plain(pieces[0])
        return FirstToken(-1, first, first == text)

    def _pieces(self, word: str) -> list[str]:
        spelled = (
            "".join(_STAND_INS[byte] for byte in word.encode("utf-8"))
            if self._byte_level
            else word.replace(" ", "\u2581")
        )
        if not self._ranks and not self._by_scores:  # no word on how it merges: the longest token that fits
            start = next((end for end in range(len(spelled), 0, -1) if spelled[:end] in self._known), 1)
            return [spelled[:start]]
        pieces = list(spelled)
        while len(pieces) > 1:
            order = [self._order(left, right) for left, right in zip(pieces, pieces[1:], strict=False)]
            best = min(order)
            if best == _NEVER:
                break
            at = order.index(best)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces

    def _order(self, left: str, right: str) -> float:
        if self._by_scores:
            return -self._scores.get(left + right, -_NEVER)
        return self._ranks.get(f"{left} {right}", _NEVER)

    def _plain(self, piece: str) -> str:
        if not self._byte_level:
            return piece.replace("\u2581", " ")
        return bytes(_BYTES[sign] for sign in piece).decode("utf-8", "replace")


_NEVER = float("inf")


def _stand_ins() -> dict[int, str]:
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + turn) for turn, byte in enumerate(hidden)}


_STAND_INS = _stand_ins()
_BYTES = {sign: byte for byte, sign in _STAND_INS.items()}
