"""Write text with a whole network in memory: greedily, or a token at a time for whoever wants to choose it.

Scoring runs block by block; writing would read every weight once a token that way. Here all weights are in memory as
float32, and keys and values of earlier positions in the model's own cache.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pennyweight.errors import InvalidMeasurement, InvalidText
from pennyweight.network.network import Network
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.source import Source
from pennyweight.numerics.memory import release

TAIL = 8  # tokens decoded beyond the length of a stop string: a character may take several


@dataclass(frozen=True, eq=False)
class Resident:
    """A network whose weights are all in memory. Made by `resident`.

    Args:
        network: what it is.
        model: its module, with weights.
    """

    network: Network
    model: nn.Module

    @property
    def longest(self) -> int | None:
        """Positions the model has, where its configuration says so."""
        for key in ("max_position_embeddings", "n_positions"):
            known = self.network.source.config.get(key)
            if isinstance(known, int):
                return known
        return None

    @torch.no_grad()
    def step(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Read some tokens and say what may come next.

        Args:
            ids: token ids `[sequences, length]`: the prompt first, then one token a call.
            cache: what the last call returned (it is changed in place), or None for a new text.

        Returns:
            Logits of the next token `[sequences, vocabulary]`, float32, and the cache.

        Raises:
            InvalidMeasurement: the model gives NaN or infinite logits.
        """
        from transformers import DynamicCache

        if cache is None:
            cache = DynamicCache(config=self.model.config)
        # the logits of a long prompt's other positions would take more memory than the model
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **last)
        logits: Tensor = output.logits[:, -1].float()
        if not bool(torch.isfinite(logits).all()):
            raise InvalidMeasurement(
                "the model gives logits that are not finite",
                expected="a finite logit for every token",
                mend="measure it on text first: such a model scores NaN there too",
                site=str(self.network.source.path),
            )
        return logits, output.past_key_values

    def start(self, prompt: Sequence[int], copies: int) -> tuple[Tensor, Any]:
        """As `step`, for several texts that begin with the same prompt, which is read once.

        Raises:
            InvalidText: a prompt of no token, or with a token the model does not have.
        """
        logits, cache = self.step(torch.tensor([self.checked(prompt)]))
        cache.batch_repeat_interleave(copies)
        return logits.expand(copies, -1), cache

    def next_log_probabilities(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities of the token after each of some texts, `[sequences, vocabulary]`, float64.

        Args:
            ids: token ids of each text, of any lengths.

        Raises:
            InvalidText: a text of no token, or with a token the model does not have.
        """
        rows = [self.step(torch.tensor([self.checked(text)]))[0][0].double().log_softmax(-1) for text in ids]
        return torch.stack(rows)

    def continue_greedy(
        self,
        ids: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        stop_ids: Collection[int] = (),
        stop_strings: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
    ) -> list[list[int]]:
        """The most likely token again and again; of equals, the one with the lowest id.

        One text at a time: texts of unequal length would need padding, and padding another mask.

        Args:
            ids: token ids of each prompt.
            max_new_tokens: to write at most, 1 or more.
            stop_ids: tokens that end a text; the one written is part of the result, as in transformers.
            stop_strings: ends a text once its new part contains one; the result reaches to the end of that token.
            tokenizer: needed for stop strings.

        Returns:
            The new tokens of each text.

        Raises:
            InvalidText: an empty prompt, one with a token the model does not have, or one that leaves no room for
                `max_new_tokens`; or stop strings that are empty or without a tokenizer.
        """
        if stop_strings and (tokenizer is None or not all(stop_strings)):
            raise InvalidText(
                "stop strings need a tokenizer, and none may be empty", expected="strings, and the model's tokenizer",
                mend="pass tokenizer=load_tokenizer(network.source)", site="generation",
            )  # fmt: skip
        prompts = [self.checked(prompt, max_new_tokens) for prompt in ids]
        return [self._continue(prompt, max_new_tokens, stop_ids, stop_strings, tokenizer) for prompt in prompts]

    def _continue(
        self, prompt: list[int], count: int, stop_ids: Collection[int], strings: Sequence[str], tokenizer: Any
    ) -> list[int]:
        written: list[int] = []
        # a token holds a byte at least, and a character four at most
        reach = max((4 * len(string) for string in strings), default=0) + TAIL
        logits, cache = self.step(torch.tensor([prompt]))
        while True:
            token = int(logits[0].argmax())
            written.append(token)
            if len(written) == count or token in stop_ids:
                return written
            if strings:
                text = tokenizer.decode(written[-reach:], skip_special_tokens=False)
                if any(string in text for string in strings):
                    return written
            logits, cache = self.step(torch.tensor([[token]]), cache)

    def checked(self, prompt: Sequence[int], room: int = 1) -> list[int]:
        """The prompt as a list, if the model can read it and write `room` tokens after it.

        Raises:
            InvalidText: it cannot, or `room` is below 1.
        """
        tokens, site = [int(token) for token in prompt], str(self.network.source.path)
        rows = min((s.shape[0] for s in self.network.sites if s.role == "embedding"), default=0)
        if not tokens or min(tokens) < 0 or (rows and max(tokens) >= rows):
            raise InvalidText(
                "an empty prompt" if not tokens else f"a prompt with tokens from {min(tokens)} to {max(tokens)}",
                expected=f"one token or more, each in [0, {rows - 1}]" if rows else "one token or more, none negative",
                mend="cut it with this model's tokenizer; where a text may be empty, begin it with a separator",
                site=site,
            )
        if room < 1 or (self.longest is not None and len(tokens) + room > self.longest):
            raise InvalidText(
                f"a prompt of {len(tokens)} tokens and {room} to write",
                expected=f"1 or more to write, and {self.longest or 'any number'} positions at most",
                mend="shorten the prompt from its beginning, or write less",
                site=site,
            )
        return tokens


@contextmanager
def resident(network: Network) -> Iterator[Resident]:
    """Read all weights of a network into memory as float32, and free them in the end.

    Raises:
        InvalidWeights: one of them is not finite.
    """
    try:
        with Stream(network).whole() as model:
            yield Resident(network, model)
    finally:
        release()


def stop_ids(source: Source) -> frozenset[int]:
    """Tokens that end a text: those generation_config.json names, else those of the configuration; maybe none."""
    content = source.auxiliary().get("generation_config.json")
    try:
        settings = json.loads(content.read_bytes() if isinstance(content, Path) else content or b"{}")
    except (ValueError, RecursionError):
        settings = {}  # an optional file
    found = settings.get("eos_token_id") if isinstance(settings, dict) else None
    if found is None:
        found = source.config.get("eos_token_id")
    return frozenset(token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int))
