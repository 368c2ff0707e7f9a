"""The one module that builds paths. Names of people, labels or files of a client never become part of a path."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProjectFolder:
    """Where a project lives; `root` holds project.yaml."""

    root: Path

    @property
    def project_file(self) -> Path:
        return self.root / "project.yaml"

    @property
    def database(self) -> Path:
        return self.root / "countersign.db"

    @property
    def lock(self) -> Path:
        return self.root / ".countersign.lock"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def embeddings(self, model_id: str) -> Path:
        return self.root / "embeddings" / model_id

    @property
    def embedding_in_use(self) -> Path:
        """Which of the embedding models was used last."""
        return self.root / "embeddings" / "in_use.json"

    @property
    def lexical(self) -> Path:
        """The model that makes lexical vectors."""
        return self.root / "lexical"

    @property
    def identities(self) -> Path:
        return self.root / "identities"

    @property
    def prompts_used(self) -> Path:
        return self.root / "prompts_used"

    def scores(self, identity_id: str, prompt_id: str) -> Path:
        """Raw engine scores, kept under what decides them."""
        return self.root / "scores" / f"{identity_id}-{prompt_id}"

    def scored_with(self) -> list[tuple[str, str]]:
        """Identity and prompt of all scores there are."""
        root = self.root / "scores"
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        return [(name.partition("-")[0], name.partition("-")[2]) for name in names]

    @property
    def sample(self) -> Path:
        """The setup sample: which records, drawn how."""
        return self.root / "sample.json"

    def round(self, number: int) -> "RoundFolder":
        return RoundFolder(self.root / "rounds" / f"{number:02d}")

    @property
    def rounds(self) -> Path:
        return self.root / "rounds"

    def release(self, version: int) -> Path:
        return self.root / "releases" / f"v{version}"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def rehearsals(self) -> Path:
        return self.root / "rehearsals"

    @property
    def exports(self) -> Path:
        return self.root / "exports"


@dataclass(frozen=True)
class RoundFolder:
    """The tables of one round, each a folder with its manifest."""

    root: Path

    @property
    def setup(self) -> Path:
        return self.root / "setup.json"

    @property
    def self_test(self) -> Path:
        return self.root / "self_test.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def slice(self) -> Path:
        return self.root / "slice.json"

    @property
    def queue(self) -> Path:
        """Which records the round put before people, in which order and why."""
        return self.root / "queue.json"

    @property
    def suggestions(self) -> Path:
        return self.root / "suggestions"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected"

    @property
    def annotations(self) -> Path:
        return self.root / "annotations"

    @property
    def findings(self) -> Path:
        return self.root / "findings"

    @property
    def gold(self) -> Path:
        return self.root / "gold"

    @property
    def agreement(self) -> Path:
        return self.root / "agreement.json"

    @property
    def figures(self) -> Path:
        return self.root / "figures.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


def home() -> Path:
    """Where this machine keeps what belongs to no project: models, the Prefect database, service records.

    `COUNTERSIGN_HOME` says where; otherwise `.cache/countersign` beside the code, which git ignores.
    """
    named = os.environ.get("COUNTERSIGN_HOME")
    return (
        Path(named).resolve() if named else Path(__file__).resolve().parent.parent / ".cache" / "countersign"
    )


def models() -> Path:
    """Verified model files."""
    return home() / "models"


def engines() -> Path:
    """Servers built by `make engines`."""
    return home() / "engines"


def services() -> Path:
    """Prefect home, ports and logs of the services this machine runs."""
    return home() / "services"


def configs() -> Path:
    """Shipped configuration: prompts, demo, expectations."""
    return Path(__file__).resolve().parent.parent / "configs"
