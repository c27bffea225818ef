"""The Arrow schemas of every table; `python -m schemas.tables` prints docs/columns.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import pyarrow as pa

# Of everything under `_framescribe`; raised when a reader of the number before would misread what is written now.
# run.json and parts say theirs; where they say none, it is 1.
OUTPUT_FORMAT = 4

_TEXT, _COUNT, _SECONDS, _SCORE = pa.string(), pa.int32(), pa.float64(), pa.float64()


def _column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description})


CLIP_COLUMNS = (
    _column("clip_id", _TEXT, "Name of the clip: readable, unique in a run, the same on every machine."),
    _column("source", _TEXT, "URI of the video file, or of the shard that holds it."),
    _column(
        "member",
        _TEXT,
        "Name of the video inside the shard (tar member, row of Parquet or of a manifest); null for a file.",
    ),
    _column("start_s", _SECONDS, "Where the clip starts in its source video, in seconds; null: at the beginning."),
    _column("end_s", _SECONDS, "Where the clip ends in its source video, in seconds; null: at the end."),
)

ORIGIN_COLUMNS = (
    _column("unit_id", _TEXT, "Work unit of the clip, which names its part under `_framescribe/parts`."),
    _column(
        "metadata", _TEXT, "JSON object with the sidecar or the free columns of the input; `{}` when there are none."
    ),
)

FAILURE_COLUMNS = (
    _column("stage", _TEXT, "Where the clip failed: `read`, `decode` or `annotate`."),
    _column("reason", _TEXT, "Short and groupable, for example `no video stream`."),
    _column("message", _TEXT, "The details: what was seen, what was wanted."),
)

FRAMES_COLUMNS = (
    _column("frames_digest", _TEXT, "SHA-256 (hex) over shape and bytes of the frames that the model saw."),
    _column("decoder", _TEXT, "Decoder and its version; a warning follows after `; ` where there is one."),
)

SAMPLING_COLUMNS = (
    _column("duration_s", _SECONDS, "Length of the clip in seconds, as the prompt states it."),
    _column(
        "frame_indices", pa.list_(pa.int64()), "Index of each frame the model saw, counted from the start of the video."
    ),
    _column(
        "timestamps_s", pa.list_(_SECONDS), "Time of each of these frames, in seconds from the clip's first frame."
    ),
    _column("width_px", _COUNT, "Width of the decoded frames after rotation, before the resize."),
    _column("height_px", _COUNT, "Height of the decoded frames after rotation, before the resize."),
    _column("decoded_fraction", _SCORE, "Decoded frames over expected frames: 1.0 unless the file is damaged."),
)

COUNT_COLUMNS = (
    _column("num_captions", _COUNT, "Rows of the clip in `captions`."),
    _column("num_captions_ok", _COUNT, "Of these, rows whose status is `ok`."),
    _column("num_qa_pairs", _COUNT, "Rows of the clip in `qa`."),
    _column("num_qa_pairs_ok", _COUNT, "Of these, rows whose status is `ok`."),
    _column("num_qa_pairs_consistent", _COUNT, "Of these, rows whose `is_consistent` is true."),
)

_STATUS = (
    "`ok`, or why the text is no good: `not_applicable`, `unparsable`, `duplicate` (the clip's question once more), "
    "`unspecified`, `refused`, `empty`, `length` (cut off by the token limit), `looped` (stopped because it repeated "
    "itself)."
)

_COMPLETION_COLUMNS = (
    _column("status", _TEXT, _STATUS),
    _column("finish_reason", _TEXT, "Why the completion ended: `stop`, `length` or `looped`."),
    _column("num_prompt_tokens", _COUNT, "Tokens of the prompt, the video's included."),
    _column("num_completion_tokens", _COUNT, "Tokens that the model wrote."),
    _column("prompt_id", _TEXT, "Which prompt of the recipe was asked."),
    _column("prompt", _TEXT, "The prompt as it was asked."),
    _column("attempt", _COUNT, "1 for the first try, 2 and more for the recipe's retries."),
)

CAPTION_COLUMNS = (
    _column(
        "level", _TEXT, "`clip` for the whole clip in one go; `segment`, `summary` or `video` in the recipe `levels`."
    ),
    _column("caption_start_s", _SECONDS, "Where the captioned part starts, in seconds from the start of the clip."),
    _column("caption_end_s", _SECONDS, "Where the captioned part ends, in seconds from the start of the clip."),
    _column("text", _TEXT, "The caption."),
    *_COMPLETION_COLUMNS,
)

QA_COLUMNS = (
    _column("kind", _TEXT, "`open_ended` or `multiple_choice`."),
    _column("question_type", _TEXT, "One of the 16 question types of LLaVA-Video-178K."),
    _column("question", _TEXT, "The question; empty where there is none."),
    _column("answer", _TEXT, "The answer; empty where there is none."),
    _column("options", pa.list_(_TEXT), "Multiple choice: the options without letters, in order; else empty."),
    _column("answer_letter", _TEXT, "Multiple choice: the letter of the right option; else null."),
    _column(
        "giveaway",
        _TEXT,
        "Multiple choice: what gives the right option away without the video, `longest` or `number`; else null.",
    ),
    *_COMPLETION_COLUMNS,
    _column("completion", _TEXT, "The model's own words that the pair was parsed from."),
    _column("recheck_answer", _TEXT, "The answer when asked again from the frames; null where not asked."),
    _column("recheck_score", _SCORE, "How well that agrees with `answer`, 0 to 1."),
    _column("blind_answer", _TEXT, "The answer when asked without the video; null where not asked."),
    _column("blind_score", _SCORE, "How well that agrees with `answer`, 0 to 1; high: the question needs no video."),
    _column(
        "is_consistent",
        pa.bool_(),
        "Whether `recheck_score` reached the recipe's bar: the model agrees with itself, right or wrong; else null.",
    ),
    _column(
        "answer_logprob",
        _SCORE,
        "Natural log-probability of the answer after the bare question; multiple choice: of the right option among the "
        "options, from `option_probabilities`. Null where not scored.",
    ),
    _column("blind_logprob", _SCORE, "The same without the video."),
    _column("num_answer_tokens", _COUNT, "Tokens that these stand for; 1 in multiple choice."),
    _column(
        "video_gain_per_token",
        _SCORE,
        "What the video adds: `answer_logprob` less `blind_logprob`, for each token.",
    ),
    _column(
        "option_probabilities",
        pa.list_(_SCORE),
        "Multiple choice: of each of `options`, by the next token after the question, the mean over four rotations of "
        "the options; they add up to one.",
    ),
    _column(
        "is_rotation_consistent",
        pa.bool_(),
        "Multiple choice: whether the right option is the likeliest in all four rotations.",
    ),
    _column(
        "score_status",
        _TEXT,
        "`ok`, or why the scores are null: `too_long` (for the model's context), `too_large` (for the memory), "
        "`not_finite`; null where the recipe scores nothing.",
    ),
)

RUN_COLUMNS = (
    _column("recipe", _TEXT, "Recipe that asked."),
    _column("model", _TEXT, "Checkpoint that answered: path or hub id."),
    _column("model_revision", _TEXT, "Commit on the hub, or a digest of the local checkpoint."),
    _column("prompt_layout", _TEXT, "How the prompt was laid out: `model_card`, `demo` or `training`."),
    _column("pool_mode", _TEXT, "Spatial pooling of the visual tokens."),
    _column("dtype", _TEXT, "Number format of the computation, for example `bfloat16`."),
    _column("framescribe_version", _TEXT, "Version of FrameScribe."),
    _column("fingerprint", _TEXT, "Digest of all settings that change rows, as in `_framescribe/run.json`."),
)

_KEPT_COLUMNS = (
    _column(
        "question_digest",
        pa.binary(16),
        "Digest of all that the answer depends on beside the model: frames and times, words, limits of generation.",
    ),
    _column("token_ids", pa.list_(pa.int32()), "Every token that the model wrote, or that was scored."),
    _column("finish_reason", _TEXT, "Why the completion ended: `stop`, `length` or `looped`; `scored` for a score."),
    _column("num_prompt_tokens", _COUNT, "Tokens of the prompt, the video's included."),
    _column("logprobs", pa.list_(pa.float32()), "Of a score, the log-probability of each token; else null."),
)

_CAPTION_INDEX = _column("caption_index", _COUNT, "Place of the caption among the clip's captions, from 0.")
_QA_INDEX = _column("qa_index", _COUNT, "Place of the QA pair among the clip's QA pairs, from 0.")

PART_SCHEMA = pa.schema(
    (
        *CLIP_COLUMNS,
        *ORIGIN_COLUMNS,
        _column("status", _TEXT, "`annotated` or `failed`."),
        *FAILURE_COLUMNS,
        *SAMPLING_COLUMNS,
        *FRAMES_COLUMNS,
        *COUNT_COLUMNS,
        _column("captions", pa.list_(pa.struct(CAPTION_COLUMNS)), "The clip's captions, in the recipe's order."),
        _column("qa_pairs", pa.list_(pa.struct(QA_COLUMNS)), "The clip's QA pairs, in the recipe's order."),
        _column("completions", pa.list_(pa.struct(_KEPT_COLUMNS)), "All that the model wrote, for `--reuse-from`."),
        *RUN_COLUMNS,
    )
)

# Of a part, what the tables are made of.
PUBLISHED_SCHEMA = pa.schema([column for column in PART_SCHEMA if column.name != "completions"])

TABLES: Mapping[str, pa.Schema] = MappingProxyType(
    {
        "captions": pa.schema((*CLIP_COLUMNS, _CAPTION_INDEX, *CAPTION_COLUMNS, *FRAMES_COLUMNS, *RUN_COLUMNS)),
        "qa": pa.schema((*CLIP_COLUMNS, _QA_INDEX, *QA_COLUMNS, *FRAMES_COLUMNS, *RUN_COLUMNS)),
        "clips": pa.schema(
            (*CLIP_COLUMNS, *ORIGIN_COLUMNS, *SAMPLING_COLUMNS, *FRAMES_COLUMNS, *COUNT_COLUMNS, *RUN_COLUMNS)
        ),
        "failures": pa.schema((*CLIP_COLUMNS, *ORIGIN_COLUMNS, *FAILURE_COLUMNS, *RUN_COLUMNS)),
    }
)

TABLE_DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "captions": "One row a caption.",
        "qa": "One row a question: a QA pair, or the row that says why there is none.",
        "clips": "One row per clip that was annotated.",
        "failures": "One row per clip that could not be annotated.",
    }
)


def describe_tables() -> str:
    """Returns docs/columns.md: the columns of the published tables, with types and descriptions."""
    head = "# Columns of the tables\n\nMade from the schemas by `make docs`; every file has the descriptions too."
    return f"{head}\n\n" + "\n\n".join(
        f"**`{name}/`** {TABLE_DESCRIPTIONS[name]}\n\n{describe_columns(schema)}" for name, schema in TABLES.items()
    )


def describe_columns(fields: Iterable[pa.Field]) -> str:
    """Returns a Markdown table with one line a column."""
    lines = (f"| `{field.name}` | {_type_name(field.type)} | {field_description(field)} |" for field in fields)
    return "\n".join(("| column | type | what it says |", "|---|---|---|", *lines))


def field_description(field: pa.Field) -> str:
    """Returns the description that a column carries in its metadata."""
    return field.metadata[b"description"].decode()


def _type_name(kind: pa.DataType) -> str:
    return f"list of {_type_name(kind.value_type)}" if pa.types.is_list(kind) else str(kind)


if __name__ == "__main__":
    print(describe_tables())
