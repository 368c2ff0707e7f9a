"""Documents that cannot rot: README commands, help, deployments, configuration."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from countersign.main import app
from labeling.project_file import load_project

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_names_two_commands_and_the_makefile_has_them() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()

    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_command_of_the_readme_exists() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(
        re.findall(r"countersign ([a-z]+)\b", "\n".join(re.findall(r"```.*?```", _readme(), re.DOTALL)))
    )

    assert named
    assert named <= known, named - known


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    for target in set(re.findall(r"make ([a-z]+)\b", _readme())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_picture_and_file_the_readme_links_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", _readme()):
        assert (ROOT / link).exists(), link


def _readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", ["", *sorted(get_command(app).commands)])  # type: ignore[attr-defined]
def test_help_loads_neither_prefect_nor_great_expectations(command: str) -> None:
    code = (
        "import sys\nfrom countersign.main import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as done:\n    assert done.code == 0, done.code\n"
        "heavy = {'prefect', 'great_expectations', 'polars', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    arguments = [command, "--help"] if command else ["--help"]

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_demo_project_loads() -> None:
    project, _ = load_project(ROOT / "configs" / "demo")

    assert project.label_schema.names == ("appointment", "refill", "results", "billing", "urgent", "records")


def test_deployments_are_the_phases_the_pipeline_and_the_comparison() -> None:
    from deployments.serve import FLOWS
    from labeling.status import PHASES

    assert set(FLOWS) == {*PHASES, "pipeline", "compare"}
    assert all(description.endswith(".") for _, description in FLOWS.values())


@pytest.mark.parametrize("name", ["countersign.service", "ollama.service.d/countersign.conf"])
def test_units_keep_everything_on_the_machine(name: str) -> None:
    unit = (ROOT / "deployments" / "systemd" / name).read_text("utf-8")
    settings = [line for line in unit.splitlines() if line and not line.startswith(("#", "["))]

    assert all(re.fullmatch(r"[A-Z][A-Za-z]+=\S.*", line) for line in settings)
    assert {"IPAddressDeny=any", "IPAddressAllow=localhost"} <= set(settings)


def test_the_units_command_is_one_the_program_has() -> None:
    unit = (ROOT / "deployments" / "systemd" / "countersign.service").read_text("utf-8")
    (command,) = re.findall(r"^ExecStart=\S+/countersign (\w+) .*$", unit, re.MULTILINE)
    (options,) = re.findall(r"^ExecStart=.*?(--.*)$", unit, re.MULTILINE)
    shown = subprocess.run(
        [sys.executable, "-m", "countersign.main", command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        check=True,
    ).stdout

    assert all(option in shown for option in options.split())
