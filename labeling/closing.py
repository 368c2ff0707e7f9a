"""What the audit chain keeps of a round that closes: a table rewritten together with its manifest differs from it.

A manifest lists the SHA-256 of every part, so its own SHA-256 stands for the whole table. Left out is what may be
written anew after a round was closed: its plan, the self-test of the engine, the report.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labeling.paths import ProjectFolder
from labeling.storage import MANIFEST


def closing_files(folder: ProjectFolder, number: int) -> dict[str, dict[str, Any]]:
    """Committed bytes and SHA-256 of the round's files, by their path in the project."""
    here = folder.round(number)
    tables = (folder.records, here.suggestions, here.rejected, here.annotations, here.findings, here.gold)
    files = [*(table / MANIFEST for table in tables), here.queue, here.agreement, here.figures]
    files += [here.setup, here.slice] if number == 1 else []
    return {
        file.relative_to(folder.root).as_posix(): _entry(_committed(file)) for file in files if file.is_file()
    }


def changed_since(folder: ProjectFolder, number: int, kept: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence a file that is not what it was when the round was closed."""
    # Records may be added, and suggested for, at any time: of these tables what was there must still be.
    here = folder.round(number)
    may_grow = {table / MANIFEST for table in (folder.records, here.suggestions, here.rejected)}
    problems = []
    for name, entry in sorted(kept.items()):
        file = folder.root / name
        if not file.is_file():
            problems.append(f"{file}: gone; it was there when round {number} was closed")
            continue
        data = _committed(file)
        if _entry(data[: entry["bytes"]] if file in may_grow else data) != entry:
            problems.append(f"{file}: not what it was when round {number} was closed")
    return problems


def _committed(file: Path) -> bytes:
    data = file.read_bytes()
    # What follows the last newline of a manifest was never committed, and the next part takes its place.
    return data[: data.rfind(b"\n") + 1] if file.name == MANIFEST else data


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
