"""What OpenVINO makes of tokens, on the CPU. `python openvino.py quantize IN OUT KIND`: NNCF's rounding for it."""

import sys
import time
from pathlib import Path
from typing import Any

# Not this folder, where a file has the name of the engine's package.
if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would tell that it was imported

import numpy as np  # noqa: E402
import openvino  # noqa: E402

VERSION = f"openvino {openvino.__version__.partition('-')[0]}"
# Everything in float32: by default a processor with bfloat16 computes in it, activations may be rounded to 8 bits
# before a product, and keys and values are kept in 8 bits.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32",
}  # fmt: skip


class Decoder:
    """A model with its state."""

    def __init__(self, path: str, settings: dict[str, str]) -> None:
        model = openvino.Core().compile_model(path, "CPU", settings)
        self.request, self.read = model.create_infer_request(), 0
        self.names = [next(iter(port.names)) for port in model.inputs]

    def forget(self) -> None:
        """Begin new texts."""
        self.request.reset_state()
        self.read = 0

    def logits(self, ids: Any) -> Any:
        """Of some more tokens `[texts, length]`."""
        texts, length = ids.shape
        positions = np.arange(self.read, self.read + length)
        self.read += length
        given = {
            "input_ids": ids.astype(np.int64), "attention_mask": np.ones((texts, self.read), dtype=np.int64),
            "position_ids": np.tile(positions, (texts, 1)), "beam_idx": np.arange(texts, dtype=np.int32),
        }  # fmt: skip
        self.request.infer({name: given[name] for name in self.names}, share_inputs=True)
        return self.request.get_tensor("logits").data


def main(path: str, tokens: str, out: str, threads: str = "0", exact: str = "1") -> None:
    """Load, read every window, then write a few tokens after the first; 0 threads are one a core."""
    windows, start = np.load(tokens), time.perf_counter()
    given = {"INFERENCE_NUM_THREADS": threads} if threads != "0" else {}
    decoder, found = Decoder(path, {**given, **(EXACT if exact == "1" else {})}), []
    decoder.logits(windows[:1, :2])  # memory is taken at the first call
    loaded = time.perf_counter()
    for window in windows:
        decoder.forget()
        found.append(decoder.logits(window[None])[0].astype(np.float32))
    read, decoded = time.perf_counter(), min(32, windows.shape[1])
    decoder.forget()
    decoder.logits(windows[:1])
    first = time.perf_counter()
    for token in windows[0][:decoded]:
        decoder.logits(token.reshape(1, 1))
    np.savez(
        out, logits=np.stack(found), version=VERSION, loading=loaded - start, prefill=read - loaded,
        decode=time.perf_counter() - first, decoded=decoded,
    )  # fmt: skip


class Timed:
    """With the settings that OpenVINO has by default."""

    version = VERSION

    def __init__(self, path: str, threads: int) -> None:
        self.decoder = Decoder(path, {"INFERENCE_NUM_THREADS": str(threads)})

    def prefill(self, ids: Any) -> None:
        """Read a batch of prompts."""
        self.decoder.forget()
        self.decoder.logits(ids)

    def step(self, ids: Any) -> None:
        """Read one more token of each."""
        self.decoder.logits(ids[:, None])


def timed(path: str, options: dict[str, int]) -> Timed:
    """See `loop.py`."""
    return Timed(path, options["threads"])


def quantize(before: str, after: str, kind: str) -> None:
    """Let NNCF round a model to `int4 g64` with tables in 8 bits, as is its rule, or to `int8` altogether."""
    import nncf

    how, _, group = kind.partition(" g")
    mode = nncf.CompressWeightsMode.INT4_SYM if how == "int4" else nncf.CompressWeightsMode.INT8_SYM
    given = {"group_size": int(group), "ratio": 1.0} if group else {}
    model = nncf.compress_weights(openvino.Core().read_model(before), mode=mode, **given)
    openvino.save_model(model, after, compress_to_fp16=False)


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
