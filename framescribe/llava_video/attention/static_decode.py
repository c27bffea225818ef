"""Decoding steps whose tensors have few fixed shapes, so that a GPU replays them as CUDA graphs.

A step of the 7B is a thousand small kernels; launched one by one they take longer than they run. The work of a step is
rounded up to a shape, all numbers it depends on lie in one buffer, and nothing in it asks the host for anything. It
ends with the greedy choice of every row's next id, after the repetition penalty.

Letters: N rows, C clips, M rows of one clip, X chunks of the pool, J chunks of one clip, B pages of one row; T tokens
of a chunk, K key-value heads, G query heads that share one, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import accumulate, groupby, pairwise
from math import prod
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from framescribe.llava_video.attention.cascade import (
    ChunkFills,
    attend_pages,
    fold_groups,
    merge_attention,
    merge_chunks,
    unfold_groups,
)
from framescribe.llava_video.attention.kv_cache import (
    PAGE_TOKENS,
    PooledPrefix,
    PrefixKV,
    PrefixPool,
    SuffixPages,
    slot_of,
)
from framescribe.llava_video.model.language_model import LanguageModel

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, slots=True)
class StepRow:
    """What a step has to know of one row.

    Attributes:
        token_id, position: the last id and where it stands.
        row: which ids it has generated.
        pages: its pages of keys and values.
        num_suffix_tokens: tokens of question and answer, the last id included.
        penalty: repetition penalty.
        prefix: its clip's; None: it has no clip but the text prefix.
        forced: the id to go on with, whatever is likeliest; -1: the likeliest.
    """

    token_id: int
    position: int
    row: int
    pages: tuple[int, ...]
    num_suffix_tokens: int
    penalty: float
    prefix: PooledPrefix | None
    forced: int = -1


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes that a step is rounded up to: N, C, M, X, J and B, whether any row has no video, or a forced id."""

    rows: int
    clips: int
    rows_per_clip: int
    chunks: int
    chunks_per_clip: int
    pages: int
    has_text: bool
    has_forced: bool = False


@dataclass(frozen=True)
class StepNumbers(Generic[Array]):
    """All that a step depends on, int64, on the host or on the device.

    Attributes:
        ids, positions: [N] the last id of each row and where it stands.
        slots, tables, lengths: [N], [N, B], [N] where its keys go, its pages, its suffix tokens.
        rows: [N] which ids it has generated.
        forced: [N] the id to go on with, -1 for the likeliest.
        cells: [N] its place among the clips' rows, counted in C * M.
        without_video: [N] 1 where a row has no clip but the text prefix, and whatever cell.
        members: [C * M] which of the N rows stands at each place.
        owners, fills: [X] the clip that each chunk belongs to, and its tokens; 1 where nobody owns it.
        chunks, absent: [C, J] the chunks of each clip, and 1 where there is none.
    """

    ids: Array
    positions: Array
    slots: Array
    tables: Array
    lengths: Array
    rows: Array
    forced: Array
    cells: Array
    without_video: Array
    members: Array
    owners: Array
    fills: Array
    chunks: Array
    absent: Array


class StaticDecoder:
    """Writes a step's numbers down and runs it, from a prefix pool and pages that lie still.

    Attributes:
        text: the prefix of questions without a video. It is short: all rows attend to it, and those of clips forget it.
    """

    def __init__(self, language: LanguageModel, pool: PrefixPool, pages: SuffixPages, seen: SeenIds) -> None:
        self._language, self._pool, self._pages, self._seen = language, pool, pages, seen
        self.text = PrefixKV()
        pages.hold(pages.spare_page)

    def shape_of(self, rows: Sequence[StepRow]) -> StepShape:
        """Rounds up what these rows need; clips and their rows come and go, so these start high."""
        row_ranges = _row_ranges(rows)
        return StepShape(
            rows=round_up(len(rows), 32),
            clips=round_up(len(row_ranges), 4),
            rows_per_clip=round_up(max((stop - start for _, start, stop in row_ranges), default=1), 12),
            chunks=min(
                self._pool.num_chunks, round_up(1 + max((max(p.chunks) for p, _, _ in row_ranges), default=0), 16)
            ),
            chunks_per_clip=round_up(max((len(prefix.chunks) for prefix, _, _ in row_ranges), default=1), 4),
            pages=round_up(max(row.num_suffix_tokens - 1 for row in rows) // PAGE_TOKENS + 1, 4),
            has_text=any(row.prefix is None for row in rows),
            has_forced=any(row.forced >= 0 for row in rows),
        )

    def write_numbers(self, rows: Sequence[StepRow], shape: StepShape, buffer: np.ndarray) -> None:
        """Fills a buffer on the host; what pads the shape writes to the spare page and row, and is never read.

        Args:
            rows: those of one clip side by side.
        """
        numbers = view_numbers(buffer, shape)
        buffer[:] = 0
        numbers.slots[:], numbers.lengths[:] = self._pages.spare_page * PAGE_TOKENS, 1
        numbers.tables[:], numbers.rows[:], numbers.forced[:] = self._pages.spare_page, self._seen.spare_row, -1
        numbers.fills[:], numbers.absent[:, 1:] = 1, 1
        for index, row in enumerate(rows):
            length = row.num_suffix_tokens
            numbers.ids[index], numbers.rows[index], numbers.forced[index] = row.token_id, row.row, row.forced
            numbers.positions[index] = row.position
            numbers.slots[index], numbers.lengths[index] = slot_of(row.pages, length - 1), length
            pages = row.pages[: shape.pages]
            numbers.tables[index, : len(pages)] = pages
            numbers.without_video[index] = row.prefix is None
        for clip, (prefix, start, stop) in enumerate(_row_ranges(rows)):
            first = clip * shape.rows_per_clip
            numbers.cells[start:stop] = range(first, first + stop - start)
            numbers.members[first : first + stop - start] = range(start, stop)
            held = list(prefix.chunks)
            numbers.owners[held], numbers.fills[held] = clip, prefix.fills
            numbers.chunks[clip, : len(held)], numbers.absent[clip, : len(held)] = held, 0

    def run(self, numbers: StepNumbers[Tensor], penalties: Tensor, shape: StepShape) -> Chosen:
        """Runs one step and returns the next id of each row; `penalties` float32 [N]."""
        dtype, suffix_tokens = self._language.dtype, numbers.tables.shape[1] * PAGE_TOKENS
        fills = ChunkFills.count(numbers.fills, self._pool.chunk_tokens, dtype)
        own_fills = ChunkFills.count(numbers.lengths, suffix_tokens, dtype)
        texts = numbers.without_video.bool()[:, None]
        missing = numbers.absent.float().masked_fill_(numbers.absent.bool(), float("-inf"))[..., None, None]
        lengths = (numbers.fills[numbers.chunks] * (1 - numbers.absent)).sum(dim=1).int()  # [C]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._pages.write(layer, numbers.slots, keys, values)
            own = attend_pages(queries, *self._pages.read(layer, numbers.tables), own_fills, self._pool.attend)
            out, lse = self._attend_pool(layer, queries, numbers, fills, missing, lengths)
            if shape.has_text:
                text_out, text_lse = self.text.attend(layer, queries)
                out, lse = torch.where(texts[..., None], text_out, out), torch.where(texts, text_lse, lse)
            return merge_attention(*own, out, lse)

        hidden = self._language.forward(self._language.embed(numbers.ids), numbers.positions, attend)
        forced = numbers.forced if shape.has_forced else None
        return self._seen.choose(self._language.logits(hidden), numbers.rows, penalties, forced)

    def _attend_pool(
        self,
        layer: int,
        queries: Tensor,
        numbers: StepNumbers[Tensor],
        fills: ChunkFills,
        missing: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Attends the rows [N, H, E] of every clip to its chunks, all clips at once: by pages, or chunk by chunk."""
        num_chunks, num_clips = len(numbers.owners), len(numbers.chunks)
        keys, values = self._pool.keys[layer][:num_chunks], self._pool.values[layer][:num_chunks]  # [X, T, K, E]
        grid = queries[numbers.members].unflatten(0, (num_clips, -1))  # [C, M, H, E]
        folded = fold_groups(grid, keys.shape[2])  # [C, K, M * G, E]
        if self._pool.attend_paged is not None:
            out, lse = self._pool.attend_paged(folded, keys, values, numbers.chunks, lengths)
        else:
            outs, lses = self._pool.attend(folded[numbers.owners], keys, values, fills)  # [X, K, M * G, E]
            out, lse = merge_chunks(outs[numbers.chunks], lses[numbers.chunks] + missing)
        out, lse = unfold_groups(out, lse, grid.shape[1])  # [C, M, H, E]
        return out.flatten(0, 1)[numbers.cells], lse.flatten(0, 1)[numbers.cells]


class Chosen(NamedTuple):
    """What each of R rows goes on with.

    Attributes:
        ids: int64 [R].
        scores: float32 [R, 3], where ids were forced: the log-probability of the id, the likeliest id, and its
            log-probability, all before the repetition penalty; else None.
    """

    ids: Tensor
    scores: Tensor | None


class SeenIds:
    """Which ids each row of the batch has generated, bool [rows + 1, V]; the last row is spare."""

    def __init__(self, max_rows: int, num_ids: int, device: torch.device) -> None:
        self.spare_row = max_rows
        self._seen = torch.zeros(max_rows + 1, num_ids, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)

    def forget(self, rows: Sequence[int]) -> None:
        """Clears rows that begin a new answer."""
        self._seen[list(rows)] = False

    def choose(self, logits: Tensor, rows: Tensor, penalties: Tensor | None, forced: Tensor | None = None) -> Chosen:
        """Picks the likeliest id of each row, or the forced one, and remembers it.

        Args:
            logits: float32 [R, V].
            rows: int64 [R].
            penalties: float32 [R], repetition penalties over generated ids (arXiv 1909.05858); None: none.
            forced: int64 [R], -1 where a row is free to choose; None: all are, and nothing is scored.
        """
        free = logits
        if penalties is not None:
            factors = penalties[:, None]
            penalised = torch.where(logits < 0, logits * factors, logits / factors)
            logits = torch.where(self._seen[rows], penalised, logits)
        chosen, scores = logits.argmax(dim=-1), None
        if forced is not None:
            chosen = torch.where(forced < 0, chosen, forced)
            scores = _score(free, chosen)
        self._seen.index_put_((rows, chosen), self._true)
        return Chosen(chosen, scores)


def round_up(number: int, least: int = 1) -> int:
    """Rounds up to a power of two or to one and a half of one: at most a third is for nothing."""
    power = max(least, 1 << (number - 1).bit_length())
    return power * 3 // 4 if number <= power * 3 // 4 and power > max(least, 2) else power


def sizes_of(shape: StepShape) -> list[tuple[int, ...]]:
    """Returns the sizes of the fields of `StepNumbers`."""
    n, c, m, x, j, b, *_ = astuple(shape)
    return [(n,), (n,), (n,), (n, b), (n,), (n,), (n,), (n,), (n,), (c * m,), (x,), (x,), (c, j), (c, j)]


def view_numbers(buffer: Array, shape: StepShape) -> StepNumbers[Array]:
    """Divides one flat buffer into the numbers of a step, as views."""
    sizes = sizes_of(shape)
    bounds = accumulate(map(prod, sizes), initial=0)
    parts = zip(pairwise(bounds), sizes, strict=True)
    return StepNumbers(*(buffer[start:stop].reshape(size) for (start, stop), size in parts))


def _row_ranges(rows: Sequence[StepRow]) -> list[tuple[PooledPrefix, int, int]]:
    """Returns the prefix of each clip and its rows, `start` to `stop`."""
    row_ranges, start = [], 0
    for _, run in groupby(rows, key=lambda row: id(row.prefix)):
        prefixes = [row.prefix for row in run]
        if prefixes[0] is not None:
            row_ranges.append((prefixes[0], start, start + len(prefixes)))
        start += len(prefixes)
    return row_ranges


def _score(logits: Tensor, chosen: Tensor) -> Tensor:
    logprobs = logits.log_softmax(dim=-1)
    best, likeliest = logprobs.max(dim=-1)
    return torch.stack([logprobs.gather(1, chosen[:, None])[:, 0], likeliest.float(), best], dim=1)
