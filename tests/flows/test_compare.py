"""`countersign compare`: one table, in the terminal and as an artifact in Prefect."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from deployments.services import prefect_environment


def artifacts(installation: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    for key, value in prefect_environment(installation.url).items():
        monkeypatch.setitem(os.environ, key, value)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return list(client.read_artifacts())


def test_the_comparison_is_told_here_and_in_prefect(
    installation: Any, lettered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = lettered(60)
    text = (root / "project.yaml").read_text()
    (root / "project.yaml").write_text(text.replace("  id: id\n", "  id: id\n  gold: label\n"))
    installation.command("run", root, check=3)

    _, answer = installation.command("compare", root)

    rows = answer["models"]
    assert {row["n"] for row in rows} == {20}
    assert answer["recommended"]["prompt"] in {row["prompt"] for row in rows}
    (told,) = [one for one in artifacts(installation, monkeypatch) if one.key == "small-comparison"]
    assert f"{rows[0]['right']}/20" in str(told.data)
    assert answer["reason"] in str(told.data)


@pytest.mark.campaign
def test_a_comparison_without_labels_says_what_to_do(installation: Any, lettered: Callable[..., Any]) -> None:
    root, _ = lettered(60)
    installation.command("run", root, check=3)

    _, answer = installation.command("compare", root, check=1)

    assert "Label the setup sample first" in answer["problems"][0]["next"]
