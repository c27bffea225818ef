"""Keeps what was answered about a clip, so that a question that was asked before need not be asked again.

An answer depends on the model, the frames with their times, the words of the question and the limits of generation. So
what a changed recipe asks anew follows from the questions themselves: an unchanged prompt with unchanged texts filled
in is the very same question, and a prompt that changed, or that a changed answer is filled into, is not. Answers of an
earlier run are read when their clip comes, from the part that holds it there: the part of the clip's own unit where
both runs cut the same units, else the one that an index names (`transforms.answer_index`).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, field

import pyarrow as pa

from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig, Score
from framescribe.recipes.engine_video import EngineVideo
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import DamagedRunError, read_part
from framescribe.storage.output import OutputStore, open_output, part_name
from schemas.part_rows import read_completions
from schemas.records import KeptCompletion, SampledClip
from schemas.tables import PART_SCHEMA
from transforms.answer_index import AnswerIndex, AnswerIndexReader

_DIGEST_BYTES = 16
_Seen = tuple[str, tuple[float, ...], float]


class ClipMemory:
    """The completions of one clip: those of an earlier run by their questions' digests, and those of this run.

    Lives on the recipes' event loop while its clip is annotated. A question that a recipe asks twice is kept once.
    """

    def __init__(self, known: Mapping[bytes, KeptCompletion]) -> None:
        self._known = known
        self._kept: dict[bytes, KeptCompletion] = {}
        self.num_asked = 0
        self.num_reused = 0

    @property
    def completions(self) -> tuple[KeptCompletion, ...]:
        """All completions of this run, in an order that does not depend on which came first."""
        kept = dict(self._kept)  # at once: others ask while the clip is under way
        return tuple(kept[digest] for digest in sorted(kept))

    def recall(self, digest: bytes) -> KeptCompletion | None:
        """Returns what the earlier run has for a question, to be used in place of asking."""
        known = self._known.get(digest)
        if known is None:
            self.num_asked += 1
            return None
        self.num_reused += 1
        self._kept[digest] = known
        return known

    def keep(self, digest: bytes, completion: Completion) -> None:
        """Keeps an answer for later runs."""
        reason = completion.finish_reason.value
        self._kept[digest] = KeptCompletion(digest, completion.token_ids, reason, completion.num_prompt_tokens)

    def keep_score(self, digest: bytes, score: Score) -> None:
        """Keeps a score for later runs."""
        self._kept[digest] = KeptCompletion(digest, score.token_ids, "scored", score.num_prompt_tokens, score.logprobs)


@dataclass(frozen=True, slots=True)
class RememberingVideo:
    """An open clip that is asked only what its memory does not hold; implements what recipes ask of a video."""

    video: EngineVideo
    memory: ClipMemory

    @property
    def duration_s(self) -> float:
        """Seconds the video lasts."""
        return self.video.duration_s

    async def ask(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question from the frames, as `EngineVideo.ask` does."""
        return await self._answer(self._seen, question, generation, self.video.ask)

    async def ask_text(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question without the video."""
        return await self._answer(None, question, generation, self.video.ask_text)

    async def score(self, question: str, answer: str) -> Score:
        """Finds out how likely an answer is, as `EngineVideo.score` does."""
        return await self._score(self._seen, question, (answer,), lambda: self.video.score(question, answer))

    async def score_text(self, question: str, answer: str) -> Score:
        """Finds out how likely an answer is without the video."""
        return await self._score(None, question, (answer,), lambda: self.video.score_text(question, answer))

    async def score_choices(self, question: str, choices: Sequence[str]) -> Score:
        """Finds out how likely each choice is right after a question."""
        return await self._score(self._seen, question, choices, lambda: self.video.score_choices(question, choices))

    async def score_choices_text(self, question: str, choices: Sequence[str]) -> Score:
        """Finds out how likely each choice is without the video."""
        return await self._score(None, question, choices, lambda: self.video.score_choices_text(question, choices))

    @asynccontextmanager
    async def segment(self, start_s: float, end_s: float) -> AsyncIterator[RememberingVideo]:
        """Opens a part of the clip, with the memory of the whole."""
        async with self.video.segment(start_s, end_s) as part:
            yield RememberingVideo(part, self.memory)

    @property
    def _seen(self) -> _Seen:
        return self.video.video.frames_digest, self.video.timestamps_s, self.video.duration_s

    async def _score(
        self, seen: _Seen | None, question: str, answers: Sequence[str], ask: Callable[[], Awaitable[Score]]
    ) -> Score:
        digest = digest_score(seen, question, answers)
        known = self.memory.recall(digest)
        if known is None or known.logprobs is None:
            score = await ask()
            self.memory.keep_score(digest, score)
            return score
        identity = (self.video.clip_id, self.video.video.frames_digest) if seen else ("", "")
        return Score(known.token_ids, known.logprobs, known.num_prompt_tokens, *identity)

    async def _answer(
        self,
        seen: _Seen | None,
        question: str,
        generation: GenerationConfig,
        ask: Callable[[str, GenerationConfig], Awaitable[Completion]],
    ) -> Completion:
        digest = digest_question(seen, question, generation)
        known = self.memory.recall(digest)
        if known is not None:
            return self._restore(known, seen)
        completion = await ask(question, generation)
        self.memory.keep(digest, completion)
        return completion

    def _restore(self, known: KeptCompletion, seen: _Seen | None) -> Completion:
        return Completion(
            text=self.video.engine.tokenizer.decode(known.token_ids),
            token_ids=known.token_ids,
            finish_reason=FinishReason(known.finish_reason),
            num_prompt_tokens=known.num_prompt_tokens,
            clip_id=self.video.clip_id if seen else "",
            frames_digest=self.video.video.frames_digest if seen else "",
        )


def digest_question(seen: _Seen | None, question: str, generation: GenerationConfig) -> bytes:
    """Returns 16 bytes that stand for a question and all that its answer depends on beside the model.

    Args:
        seen: digest of the frames, their times and the duration that the prompt states; None without a video.
    """
    asked = json.dumps([seen, question, astuple(generation)])
    return hashlib.blake2b(asked.encode(), digest_size=_DIGEST_BYTES).digest()


def digest_score(seen: _Seen | None, question: str, answers: Sequence[str]) -> bytes:
    """Returns 16 bytes that stand for the score of an answer, or of several choices; as `digest_question`."""
    scored = json.dumps([seen, question, {"scored": list(answers)}])
    return hashlib.blake2b(scored.encode(), digest_size=_DIGEST_BYTES).digest()


# Clips arrive in the order in which they are decoded: the last of a unit after the first of the next. And a unit may
# draw on many parts of a run that cut smaller ones.
_BYTES_AT_HAND = 64 << 20
_PARTS_AT_HAND = 256
_COLUMNS = ["clip_id", "frames_digest", "dtype", "completions"]


class OtherDtypeError(FrameScribeError, RuntimeError):
    """The earlier answers were computed in another number format than this worker computes in."""


@dataclass(frozen=True, slots=True)
class ReusableRun:
    """A run whose answers may be taken.

    Attributes:
        output, fingerprint: where its parts lie, and what they must carry.
        index: says which part has a clip, where that is not the part of the clip's own unit.
        index_output: where the index lies: in the output of the run that takes the answers.
        is_own: whether it is an earlier state of the run that takes the answers.
    """

    output: str
    fingerprint: str
    index: AnswerIndex = field(default_factory=AnswerIndex)
    index_output: str = ""
    is_own: bool = False
    storage_options: StorageOptions = field(default_factory=dict, repr=False)


class EarlierAnswers:
    """What an earlier run asked about a clip; keeps a few of its parts at hand. One bundle thread's own."""

    def __init__(self, run: ReusableRun, dtype: str) -> None:
        """Opens the run's output.

        Args:
            dtype: what this worker's engine computes in; answers of another one are refused.
        """
        self._run = run
        self._dtype = dtype
        self._store: OutputStore = open_output(run.output, run.storage_options)
        index_store = open_output(run.index_output, run.storage_options) if run.index.names else self._store
        self._index = AnswerIndexReader(index_store, run.index)
        self._parts: OrderedDict[str, _Part] = OrderedDict()

    def find(self, clip: SampledClip) -> Mapping[bytes, KeptCompletion]:
        """Returns question digest to completion; nothing for a clip that failed, is new or has other frames now.

        Raises:
            OtherDtypeError: the answers were computed in another number format.
            DamagedRunError: the part is damaged or of other settings than the run.
        """
        clip_id, unit_id = clip.ref.clip_id, clip.ref.unit_id
        for place in (unit_id, *self._index.find(unit_id, clip_id)):
            row = self._open(place).find(clip_id)
            if row is not None and row["frames_digest"][0].as_py() == clip.sampling.frames_digest:
                return self._read_row(row)
        return {}

    def _read_row(self, row: pa.Table) -> Mapping[bytes, KeptCompletion]:
        dtype = row["dtype"][0].as_py()
        if self._run.is_own and dtype != self._dtype:
            return {}
        check_same_dtype(dtype, self._dtype)
        return {one.question_digest: one for one in read_completions(row["completions"][0].as_py())}

    def _open(self, unit_id: str) -> _Part:
        if unit_id not in self._parts:
            self._parts[unit_id] = self._read(unit_id)
        self._parts.move_to_end(unit_id)
        while len(self._parts) > 1 and self._is_too_much():
            self._parts.popitem(last=False)
        return self._parts[unit_id]

    def _is_too_much(self) -> bool:
        num_bytes = sum(part.num_bytes for part in self._parts.values())
        return len(self._parts) > _PARTS_AT_HAND or num_bytes > _BYTES_AT_HAND

    def _read(self, unit_id: str) -> _Part:
        try:
            part = read_part(self._store, unit_id, _COLUMNS)
        except FileNotFoundError:  # the earlier run did not come so far, or had other inputs
            return _Part.of(PART_SCHEMA.empty_table())
        found = (part.schema.metadata or {}).get(b"fingerprint", b"").decode()
        if found != self._run.fingerprint and self._run.is_own:
            return _Part.of(PART_SCHEMA.empty_table())
        if found != self._run.fingerprint:
            raise DamagedRunError(
                f"{self._store.address(part_name(unit_id))} was made with the settings {found!r}, but the run there "
                f"has {self._run.fingerprint!r}: remove that part, or leave out --reuse-from"
            )
        return _Part.of(part)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the earlier run; its completions stay packed until their clip comes."""

    rows: pa.Table
    places: Mapping[str, int]
    num_bytes: int

    @staticmethod
    def of(rows: pa.Table) -> _Part:
        places = {clip_id: place for place, clip_id in enumerate(rows["clip_id"].to_pylist())}
        return _Part(rows, places, rows.nbytes)

    def find(self, clip_id: str) -> pa.Table | None:
        place = self.places.get(clip_id)
        return None if place is None else self.rows.slice(place, 1)


def check_same_dtype(earlier: str, now: str) -> None:
    """Raises `OtherDtypeError` when answers of one number format would stand beside those of another."""
    if now != earlier:
        raise OtherDtypeError(
            f"the earlier run computed in {earlier}, this worker computes in {now}: its answers are not the ones that "
            f"asking would give. Start with --dtype {earlier}, or without --reuse-from to ask everything"
        )
