"""Takes credentials out of URIs and messages, and out of names the characters that do harm where they are shown."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote, unquote_plus

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
_NEXT_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.\-]*://)")  # not the `::` of an object's name or of [::1]
_SCHEME_AND_REST = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://(.*)$", re.DOTALL)
_SECRET_PARAMETER = re.compile(r"[?&][^=&]*(sig|token|secret|key|pass|credential|auth|policy|expires)[^=&]*=", re.I)
_MIN_SECRET_CHARS = 5  # shorter option values ("true", "anon") are no secrets, and would blank out half a message
# A fixed list, not Unicode's categories: those grow with each Python, and ids have to stay the same. Surrogates stand
# for bytes that are no UTF-8, and cannot be written to a table.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def strip_credentials(uri: str) -> str:
    """Returns the URI without user, password and query; a local path comes back unchanged.

    The whole query goes, not only what looks like a signature: what a private server takes for a key is not known.
    Object stores allow `?` in names, so there the query goes only where it looks like a signature.
    """
    return "::".join(map(_strip_link, _NEXT_LINK.split(uri)))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Returns a message with every URL in it stripped and every one of `secrets` blanked."""
    text = _URL.sub(lambda match: strip_credentials(match.group()), text)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def secrets_of(options: Mapping[str, object]) -> tuple[str, ...]:
    """Returns every text inside storage options, nested ones too, that is long enough to be a secret."""
    return _longest_first(_secrets_of_value(options))


def secrets_in(uri: str) -> tuple[str, ...]:
    """Returns user, password and the values of the query of an address, in each way that a server may repeat them."""
    found: list[str] = []
    for link in _NEXT_LINK.split(uri):
        matched = _SCHEME_AND_REST.match(link)
        before, _, query = (matched[2] if matched else "").partition("?")
        user, _ = _split_user(before)
        found += [user, *user.split(":", 1), base64.b64encode(unquote(user).encode()).decode()] if user else []
        found += [query, *(part.rpartition("=")[2] for part in re.split("[&;#]", query))]
    ways = (way for text in found for way in (text, unquote(text), unquote_plus(text), quote(unquote(text), safe="")))
    return _longest_first(ways)


def clean_text(raw: str) -> str:
    """Returns a text from the data, fit to be shown: unprintable characters become `_`."""
    return _UNPRINTABLE.sub("_", raw)


def escape_json(text: str) -> str:
    """Returns JSON text with its unprintable characters written as JSON's own escapes; it still means the same."""
    return _UNPRINTABLE.sub(lambda match: json.dumps(match.group())[1:-1], text)


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    """Sorts secrets so that none is found inside of another, and leaves out what is too short to be one."""
    return tuple(
        sorted({text for text in texts if len(text) >= _MIN_SECRET_CHARS}, key=lambda text: (-len(text), text))
    )


def _secrets_of_value(value: object) -> Iterable[str]:
    if isinstance(value, str):
        # Of a header `Bearer TOKEN` a server may repeat the token alone.
        return secrets_in(value) if "://" in value else (value, *value.split())
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [secret for one in values for secret in _secrets_of_value(one)]


def _split_user(rest: str) -> tuple[str, str]:
    """Returns what stands before the `@` of an address without its protocol, and the rest."""
    authority = rest.partition("/")[0]
    if "@" in authority and "?" not in authority:
        user = authority.rpartition("@")[0]
        return user, rest[len(user) + 1 :]
    # A slash or question mark in a password that nobody encoded: what follows the colon is no port.
    _, colon, port = authority.partition(":")
    if colon and "@" in rest and not port.isdigit() and not authority.startswith("["):
        user, _, rest = rest.rpartition("@")
        return user, rest
    return "", rest


def _strip_link(link: str) -> str:
    matched = _SCHEME_AND_REST.match(link)
    if not matched:
        return link
    scheme = matched[1]
    _, rest = _split_user(matched[2])
    if scheme.lower() in ("http", "https"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    elif _SECRET_PARAMETER.search(rest):
        rest = rest.split("?", 1)[0]
    return f"{scheme}://{rest}"
