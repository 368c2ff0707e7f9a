"""Small real things for every test: a project in a folder, a small disk, and what CI may not skip."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from schemas.project import Project

ProjectFactory = Callable[..., tuple[Project, ProjectFolder]]

# What a release folder holds, by the command line's contract.
RELEASE_FILES = {
    "data/train.parquet",
    "data/validation.parquet",
    "data/test.parquet",
    "provenance.parquet",
    "manifest.json",
    "validation.json",
    "README.md",
    "croissant.json",
    "report.html",
}


def need(condition: object, reason: str) -> None:
    """Skips where something is not there, but fails in CI: there it has to be."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"needed in CI: {reason}")
    pytest.skip(reason)


def write_project(
    root: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    labels: Sequence[str] = ("alpha", "beta"),
    source: Mapping[str, Any] | None = None,
    engine_url: str | None = None,
    **sections: Any,
) -> tuple[Project, ProjectFolder]:
    """A small classification project: rows as JSONL, project.yaml, guideline.

    Args:
        root: The project folder; made if it is not there.
        rows: Literal rows; `text` and whatever `source` names.
        labels: Label names; a mapping is taken as it is.
        source: Keys of the source section other than path.
        engine_url: A llama-server to use.
        sections: Further top-level sections of project.yaml.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (root / "guideline.md").write_text("# Guideline\n\nOne label for every record.\n", "utf-8")
    document: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "schema": {
            "task": "classification",
            "instruction": "Which letter is meant?",
            "labels": [label if isinstance(label, Mapping) else {"name": label} for label in labels],
        },
        "sources": [{"path": "records.jsonl", "text": "text", **(source or {})}],
        "prompts": {"files": ["builtin:plain"]},
        "embedding": {"kind": "none"},
        **sections,
    }
    if engine_url is not None:
        document["engine"] = {
            "kind": "llama-server",
            "model": "scripted",
            "endpoints": [engine_url],
            "timeout_s": 1.0,
        }
    (root / "project.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), "utf-8")
    return load_project(root)


class SmallDisk:
    """A file system of its own with little room."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self, leave: int = 0) -> None:
        """Leaves so many bytes (in pages of 4 KiB)."""
        free = os.statvfs(self.root)
        with (self.root / "filler").open("wb") as file:
            file.write(b"\0" * max(free.f_bavail * free.f_bsize - leave, 0))

    def free(self) -> None:
        (self.root / "filler").unlink()

    def read_only(self, on: bool = True) -> None:
        mode = "ro" if on else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.root)], check=True, capture_output=True)
