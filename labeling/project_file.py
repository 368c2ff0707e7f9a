"""Reads, checks and writes project files. The only place that knows YAML.

YAML is read by a loader that refuses aliases (an alias bomb of 1 KB can ask for gigabytes), duplicate keys (the last
one would win silently) and anything but plain data.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from cronsim import CronSim, CronSimError
from pydantic import ValidationError

from labeling.paths import ProjectFolder
from schemas.errors import LabelingError, ManyProblems, ProjectError
from schemas.project import PROJECT_VERSION, Project

MAX_PROJECT_BYTES = 1_000_000


class _PlainLoader(yaml.SafeLoader):
    """Plain data only: no aliases, no duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_project(path: Path | str) -> tuple[Project, ProjectFolder]:
    """Reads a project folder or its YAML.

    Raises:
        ManyProblems: every problem of the file at once, each with the key's path.
        ProjectError: the file is missing or no YAML.
    """
    given = Path(path)
    file = given / "project.yaml" if given.is_dir() else given
    if not file.is_file():
        raise ProjectError(
            str(file),
            found="no such file",
            expected="a project folder holding project.yaml, or the YAML itself",
            next_step="Make one with `countersign init DIR --task classification`.",
        )
    return parse_project(file.read_bytes(), str(file)), ProjectFolder(file.resolve().parent)


def parse_project(raw: bytes, name: str) -> Project:
    """The project model of a YAML text; `name` is how errors call it."""
    if len(raw) > MAX_PROJECT_BYTES:
        raise ProjectError(
            name,
            found=f"{len(raw):,} bytes",
            expected=f"at most {MAX_PROJECT_BYTES:,}",
            next_step="Put long guidelines into guideline.md.",
        )
    try:
        data = yaml.load(raw.decode("utf-8"), Loader=_PlainLoader)  # noqa: S506 (a SafeLoader made stricter)
    except UnicodeDecodeError as error:
        raise ProjectError(
            name,
            found=f"byte {error.start} is no UTF-8",
            expected="UTF-8 text",
            next_step="Save the file as UTF-8.",
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        # PyYAML lets its own conversions fall through: `2024-13-45` is a ValueError, `!!bool x` a KeyError.
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise ProjectError(
            where,
            found=getattr(error, "problem", None) or str(error),
            expected="plain YAML: keys and values, no aliases, no key twice",
            next_step="Mend that line.",
        ) from error
    if not isinstance(data, dict):
        raise ProjectError(
            name,
            found=type(data).__name__,
            expected="a mapping of keys",
            next_step="Start from `countersign init DIR --task classification`.",
        )
    version = data.get("version", PROJECT_VERSION)
    if isinstance(version, int) and version > PROJECT_VERSION:
        raise ProjectError(
            f"{name}: version",
            found=str(version),
            expected=f"at most {PROJECT_VERSION}",
            next_step="This project was made by a newer Countersign: update the program; nothing was changed.",
        )
    try:
        project = Project.model_validate(data)
    except ValidationError as error:
        raise ManyProblems([_problem(name, entry) for entry in _first_causes(error.errors())]) from error
    if problems := _never_come(project, name):
        raise ManyProblems(problems)
    return project


def _never_come(project: Project, name: str) -> list[LabelingError]:
    problems: list[LabelingError] = []
    for key, cron in project.schedules.model_dump(exclude={"timezone"}, exclude_none=True).items():
        try:
            next(CronSim(cron, datetime.now(UTC)))
        except (CronSimError, StopIteration) as error:
            problems.append(
                ProjectError(
                    f"{name}: schedules.{key}",
                    found=f"{cron!r} ({str(error).lower() or 'no such day'})",
                    expected="minute, hour, day of the month, month and day of the week of a time that comes",
                    next_step=f"Change 'schedules.{key}', e.g. to '0 22 * * *' for every night at ten.",
                )
            )
    return problems


def _first_causes(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without "too short" about a list whose items are told to be wrong: pydantic does not count those."""
    paths = [entry["loc"] for entry in entries]
    return [
        entry
        for entry in entries
        if entry["type"] != "too_short"
        or not any(
            len(path) > len(entry["loc"]) and path[: len(entry["loc"])] == entry["loc"] for path in paths
        )
    ]


def _problem(name: str, entry: Mapping[str, Any]) -> LabelingError:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in entry["loc"]).lstrip(".")
    kind = entry["type"]
    shown = json.dumps(entry.get("input"), default=str, ensure_ascii=False)[:120]
    shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate could not be printed
    if kind == "extra_forbidden":
        return ProjectError(
            f"{name}: {path}",
            found="an unknown key",
            expected="one of the keys of the project schema",
            next_step=f"Remove or rename {path!r}; `countersign init` writes a file with every key explained.",
        )
    if kind == "missing":
        return ProjectError(
            f"{name}: {path}", found="nothing", expected="a value", next_step=f"Add the key {path!r}."
        )
    message = entry["msg"].removeprefix("Value error, ")
    if not path:  # about several keys at once: it names them, and what they hold
        found, _, expected = message.partition("; ")
        return ProjectError(name, found=found, expected=expected, next_step="Change one of the two.")
    return ProjectError(f"{name}: {path}", found=shown, expected=message, next_step=f"Change {path!r}.")


def project_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of project.yaml, for editors."""
    schema = Project.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
