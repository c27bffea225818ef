"""Prompts with places to fill: plain replacement, so that no text from data or from a model becomes structure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class WrongPlaceholder(ValueError):
    """A prompt that lacks a placeholder, or names one that is not filled in.

    Attributes:
        key: the setting that holds the prompt.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def fill_prompt(template: str, texts: Mapping[str, str]) -> str:
    """Puts `texts["name"]` where the template says `{name}`, in one pass.

    Braces inside a filled-in text stay text, and so does every other brace of the template, such as those of a JSON
    example. Unknown names were refused when the recipe was loaded (`check_placeholders`).
    """
    return _PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), template)


def check_placeholders(key: str, template: str, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Makes sure that a template, held by the setting `key`, names every required placeholder and no unknown one.

    Raises:
        WrongPlaceholder: with the placeholders that are allowed.
    """
    found = set(_PLACEHOLDER.findall(template))
    allowed = sorted({*required, *optional})
    unknown = sorted(found.difference(allowed))
    if unknown:
        problem = f"{_braced(unknown)} cannot be filled in; this prompt may hold {_braced(allowed) or 'none'}"
        raise WrongPlaceholder(key, problem)
    missing = sorted(set(required) - found)
    if missing:
        raise WrongPlaceholder(key, f"the prompt must hold {_braced(missing)}")


def _braced(names: Collection[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
