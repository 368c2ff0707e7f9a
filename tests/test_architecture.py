"""The arrows of docs/design.md, and what a tracked file must never hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_projects import need

from labeling.project_file import load_project

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "labeling", "tasks", "flows", "deployments", "review_app", "countersign", "benchmarks")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "labeling": {"labeling", "schemas"},
    "tasks": {"tasks", "labeling", "schemas"},
    "flows": {"flows", "tasks", "labeling", "schemas"},
    "deployments": {"deployments", "flows", "tasks", "labeling", "schemas"},
    "review_app": {"review_app", "labeling", "schemas"},
    "countersign": set(PACKAGES) - {"benchmarks"},
    "benchmarks": set(PACKAGES),
}
WEB_AND_FLOW_FRAMEWORKS = {"prefect", "fastapi", "starlette", "uvicorn"}


def modules_of(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the package"
            yield node.lineno, node.module or ""


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    need(listed.returncode == 0, "git ls-files works only in a checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def tracked_texts() -> Iterator[tuple[Path, str]]:
    for path in tracked_files():
        try:
            yield path, path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_packages_below_it(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules_of(package)
        for line, name in imports_of(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in MAY_IMPORT[package]
    ]
    assert wrong == []


def test_schemas_import_only_pydantic_polars_pyarrow_and_the_standard_library() -> None:
    allowed = {"schemas", "pydantic", "polars", "pyarrow"} | set(sys.stdlib_module_names)
    wrong = [(path.name, name) for path in modules_of("schemas") for _, name in imports_of(path)]
    assert [entry for entry in wrong if entry[1].split(".")[0] not in allowed] == []


@pytest.mark.parametrize("package", ["schemas", "labeling"])
def test_the_library_knows_neither_prefect_nor_a_web_framework(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules_of(package)
        for line, name in imports_of(path)
        if name.split(".")[0] in WEB_AND_FLOW_FRAMEWORKS
    ]
    assert wrong == []


def test_the_review_app_does_not_know_prefect() -> None:
    assert [
        path for path in modules_of("review_app") for _, name in imports_of(path) if "prefect" in name
    ] == []


def test_nothing_imports_the_command_line() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        if package != "countersign"
        for path in modules_of(package)
        for line, name in imports_of(path)
        if name.split(".")[0] == "countersign"
    ]
    assert wrong == []


def test_no_module_is_called_utils_helpers_or_common() -> None:
    names = {"utils", "util", "helpers", "helper", "common", "misc"}
    wrong = [path for path in tracked_files() if path.suffix == ".py" and {path.stem, *path.parts} & names]
    assert wrong == []


def test_an_init_file_is_empty_or_a_list_of_reexports() -> None:
    for package in PACKAGES:
        for path in modules_of(package):
            if path.name == "__init__.py" and path.parent.parent != ROOT / "labeling" / "task_types":
                body = ast.parse(path.read_text("utf-8")).body
                kinds = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef)
                assert all(isinstance(node, kinds) for node in body) and len(body) <= 5, path


def test_configs_hold_no_python() -> None:
    assert list((ROOT / "configs").rglob("*.py")) == []


def test_no_tracked_file_points_at_one_machine_or_at_a_registry() -> None:
    # Spelled in two halves, so that this file does not find itself.
    forbidden = {
        "the shared data sets": "shared" + "/datasets",
        "a path of one machine": r"(?<![\w.*])/(?:wor"
        + r"k|roo"
        + r"t|tmp/l"
        + r"k|tmp/ex"
        + r"p|home/\w+)/",
        "a package registry": r"(?:pypi\.or" + r"g|pythonhosted\.or" + r"g|test\.pypi|conda\.anaconda)",
    }
    measured = {"docs/benchmarks.md"}  # says on which public data the figures were measured
    found = []
    for path, text in tracked_texts():
        name = str(path.relative_to(ROOT))
        for what, pattern in forbidden.items():
            if name in measured or name.startswith("benchmarks/"):
                continue
            found += [f"{name}: {what}: {match[0]}" for match in re.finditer(pattern, text)]
    assert found == []


def test_requirement_locks_have_hashes_and_name_no_index() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.txt")) + sorted(
        (ROOT / "requirements").glob("*.lock")
    ):
        text = lock.read_text("utf-8")
        assert "--index-url" not in text and "--extra-index-url" not in text and "://" not in text, lock
        pins = re.findall(
            r"^[A-Za-z0-9][\w.\[\]-]*==\S+.*?(?=^[A-Za-z0-9]|\Z)", text, re.MULTILINE | re.DOTALL
        )
        assert pins, lock
        assert [pin.splitlines()[0] for pin in pins if "--hash=sha256:" not in pin] == [], lock


def test_every_committed_project_file_loads() -> None:
    files = [
        path
        for path in tracked_files()
        if path.suffix in (".yaml", ".yml")
        and (path.name == "project.yaml" or path.parent == ROOT / "configs" / "projects")
    ]
    need(files, "no project file is committed yet")
    for path in files:
        project, folder = load_project(path)
        assert project.name and folder.root == path.parent


def test_every_shipped_prompt_binds_to_a_project_and_ends_with_a_cue() -> None:
    from labeling.engines.protocol import LabelCode
    from labeling.project_file import parse_project
    from labeling.prompts import bind, load_template

    project = parse_project(
        b"name: p\nschema: {task: classification, labels: [{name: a}, {name: b}]}\nsources: [{path: r.csv}]\n",
        "p",
    )
    codes = (LabelCode("a", " a", 1), LabelCode("b", " b", 2))
    for path in sorted((ROOT / "configs").rglob("*.jinja")):
        prompt = bind(load_template(path.name, path.parent), project, codes)
        assert prompt.cue and not prompt.cue.endswith((" ", "\n")), path
