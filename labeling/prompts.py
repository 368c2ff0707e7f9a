"""Prompt templates: versioned files, one record a prompt, the record last.

A template is rendered with a random marker in the record's place and cut there, so the record's own characters never
pass through the template language, and everything before the record is the same bytes for every record: the engine's
prefix cache serves it.
"""

import hashlib
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from labeling import paths
from labeling.engines.protocol import FirstToken, LabelCode
from schemas.errors import PromptFileError
from schemas.project import Label, Project
from schemas.values import content_hash

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False, trim_blocks=False
)
MAX_TEMPLATE_BYTES = 100_000


@dataclass(frozen=True)
class Exemplar:
    """A reviewed record shown in a prompt."""

    record_id: str
    text: str
    label: str


@dataclass(frozen=True)
class PromptTemplate:
    """A template file, known by its name and the hash of its bytes."""

    name: str
    source: str

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the template's text: a changed prompt is a new version."""
        return hashlib.sha256(self.source.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Listing:
    """Which labels the prompt of a record lists and in which order, where that is not the same for all records.

    Attributes:
        orders: Different orders in turn, by a hash of the record; 1 = the project's own for every record.
        seed: Decides the orders.
        most: At most so many labels, those nearest to the record; None = all.
        by: Model id of the vectors that say which are nearest.
    """

    orders: int = 1
    seed: int = 0
    most: int | None = None
    by: str = ""


SAME_FOR_ALL = Listing()


@dataclass(frozen=True)
class Prompt:
    """A template bound to a label schema, codes and fixed exemplars.

    Attributes:
        prefix: Everything before the record; the same bytes for every record that lists the same labels.
        cue: Everything after it; ends where the label's token follows.
        listing: Which labels a record's own prompt lists (`labeling.label_lists`).
        context: What the template was rendered with; None where all records share the prompt.
    """

    template: PromptTemplate
    codes: tuple[LabelCode, ...]
    exemplars: tuple[Exemplar, ...]
    prefix: str
    cue: str
    listing: Listing = SAME_FOR_ALL
    context: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def prompt_id(self) -> str:
        """Content hash of all that decides what the engine reads (24 hex digits)."""
        return content_hash(self.as_dict())[:24]

    def as_dict(self) -> dict[str, object]:
        """Plain data for the content-addressed file in `prompts_used/`."""
        return {
            "template": self.template.name,
            "template_sha256": self.template.sha256,
            "template_source": self.template.source,
            "prefix": self.prefix,
            "cue": self.cue,
            "codes": [list(astuple(code))[: 4 if code.token else 3] for code in self.codes],
            "exemplars": [exemplar.record_id for exemplar in self.exemplars],
            **({} if self.context is None else {"listing": asdict(self.listing), "context": self.context}),
        }

    def listed(self, codes: Sequence[LabelCode]) -> "Prompt":
        """The same prompt with just these labels, in this order and with these codes."""
        assert self.context is not None
        shown = {code.label: code.text.strip() for code in codes}
        told = {label["name"]: label for label in self.context["labels"]}
        context = {
            **self.context,
            "labels": [{**told[name], "shown": word} for name, word in shown.items()],
            "exemplars": [
                {**item, "shown": shown[item["label"]]}
                for item in self.context["exemplars"]
                if item["label"] in shown
            ],
        }
        prefix, cue = _rendered(self.template, context)
        return replace(self, codes=tuple(codes), prefix=prefix, cue=cue, listing=SAME_FOR_ALL, context=None)

    def around(self, text: str) -> str:
        """The whole prompt for one record."""
        return self.prefix + text + self.cue


def load_template(name: str, root: Path) -> PromptTemplate:
    """A prompt file beside the project file, or `builtin:NAME`.

    Raises:
        PromptFileError: missing, too large, no template, or without `{{ text }}`.
    """
    if name.startswith("builtin:"):
        path = paths.configs() / "prompts" / f"{Path(name.removeprefix('builtin:')).name}.jinja"
    else:
        path = (root / name).resolve()
        if root.resolve() not in path.parents:
            raise PromptFileError(
                f"prompts.files: {name}",
                found="a path outside the project folder",
                expected="a file inside it",
                next_step="Copy the prompt into the project's prompts/ folder.",
            )
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_TEMPLATE_BYTES:
            raise PromptFileError(
                str(path),
                found=f"{len(raw):,} bytes",
                expected=f"at most {MAX_TEMPLATE_BYTES:,}",
                next_step="Shorten the prompt.",
            )
        return PromptTemplate(name, raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(
            f"prompts.files: {name}",
            found=str(error),
            expected="a readable UTF-8 file",
            next_step="Check the name under prompts.files; shipped ones are builtin:plain and builtin:definitions.",
        ) from error


def bind(
    template: PromptTemplate,
    project: Project,
    codes: Sequence[LabelCode],
    exemplars: Sequence[Exemplar] = (),
    *,
    listing: Listing = SAME_FOR_ALL,
) -> Prompt:
    """Renders a template for a project.

    Raises:
        PromptFileError: the template does not render, or does not show the record exactly once, last.
    """
    shown = {code.label: code.text.strip() for code in codes}
    definitions = {label.name: label.definition for label in project.label_schema.labels}
    context = {
        "instruction": project.label_schema.instruction,
        "labels": [
            {"name": code.label, "shown": shown[code.label], "definition": definitions[code.label]}
            for code in codes
        ],
        "exemplars": [
            {"text": item.text, "shown": shown[item.label], "label": item.label} for item in exemplars
        ],
    }
    prefix, cue = _rendered(template, context)
    prompt = Prompt(template, tuple(codes), tuple(exemplars), prefix, cue)
    return prompt if listing == SAME_FOR_ALL else replace(prompt, listing=listing, context=context)


def prompt_of(used: Mapping[str, Any]) -> Prompt:
    """A prompt as it was written down in prompts_used/, whatever has become of its file since."""
    return Prompt(
        PromptTemplate(used["template"], used["template_source"]),
        tuple(LabelCode(*code) for code in used["codes"]),
        tuple(Exemplar(record_id, "", "") for record_id in used["exemplars"]),
        used["prefix"],
        used["cue"],
        Listing(**used.get("listing", {})),
        used.get("context"),
    )


def _rendered(template: PromptTemplate, context: Mapping[str, Any]) -> tuple[str, str]:
    """What stands before and after the record."""
    # New each time, so that no exemplar and no definition can hold it.
    mark = f"\x02record {secrets.token_hex(8)}\x03"
    try:
        rendered = _ENVIRONMENT.from_string(template.source).render(**context, text=mark)
    except jinja2.TemplateError as error:
        raise PromptFileError(
            f"prompt {template.name}",
            found=str(error),
            expected="a Jinja template using instruction, labels, exemplars and text",
            next_step="Compare with configs/prompts/plain.jinja.",
        ) from error
    if rendered.count(mark) != 1:
        raise PromptFileError(
            f"prompt {template.name}",
            found=f"{{{{ text }}}} {rendered.count(mark)} times",
            expected="it exactly once, after everything that is the same for all records",
            next_step="Put {{ text }} near the end of the template.",
        )
    prefix, cue = rendered.split(mark)
    return prefix, cue.rstrip()


def only_text(text: str, control_marks: Collection[str]) -> bool:
    """Whether an engine with these control marks (`Engine.control_marks`) reads no part of a text as a command."""
    return not any(mark in text for mark in control_marks)


def label_codes(
    labels: Sequence[Label],
    first_token: Callable[[str], FirstToken],
    *,
    style: str = "auto",
    most: int | None = None,
) -> tuple[LabelCode, ...]:
    """One token for each label, as the model at hand spells it.

    `words`: the first token of the label's word (or name) where these differ (a small model answers in words far better
    than in letters: 71 % against 31 % on AG News). Otherwise letters, then pairs of letters, that are one token.

    Args:
        most: A record is asked about so many of them at once (`Listing.most`) and has codes of its own; then the codes
            of all together may be words that are not told apart.

    Raises:
        PromptFileError: the tokenizer has too few single-token codes for this many labels.
    """
    words = [_code(label.name, f" {label.word or label.name}", first_token) for label in labels]
    if style != "letters" and _told_apart(words):
        return tuple(words)
    if style == "words":
        raise PromptFileError(
            "prompts.codes",
            found="labels whose names start with the same token",
            expected="names that differ in their first token, and none that begins another where tokens are not told",
            next_step="Use prompts.codes: auto, or give the labels a `word` each that begins differently.",
        )
    alphabet = [chr(ord("A") + index) for index in range(26)]
    codes: list[LabelCode] = []
    used: set[object] = set()
    for candidate in [*alphabet, *(first + second for first in alphabet for second in alphabet)]:
        if len(codes) == len(labels):
            break
        first = first_token(f" {candidate}")
        code = LabelCode(labels[len(codes)].name, f" {candidate}", first.id, first.text)
        if first.whole and _start(code) not in used:
            used.add(_start(code))
            codes.append(code)
    if most is not None and most <= len(codes) < len(labels):
        return tuple(words)
    if len(codes) < len(labels):
        raise PromptFileError(
            "schema.labels",
            found=f"{len(labels)} labels",
            expected=f"at most {len(codes)}: this tokenizer has no more single-token codes",
            next_step="Use fewer labels, a `word` for each that begins differently, or another model.",
        )
    return tuple(codes)


def spelled_by(prompt: Prompt, first_token: Callable[[str], FirstToken]) -> Prompt | None:
    """The same prompt with its label tokens as the model at hand has them, which may be another than it was made for;
    None where that one cannot tell the labels apart by them."""
    codes = tuple(_code(code.label, code.text, first_token) for code in prompt.codes)
    return replace(prompt, codes=codes) if _told_apart(codes) else None


def _told_apart(codes: Sequence[LabelCode]) -> bool:
    """Whether no two codes begin alike and none begins with a part of a character, which engines cannot tell."""
    if len({_start(code) for code in codes}) < len(codes) or any("\ufffd" in code.token for code in codes):
        return False
    # " Pay" begins " Payroll": where tokens are not known, a first token of both would be read as the shorter one's.
    blind = sorted(code.text.strip() for code in codes if code.token_id < 0 and not code.token)
    return not any(later.startswith(earlier) for earlier, later in pairwise(blind))


def _start(code: LabelCode) -> object:
    """What two codes must not share: their first token, or their first letters where tokens are not known."""
    return code.token_id if code.token_id >= 0 else code.token or code.text.strip()[:4]


def _code(label: str, text: str, first_token: Callable[[str], FirstToken]) -> LabelCode:
    first = first_token(text)
    return LabelCode(label, text, first.id, first.text)
