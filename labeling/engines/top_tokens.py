"""What engines share that tell a few tokens and by their text only: label scores, and checks of what they sent."""

from collections.abc import Iterable, Sequence
from math import exp, fsum, log

from labeling.engines.http import finite
from labeling.engines.protocol import LEAST_REPORTED, UNREPORTED, LabelCode
from schemas.errors import EngineError, NoLabelTold, PromptTooLong

ROUNDING = 1e-3
# What common models read as commands, for servers that do not tell their vocabulary.
COMMON_MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<bos>", "<eos>"),
)
MOST_IN_ALL = 1.01
LEAST_START = 3  # " a" begins many words beside a label


def label_log_probs(
    top: Iterable[tuple[str, float]], codes: Sequence[LabelCode], *, where: str
) -> tuple[tuple[float, ...], float, bool]:
    """Raw log-probabilities of the label codes, the label mass, and whether the likeliest token is a label's.

    A code whose first token is known is that token exactly, so that every engine reads the same. Where it is not known,
    every token of three letters or more that begins one label only counts for it, with and without the leading space.
    A label that is not told is `UNREPORTED`: how far below the least told one it is, nobody knows.

    Args:
        top: (token text, natural log-probability) of the most likely tokens at the position after the prompt.
        where: Address for the error.

    Raises:
        NoLabelTold: no label is among the tokens.
        EngineError: no token, a label's token twice, a log-probability above 0, all of them 0 (speculative decoding),
            or probabilities of more than 1 in all.
    """
    told = list(top)
    above = next((log_prob for _, log_prob in told if log_prob > ROUNDING), None)
    if above is not None:
        raise _unusable(where, f"log-probability {above:g}", "a probability")
    if not told:
        raise _unusable(where, "no log-probabilities", "those of the most likely tokens (too old a server?)")
    if len(told) > 1 and all(value == 0.0 for _, value in told):
        raise _unusable(where, "log-probabilities that are all 0", "real ones (is speculative decoding on?)")
    if (whole := fsum(exp(value) for _, value in told)) > MOST_IN_ALL:
        raise _unusable(where, f"probabilities of {whole:.2f} in all", "at most 1")
    shares: list[list[float]] = [[] for _ in codes]
    counted: set[str] = set()
    for text, log_prob in told:
        owner = _owner(text, codes)
        # Others may read alike: of a token that ends within a character, Ollama tells what stands before (" ").
        if owner is not None and text in counted:
            raise _unusable(where, f"token {text!r} twice", "each token once")
        counted.add(text)
        # vLLM says -9999 for "impossible": that is as good as not told.
        if owner is not None and log_prob > LEAST_REPORTED:
            shares[owner].append(exp(log_prob))
    if not any(shares):
        likely = ", ".join(repr(text) for text, _ in told[:3])
        raise NoLabelTold(
            where,
            found=f"no label among the {len(told)} most likely tokens ({likely})",
            expected="one at least",
            next_step="Another prompt may help (`countersign compare`), or a common `word` for each label.",
        )
    log_probs = tuple(log(fsum(share)) if share else UNREPORTED for share in shares)
    label_first = _owner(max(told, key=lambda pair: pair[1])[0], codes) is not None
    return log_probs, min(1.0, fsum(value for share in shares for value in share)), label_first


def told_pairs(pairs: Iterable[tuple[object, object]], *, where: str) -> list[tuple[str, float]]:
    """Tokens and log-probabilities as a server sent them, checked to be texts and finite numbers."""
    top: list[tuple[str, float]] = []
    for token, value in pairs:
        number = finite(value)
        if not isinstance(token, str) or number is None:
            found = f"token {str(token)[:50]!r} with {str(value)[:50]!r}"
            raise _unusable(where, found, "a text and a finite number")
        top.append((token, number))
    return top


def check_count(counted: object, *, name: str, context: int, where: str) -> None:
    """Checks the server's own count of a prompt's tokens.

    Raises:
        EngineError: there is none, or it is no count.
        PromptTooLong: it fills the context: a prompt that is cut is cut to that.
    """
    number = finite(counted)
    if number is None or number < 1 or number != int(number):
        found = f"no {name}" if counted is None else f"{name} {str(counted)[:50]}"
        raise _unusable(where, found, "how many tokens were read")
    if number > context - 2:
        raise too_long(where, f"{number:g} tokens read, which fills the context", context)


def too_long(where: str, found: str, context: int) -> PromptTooLong:
    """The error of a prompt that does not fit."""
    return PromptTooLong(
        where,
        found=found,
        expected=f"at most {context - 2} tokens (engine.context)",
        next_step="Choose prompts.over_long: head_tail or windows, or a larger engine.context.",
    )


def _owner(text: str, codes: Sequence[LabelCode]) -> int | None:
    exact = [index for index, code in enumerate(codes) if code.token and code.token == text]
    if exact:
        return exact[0]
    begun = text.strip()
    same = [index for index, code in enumerate(codes) if not code.token and code.text.strip() == begun]
    if same or len(begun) < LEAST_START:
        return same[0] if same else None
    owners = [
        index for index, code in enumerate(codes) if not code.token and code.text.strip().startswith(begun)
    ]
    return owners[0] if len(owners) == 1 else None


def _unusable(where: str, found: str, expected: str) -> EngineError:
    return EngineError(where, found=found, expected=expected, next_step="The record is set aside.")
