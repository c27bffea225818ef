"""Characters that do harm where names are shown: terminal escapes, line separators, marks that reorder text."""

from __future__ import annotations

import json
import re

# A fixed list, not Unicode's categories: those grow with each Python, and ids have to stay the same. Surrogates stand
# for bytes that are no UTF-8, and cannot be written to a table.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def clean_text(raw: str) -> str:
    """Returns a text from the data, fit to be shown: unprintable characters become `_`."""
    return _UNPRINTABLE.sub("_", raw)


def escape_json(text: str) -> str:
    """Returns JSON text with its unprintable characters written as JSON's own escapes; it still means the same."""
    return _UNPRINTABLE.sub(lambda match: json.dumps(match.group())[1:-1], text)
