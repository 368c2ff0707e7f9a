"""Prompts: one record each, the record's characters untouched, every version known by its content."""

import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_projects import ProjectFactory

from labeling.engines.embedded import EmbeddedEngine
from labeling.engines.protocol import FirstToken, LabelCode
from labeling.project_file import parse_project
from labeling.prompts import MAX_TEMPLATE_BYTES, Exemplar, PromptTemplate, bind, label_codes, load_template
from schemas.errors import PromptFileError
from schemas.project import Label

CODES = (LabelCode("alpha", " alpha", 11), LabelCode("beta", " beta", 22))
PROJECT = parse_project(
    b"name: p\nsources: [{path: r.csv}]\nschema:\n  task: classification\n  instruction: Which letter?\n"
    b"  labels: [{name: alpha, definition: The first.}, {name: beta}]\n",
    "project.yaml",
)


def template(source: str) -> PromptTemplate:
    return PromptTemplate("prompts/mine.jinja", source)


def refusal(source: str) -> PromptFileError:
    with pytest.raises(PromptFileError) as caught:
        bind(template(source), PROJECT, CODES)
    return caught.value


@pytest.mark.parametrize("name", ["builtin:plain", "builtin:definitions"])
def test_the_shipped_prompts_end_with_the_record_and_the_cue(name: str, tmp_path: Path) -> None:
    prompt = bind(load_template(name, tmp_path), PROJECT, CODES)

    assert "Which letter?" in prompt.prefix and "alpha" in prompt.prefix
    assert prompt.cue == "\nLabel:"
    assert prompt.around("a record") == prompt.prefix + "a record\nLabel:"


@given(text=st.text(max_size=80))
def test_a_records_own_characters_never_pass_through_the_template_language(text: str) -> None:
    prompt = bind(template("Text: {{ text }}\nLabel:"), PROJECT, CODES)

    assert prompt.around(text) == f"Text: {text}\nLabel:"


def test_a_record_that_looks_like_a_template_is_shown_as_it_is() -> None:
    prompt = bind(template("Text: {{ text }}\nLabel:"), PROJECT, CODES)

    assert "{{ labels[0].name }} {% raw %}" in prompt.around("{{ labels[0].name }} {% raw %}")


def test_exemplars_stand_before_the_record_in_the_words_the_model_answers_with(tmp_path: Path) -> None:
    shown = (Exemplar("r1", "first text", "beta"),)

    prompt = bind(load_template("builtin:plain", tmp_path), PROJECT, CODES, shown)

    assert "Text: first text\nLabel: beta\n" in prompt.prefix
    assert prompt.as_dict()["exemplars"] == ["r1"]


def test_no_text_of_an_exemplar_is_taken_for_the_records_place(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[str] = []
    draw = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda count: marks.append(draw(count)) or marks[-1])
    source = template("{% for one in exemplars %}{{ one.text }}\n{% endfor %}{{ text }}\n=>")
    bind(source, PROJECT, CODES, (Exemplar("r1", "a", "alpha"),))
    shown = ("a \x02record\x03 b", f"a \x02record {marks[0]}\x03 b")

    prompt = bind(source, PROJECT, CODES, tuple(Exemplar(f"r{text}", text, "alpha") for text in shown))

    assert prompt.around("x") == "".join(f"{text}\n" for text in shown) + "x\n=>"


def test_the_prompt_id_changes_with_everything_the_engine_reads() -> None:
    base = "{{ instruction }}\nText: {{ text }}\nLabel:"
    other_project = PROJECT.model_copy(
        update={"label_schema": PROJECT.label_schema.model_copy(update={"instruction": "Which one?"})}
    )
    other_codes = (CODES[0], LabelCode("beta", " B", 23))
    ids = [
        bind(template(base), PROJECT, CODES).prompt_id,
        bind(template(base + " "), PROJECT, CODES).prompt_id,
        bind(template(base), other_project, CODES).prompt_id,
        bind(template(base), PROJECT, other_codes).prompt_id,
        bind(template(base), PROJECT, CODES, (Exemplar("r1", "a", "alpha"),)).prompt_id,
    ]

    assert len(set(ids)) == 5
    assert ids[0] == bind(template(base), PROJECT, CODES).prompt_id
    assert len(ids[0]) == 24


def test_a_changed_file_is_a_new_version(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ text }}\nLabel:")
    before = load_template("mine.jinja", tmp_path)
    file.write_text("{{ text }}\n\nLabel:")

    assert load_template("mine.jinja", tmp_path).sha256 != before.sha256


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("Label:", "{{ text }} 0 times"),
        ("{{ text }} {{ text }}", "{{ text }} 2 times"),
        ("{{ text }} {{ unknown }}", "'unknown' is undefined"),
        ("{{ text", "unexpected"),
        ("{% for x in %}{{ text }}", "Expected"),
        ("{{ text.__class__.__mro__ }} {{ text }}", "unsafe"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(source: str, found: str) -> None:
    error = refusal(source)

    assert error.path == "prompt prompts/mine.jinja"
    assert found.lower() in error.found.lower()
    assert error.next_step


def test_a_prompt_outside_the_project_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jinja").write_text("{{ text }}")
    (tmp_path / "project").mkdir()

    with pytest.raises(PromptFileError) as caught:
        load_template("../secret.jinja", tmp_path / "project")

    assert caught.value.found == "a path outside the project folder"


def test_a_link_out_of_the_project_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jinja").write_text("{{ text }}")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mine.jinja").symlink_to(tmp_path / "secret.jinja")

    with pytest.raises(PromptFileError) as caught:
        load_template("mine.jinja", tmp_path / "project")

    assert caught.value.found == "a path outside the project folder"


@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe", b"x" * (MAX_TEMPLATE_BYTES + 1)], ids=["none", "bytes", "long"]
)
def test_a_missing_unreadable_or_endless_prompt_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)

    with pytest.raises(PromptFileError) as caught:
        load_template("mine.jinja", tmp_path)

    assert "mine.jinja" in caught.value.path


def test_an_unknown_shipped_prompt_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError) as caught:
        load_template("builtin:../../secrets", tmp_path)

    assert "builtin:plain" in caught.value.next_step


# -- codes -----------------------------------------------------------------------------------------------------------


def whole_words(text: str) -> tuple[int, ...]:
    return (hash(text) & 0xFFFF,)


def first_letters(text: str) -> FirstToken:
    return FirstToken(ord(text.strip()[0]), "", len(text.strip()) == 1)


def labels(*names: str, **words: str) -> list[Label]:
    return [Label(name=name, word=words.get(name, "")) for name in names]


def test_labels_are_spelled_as_words_where_their_first_tokens_differ() -> None:
    codes = label_codes(labels("sport", "money"), first_letters)

    assert [(code.label, code.text, code.token_id) for code in codes] == [
        ("sport", " sport", ord("s")),
        ("money", " money", ord("m")),
    ]


def test_a_label_may_answer_with_another_word_than_its_name() -> None:
    (first, _) = label_codes(labels("sport", "money", sport="athletics"), first_letters)

    assert (first.label, first.text) == ("sport", " athletics")


def test_labels_with_one_first_token_become_letters() -> None:
    codes = label_codes(labels("sport", "spam"), first_letters)

    assert [code.text for code in codes] == [" A", " B"]


def test_words_that_cannot_be_told_apart_are_refused_when_words_are_demanded() -> None:
    with pytest.raises(PromptFileError) as caught:
        label_codes(labels("sport", "spam"), first_letters, style="words")

    assert caught.value.path == "prompts.codes"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("Pay", "Payroll"), [" A", " B"]),
        (("Taxable", "Sports", "Tax"), [" A", " B", " C"]),
        (("Outage", "Out"), [" A", " B"]),
        (("Payroll", "Outage"), [" Payroll", " Outage"]),
    ],
)
def test_where_tokens_are_not_known_a_label_that_begins_another_makes_letters(
    names: tuple[str, ...], told: list[str]
) -> None:
    codes = label_codes(labels(*names), lambda text: FirstToken(-1, "", len(text.strip()) == 1))

    assert [code.text for code in codes] == told


def test_where_tokens_are_known_a_label_may_begin_another() -> None:
    codes = label_codes(labels("Pay", "Payroll"), lambda text: FirstToken(-1, text, True))

    assert [code.text for code in codes] == [" Pay", " Payroll"]


def test_more_labels_than_single_tokens_are_refused() -> None:
    many = labels(*(f"label {number}" for number in range(30)))

    with pytest.raises(PromptFileError) as caught:
        label_codes(many, first_letters, style="letters")

    assert caught.value.found == "30 labels"
    assert "at most 26" in caught.value.expected


def test_every_code_of_the_shipped_model_is_one_token_of_its_own(real_engine: Any) -> None:
    names = [f"kind {number}" for number in range(40)]

    codes = label_codes(labels(*names), real_engine.first_token, style="letters")

    assert len({code.token_id for code in codes}) == 40
    assert all(real_engine.token_ids(code.text) == (code.token_id,) for code in codes)


def sentencepiece_model(path: Path, words: Sequence[str]) -> Path:
    """A Llama of one small layer with a SentencePiece vocabulary that puts a space before every text, as Llama 2's."""
    letters = sorted({letter for word in words for letter in word})
    starts = [f"\u2581{word[:end]}" for word in words for end in range(1, len(word) + 1)]
    plain = list(dict.fromkeys(["\u2581", ":", *letters, *starts]))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *plain]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(plain)  # as GGUF numbers unknown, control, byte and normal ones
    width, rng = 32, np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * 259 + [-1000.0 + 10 * len(token) for token in plain])
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width), "output_norm": (width,)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    layers = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{layer}": (width, width) for layer in layers}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_labels_are_words_for_a_model_that_puts_a_space_before_every_text(tmp_path: Path) -> None:
    file = sentencepiece_model(tmp_path / "model.gguf", ["Sports", "World"])
    engine = EmbeddedEngine(file, context=64, slots=1, threads=1)

    codes = label_codes(labels("Sports", "World"), engine.first_token)

    assert [code.text for code in codes] == [" Sports", " World"]
    for code in codes:
        assert engine.tokenize(f":{code.text}").ids[-1] == code.token_id
    engine.close()


def test_the_engine_in_the_process_is_known_by_its_file_wherever_that_lies(tmp_path: Path) -> None:
    seen = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        engine = EmbeddedEngine(
            sentencepiece_model(folder / "m.gguf", ["Sports"]), context=64, slots=1, threads=1
        )
        seen.append(engine.identity())
        engine.close()

    assert seen[0] == seen[1]
    assert (seen[0].model, len(seen[0].digest)) == ("m.gguf", 64)


OPENED_AND_CLOSED = """
import sys
from pathlib import Path
from labeling.engines.embedded import EmbeddedEngine

for _ in range(20):
    EmbeddedEngine(Path(sys.argv[1]), context=64, slots=1, threads=1).close()
"""


def test_an_engine_in_the_process_that_is_closed_at_once_ends(tmp_path: Path) -> None:
    weights = sentencepiece_model(tmp_path / "m.gguf", ["Sports"])
    command = [sys.executable, "-c", OPENED_AND_CLOSED, str(weights)]

    # llama.cpp's server waits for itself for ever if it is told to end before its loop runs, as on a busy machine.
    several = [subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2]) for _ in range(6)]
    try:
        assert [one.wait(timeout=60) for one in several] == [0] * 6
    finally:
        for one in several:
            one.kill()
            one.wait()


def test_a_prompt_file_of_the_project_is_used_by_its_setup(
    project_folder: ProjectFactory, tmp_path: Path
) -> None:
    project, folder = project_folder([], prompts={"files": ["prompts/own.jinja"]})
    (folder.root / "prompts").mkdir()
    (folder.root / "prompts" / "own.jinja").write_text("Mine: {{ text }}\n=>")

    prompt = bind(load_template(project.prompts.files[0], folder.root), project, CODES)

    assert prompt.around("x") == "Mine: x\n=>"
