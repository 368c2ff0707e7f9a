"""What each step adds: `python -m benchmarks.ladder AG_NEWS_FILE SMS_FILE BANKING77_TRAIN BANKING77_TEST`.

Zero-shot scores, batch calibration, retrieved exemplars, then the student and the stack. What needs no scores of the
model is evaluated on 2,000 records a data set (1,080 of Banking77), the rest on the first of these. The files are
Parquet with columns record_id, text and label (data of your own; none is shipped). Prints one JSON object. No setting
was chosen on the records that evaluate.
"""

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.rehearsals import PROJECTS
from labeling.calibration import fit_batch_calibration
from labeling.engines.embedded import EmbeddedEmbedder, EmbeddedEngine
from labeling.engines.model_files import model_file
from labeling.engines.protocol import Embedder, Engine
from labeling.intervals import wilson
from labeling.label_lists import label_vectors, nearest_labels
from labeling.lexical import LexicalModel
from labeling.neighbours import nearest
from labeling.paths import configs
from labeling.prompts import Exemplar, Prompt, PromptTemplate, bind, label_codes, load_template
from labeling.scoring import Scored, score_batch
from labeling.students import fit_stack, fit_student
from schemas.project import Project

CONTEXT = 1024
SLOTS = 2
EXEMPLARS = 4
SHORTLIST = 20
SEEDS = tuple(range(10))
STUDENT_LABELS = (50, 100, 200, 400)
SCORED_LABELS = 100  # the stack is given the model's scores at this size only: they cost engine time
HELD_BACK = 2000  # the last records evaluate (the first have been looked at), the others lend labels
LLM = "the model's scores"

# What a lead writes after a look at a sample; the best of twelve on 300 records that are not evaluated here.
OWN_PROMPTS = {"ag_news": "{{ text }}\nFiled under:"}
OWN = "a prompt of the project's own"

# Measured by a prototype before this project, on other samples of the same data.
METHODS: dict[str, dict[str, float]] = {
    "ag_news": {
        "zero-shot": 0.52,
        "batch calibration": 0.72,
        f"batch calibration, {OWN}": 0.72,
        "4 retrieved exemplars": 0.81,
        "student, 50 labels": 0.75,
        "student, 100 labels": 0.82,
        "student, 200 labels": 0.84,
    },
    "sms_spam": {"student, 50 labels": 0.93, "student, 100 labels": 0.96},
    "banking77": {"student, 200 labels": 0.58, "student, 400 labels": 0.72},
}
Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Row = tuple[str, str, str]  # record_id, text, label


@dataclass(frozen=True)
class LabelledSet:
    """A data set, split: nothing is ever chosen or learned on `evaluation`; `pool` lends labels.

    The model is asked about the first of `evaluation` only, the `asked`.
    """

    name: str
    project: Project
    evaluation: list[Row]
    pool: list[Row]
    asked: int

    @property
    def sample(self) -> list[Row]:
        """The evaluation records that the model is asked about."""
        return self.evaluation[: self.asked]


@dataclass(frozen=True)
class Suggestions:
    """Label scores of n records as log-probabilities (n, K), a row of NaN where a record was set aside."""

    log_probs: Floats

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the record has scores."""
        return np.asarray(np.isfinite(self.log_probs).all(axis=1), dtype=np.bool_)


@dataclass(frozen=True)
class Sizes:
    """How many records each step gets, a data set; what decides how long the benchmark takes."""

    asked: int
    pool: int
    retrieved: int
    scored_draws: int


def in_order(file: Path) -> list[Row]:
    """All rows in the order that the data card fixes: by sha256 of "seed-v1|" and the record's id."""
    rows = pl.read_parquet(file).select("record_id", "text", "label").rows()
    return sorted(rows, key=lambda row: hashlib.sha256(f"seed-v1|{row[0]}".encode()).hexdigest())


def split(name: str, project: Project, evaluation: list[Row], others: list[Row], sizes: Sizes) -> LabelledSet:
    """The evaluation records and the pool, without the pool's records whose text is among them."""
    seen = {_plain(text) for _, text, _ in evaluation}
    pool = [row for row in others if _plain(row[1]) not in seen][: sizes.pool]
    return LabelledSet(name, project, evaluation, pool, min(sizes.asked, len(evaluation)))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def banking77(rows: Sequence[Row]) -> dict[str, Any]:
    """Schema of Banking77: the intents, each defined by its own name with spaces."""
    return {
        "schema": {
            "task": "classification",
            "instruction": "What does this customer of a bank ask about?",
            "labels": [
                {"name": name, "definition": name.replace("_", " ")}
                for name in sorted({row[2] for row in rows})
            ],
        }
    }


def a_project(name: str, settings: dict[str, Any]) -> Project:
    """A project that is never written to disk."""
    return Project.model_validate(
        {"version": 1, "name": name.replace("_", "-"), **settings, "sources": [{"path": "records.parquet"}]}
    )


def by_score(engine: Engine, prompt: Prompt, rows: Sequence[Row]) -> Suggestions:
    """One-token scores of records with one prompt."""
    outcome = score_batch(engine, prompt, [(record_id, text) for record_id, text, _ in rows])
    return _in_place(outcome.scored, rows, len(prompt.codes))


def by_retrieval(
    engine: Engine, prompt: Prompt, project: Project, rows: Sequence[Row], shown: Sequence[Sequence[Row]]
) -> Suggestions:
    """One-token scores, each record with a prompt of its own that shows its labelled neighbours."""
    scored: list[Scored] = []
    for row, exemplars in zip(rows, shown, strict=True):
        own = bind(prompt.template, project, prompt.codes, [Exemplar(*exemplar) for exemplar in exemplars])
        scored += score_batch(engine, own, [row[:2]]).scored
    return _in_place(scored, rows, len(prompt.codes))


def _in_place(scored: Sequence[Scored], rows: Sequence[Row], width: int) -> Suggestions:
    found = {row.record_id: row.log_probs for row in scored}
    missing = (float("nan"),) * width
    return Suggestions(np.array([found.get(row[0], missing) for row in rows], dtype=np.float64))


def calibrated(given: Suggestions, by: Suggestions, labels: Sequence[str]) -> Suggestions:
    """Batch calibration of scores by the mean of a batch, which may be another one; no label is used."""
    calibration = fit_batch_calibration(by.log_probs[by.scored], labels=labels, default_strength=1.0)
    result = given.log_probs.copy()
    result[given.scored] = calibration.apply(given.log_probs[given.scored])
    return Suggestions(result)


class Ladder:
    """The rows of one data set's table, and the counts of what the model suggested."""

    def __init__(self, data: LabelledSet) -> None:
        self.labels = data.project.label_schema.names
        self.gold = [row[2] for row in data.evaluation]
        # What logistic regression on vectors had is the goal of the stack at that size too.
        told = METHODS[data.name].items()
        stacks = {step.replace("student,", "students and neighbours,"): goal for step, goal in told}
        self.targets = {**stacks, **METHODS[data.name]}
        self.rows: dict[str, dict[str, Any]] = {}
        self.suggested = self.valid = self.set_aside = 0

    def add(self, step: str, draws: Sequence[Floats], uses: str) -> None:
        """Adds a row.

        Args:
            draws: (n, K) probabilities or scores of the first n evaluation records, one for each draw of
                training records; the interval is that of the mean right of n, for the sample and not for the draw.
            uses: which parts the row used, in words.
        """
        right, n = [], len(draws[0])
        for scores in draws:
            usable = Suggestions(scores).scored
            named = [self.labels[index] for index in scores[usable].argmax(axis=1)]
            gold = [label for label, use in zip(self.gold[:n], usable, strict=True) if use]
            right.append(sum(one == other for one, other in zip(named, gold, strict=True)))
            self.suggested += len(named)
            self.valid += sum(label in self.labels for label in named)
            self.set_aside += int((~usable).sum())
        self._row(step, right, n, uses)

    def shortlist(self, step: str, nearest: Sequence[Sequence[int]], uses: str) -> None:
        """Adds a row that counts the records whose right label is among those nearest to them."""
        named = [{self.labels[index] for index in found} for found in nearest]
        hits = sum(label in found for label, found in zip(self.gold, named, strict=True))
        self._row(step, [hits], len(named), uses)

    def _row(self, step: str, right: Sequence[int], n: int, uses: str) -> None:
        mean = float(np.mean(right))
        interval = wilson(round(mean), n)
        assert interval.low is not None and interval.high is not None
        self.rows[step] = {
            "accuracy": round(mean / n, 3),
            "low": round(interval.low, 3),
            "high": round(interval.high, 3),
            "n": n,
            "draws": [round(count / n, 3) for count in right],
            "uses": uses,
            "methods.md": self.targets.get(step),
        }


def measure(data: LabelledSet, engine: Engine, embedder: Embedder, sizes: Sizes) -> dict[str, Any]:
    """All steps on one data set."""
    started = time.perf_counter()
    labels = data.project.label_schema.names
    codes = label_codes(data.project.label_schema.labels, engine.first_token)
    in_words = all(code.text.strip() == (label.word or label.name) for code, label in _pairs(data, codes))
    # Plain shows the codes alone: letters would tell the model nothing.
    name = "builtin:plain" if in_words else "builtin:definitions"
    prompt = bind(load_template(name, configs()), data.project, codes)
    ladder = Ladder(data)

    here, there = [row[1] for row in data.evaluation], [row[1] for row in data.pool]
    vectors, pool = embedder.embed(here), embedder.embed(there)
    # As a project does: on all its records, of which hardly any has a label yet.
    model = LexicalModel.learn([*here, *there], seed=data.project.seed)
    lexical = model.embed(here), model.embed(there)
    _tell(data, "vectors", started)

    if len(labels) > SHORTLIST:
        described = label_vectors(data.project.label_schema.labels, embedder)
        ladder.shortlist(
            f"recall of the {SHORTLIST} labels nearest to a record (engines that tell {SHORTLIST} tokens)",
            nearest_labels(vectors, described, SHORTLIST).tolist(),
            "vectors of records and labels, no model's scores",
        )
    engine.warm(engine.tokenize(prompt.prefix))
    raw = by_score(engine, prompt, data.sample)
    batch = calibrated(raw, raw, labels)
    ladder.add("zero-shot", [raw.log_probs], LLM)
    ladder.add("batch calibration", [batch.log_probs], f"{LLM}, no labels")
    if data.name in OWN_PROMPTS:
        own = bind(PromptTemplate("own", OWN_PROMPTS[data.name]), data.project, codes)
        engine.warm(engine.tokenize(own.prefix))
        told = by_score(engine, own, data.sample)
        ladder.add(f"zero-shot, {OWN}", [told.log_probs], LLM)
        ladder.add(
            f"batch calibration, {OWN}", [calibrated(told, told, labels).log_probs], f"{LLM}, no labels"
        )
    _tell(data, "zero-shot", started)

    _retrieved(
        data,
        engine,
        prompt,
        ladder,
        raw,
        nearest(vectors[: sizes.retrieved], pool, k=EXEMPLARS).indices,
        sizes.retrieved,
    )
    _tell(data, "retrieved exemplars", started)

    _students(data, engine, prompt, ladder, (raw, batch), (vectors, pool), lexical, sizes.scored_draws)
    _tell(data, "students", started)
    return {
        "labels": len(labels),
        "prompt": name,
        "codes": "words" if in_words else "letters",
        "evaluation_records": len(data.evaluation),
        "pool_records": len(data.pool),
        "share_of_the_most_common_label": round(
            Counter(ladder.gold).most_common(1)[0][1] / len(ladder.gold), 3
        ),
        "rows": ladder.rows,
        "suggestions": ladder.suggested,
        "valid_suggestion_share": ladder.valid / ladder.suggested,
        "set_aside": ladder.set_aside,
        "wall_s": round(time.perf_counter() - started, 1),
    }


def _pairs(data: LabelledSet, codes: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(codes, data.project.label_schema.labels, strict=True))


def _tell(data: LabelledSet, step: str, started: float) -> None:
    print(f"{data.name}: {step}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def _retrieved(
    data: LabelledSet,
    engine: Engine,
    prompt: Prompt,
    ladder: Ladder,
    raw: Suggestions,
    close: npt.NDArray[np.int64],
    n: int,
) -> None:
    """Exemplars in the prompt, beside the same records without them and beside the exemplars' own vote."""
    labels, rows = ladder.labels, data.evaluation[:n]
    # The most similar one stands last, right before the record.
    shown = [[data.pool[index] for index in found[::-1]] for found in close[:n].tolist()]
    given = by_retrieval(engine, prompt, data.project, rows, shown)
    before = Suggestions(raw.log_probs[:n])
    ladder.add(
        "batch calibration, the records of the next row",
        [calibrated(before, before, labels).log_probs],
        f"{LLM}, no labels",
    )
    ladder.add(
        f"{EXEMPLARS} retrieved exemplars",
        [calibrated(given, given, labels).log_probs],
        f"{LLM}, batch-calibrated; exemplars from {len(data.pool)} labelled records",
    )
    votes = np.zeros((len(rows), len(labels)))
    for number, exemplars in enumerate(shown):
        for rank, (_, _, label) in enumerate(exemplars):
            votes[number, labels.index(label)] += 1 + rank / 100  # of two equal counts the nearer wins
    ladder.add(
        f"vote of the same {EXEMPLARS} exemplars",
        [votes],
        f"vectors of {len(data.pool)} labelled records, no model's scores",
    )


def _students(
    data: LabelledSet,
    engine: Engine,
    prompt: Prompt,
    ladder: Ladder,
    scores: tuple[Suggestions, Suggestions],
    vectors: tuple[Vectors, Vectors],
    lexical: tuple[Vectors, Vectors],
    scored_draws: int,
) -> None:
    """The student alone and the stack at every size, with the model's scores where they are affordable."""
    labels, (raw, batch), (here, pool) = ladder.labels, scores, vectors
    lexical_here, lexical_pool = lexical
    # The draws of one seed are nested: 100 labels are the first of its 400.
    draws = [np.random.default_rng(seed).permutation(len(data.pool)).tolist() for seed in SEEDS]

    def gold(chosen: Sequence[int]) -> list[str]:
        return [data.pool[index][2] for index in chosen]

    for size in STUDENT_LABELS:
        answers = [
            fit_student(pool[draw[:size]], gold(draw[:size]), labels=labels, seed=seed).predict_proba(here)
            for seed, draw in zip(SEEDS, draws, strict=True)
        ]
        ladder.add(f"student, {size} labels", answers, "student on vectors")
    for size in STUDENT_LABELS:
        fits = [
            fit_stack(
                pool[draw[:size]],
                gold(draw[:size]),
                labels=labels,
                lexical=lexical_pool[draw[:size]],
                seed=seed,
            )
            for seed, draw in zip(SEEDS, draws, strict=True)
        ]
        ladder.add(
            f"students and neighbours, {size} labels",
            [fit.stack.predict_proba(here, lexical=lexical_here) for fit in fits],
            "students on vectors and on lexical vectors, neighbours, no model's scores",
        )
    mixed = []
    for seed, draw in list(zip(SEEDS, draws, strict=True))[:scored_draws]:
        chosen = draw[:SCORED_LABELS]
        lesson = calibrated(by_score(engine, prompt, [data.pool[index] for index in chosen]), raw, labels)
        fitted = fit_stack(
            pool[chosen],
            gold(chosen),
            labels=labels,
            llm_scores=lesson.log_probs,
            lexical=lexical_pool[chosen],
            seed=seed,
        )
        asked = slice(data.asked)
        mixed.append(fitted.stack.predict_proba(here[asked], batch.log_probs, lexical_here[asked]))
    if mixed:
        ladder.add(
            f"whole stack, {SCORED_LABELS} labels",
            mixed,
            f"students, neighbours and {LLM} (batch-calibrated), {len(mixed)} of {len(SEEDS)} draws",
        )


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("ag_news", "sms_spam", "banking77_train", "banking77_test"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--records", type=int, default=600, help="evaluation records the model is asked about"
    )
    parser.add_argument("--pool", type=int, default=1000, help="labelled records to learn and retrieve from")
    parser.add_argument("--retrieved", type=int, default=60, help="evaluation records that get exemplars")
    parser.add_argument(
        "--scored-draws", type=int, default=3, help="draws whose 100 records the model scores"
    )
    options = parser.parse_args()
    sizes = Sizes(options.records, options.pool, options.retrieved, options.scored_draws)
    if sizes.pool < max(STUDENT_LABELS) or not 0 < sizes.retrieved <= sizes.asked <= HELD_BACK:
        parser.error(f"needs 0 < retrieved <= records <= {HELD_BACK} and a pool of {max(STUDENT_LABELS)}")
    # 77 intents in 100 records are what this measures; scikit-learn says so once a fit, in hundreds of lines.
    warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
    started = time.perf_counter()
    sets = []
    for name, file in (("ag_news", options.ag_news), ("sms_spam", options.sms_spam)):
        rows = in_order(file)
        project = a_project(name, PROJECTS[name])
        sets.append(split(name, project, rows[-HELD_BACK:], rows[:-HELD_BACK], sizes))
    train = in_order(options.banking77_train)
    sets.append(
        split(
            "banking77",
            a_project("banking77", banking77(train)),
            in_order(options.banking77_test)[HELD_BACK:],
            train,
            sizes,
        )
    )
    engine = EmbeddedEngine(model_file("smollm2-135m-instruct"), context=CONTEXT, slots=SLOTS, threads=None)
    embedder = EmbeddedEmbedder(model_file("all-minilm-l6-v2"), name="all-minilm-l6-v2", threads=None)
    try:
        identity = engine.identity()
        measured = {data.name: measure(data, engine, embedder, sizes) for data in sets}
    finally:
        embedder.close()
        engine.close()
    answer = {
        "benchmark": "ladder",
        "model": identity.model,
        "engine": f"{identity.engine} {identity.engine_version}",
        "vectors": embedder.model_id,
        "seeds": list(SEEDS),
        "wall_s": round(time.perf_counter() - started, 1),
        "sets": measured,
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
