"""Rows of a part as rows of the flat tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tables import TABLES


def flatten_clips(clips: pa.Table) -> dict[str, pa.Table]:
    """Returns table name to rows, in the order of `clips`, which has the columns of a part."""
    is_failed = pc.equal(clips["status"], "failed")
    annotated, failed = clips.filter(pc.invert(is_failed)), clips.filter(is_failed)
    return {
        "captions": _explode(annotated, "captions", "caption_index", TABLES["captions"]),
        "qa": _explode(annotated, "qa_pairs", "qa_index", TABLES["qa"]),
        "clips": annotated.select(TABLES["clips"].names).cast(TABLES["clips"]),
        "failures": failed.select(TABLES["failures"].names).cast(TABLES["failures"]),
    }


def _explode(clips: pa.Table, nested: str, index_name: str, schema: pa.Schema) -> pa.Table:
    lists = pa.concat_arrays(clips[nested].chunks) if clips.num_rows else pa.array([], clips.schema.field(nested).type)
    parents, answers = pc.list_parent_indices(lists), pc.list_flatten(lists)
    answer_names = {field.name for field in answers.type}
    columns = {
        index_name: _places(lists, parents),
        **{name: pc.struct_field(answers, name) for name in schema.names if name in answer_names},
    }
    of_clip = {name: clips[name].take(parents) for name in schema.names if name not in columns}
    return pa.table({name: {**of_clip, **columns}[name] for name in schema.names}).cast(schema)


def _places(lists: pa.ListArray, parents: pa.Array) -> np.ndarray:
    """Returns the place of each element within its own list, int32."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    starts = np.cumsum(lengths) - lengths
    return (np.arange(len(parents)) - starts[parents.to_numpy()]).astype(np.int32)
