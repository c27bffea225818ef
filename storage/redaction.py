"""Takes credentials out of URIs and texts before they reach rows, logs or messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
_SCHEME_AND_REST = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://(.*)$", re.DOTALL)
_SECRET_PARAMETER = re.compile(r"[?&][^=&]*(sig|token|secret|key|pass|credential|auth|policy|expires)[^=&]*=", re.I)
_MIN_SECRET_CHARS = 5  # shorter option values ("true", "anon") are no secrets, and would blank out half a message


def strip_credentials(uri: str) -> str:
    """Returns the URI without user, password and query; a local path comes back unchanged.

    The whole query goes, not only what looks like a signature: what a private server takes for a key is not known.
    Object stores allow `?` in names, so there the query goes only where it looks like a signature.
    """
    return "::".join(_strip_link(link) for link in uri.split("::"))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Returns a message with every URL in it stripped and every one of `secrets` blanked."""
    text = _URL.sub(lambda match: strip_credentials(match.group()), text)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def secrets_of(options: Mapping[str, object]) -> tuple[str, ...]:
    """Returns every text inside storage options, nested ones too, that is long enough to be a secret."""
    found: list[str] = []
    for value in options.values():
        if isinstance(value, Mapping):
            found.extend(secrets_of(value))
        elif isinstance(value, str) and len(value) >= _MIN_SECRET_CHARS and "://" not in value:
            found.append(value)
    return tuple(sorted(found, key=len, reverse=True))


def _strip_link(link: str) -> str:
    matched = _SCHEME_AND_REST.match(link)
    if not matched:
        return link
    scheme, rest = matched.groups()
    authority, slash, path = rest.partition("/")
    if "@" in authority and "?" not in authority:
        authority = authority.rpartition("@")[2]
    rest = authority + slash + path
    if scheme.lower() in ("http", "https"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    elif _SECRET_PARAMETER.search(rest):
        rest = rest.split("?", 1)[0]
    return f"{scheme}://{rest}"
