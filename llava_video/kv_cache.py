"""Where keys and values live: the prefix of a clip, once, and pages for the suffix of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llava_video.attention import attend_prefix

PAGE_TOKENS = 32
_FIRST_PAGES = 64


class Prefix(Protocol):
    """Keys and values of a clip's prompt prefix; they exist once, however many questions share them."""

    @property
    def size_bytes(self) -> int:
        """Bytes that keys and values of all layers take."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keeps one layer's keys and values [P, K, E]; layers come in order."""

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Attends queries [N, H, E] of the clip's rows; returns outputs [N, H, E] and log-sum-exps [N, H]."""

    def release(self) -> None:
        """Gives the memory back; nothing attends any more."""


@dataclass(slots=True)
class PrefixKV:
    """A prefix with tensors of its own, keys and values [K, P, E] for each layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:  # noqa: ARG002  # layers come in order
        """Keeps one layer's keys and values [P, K, E]."""
        # Heads first and contiguous: the order in which every later step multiplies them.
        self.keys.append(keys.transpose(0, 1).contiguous())
        self.values.append(values.transpose(0, 1).contiguous())

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Attends all queries of the clip in one product."""
        return attend_prefix(queries, self.keys[layer], self.values[layer])

    def release(self) -> None:
        """Does nothing: the tensors go with their owner."""

    @property
    def size_bytes(self) -> int:
        """Bytes that keys and values of all layers take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class SuffixPages:
    """Keys and values of the tokens that questions and answers add, in pages of `PAGE_TOKENS` tokens.

    A row's pages are reserved when it is admitted, so that a running row never runs out, and nothing is ever
    concatenated: a step writes one token into each row's last page. On a GPU all pages are taken from the start; on a
    CPU they grow with their use, by doubling. One page more than promised is for rows that only fill up a batch.
    """

    def __init__(
        self, num_pages: int, num_heads: int, head_dim: int, layer_devices: Sequence[torch.device], dtype: torch.dtype
    ) -> None:
        self.spare_page = num_pages
        self._num_pages = num_pages + 1
        held = self._num_pages if layer_devices[0].type == "cuda" else min(self._num_pages, _FIRST_PAGES)
        shape = (held, PAGE_TOKENS, num_heads, head_dim)
        # Zeros, not empty memory: masked positions weigh nothing, but nothing times NaN is NaN.
        self._keys = [torch.zeros(shape, device=device, dtype=dtype) for device in layer_devices]
        self._values = [torch.zeros(shape, device=device, dtype=dtype) for device in layer_devices]

    @property
    def size_bytes(self) -> int:
        """Bytes that all pages take."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def hold(self, page: int) -> None:
        """Makes sure that a page exists."""
        held = len(self._keys[0])
        if page < held:
            return
        more = min(max(page + 1, 2 * held), self._num_pages) - held
        for pools in (self._keys, self._values):
            for layer, pool in enumerate(pools):
                pools[layer] = torch.cat([pool, pool.new_zeros(more, *pool.shape[1:])])

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Writes keys and values [N, K, E] into `slots` [N], counted in tokens over all pages."""
        slots = slots.to(self._keys[layer].device)
        for pool, new in ((self._keys[layer], keys), (self._values[layer], values)):
            pool.flatten(0, 1)[slots] = new

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values [R, B * PAGE_TOKENS, K, E] of rows with page tables [R, B]."""
        tables = tables.to(self._keys[layer].device)
        return self._keys[layer][tables].flatten(1, 2), self._values[layer][tables].flatten(1, 2)


def slot_of(pages: Sequence[int], index: int) -> int:
    """Returns where a row's suffix token lies, counted in tokens over all pages."""
    return pages[index // PAGE_TOKENS] * PAGE_TOKENS + index % PAGE_TOKENS


def bytes_per_token(num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Returns the bytes that one token's keys and values take over all layers."""
    return 2 * num_layers * num_heads * head_dim * dtype.itemsize
