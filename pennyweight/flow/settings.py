"""How a run is made, apart from what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pennyweight.errors import InvalidFormat, InvalidMethod
from pennyweight.export.engines import Engine, find
from pennyweight.latency import Latency
from pennyweight.plan import Input


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is made; all of it is part of the run's header.

    Args:
        engine: whose files are written.
        formats: that plans may choose from, by label; none for all that the engine has on its menu.
        length: tokens in a window.
        calibration_windows: shown to methods.
        selection_windows: on which candidates are compared.
        certification_windows: scored at most for one candidate; None for as many as its terms allow.
        fisher_windows: of the backward pass.
        seed: of every random choice.
        salt: part of the certification order's seed.
        scope: of the certificate: `corpus`, `source` or `asymptotic`.
        bound: the certification engine, by name; None for the usual one of the scope.
        groups: field of documents or questions by which the bounds are repeated, or None.
        reserve: whether to keep some of the error level for later openings of the same text.
        allocation: the allocator.
        pricing: what predicts damages.
        search: with measurements, after the allocator; empty for none.
        method: the quantizer.
        dtype: of everything dense; None takes the model's own 16-bit type, or float16.
        rewrites: changes of basis that the model goes through first, by name, in this order.
        recovery: what is trained after every tensor is stored, by name, in this order.
        speed: how many times faster than dense the compressed layers must be; 1 for no such limit.
        latency: times of the engine on the machine it will run on; needed with `speed`.
        memory: bytes that the engine may take for the model while it runs; 0 for no such limit.
        context: tokens of prompt and answer that memory must do for; 0 for the usual number.
        activations: how compressed layers round what they read, such as `int8 token`; empty where they do not.
        cache: how keys and values are rounded, such as `fp8 e4m3 tensor`; empty where they are not.
        threads: of the arithmetic; results are the same only for the same number.
    """

    engine: str = "transformers"
    formats: tuple[str, ...] = ()
    length: int = 256
    calibration_windows: int = 64
    selection_windows: int = 32
    certification_windows: int | None = None
    fisher_windows: int = 8
    seed: int = 0
    salt: str = ""
    scope: str = "corpus"
    bound: str | None = None
    groups: str | None = None
    reserve: bool = False
    allocation: str = "integer_program"
    pricing: str = "kronecker"
    search: str = ""
    method: str = "gptq"
    dtype: str | None = None
    rewrites: tuple[str, ...] = ()
    recovery: tuple[str, ...] = ()
    speed: float = 1.0
    latency: Latency | None = None
    memory: float = 0.0
    context: int = 0
    activations: str = ""
    cache: str = ""
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def target(self) -> Engine:
        """The engine, with the formats that were asked for.

        Raises:
            UnknownName: no engine or format is called so.
            InvalidFormat: a format that it does not read, or a rounding that it does not make.
        """
        engine = find(self.engine)
        if (cache := self.rounded_cache) is not None and cache.format not in engine.caches:
            raise InvalidFormat(
                f"{engine.name} keeps no keys and values in {cache.label()}",
                expected=f"one of {', '.join(one.label() for one in engine.caches)}" if engine.caches
                else "an engine that rounds them: transformers or vllm", mend="leave it out", site="--kv-cache",
            )  # fmt: skip
        if (reads := self.rounded_input) is not None:
            return engine.reading(reads.format, self.formats)
        return engine.choosing(self.formats)

    def check_rounds_nothing(self, who: str, site: str) -> None:
        """Refuse roundings where plans are measured without them.

        Args:
            who: measures them.
            site: what the user asked for.

        Raises:
            InvalidMethod: there are some.
        """
        if self.activations or self.cache:
            raise InvalidMethod(
                f"{who} measures plans whose layers round nothing",
                expected=f"{site} without --activations and --kv-cache", site=site,
                mend="leave one of them out: compress without a search measures candidates as they will run",
            )  # fmt: skip

    @property
    def rounded_input(self) -> Input | None:
        """How compressed layers round what they read."""
        return Input.parse(self.activations) if self.activations else None

    @property
    def rounded_cache(self) -> Input | None:
        """How keys and values are rounded."""
        return Input.parse(self.cache) if self.cache else None
