"""What onnxruntime makes of tokens, on the CPU. `python onnxruntime.py quantize IN OUT KIND`: its quantizer."""

import sys
import time
from pathlib import Path
from typing import Any

# Not this folder, where a file has the name of the engine's package.
if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)

import numpy as np
import onnxruntime

VERSION = f"onnxruntime {onnxruntime.__version__}"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Timed:
    """A program with keys and values as optimum calls them; 0 threads are one a core."""

    version = VERSION

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]
        self.caches = [entry for entry in self.session.get_inputs() if entry.name.startswith("past_key_values.")]
        self.past: list[Any] = []
        self.prefill(np.zeros((1, 2), dtype=np.int64))  # memory is taken at the first call

    def prefill(self, ids: Any) -> Any:
        """Read a batch of prompts; logits of every position."""
        self.past = [np.zeros([len(ids), c.shape[1], 0, c.shape[3]], dtype=TYPES[c.type]) for c in self.caches]
        return self._read(ids)

    def step(self, ids: Any) -> Any:
        """Read one more token of each."""
        return self._read(ids[:, None])

    def _read(self, ids: Any) -> Any:
        (count, length), before = ids.shape, self.past[0].shape[2]
        given = {
            "input_ids": ids.astype(np.int64), "attention_mask": np.ones([count, before + length], dtype=np.int64),
            "position_ids": np.tile(np.arange(before, before + length), (count, 1)),
            **{entry.name: value for entry, value in zip(self.caches, self.past, strict=True)},
        }  # fmt: skip
        logits, *self.past = self.session.run(None, {name: given[name] for name in self.names})
        return logits


def main(path: str, tokens: str, out: str, threads: str = "0") -> None:
    """Load, read every window, then write a few tokens after the first."""
    windows, start = np.load(tokens), time.perf_counter()
    model = Timed(path, int(threads))
    loaded = time.perf_counter()
    found = [model.prefill(window[None])[0].astype(np.float32) for window in windows]
    read, decoded = time.perf_counter(), min(32, windows.shape[1])
    model.prefill(windows[:1])
    first = time.perf_counter()
    for token in windows[0][:decoded]:
        model.step(token[None])
    np.savez(
        out, logits=np.stack(found), version=VERSION, loading=loaded - start, prefill=read - loaded,
        decode=time.perf_counter() - first, decoded=decoded,
    )  # fmt: skip


def timed(path: str, options: dict[str, int]) -> Timed:
    """See `loop.py`."""
    return Timed(path, options["threads"])


def quantize(before: str, after: str, kind: str) -> None:
    """Let its tools round a program's weights to `int4 g32`, or `int4 g32 level 4` where products are to be in int8.

    They see weights that are constants `[in, out]`, so those which the program turns are turned before.
    """
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import matmul_nbits_quantizer

    words, model = kind.split(), onnx.load(before)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in constants]:
        order = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
        value = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), node.output[0]))
        model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        model, bits=int(words[0].removeprefix("int")), block_size=int(words[1].removeprefix("g")), is_symmetric=True,
        accuracy_level=int(words[3]) if len(words) > 2 else None, op_types_to_quantize=("MatMul", "Gather"),
    )  # fmt: skip
    quantizer.process()
    quantizer.model.save_model_to_file(after, use_external_data_format=True)


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
