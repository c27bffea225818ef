"""Open-ended questions: one of each type, read from the model's words, then scored or asked again."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Iterable
from dataclasses import replace

from framescribe.llava_video.engine.generation import Score
from framescribe.llava_video.errors import ClipTooLarge, PromptTooLong
from framescribe.recipes.annotation import QAPair, ScoreStatus, Status
from framescribe.recipes.answer_text import score_agreement
from framescribe.recipes.answers import read_pair_status
from framescribe.recipes.ask import Reply, ask_together, ask_with_retries
from framescribe.recipes.config import OpenEndedConfig, QuestionType, RecheckConfig, ScoreConfig, fill_prompt
from framescribe.recipes.qa_pairs import ParsedPair, parse_qa_pair
from framescribe.recipes.recipe import AskableVideo, Recipe


async def ask_open_ended(video: AskableVideo, kind: QuestionType, config: OpenEndedConfig, recipe: Recipe) -> QAPair:
    """Asks for one question of a type; the row says why where there is none."""
    prompt = fill_prompt(config.prompt, {"type": kind.name, "definition": kind.definition})
    reply = await ask_with_retries(video.ask, prompt, config, recipe)
    pair = None if reply.status is Status.LOOPED else parse_qa_pair(reply.text)
    status = read_open_ended_status(reply, pair)
    row = row_from(reply, "open_ended", kind.name, status)
    if pair is None or status not in (Status.OK, Status.LENGTH):
        return row
    return replace(row, question=pair.question, answer=pair.answer)


def read_open_ended_status(reply: Reply, pair: ParsedPair | None) -> Status:
    """What the reply came to: a loop or an empty text as it is, an answer the token limit may have cut as LENGTH."""
    if reply.status in (Status.LOOPED, Status.EMPTY):
        return reply.status
    status = read_pair_status(reply.text, pair)
    was_cut = reply.status is Status.LENGTH and not (pair is not None and pair.is_closed)
    return Status.LENGTH if was_cut and status in (Status.OK, Status.UNPARSABLE) else status


def row_from(reply: Reply, kind: str, question_type: str, status: Status) -> QAPair:
    """The row for a reply, without a question and an answer so far."""
    return QAPair(
        kind=kind,
        question_type=question_type,
        question="",
        answer="",
        status=status,
        completion=reply.text,
        finish_reason=reply.completion.finish_reason.value,
        num_prompt_tokens=reply.completion.num_prompt_tokens,
        num_completion_tokens=len(reply.completion.token_ids),
        prompt_id=reply.prompt_id,
        prompt=reply.prompt,
        attempt=reply.attempt,
    )


async def recheck_open_ended(video: AskableVideo, row: QAPair, config: RecheckConfig, recipe: Recipe) -> QAPair:
    """Adds the answers to the bare question with the video and without it; rows that are not OK stay as they are."""
    if row.status is not Status.OK:
        return row
    seen, blind = await ask_again(video, fill_prompt(config.prompt, {"question": row.question}), config, recipe)
    scores = score_agreement(seen, row.answer), score_agreement(blind, row.answer)
    return add_scores(row, (seen, blind), scores, config)


async def ask_again(video: AskableVideo, question: str, config: RecheckConfig, recipe: Recipe) -> tuple[str, str]:
    """The answers to a question with the video and blind."""
    seen, blind = await ask_together(
        [ask_with_retries(ask, question, config, recipe) for ask in (video.ask, video.ask_text)]
    )
    return seen.text, blind.text


def add_scores(row: QAPair, answers: tuple[str, str], scores: tuple[float, float], config: RecheckConfig) -> QAPair:
    """The row with the (seen, blind) answers and scores, consistent where the seen score reaches the bar."""
    (seen, blind), (recheck_score, blind_score) = answers, scores
    return replace(
        row,
        recheck_answer=seen,
        recheck_score=recheck_score,
        blind_answer=blind,
        blind_score=blind_score,
        is_consistent=recheck_score >= config.min_recheck_score,
    )


async def score_open_ended(video: AskableVideo, row: QAPair, config: ScoreConfig) -> QAPair:
    """Adds how likely the answer is after the bare question, with the video and without it."""
    question = fill_prompt(config.prompt, {"question": row.question})
    scores = await score_together([video.score(question, row.answer), video.score_text(question, row.answer)])
    if isinstance(scores, ScoreStatus):
        return replace(row, score_status=scores)
    seen, blind = scores
    return add_logprobs(row, seen.logprob, blind.logprob, len(seen.logprobs))


async def score_together(requests: Iterable[Coroutine[None, None, Score]]) -> list[Score] | ScoreStatus:
    """Waits for scores; where one fails, the status says why, and the pair goes on without any."""
    try:
        scores = await ask_together(requests)
    except PromptTooLong:
        return ScoreStatus.TOO_LONG
    except ClipTooLarge:
        return ScoreStatus.TOO_LARGE
    is_finite = all(math.isfinite(logprob) for score in scores for logprob in score.logprobs)
    return scores if is_finite else ScoreStatus.NOT_FINITE


def add_logprobs(row: QAPair, answer_logprob: float, blind_logprob: float, num_tokens: int) -> QAPair:
    """The row with its log-probabilities, and what the video adds to them for each token."""
    return replace(
        row,
        answer_logprob=answer_logprob,
        blind_logprob=blind_logprob,
        num_answer_tokens=num_tokens,
        video_gain_per_token=(answer_logprob - blind_logprob) / num_tokens,
        score_status=ScoreStatus.OK,
    )
