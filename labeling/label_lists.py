"""Which labels the prompt of a record lists, and in which order, where that is not the same for all records.

Two reasons: an engine that tells few tokens cannot tell many labels, so each record is asked about those nearest to it;
and a model may favour a place in the list, so the places are dealt out evenly. Both follow from the record alone, not
from when or with whom it is asked.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from labeling.engines.protocol import Embedder, Engine, FirstToken, LabelCode
from labeling.engines.sharing import shared_embedder
from labeling.intervals import Interval, wilson
from labeling.paths import ProjectFolder
from labeling.prompts import Listing, Prompt, label_codes
from labeling.record_store import Vectors
from schemas.errors import ProjectError, StorageError
from schemas.project import Label, Project
from schemas.values import Value

ORDERS = 4  # each is a prefix of its own for the engine's cache to hold
Floats = npt.NDArray[np.float32]


def listing_for(project: Project, engine: Engine) -> Listing:
    """What this engine and this project ask for."""
    count = len(project.label_schema.labels)
    short = engine.tells is not None and count > engine.tells and project.embedding.kind != "none"
    orders = min(ORDERS, count) if project.prompts.label_order == "shuffled" else 1
    return Listing(
        orders=orders,
        seed=project.seed if orders > 1 else 0,
        most=engine.tells if short else None,
        by=project.embedding.model if short else "",
    )


def label_vectors(labels: Sequence[Label], embedder: Embedder) -> Floats:
    """(K, d) unit vectors of what is written about each label."""
    return embedder.embed([_description(label) for label in labels])


def _description(label: Label) -> str:
    name = label.name.replace("_", " ").replace("-", " ")
    return " ".join([f"{name}: {label.definition}" if label.definition else name, *label.examples])


def nearest_labels(records: Floats, labels: Floats, most: int) -> npt.NDArray[np.int64]:
    """(n, most) numbers of the labels nearest to each of n records, nearest first.

    Args:
        records: (n, d) unit vectors.
        labels: (K, d) unit vectors.
    """
    nearest: npt.NDArray[np.int64] = np.argsort(-(records @ labels.T), axis=1, kind="stable")[:, :most]
    return nearest


class LabelLists:
    """The prompt of each record, for a prompt whose `listing` is not the same for all.

    Args:
        prompt: Bound to all labels, in the order in which they stand without a listing.
        labels: The project's.
        first_token: The engine's.
        style: `prompts.codes`.
        vectors: Of the records; None where every record is asked about all labels.
        of_labels: (K, d) unit vectors of `labels`, with `vectors`.
    """

    def __init__(
        self,
        prompt: Prompt,
        labels: Sequence[Label],
        first_token: Callable[[str], FirstToken],
        *,
        style: str,
        vectors: Vectors | None = None,
        of_labels: Floats | None = None,
    ) -> None:
        self._prompt, self._style, self._first_token = prompt, style, first_token
        self._labels = {label.name: label for label in labels}
        self._codes = {code.label: code for code in prompt.codes}
        self._vectors, self._of_labels = vectors, of_labels
        self._dealt = list(self._labels)
        # Bound the other way round (`try_other_order`), every list is, not just the one that they are dealt from.
        self._turned = list(self._codes) == self._dealt[::-1]
        if prompt.listing.orders > 1:
            random.Random(prompt.listing.seed).shuffle(self._dealt)
        self._made: dict[tuple[str, ...], Prompt] = {}

    def shortlist(self, record_id: str) -> frozenset[str]:
        """Labels that may be suggested for a record.

        Raises:
            StorageError: the record has no vector that would tell which are near.
        """
        most = self._prompt.listing.most
        if most is None or self._vectors is None or self._of_labels is None:
            return frozenset(self._codes)
        near = nearest_labels(self._vectors.of([record_id]), self._of_labels, most)[0]
        names = list(self._labels)
        return frozenset(names[index] for index in near)

    def prompt_for(self, record_id: str) -> Prompt:
        """The record's own prompt; its codes are the listed labels', in the order of the list."""
        kept = self.shortlist(record_id)
        listed = tuple(name for name in self._order(record_id) if name in kept)
        if listed not in self._made:
            self._made[listed] = self._prompt.listed(self._codes_of(listed))
        return self._made[listed]

    def _order(self, record_id: str) -> Sequence[str]:
        """One order, begun at different places: every label stands in every part of the list equally often."""
        orders = self._prompt.listing.orders
        digest = hashlib.sha256(f"{self._prompt.listing.seed}|{record_id}".encode()).digest()
        start = (int.from_bytes(digest[:8], "big") % orders) * len(self._dealt) // orders
        order = self._dealt[start:] + self._dealt[:start]
        return order[::-1] if self._turned else order

    def _codes_of(self, listed: Sequence[str]) -> tuple[LabelCode, ...]:
        """A part of the labels may be told apart by words where all of them need letters."""
        if len(listed) == len(self._codes):
            return tuple(self._codes[name] for name in listed)
        return label_codes([self._labels[name] for name in listed], self._first_token, style=self._style)


def label_lists(project: Project, folder: ProjectFolder, engine: Engine, prompt: Prompt) -> LabelLists | None:
    """The prompts of a project's records; None where all records share `prompt`.

    Raises:
        ProjectError: the prompt lists labels by another embedding model than the project's.
        StorageError: there are no vectors of it. Asked about all labels, an engine of few tokens never tells most.
    """
    if prompt.context is None:
        return None
    labels = project.label_schema.labels
    vectors, of_labels = None, None
    if prompt.listing.most is not None:
        if prompt.listing.by != project.embedding.model:
            raise ProjectError(
                "embedding.model",
                found=project.embedding.model,
                expected=f"{prompt.listing.by}, by which the prompt of this round lists the nearest labels",
                next_step="Put it back; the round after this one is planned with the embedding model it finds.",
            )
        embedder = shared_embedder(project)
        vectors = None if embedder is None else Vectors.load(project, folder, embedder.model_id)
        if embedder is None or vectors is None:
            raise StorageError(
                f"vectors of {project.embedding.model if embedder is None else embedder.model_id}",
                found="none",
                expected="those that tell which labels are nearest to a record",
                next_step="Let the project name that embedding model and run the setup flow: it makes them.",
            )
        of_labels = label_vectors(labels, embedder)
    return LabelLists(
        prompt,
        labels,
        engine.first_token,
        style=project.prompts.codes,
        vectors=vectors,
        of_labels=of_labels,
    )


def recall(lists: LabelLists, truth: Mapping[str, Value]) -> Interval:
    """Share of records whose right label is on their list (Wilson, 95 %): no answer can be better than that."""
    return wilson(sum(value in lists.shortlist(record_id) for record_id, value in truth.items()), len(truth))
