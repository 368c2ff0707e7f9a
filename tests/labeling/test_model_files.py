"""Weights are the ones that are named, or nothing starts."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from small_projects import need

from labeling.engines import model_files
from labeling.engines.model_files import cached, digest_of, lock, model_file
from schemas.errors import ModelFileError

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = "smollm2-135m-instruct"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without models."""
    monkeypatch.setenv("COUNTERSIGN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_lock_names_package_version_licence_and_hashes() -> None:
    for entry in lock().values():
        assert entry["role"] in ("completion", "embedding") and entry["licence"]
        assert entry["package"] and entry["version"]
        assert all(len(digest) == 64 for digest in [entry["gguf_sha256"], *entry["files"].values()])


def test_a_verified_model_is_given_out() -> None:
    need(cached(SMALL).is_file(), "the shipped model is in the cache (make models)")

    file = model_file(SMALL)

    assert file.read_bytes()[:4] == b"GGUF"
    assert digest_of(file) == lock()[SMALL]["gguf_sha256"]


def test_a_missing_model_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        model_file(SMALL)

    assert caught.value.path == str(cached(SMALL))
    assert caught.value.found == "no file"
    assert f"countersign models {SMALL}" in caught.value.next_step


@pytest.mark.parametrize("damage", ["flip", "cut", "replaced"])
def test_a_damaged_model_is_refused(home: Path, damage: str) -> None:
    target = cached(SMALL)
    target.parent.mkdir(parents=True)
    shipped = ROOT / ".cache" / "countersign" / "models" / lock()[SMALL]["gguf_sha256"][:12] / f"{SMALL}.gguf"
    need(shipped.is_file(), "the shipped model is in the cache (make models)")
    if damage == "replaced":
        target.write_bytes(b"GGUF" + b"\0" * 1000)
    else:
        shutil.copy(shipped, target)
        with target.open("r+b") as file:
            file.seek(50_000_000)
            if damage == "cut":
                file.truncate()
            else:
                byte = file.read(1)[0] ^ 1
                file.seek(50_000_000)
                file.write(bytes([byte]))

    with pytest.raises(ModelFileError) as caught:
        model_file(SMALL)

    assert caught.value.path == str(target)
    assert caught.value.expected.startswith(lock()[SMALL]["gguf_sha256"][:12])
    assert "delete it" in caught.value.next_step


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ModelFileError) as caught:
        model_file("gpt-17")

    assert SMALL in caught.value.expected
    assert caught.value.next_step == "Check engine.model in project.yaml."


def test_a_clients_own_file_is_taken_by_its_path_if_it_is_a_gguf(tmp_path: Path) -> None:
    own, other = tmp_path / "own.gguf", tmp_path / "other.gguf"
    own.write_bytes(b"GGUF....")
    other.write_bytes(b"PK\x03\x04")

    assert model_file(str(own)) == own
    with pytest.raises(ModelFileError) as caught:
        model_file(str(other))
    assert caught.value.expected == "a GGUF model"


def test_a_clients_own_file_that_is_damaged_is_a_clear_error_and_no_crash(tmp_path: Path) -> None:
    shipped = cached(SMALL)
    need(shipped.is_file(), "the shipped model is in the cache (make models)")
    own = tmp_path / "own.gguf"
    with shipped.open("rb") as file:
        own.write_bytes(file.read(3_000_000))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from labeling.engines.embedded import EmbeddedEngine\n"
        "from schemas.errors import ModelFileError\n"
        "try:\n"
        "    EmbeddedEngine(Path(sys.argv[1]), context=256, slots=1, threads=1)\n"
        "except ModelFileError as error:\n"
        "    print(error.path, error.expected, sep='|')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(own)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"{own}|weights that llama.cpp can load"


def test_the_digest_is_read_again_when_the_file_changed(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF1")
    first = digest_of(file)
    file.write_bytes(b"GGUF22")

    assert (first, digest_of(file)) == tuple(
        hashlib.sha256(data).hexdigest() for data in (b"GGUF1", b"GGUF22")
    )


# -- fetching, from a wheel in a folder ------------------------------------------------------------------------------


@pytest.fixture
def wheelhouse(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry that is a folder with one small wheel, and a lock that names it."""
    house = tmp_path / "wheels"
    house.mkdir()
    weights = b"GGUF tiny weights"
    with zipfile.ZipFile(house / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", weights)
        wheel.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(weights).hexdigest()
    known = {
        "tiny": {
            "role": "completion",
            "package": "tiny-model",
            "version": "1.0",
            "licence": "none",
            "files": {"tiny_model/tiny.gguf": digest},
            "gguf_sha256": digest,
            "convert": None,
        }
    }
    monkeypatch.setattr(model_files, "lock", lambda: known)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    (tmp_path / "lock.json").write_text(json.dumps(known))
    return house


def test_a_model_is_fetched_by_its_packages_name_and_verified(wheelhouse: Path, home: Path) -> None:
    file = model_file("tiny", fetch=True)

    assert file == cached("tiny")
    assert file.read_bytes() == b"GGUF tiny weights"
    assert model_file("tiny") == file


def test_a_package_that_changed_since_it_was_locked_is_not_used(wheelhouse: Path, home: Path) -> None:
    file = wheelhouse / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file) as wheel:
        members = {name: wheel.read(name) for name in wheel.namelist()}
    with zipfile.ZipFile(file, "w") as wheel:
        for name, content in (members | {"tiny_model/tiny.gguf": b"GGUF other weights"}).items():
            wheel.writestr(name, content)

    with pytest.raises(ModelFileError) as caught:
        model_file("tiny", fetch=True)

    assert "changed since it was locked" in caught.value.next_step
    assert not cached("tiny").exists()


def test_an_unreachable_registry_is_a_clear_error(wheelhouse: Path) -> None:
    next(wheelhouse.glob("*.whl")).unlink()

    with pytest.raises(ModelFileError) as caught:
        model_file("tiny", fetch=True)

    assert caught.value.path == "package tiny-model==1.0"
    assert "network" in caught.value.next_step


# -- conversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["q8_0", "bf16"])
def test_weights_in_the_slow_layout_become_a_quick_one_almost_without_loss(
    tmp_path: Path, layout: str
) -> None:
    slow, quick = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType[layout.upper()]
    values = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "slow.gguf", "llama")
    writer.add_name("tiny")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("blk.0.ffn_up.weight", quantize(values, slow), raw_dtype=slow)
    writer.add_tensor("output_norm.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model_files._stored_anew(tmp_path / "slow.gguf", tmp_path / "quick.gguf", layout)
    model_files._stored_anew(tmp_path / "slow.gguf", tmp_path / "again.gguf", layout)

    before, after = gguf.GGUFReader(tmp_path / "slow.gguf"), gguf.GGUFReader(tmp_path / "quick.gguf")
    assert [tensor.tensor_type for tensor in after.tensors] == [quick, gguf.GGMLQuantizationType.F32]
    exact = dequantize(before.tensors[0].data, slow)
    kept = dequantize(after.tensors[0].data, quick)
    assert np.abs(kept - exact).max() < 0.005 * np.abs(exact).max()
    assert after.get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
    assert after.get_field("general.name").contents() == "tiny"
    assert (tmp_path / "quick.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
