"""Documents that cannot rot: README commands, help, deployments, configuration."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
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


def test_the_readme_lists_the_deployments_there_are() -> None:
    from deployments.catalogue import CATALOGUE
    from labeling.status import PHASES

    listed = re.findall(r"^\| `(\w+)/NAME` \|", _readme(), re.MULTILINE)

    assert listed == [entry.name for entry in CATALOGUE]
    assert set(listed) == {*PHASES, "pipeline", "compare", "remind"}
    assert all(entry.description.endswith(".") for entry in CATALOGUE)


def test_every_flow_takes_one_model_whose_fields_are_explained() -> None:
    from deployments.catalogue import CATALOGUE, flow_of

    for entry in CATALOGUE:
        schema = flow_of(entry).parameters.model_dump()
        (model,) = schema["definitions"].values()
        assert list(schema["properties"]) == ["run"]
        assert all(field["title"] and field["description"] for field in model["properties"].values())


def test_the_compose_file_starts_what_there_is_on_loopback_only() -> None:
    parts = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text("utf-8"))
    services = parts["services"]

    assert set(services) == {"database", "prefect", "worker", "review"}
    for name, service in services.items():
        assert service["network_mode"] == "host" and "ports" not in service, name
        assert set(service.get("depends_on", {})) <= set(services)
        volumes = [volume.partition(":")[0] for volume in service["volumes"]]
        assert all(source in parts["volumes"] or source.startswith(("./", "$")) for source in volumes)
        if name != "database":
            module = service["command"][service["command"].index("-m") + 1].replace(".", "/")
            assert (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file()
    assert "listen_addresses=127.0.0.1" in services["database"]["command"]
    assert (ROOT / "deployments" / "postgresql-init.sql").is_file()


def test_what_runs_outside_of_up_is_as_quiet_as_what_it_starts() -> None:
    from deployments.services import QUIET_ENVIRONMENT

    wanted = {
        key: value
        for key, value in QUIET_ENVIRONMENT.items()
        if not key.startswith(("PREFECT_LOGGING", "PREFECT_RUNNER", "PREFECT_RESULTS_PERSIST"))
    }
    example = (ROOT / "deployments" / "environment.example").read_text("utf-8")
    in_units = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    compose = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text("utf-8"))

    assert wanted.items() <= in_units.items()
    assert wanted.items() <= compose["services"]["worker"]["environment"].items()


UNITS = sorted(
    path.relative_to(ROOT / "deployments" / "systemd").as_posix()
    for path in (ROOT / "deployments" / "systemd").rglob("*")
    if path.is_file()
)


@pytest.mark.parametrize("name", UNITS)
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
