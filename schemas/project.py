"""The project file as one frozen model. Unknown keys are refused; only `labeling.project_file` reads YAML."""

import re
from typing import Annotated, Literal, Self
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.values import TaskType

PROJECT_VERSION = 1

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
LabelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


class Label(_Section):
    """One label a record can get."""

    name: LabelName
    definition: str = Field(
        default="", max_length=4000, description="One or two sentences an annotator can apply."
    )
    word: str = Field(
        default="",
        max_length=60,
        description="The word the model answers with, where it is another than the name.",
    )
    examples: tuple[str, ...] = Field(default=(), description="Short texts that clearly get this label.")
    min_share: Share = Field(default=0.0, description="Class balance: least share of the release.")
    max_share: Share = Field(default=1.0, description="Class balance: largest share of the release.")


class LabelSchema(_Section):
    """What may be said about a record: task type, labels, definitions and guideline."""

    task: TaskType
    instruction: str = Field(
        default="", max_length=4000, description="What is asked of a record, in one sentence."
    )
    labels: tuple[Label, ...] = Field(default=(), description="At least two; pairs need none.")
    guideline: str = Field(default="guideline.md", description="Markdown file beside the project file.")
    allow_overlapping_spans: bool = Field(
        default=False, description="Entities: may two spans share characters?"
    )

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        names = [label.name for label in self.labels]
        folded = [_look_alike_key(name) for name in names]
        for index, key in enumerate(folded):
            if key in folded[:index]:
                first = names[folded.index(key)]
                raise ValueError(
                    f"labels {first!r} and {names[index]!r} read alike; give every label a name of its own"
                )
        least = {TaskType.CLASSIFICATION: 2, TaskType.MULTILABEL: 2, TaskType.ENTITIES: 1, TaskType.PAIRS: 0}[
            self.task
        ]
        if len(names) < least:
            raise ValueError(
                f"{len(names)} label(s) for a {self.task.value} project; it needs at least {least}"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Label names in the project's order."""
        return tuple(label.name for label in self.labels)


# Cyrillic and Greek small letters that are drawn like Latin ones.
_SAME_SHAPE = str.maketrans("аеорсухіјѕԁһԛԝωοανρτυικχ", "aeopcyxijsdhqwwoavptuikx")


def _look_alike_key(name: str) -> str:
    """Labels that differ only by case, accents' composition, spacing, invisible characters or letters of another
    script with the same shape cannot be told apart by a person."""
    import unicodedata

    visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
    folded = re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", visible)).casefold().strip()
    return folded.translate(_SAME_SHAPE)


class Source(_Section):
    """One file of records. Only files: no feature takes a URL."""

    path: str = Field(description="CSV, JSONL or Parquet; relative to the project folder or absolute.")
    text: Name = Field(default="text", description="Column that holds the text.")
    id: Name | None = Field(default=None, description="Column that holds the source's own id.")
    gold: Name | None = Field(default=None, description="Column with known labels, if the source has one.")
    group: Name | None = Field(
        default=None, description="Column that names the document a record comes from."
    )
    metadata: tuple[Name, ...] = Field(default=(), description="Columns to keep as strings.")

    @field_validator("path")
    @classmethod
    def _is_a_file_of_ours(cls, path: str) -> str:
        if re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", path):
            raise ValueError(f"{path!r} is a URL; give a file on this machine")
        if not re.search(r"\.(csv|jsonl|ndjson|parquet)$", path, re.IGNORECASE):
            raise ValueError(f"{path!r} ends in none of .csv, .jsonl, .ndjson, .parquet")
        return path


class Engine(_Section):
    """Where the local model runs."""

    kind: Literal["embedded", "llama-server", "ollama", "openai"] = Field(
        default="embedded", description="embedded = llama.cpp inside the process, no service needed."
    )
    model: str = Field(
        default="smollm2-135m-instruct",
        description="embedded: a name of the model lock or a .gguf path; otherwise the server's model name.",
    )
    endpoints: tuple[str, ...] = Field(
        default=(), description="Server addresses; loopback unless listed under allowed_hosts."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Addresses other than loopback that are the client's own machines."
    )
    digest: str | None = Field(
        default=None, description="Expected SHA-256 of the weights; checked when given."
    )
    context: int = Field(default=2048, ge=256, le=1_048_576, description="Context in tokens.")
    slots: int | None = Field(
        default=None, ge=1, le=64, description="Requests in flight; none = found by measuring."
    )
    threads: int | None = Field(
        default=None, ge=1, le=512, description="CPU threads; none = all cores of the machine."
    )
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    api_key: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the server's key, if it asks for one.",
    )


class Embedding(_Section):
    """The model whose vectors serve the student, neighbours and near-duplicates."""

    kind: Literal["embedded", "llama-server", "ollama", "none"] = "embedded"
    model: str = "all-minilm-l6-v2"
    endpoints: tuple[str, ...] = ()

    @property
    def filed_as(self) -> str:
        """The model's name as that of a folder of vectors; the start of its digest follows where it is known."""
        name = self.model.rsplit("/", 1)[-1].removesuffix(".gguf") if self.kind == "embedded" else self.model
        return name.replace("/", "-").replace(":", "-")


class Prompting(_Section):
    """Which prompts are tried and what happens to records that do not fit."""

    files: tuple[str, ...] = Field(
        default=("builtin:plain", "builtin:definitions"),
        min_length=1,
        description="Jinja templates beside the project file, or builtin:NAME.",
    )
    codes: Literal["auto", "words", "letters"] = Field(
        default="auto", description="How labels are spelled as one token."
    )
    label_order: Literal["fixed", "shuffled"] = Field(
        default="fixed",
        description="shuffled = each label stands in every part of the prompt's list equally often; "
        "four prefixes instead of one.",
    )
    over_long: Literal["refuse", "head_tail", "windows"] = Field(
        default="head_tail", description="What to do with a record that does not fit the context."
    )
    exemplars: int = Field(
        default=4, ge=0, le=32, description="Most exemplars a candidate prompt of round 2 may use."
    )


class Setup(_Section):
    """The setup phase: a blind sample that says whether the prompts work."""

    sample: int = Field(
        default=50, ge=10, le=2000, description="Simple random sample labelled before anything else."
    )
    threshold: Share = Field(
        default=0.6, description="Accuracy that the lower end of the interval must pass."
    )


class Route(_Section):
    """Records that go to one pool of people: of a source, or suggested as a label. The first that fits counts."""

    pool: Name = Field(description="Name of the pool; the lead says on the People page who belongs to it.")
    source: str | None = Field(default=None, description="A source's path as under sources.")
    label: LabelName | None = Field(default=None, description="A label that is suggested for the record.")

    @model_validator(mode="after")
    def _says_which_records(self) -> Self:
        if (self.source is None) == (self.label is None):
            raise ValueError("a route names a source or a label, one of the two")
        return self


class Review(_Section):
    """How much people look at, and who sees what."""

    round_records: int = Field(
        default=100, ge=1, description="Records selected for review a round (least sure first)."
    )
    blind_slice: int = Field(
        default=60, ge=0, description="Random records of round 1 labelled blind that no loop ever sees."
    )
    blind_share: Share = Field(default=0.1, description="Share of each round's selected records shown blind.")
    overlap_share: Share = Field(default=0.2, description="Share of records that several annotators label.")
    overlap: int = Field(default=2, ge=2, le=10, description="How many annotators see an overlap record.")
    lease_s: int = Field(default=900, ge=30, description="Seconds a record stays reserved for one annotator.")
    batch_from: float | None = Field(
        default=0.9,
        gt=0.5,
        le=1.0,
        description="Confidence from which alike records may be accepted together; none = one by one only.",
    )
    batch_records: int = Field(default=20, ge=2, le=100, description="Most records accepted together.")
    copilot: bool = Field(
        default=True,
        description="Suggest as a record opens where nothing is suggested yet, from the answers of the last hour.",
    )
    control_records: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Records with a known label mixed into each round; they check people and never become data.",
    )
    routes: tuple[Route, ...] = Field(default=(), description="Records that go to a pool of people.")
    daily_goal: int | None = Field(
        default=None, ge=1, le=10_000, description="Records a day and person; everybody may set their own."
    )


class Iteration(_Section):
    """What the rounds after the first do differently."""

    cascade: float | None = Field(
        default=None,
        gt=0.5,
        lt=1.0,
        description="Records whose label the student gives with at least this probability are not sent to the language "
        "model; none = off. Rehearse both before you turn it on.",
    )


class Quality(_Section):
    """Bounds that quality assurance and the release are held against."""

    max_rejected_share: Share = Field(
        default=0.2, description="Unusable replies above this share stop the run."
    )
    max_auto_accepted_share: Share = Field(default=0.0, description="Share of labels no person has seen.")
    splits: tuple[float, float, float] = Field(default=(0.8, 0.1, 0.1), description="train, validation, test")
    near_duplicate: Share = Field(
        default=0.8, description="Jaccard similarity above which texts share a split."
    )

    @field_validator("splits")
    @classmethod
    def _shares_sum_to_one(cls, splits: tuple[float, float, float]) -> tuple[float, float, float]:
        # Said so that a NaN, which compares with nothing, does not pass.
        if not (all(share >= 0 for share in splits) and abs(sum(splits) - 1.0) <= 1e-9):
            raise ValueError(f"{list(splits)} does not sum to 1 or has a negative share")
        return splits


class Limits(_Section):
    """Sizes above which a row or file is refused rather than swallowed."""

    max_text_bytes: int = Field(default=1_000_000, ge=100, le=100_000_000)
    shard_records: int = Field(default=512, ge=1, le=100_000, description="Records a shard of suggestions.")


Cron = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^[0-9A-Za-z*,/#-]+( +[0-9A-Za-z*,/#-]+){4}$"),
    Field(description="Five fields: minute, hour, day of the month, month, day of the week."),
]


class Schedules(_Section):
    """When deployments run by themselves."""

    pre_annotate: Cron | None = Field(default=None, description="e.g. '0 22 * * *' for every night at ten.")
    gate_reminder: Cron | None = Field(
        default=None,
        description="e.g. '0 8 * * 1-5' for every working day at eight: says what waits for people.",
    )
    timezone: str | None = Field(
        default=None, description="e.g. Europe/Vienna; none takes that of the machine that runs the flows."
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str | None) -> str | None:
        if name is not None and name not in available_timezones():
            raise ValueError(f"{name!r} is no time zone of this machine, as Europe/Vienna is one")
        return name


class Storage(_Section):
    """Where the decisions live."""

    database: str | None = Field(
        default=None,
        description="Name of the environment variable that holds a PostgreSQL URL; none = SQLite.",
    )


class Project(_Section):
    """One labelling project: the single truth that flows, review app and command line read."""

    version: Literal[1] = Field(default=1, description="Layout version of this file.")
    name: Slug = Field(description="Short name, used in folders' titles, deployments and the UI.")
    title: str = Field(default="", max_length=120, description="What people see.")
    label_schema: LabelSchema = Field(alias="schema")
    sources: tuple[Source, ...] = Field(min_length=1)
    engine: Engine = Engine()
    embedding: Embedding = Embedding()
    prompts: Prompting = Prompting()
    setup: Setup = Setup()
    review: Review = Review()
    iteration: Iteration = Iteration()
    quality: Quality = Quality()
    limits: Limits = Limits()
    schedules: Schedules = Schedules()
    storage: Storage = Storage()
    seed: int = Field(default=20260101, ge=0, le=2**31 - 1)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> Self:
        sources = [source.path for source in self.sources]
        for route in self.review.routes:
            if route.source is not None and route.source not in sources:
                raise ValueError(f"a route for source {route.source!r}; the sources are {', '.join(sources)}")
            if route.label is not None and route.label not in self.label_schema.names:
                raise ValueError(
                    f"a route for label {route.label!r}; the labels are {', '.join(self.label_schema.names)}"
                )
        return self
