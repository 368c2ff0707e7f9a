"""What the audit chain keeps of a round's files: a table rewritten together with its manifest differs from it.

A manifest lists the SHA-256 of every part, so its own SHA-256 stands for the whole table. Left out is what may be
written anew afterwards: the round's plan, the self-test of the engine, the report.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labeling.paths import ProjectFolder
from labeling.storage import MANIFEST


def signing_files(folder: ProjectFolder, number: int) -> dict[str, dict[str, Any]]:
    """What the round was labelled from: committed bytes and SHA-256 of its files, by their path in the project."""
    here = folder.round(number)
    files = [*_growing(folder, number), here.queue]
    return _entries(folder, [*files, here.setup, here.slice] if number == 1 else files)


def closing_files(folder: ProjectFolder, number: int) -> dict[str, dict[str, Any]]:
    """As `signing_files`, with what people's decisions came to."""
    here = folder.round(number)
    made = [*(table / MANIFEST for table in (here.annotations, here.findings, here.gold))]
    return signing_files(folder, number) | _entries(folder, [*made, here.agreement, here.figures])


def changed_since(
    folder: ProjectFolder, number: int, kept: Mapping[str, Mapping[str, Any]], moment: str
) -> list[str]:
    """One sentence a file that is not what it was when the round was `moment` (signed, closed)."""
    problems = []
    for name, entry in sorted(kept.items()):
        file = folder.root / name
        if not file.is_file():
            problems.append(f"{file}: gone; it was there when round {number} was {moment}")
            continue
        data = _committed(file)
        if _entry(data[: entry["bytes"]] if file in _growing(folder, number) else data) != entry:
            problems.append(f"{file}: not what it was when round {number} was {moment}")
    return problems


def _growing(folder: ProjectFolder, number: int) -> list[Path]:
    """Records may be added, and suggested for, at any time: of these tables what was there must still be."""
    here = folder.round(number)
    return [table / MANIFEST for table in (folder.records, here.suggestions, here.rejected)]


def _entries(folder: ProjectFolder, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {
        file.relative_to(folder.root).as_posix(): _entry(_committed(file)) for file in files if file.is_file()
    }


def _committed(file: Path) -> bytes:
    data = file.read_bytes()
    # What follows the last newline of a manifest was never committed, and the next part takes its place.
    return data[: data.rfind(b"\n") + 1] if file.name == MANIFEST else data


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
