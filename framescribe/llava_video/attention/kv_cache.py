"""Where keys and values live: the prefix of a clip, once, and pages for the suffix of every row.

A clip's prefix has tensors of its own, or chunks of a pool that lies still in memory: one kernel reads those of all
clips.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from framescribe.llava_video.attention.cascade import (
    AttendChunks,
    AttendPaged,
    ChunkFills,
    attend_prefix,
    fold_groups,
    merge_chunks,
    unfold_groups,
)

PAGE_TOKENS = 32

CHUNK_TOKENS = 1024
"""A 13,440-token clip fills 14 chunks and wastes 4 % of them; enough of them run side by side to fill a GPU."""

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


class PrefixPool:
    """Keys and values [X, T, K, E] of X chunks of T tokens for each layer, allocated once.

    Low chunks are given out first, so that those in use stay together at the front.

    Attributes:
        attend: attention to chunks, each alone.
        attend_paged: attention to all chunks of a prefix at once; None: chunks are attended to alone, and merged.
    """

    def __init__(
        self,
        num_chunks: int,
        chunk_tokens: int,
        num_heads: int,
        head_dim: int,
        layer_devices: Sequence[torch.device],
        dtype: torch.dtype,
        attend: AttendChunks,
        attend_paged: AttendPaged | None = None,
    ) -> None:
        self.chunk_tokens, self.attend, self.attend_paged = chunk_tokens, attend, attend_paged
        self._chunk_shape = (chunk_tokens, num_heads, head_dim)
        self._layer_devices, self._dtype = layer_devices, dtype
        self._allocate(num_chunks)

    def _allocate(self, num_chunks: int) -> None:
        shape = (num_chunks, *self._chunk_shape)
        # Zeros, not empty memory: chunks that nobody owns are read too, and thrown away, but never as NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=self._dtype) for device in self._layer_devices]
        self.values = [torch.zeros(shape, device=device, dtype=self._dtype) for device in self._layer_devices]
        self.num_chunks, self._free = num_chunks, list(range(num_chunks))

    @property
    def num_free_chunks(self) -> int:
        """Chunks that no prefix holds."""
        return len(self._free)

    def open(self, num_tokens: int) -> PooledPrefix:
        """Takes the chunks for a prefix.

        Raises:
            MemoryError: there are not enough; the scheduler promised more than the pool has.
        """
        wanted = -(-num_tokens // self.chunk_tokens)
        if wanted > len(self._free):
            raise MemoryError(f"a prefix of {num_tokens} tokens wants {wanted} chunks, {len(self._free)} are free")
        prefix = PooledPrefix(self, tuple(heapq.nsmallest(wanted, self._free)), num_tokens)
        for _ in range(wanted):
            heapq.heappop(self._free)
        return prefix

    def shrink(self, num_chunks: int) -> bool:
        """Takes less memory, if no chunk is in use; whoever remembers addresses must forget them.

        Returns:
            whether it took more before.
        """
        if num_chunks >= self.num_chunks or len(self._free) < self.num_chunks:
            return False
        device = self.keys[0].device
        self.keys, self.values = [], []
        if device.type == "cuda":
            torch.cuda.empty_cache()  # else the smaller pool is cut from pieces of the larger, and the rests lie waste
        self._allocate(num_chunks)
        return True

    def give_back(self, chunks: Sequence[int]) -> None:
        """Frees chunks."""
        for chunk in chunks:
            heapq.heappush(self._free, chunk)


class PooledPrefix:
    """A prefix in chunks of a pool."""

    def __init__(self, pool: PrefixPool, chunks: tuple[int, ...], num_tokens: int) -> None:
        self.chunks, self.num_tokens, self._pool = chunks, num_tokens, pool
        self._is_released = False
        # Once, not in every layer: each copy to a GPU would wait for it.
        self._index = torch.tensor(chunks, device=pool.keys[0].device)
        fills = torch.tensor(self.fills, device=self._index.device)
        self._fills = ChunkFills.count(fills, pool.chunk_tokens, pool.keys[0].dtype)
        self._length = fills.sum(dtype=torch.int32)[None]

    @property
    def size_bytes(self) -> int:
        """Bytes of the chunks over all layers."""
        pool = self._pool
        return len(self.chunks) * sum(
            keys[0].nbytes + values[0].nbytes for keys, values in zip(pool.keys, pool.values, strict=True)
        )

    @property
    def fills(self) -> list[int]:
        """How many tokens each chunk holds."""
        size = self._pool.chunk_tokens
        return [min(size, self.num_tokens - index * size) for index in range(len(self.chunks))]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Copies one layer's keys and values [P, K, E] into the chunks."""
        size = self._pool.chunk_tokens
        for pool, new in ((self._pool.keys[layer], keys), (self._pool.values[layer], values)):
            for chunk, part in zip(self.chunks, new.split(size), strict=True):
                pool[chunk, : len(part)] = part

    def attend(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Attends to the chunks as pages, or to each apart and merges; shapes as `Prefix.attend`."""
        pool = self._pool
        index = self._index.to(queries.device)  # further GPUs, if there are any
        if pool.attend_paged is not None:
            folded = fold_groups(queries, pool.keys[layer].shape[2])[None]  # [1, K, N * G, E]
            out, lse = pool.attend_paged(
                folded, pool.keys[layer], pool.values[layer], index[None], self._length.to(queries.device)
            )
            return unfold_groups(out[0], lse[0], len(queries))
        keys, values = pool.keys[layer][index], pool.values[layer][index]  # [J, T, K, E]
        folded = fold_groups(queries, keys.shape[2]).expand(len(index), -1, -1, -1)  # [J, K, N * G, E]
        outs, lses = pool.attend(folded, keys, values, self._fills.to(queries.device))
        out, lse = merge_chunks(outs[None], lses[None])
        return unfold_groups(out[0], lse[0], len(queries))

    def release(self) -> None:
        """Gives the chunks back, once."""
        if not self._is_released:
            self._is_released = True
            self._pool.give_back(self.chunks)


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
