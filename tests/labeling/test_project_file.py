"""project.yaml: what is refused, and how the refusal reads."""

from pathlib import Path

import pytest

from labeling.project_file import load_project, parse_project, project_json_schema
from schemas.errors import LabelingError, ManyProblems, ProjectError
from schemas.project import Project

SMALL = """
name: small
schema:
  task: classification
  labels: [{name: alpha}, {name: beta}]
sources: [{path: records.csv}]
"""


def read(text: str) -> Project:
    return parse_project(text.encode("utf-8"), "project.yaml")


def problems(text: str) -> list[LabelingError]:
    with pytest.raises(ManyProblems) as caught:
        read(text)
    return caught.value.problems


def test_a_small_file_is_a_project_with_defaults() -> None:
    project = read(SMALL)

    assert project.label_schema.names == ("alpha", "beta")
    assert (project.version, project.setup.sample, project.engine.kind) == (1, 50, "embedded")


def test_a_project_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(SMALL).name = "other"  # type: ignore[misc]


def test_a_folder_without_a_project_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as caught:
        load_project(tmp_path)

    assert caught.value.path == str(tmp_path / "project.yaml")
    assert caught.value.found == "no such file"
    assert "countersign init" in caught.value.next_step


def test_an_unknown_key_is_named_with_its_path() -> None:
    (problem,) = problems(SMALL + "review: {round_record: 5}\n")

    assert problem.path == "project.yaml: review.round_record"
    assert problem.found == "an unknown key"
    assert "review.round_record" in problem.next_step


def test_an_unknown_key_inside_a_list_is_named_with_its_place() -> None:
    (problem,) = problems(SMALL.replace("{name: beta}", "{name: beta, colour: red}"))

    assert problem.path == "project.yaml: schema.labels[1].colour"


def test_all_problems_are_told_at_once() -> None:
    told = problems(SMALL + "seed: -1\nsetup: {sample: 3}\nextra: 1\n")

    assert {problem.path for problem in told} == {
        "project.yaml: seed",
        "project.yaml: setup.sample",
        "project.yaml: extra",
    }


def test_a_missing_key_is_named() -> None:
    (problem,) = problems(SMALL.replace("name: small\n", ""))

    assert (problem.path, problem.found) == ("project.yaml: name", "nothing")


def test_one_label_is_too_few() -> None:
    (problem,) = problems(SMALL.replace(", {name: beta}", ""))

    assert problem.path == "project.yaml: schema"
    assert "1 label(s) for a classification project; it needs at least 2" in problem.expected


@pytest.mark.parametrize(
    "twin",
    ["alpha", "Alpha", "ALPHA", "al pha ", "ａｌｐｈａ", "alpha\u00a0", "al\u200bpha", "\u0430lpha"],
    ids=[
        "equal",
        "capital",
        "capitals",
        "inner space",
        "full width",
        "no-break space",
        "zero width",
        "Cyrillic",
    ],
)
def test_two_labels_that_read_alike_are_refused(twin: str) -> None:
    first = "al-pha" if twin == "al pha " else "alpha"

    (problem,) = problems(
        SMALL.replace("{name: alpha}", f"{{name: {first}}}").replace("{name: beta}", f'{{name: "{twin}"}}')
    )

    assert problem.path == "project.yaml: schema"
    assert "read alike" in problem.expected


@pytest.mark.parametrize("path", ["https://example.org/a.csv", "s3://bucket/a.parquet", "file:///a.csv"])
def test_a_source_is_never_a_url(path: str) -> None:
    (problem,) = problems(SMALL.replace("records.csv", path))

    assert problem.path == "project.yaml: sources[0].path"
    assert "URL" in problem.expected


def test_a_source_of_another_format_is_refused() -> None:
    (problem,) = problems(SMALL.replace("records.csv", "records.xlsx"))

    assert ".csv, .jsonl, .ndjson, .parquet" in problem.expected


@pytest.mark.parametrize("shares", ["0.8, 0.3, 0.1", "1.2, -0.1, -0.1", ".nan, .nan, .nan", ".inf, -.inf, 1"])
def test_splits_that_do_not_sum_to_one_are_refused(shares: str) -> None:
    (problem,) = problems(SMALL + f"quality: {{splits: [{shares}]}}\n")

    assert problem.path == "project.yaml: quality.splits"


def test_an_alias_bomb_is_refused_before_it_unfolds() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )

    with pytest.raises(ProjectError) as caught:
        read(bomb + SMALL)

    assert caught.value.path == "project.yaml, line 2, column 8"
    assert "aliases" in caught.value.found


def test_a_key_twice_is_refused_with_its_line() -> None:
    with pytest.raises(ProjectError) as caught:
        read(SMALL + "name: other\n")

    assert (caught.value.path, caught.value.found) == ("project.yaml, line 7, column 1", "key 'name' twice")


def test_a_tag_that_would_make_an_object_is_refused() -> None:
    with pytest.raises(ProjectError) as caught:
        read(SMALL + "title: !!python/object/apply:os.system [ls]\n")

    assert "line 7" in caught.value.path


@pytest.mark.parametrize(
    "value",
    ["2024-13-45", "!!int twelve", "!!int ''", "!!bool perhaps", "!!timestamp soon", "!!float x", "9" * 5000],
    ids=["impossible date", "no number", "empty number", "no bool", "no date", "no float", "endless number"],
)
def test_a_scalar_that_yaml_itself_chokes_on_is_a_project_error(value: str) -> None:
    with pytest.raises(ProjectError) as caught:
        read(SMALL + f"title: {value}\n")

    assert caught.value.path.startswith("project.yaml")
    assert caught.value.expected.startswith("plain YAML")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProjectError):
        read(SMALL + "title: " + "[" * 5000 + "]" * 5000)


def test_a_file_of_two_megabytes_is_refused_unread() -> None:
    with pytest.raises(ProjectError) as caught:
        read("#" * 2_000_000)

    assert caught.value.found == "2,000,000 bytes"


def test_bytes_that_are_no_utf8_are_refused_with_their_place() -> None:
    with pytest.raises(ProjectError) as caught:
        parse_project(b"name: caf\xe9\n", "project.yaml")

    assert caught.value.found == "byte 9 is no UTF-8"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ProjectError) as caught:
        read(text)

    assert caught.value.expected == "a mapping of keys"


def test_a_project_from_a_newer_version_is_left_alone() -> None:
    with pytest.raises(ProjectError) as caught:
        read("version: 2\nbrand_new_section: {}\n" + SMALL)

    assert caught.value.path == "project.yaml: version"
    assert (caught.value.found, caught.value.expected) == ("2", "at most 1")
    assert "newer Countersign" in caught.value.next_step


def test_every_error_can_be_printed_whatever_was_in_the_file() -> None:
    for problem in problems(SMALL.replace("name: small", 'name: "\\ud800"')):
        str(problem).encode("utf-8")


def test_the_json_schema_names_every_section() -> None:
    schema = project_json_schema()

    assert schema["$schema"].endswith("2020-12/schema")
    assert {"name", "schema", "sources", "engine", "review", "quality"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("cron", ["99 99 * * *", "0 0 30 2 *", "- - - - -"])
def test_a_schedule_of_a_time_that_never_comes_is_refused(cron: str) -> None:
    (problem,) = problems(SMALL + f"schedules: {{pre_annotate: '{cron}', gate_reminder: 0 8 * * mon-fri}}\n")

    assert problem.path == "project.yaml: schedules.pre_annotate"
    assert cron in problem.found
    assert read(SMALL + "schedules: {pre_annotate: 0 0 29 2 *}\n").schedules.pre_annotate == "0 0 29 2 *"


def test_a_route_to_no_source_says_which_sources_there_are() -> None:
    (problem,) = problems(SMALL + "review: {routes: [{source: other.csv, pool: nurses}]}\n")

    assert problem.path == "project.yaml"
    assert (problem.found, problem.expected) == (
        "a route for source 'other.csv'",
        "the sources are records.csv",
    )
