"""Executes what the scheduler decided: prefills videos, starts questions, decodes one token for every row."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from framescribe.llava_video.attention.cascade import (
    ChunkFills,
    attend_causally,
    attend_chunks,
    attend_pages,
    attend_suffix,
    merge_attention,
)
from framescribe.llava_video.attention.cuda_graphs import GraphedDecoder
from framescribe.llava_video.attention.kernels import choose_backend, pin_backend
from framescribe.llava_video.attention.kv_cache import (
    PAGE_TOKENS,
    PooledPrefix,
    Prefix,
    PrefixKV,
    PrefixPool,
    SuffixPages,
    slot_of,
)
from framescribe.llava_video.attention.static_decode import Chosen, SeenIds, StaticDecoder, StepRow
from framescribe.llava_video.engine.generation import TokenScore
from framescribe.llava_video.engine.tasks import (
    QuestionTask,
    VideoTask,
    group_by_length,
    group_by_pages,
    token_ranges_by_video,
)
from framescribe.llava_video.model.language_model import Attend
from framescribe.llava_video.model.model import LlavaVideoModel

# Kernels are chosen, and some planned, for each length anew; on a GPU prefixes come in few lengths.
PREFILL_MULTIPLES = {"cuda": 256, "cpu": 1}

# Attention to a prefix leaves one output for each of its chunks: 100 KB for each query of the 7B, 200 in float32.
_MOST_QUERIES = 4096

# Logits are float32 over the whole vocabulary: 80 MB for so many tokens of the 7B.
_MOST_SCORED = 128

COMPILE_BACKEND = "inductor"

# A question with the place behind its last token among all packed tokens of a start.
_Packed = tuple[QuestionTask, int]


class FastPath(Enum):
    """What runs faster than the plain path and must agree with it."""

    ATTENTION = "fused attention"
    PAGES = "attention to pages"
    LAYERS = "compiled layers"
    TOWER = "compiled tower"
    GRAPHS = "CUDA graphs"


class ModelRunner:
    """The model, the pages of all rows, and which ids each row has generated.

    Letters: L prefix tokens, N packed tokens, R rows, V vocabulary.

    Attributes:
        fast_paths: those in use; `prove_fast_paths` sees to that before the first step.
        unproven: those that failed or disagreed with the plain path when the engine was loaded.
    """

    def __init__(
        self,
        model: LlavaVideoModel,
        pages: SuffixPages,
        max_rows: int,
        vision_batch_frames: int,
        attn_implementation: str | None,
        pool: PrefixPool | None = None,
        *,
        is_compiled: bool = False,
    ) -> None:
        """Takes the parts; with a `pool`, clips' prefixes lie there and decoding steps have fixed shapes."""
        self.model, self._pages, self.pool = model, pages, pool
        self._language = model.language
        self._vision_batch_frames = vision_batch_frames
        self._implementation = attn_implementation
        self._prefill_multiple = PREFILL_MULTIPLES[model.device.type]
        tower, language = model.config.tower, model.config.language
        self._tower_backend, self._language_backend = (
            choose_backend(model.device, self._language.dtype, head_dim, is_causal)
            for head_dim, is_causal in ((tower.head_dim, False), (language.head_dim, True))
        )
        self._seen = SeenIds(max_rows, self._language.num_ids, self._language.layer_devices[-1])
        self.static: GraphedDecoder | None = None
        if pool is not None:
            self.static = GraphedDecoder(StaticDecoder(self._language, pool, pages, self._seen), model.device)
        self._kernel = attend_chunks if pool is None else pool.attend
        self._paged = None if pool is None else pool.attend_paged
        self.unproven: list[FastPath] = []
        is_there = {
            FastPath.ATTENTION: self._kernel is not attend_chunks,
            FastPath.PAGES: self._paged is not None,
            FastPath.LAYERS: is_compiled,
            FastPath.TOWER: is_compiled,
            FastPath.GRAPHS: self.static is not None and self.static.captures,
        }
        self.fast_paths = {path for path in FastPath if is_there[path]}

    def switch(self, path: FastPath, *, on: bool) -> None:
        """Uses a fast path or the plain one from the next step on."""
        if path is FastPath.TOWER:
            self.model.use_plain_tower()
            if on:
                self.model.compile_tower(COMPILE_BACKEND)
        elif path is FastPath.LAYERS and on:
            self._language.elementwise.use_compiled(COMPILE_BACKEND)
        elif path is FastPath.LAYERS:
            self._language.elementwise.use_plain()
        elif path is FastPath.ATTENTION:
            assert self.pool is not None, "only a pool has fused attention"
            self.pool.attend = self._kernel if on else attend_chunks
        elif path is FastPath.PAGES:
            assert self.pool is not None, "only a pool has pages"
            self.pool.attend_paged = self._paged if on else None
        else:
            assert self.static is not None, "only fixed steps have graphs"
            self.static.captures = on
        if self.static is not None:
            self.static.forget_graphs()  # they replay the other path
        (self.fast_paths.add if on else self.fast_paths.discard)(path)

    @property
    def num_replays(self) -> int:
        """Decoding steps that replayed a graph."""
        return 0 if self.static is None else self.static.num_replays

    @property
    def attention_path(self) -> str:
        """Which code attends and which fast paths are used: `sdpa; frames: flash_attention; decoding: paged; ...`."""
        pinned = {"frames": self._tower_backend, "prompts": self._language_backend}
        fast = sorted(path.value for path in self.fast_paths - {FastPath.ATTENTION})
        return "; ".join(
            (
                self._implementation or "sdpa",
                *(f"{name}: {backend.name.lower()}" for name, backend in pinned.items() if backend is not None),
                f"decoding: {'paged' if self.pool is None else self.pool.attend.__name__}",
                *fast,
                *(f"not {path.value}, which disagreed or failed" for path in self.unproven),
            )
        )

    def bind_thread(self) -> None:
        """Makes the model's GPU the calling thread's own: graphs are captured on the streams of that one."""
        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)

    @torch.inference_mode()
    def encode_videos(self, videos: Sequence[VideoTask]) -> list[Tensor]:
        """Encodes the frames of several clips in shared tower batches; returns video tokens [V, D] of each."""
        clips = [video.frames for video in videos if video.frames is not None]
        assert len(clips) == len(videos), "a video is encoded once"
        frames = [frame for clip in clips for frame in clip]
        batch = self._vision_batch_frames
        with pin_backend(self._tower_backend):
            pooled = torch.cat([self.model.encode_frames(frames[i : i + batch]) for i in range(0, len(frames), batch)])
        parts = pooled.split([len(clip) for clip in clips])
        self._wait(self.model.device)
        return [
            self.model.arrange_video_tokens(part, video.frame_order) for part, video in zip(parts, videos, strict=True)
        ]

    @torch.inference_mode()
    def prefill(self, video: VideoTask, video_tokens: Tensor | None) -> Prefix:
        """Runs a clip's prefix through the language model and returns its keys and values."""
        embeddings = self.embed_prefix(video, video_tokens)
        assert len(embeddings) == video.num_tokens, f"{len(embeddings)} prefix tokens, wanted {video.num_tokens}"
        prefix: Prefix = PrefixKV() if self.pool is None else self.pool.open(len(embeddings))
        try:
            self._fill(prefix, embeddings)
        except RuntimeError:
            prefix.release()
            raise
        self._wait(self._language.layer_devices[-1])
        return prefix

    @torch.inference_mode()
    def prefill_text(self, text: VideoTask) -> None:
        """Prefills the system text that questions without a video share; it is short and stays outside the pool."""
        text.prefix = prefix = PrefixKV()
        self._fill(prefix, self.embed_prefix(text, None))
        if self.static is not None:
            self.static.hold_text(prefix)

    def release_cached(self) -> None:
        """Gives memory back that PyTorch holds for later: what cuBLAS, cuDNN and CUDA take comes from beside it."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def shrink_prefixes(self, num_tokens: int) -> int | None:
        """Gives back what prefixes beyond so many tokens would take; returns how many fit then, None if it had none."""
        if self.pool is None or self.static is None:
            return None
        self.static.forget_graphs()  # they replay with addresses in the pool
        has_shrunk = self.pool.shrink(-(-num_tokens // self.pool.chunk_tokens))
        return self.pool.num_chunks * self.pool.chunk_tokens if has_shrunk else None

    def _fill(self, prefix: Prefix, embeddings: Tensor) -> None:
        """Writes the keys and values of embeddings [L, D] into a prefix."""
        length, last = len(embeddings), len(self._language.layer_devices) - 1

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor | None:
            prefix.write(layer, keys[:length], values[:length])
            return None if layer == last else attend_causally(queries, keys, values, self._implementation)

        # Attention is causal: what is padded at the end changes nothing before it.
        padded = F.pad(embeddings, (0, 0, 0, -length % self._prefill_multiple))
        with pin_backend(self._language_backend):
            self._language.forward(padded, torch.arange(len(padded), device=padded.device), attend)

    def _wait(self, device: torch.device) -> None:
        """Waits for a device, so that the seconds counted for each kind of work are its own."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def embed_prefix(self, video: VideoTask, video_tokens: Tensor | None) -> Tensor:
        """Returns the embeddings [L, D] of a prefix, with the video tokens in their place."""
        before = self._language.embed(self._to_device(video.text.before_video))
        if video_tokens is None:
            return before
        return torch.cat(
            [before, video_tokens.to(before), self._language.embed(self._to_device(video.text.after_video))]
        )

    @torch.inference_mode()
    def start(self, questions: Sequence[QuestionTask]) -> list[int]:
        """Runs new questions on top of their prefixes and returns the first id of each answer.

        Answers to be scored run among them. They get their log-probabilities and no id, and are done with that.
        """
        lengths = [len(question.token_ids) for question in questions]
        stops = list(accumulate(lengths))
        asked, scored = (
            [(q, stop) for q, stop in zip(questions, stops, strict=True) if bool(q.wanted) is is_scored]
            for is_scored in (False, True)
        )
        slots, kept = self._choose_slots(asked)
        ranges = token_ranges_by_video(questions, lengths)
        groups = [[self._to_device(numbers) for numbers in group] for group in group_by_length(lengths)]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if not scored:
                self._pages.write(layer, slots, keys, values)
            elif asked:
                self._pages.write(layer, slots, keys[kept.to(keys.device)], values[kept.to(keys.device)])
            own, own_lse = torch.empty_like(queries), queries.new_empty(queries.shape[:2], dtype=torch.float32)
            for group in groups:
                grid, cells, tokens = (index.to(queries.device) for index in group)  # further GPUs, if there are any
                out, lse = attend_suffix(*(packed[grid] for packed in (queries, keys, values)))
                own[tokens], own_lse[tokens] = out.flatten(0, 1)[cells], lse.flatten(0, 1)[cells]
            return merge_attention(own, own_lse, *_attend_prefix(layer, queries, ranges))

        ids = [token_id for question in questions for token_id in question.token_ids]
        first = [question.video.num_tokens for question in questions]
        positions = [start + i for start, length in zip(first, lengths, strict=True) for i in range(length)]
        hidden = self._forward(ids, positions, attend)
        if scored:
            self._score(hidden, scored)
        self._seen.forget([question.row for question, _ in asked])
        ends = torch.tensor([stop - 1 for _, stop in asked], dtype=torch.long, device=hidden.device)
        return self._choose(hidden[ends], [question for question, _ in asked]) if asked else []

    def _choose_slots(self, asked: Sequence[_Packed]) -> tuple[Tensor, Tensor]:
        """Returns where the keys and values of questions go, and the places of their tokens among all packed ones."""
        if asked:
            self._pages.hold(max(max(question.pages) for question, _ in asked))
        slots = [slot_of(question.pages, index) for question, _ in asked for index in range(len(question.token_ids))]
        places = [place for question, stop in asked for place in range(stop - len(question.token_ids), stop)]
        return self._to_device(slots), self._to_device(places)

    def _score(self, hidden: Tensor, scored: Sequence[_Packed]) -> None:
        """Leaves the log-probabilities that are wanted with their questions; `hidden` [N, D] are all final states."""
        wanted = [(stop - len(q.wanted) + i, ids) for q, stop in scored for i, ids in enumerate(q.wanted)]
        logprobs: list[float] = []
        for start in range(0, len(wanted), _MOST_SCORED):
            part = wanted[start : start + _MOST_SCORED]
            places, rows, ids = (
                torch.tensor(numbers, device=hidden.device)
                for numbers in (
                    [place for place, _ in part],
                    [row for row, (_, some) in enumerate(part) for _ in some],
                    [one for _, some in part for one in some],
                )
            )
            logits = self._language.logits(hidden[places])  # [R, V]
            found = logits[rows, ids] - logits.logsumexp(dim=-1)[rows]
            logprobs += found.clamp(max=0).tolist()  # a certain token may come out above by a rounding
        left = iter(logprobs)
        for question, _ in scored:
            question.logprobs = [next(left) for some in question.wanted for _ in some]

    @torch.inference_mode()
    def decode(self, questions: Sequence[QuestionTask]) -> list[int]:
        """Feeds each row its last id and returns the next one of each; `questions` are sorted by video."""
        if self.static is None:
            return self._decode_by_clip(questions)
        return _take_answers(self.static.decode([row_of(question) for question in questions]), questions)

    def _decode_by_clip(self, questions: Sequence[QuestionTask]) -> list[int]:
        """Runs a step of whatever shape, one product for each clip's prefix."""
        written = [question.num_suffix_tokens - 1 for question in questions]
        slots = self._to_device([slot_of(q.pages, position) for q, position in zip(questions, written, strict=True)])
        ranges = token_ranges_by_video(questions, [1] * len(questions))
        # On the device once per step: every layer uses them, and each copy would wait for the device.
        groups = [
            (self._to_device(rows), self._to_device(tables), self._count_fills(lengths, len(tables[0])))
            for rows, tables, lengths in group_by_pages(questions, written)
        ]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._pages.write(layer, slots, keys, values)
            out, lse = torch.empty_like(queries), queries.new_empty(queries.shape[:2], dtype=torch.float32)
            for rows, tables, fills in groups:
                rows, fills = rows.to(queries.device), fills.to(queries.device)  # further GPUs, if there are any
                out[rows], lse[rows] = attend_pages(queries[rows], *self._pages.read(layer, tables), fills)
            return merge_attention(out, lse, *_attend_prefix(layer, queries, ranges))

        ids = [question.generated[-1] for question in questions]
        positions = [
            question.video.num_tokens + position for question, position in zip(questions, written, strict=True)
        ]
        return self._choose(self._forward(ids, positions, attend), questions)

    def _forward(self, ids: list[int], positions: list[int], attend: Attend) -> Tensor:
        embedded = self._language.embed(self._to_device(ids))
        return self._language.forward(embedded, self._to_device(positions), attend)

    def _to_device(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.model.device)

    def _count_fills(self, lengths: Sequence[int], num_pages: int) -> ChunkFills:
        return ChunkFills.count(self._to_device(lengths), num_pages * PAGE_TOKENS, self._language.dtype)

    def _choose(self, hidden: Tensor, questions: Sequence[QuestionTask]) -> list[int]:
        logits = self._language.logits(hidden)  # [R, V]
        rows = torch.tensor([question.row for question in questions], device=logits.device)
        penalties = [question.repetition_penalty for question in questions]
        is_penalised = any(penalty != 1.0 for penalty in penalties)
        forced = [question.next_forced for question in questions]
        has_forced = any(token_id >= 0 for token_id in forced)
        chosen = self._seen.choose(
            logits,
            rows,
            logits.new_tensor(penalties) if is_penalised else None,
            torch.tensor(forced, device=logits.device) if has_forced else None,
        )
        return _take_answers(chosen, questions)


def row_of(question: QuestionTask) -> StepRow:
    """Returns what a decoding step has to know of a running question."""
    length, prefix = question.num_suffix_tokens, question.video.prefix
    return StepRow(
        token_id=question.generated[-1],
        position=question.video.num_tokens + length - 1,
        row=question.row,
        pages=question.pages,
        num_suffix_tokens=length,
        penalty=question.repetition_penalty,
        prefix=prefix if isinstance(prefix, PooledPrefix) else None,
        forced=question.next_forced,
    )


def _take_answers(chosen: Chosen, questions: Sequence[QuestionTask]) -> list[int]:
    """Returns the ids of the questions' rows, and notes scores with those questions that were given their answer."""
    ids: list[int] = chosen.ids[: len(questions)].tolist()
    if chosen.scores is not None:
        for question, token_id, (logprob, likeliest, best) in zip(questions, ids, chosen.scores.tolist(), strict=False):
            if question.forced:
                question.scores.append(TokenScore(token_id, logprob, int(likeliest), best))
    return ids


def _attend_prefix(layer: int, queries: Tensor, ranges: Sequence[tuple[VideoTask, int, int]]) -> tuple[Tensor, Tensor]:
    """Attends each video's queries to its prefix: one product a video, however many rows it has."""
    parts: list[tuple[Tensor, Tensor]] = []
    for video, start, stop in ranges:
        assert video.prefix is not None, "a question starts after its video is prefilled"
        parts.extend(video.prefix.attend(layer, some) for some in queries[start:stop].split(_MOST_QUERIES))
    out, lse = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return out, lse
