"""Addresses of inputs, output and model: their protocols, the storage options that each gets, and whom they name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import fsspec

from framescribe.errors import FrameScribeError
from framescribe.storage.redaction import redact, secrets_in, secrets_of, strip_credentials
from framescribe.storage.retries import ADDRESS_ERRORS
from framescribe.storage.web_client import REQUEST_OPTIONS, WebClient, web_origin

StorageOptions = Mapping[str, Any]  # the values are whatever the user's fsspec file system takes

# What rows of manifests and Parquet may name. Not among them is whatever opens other addresses in turn (zip, tar, dir,
# reference, caches), runs or talks to anything else (git, github, ssh, ftp) or carries its content (data).
ROW_PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
_WEB = ("http", "https")
_FAMILIES = (_WEB, ("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss"), ("file", "local"))
_NEVER_CHAINED = {*ROW_PROTOCOLS, "file", "local", "memory"}  # `::` in such an address is part of a name
_EXTRAS = {"s3": "s3", "gs": "gs", "az": "az"}  # of pyproject.toml, by the first of a family
_OF_FSSPEC = ("use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache")
_SIMILAR = 0.8


class AddressError(FrameScribeError, ValueError):
    """No file system for an address: an unknown protocol, a client that is not installed, an unknown option."""


def protocol_of(uri: str) -> str:
    """Returns the protocol of a URI, `file` for a plain path; of `simplecache::s3://` it is that of the store."""
    scheme, separator, _ = uri.partition("://")
    protocol = scheme.split("::")[-1].lower() if separator else "file"
    return "file" if protocol == "local" else protocol


def links_of(uri: str) -> list[str]:
    """Returns the addresses of a chain, the outermost first: `zip://a.mp4::s3://b/c.zip`; mostly there is one."""
    scheme, separator, _ = uri.partition("::")[0].partition("://")
    return [uri] if separator and scheme.lower() in _NEVER_CHAINED else uri.split("::")


def origins_of(uris: Iterable[str]) -> frozenset[str]:
    """Returns protocol and host of all addresses, chained ones too: `https://host:443`, `s3://bucket`."""
    origins = (origin_of(link) for uri in uris for link in links_of(uri) if "://" in link)
    return frozenset(origin for origin in origins if origin is not None)


def origin_of(uri: str) -> str | None:
    """Returns protocol and host of one address, with the port for a web address; None where they make no sense."""
    protocol = protocol_of(uri)
    if protocol in _WEB:
        return web_origin(uri)
    try:
        return f"{protocol}://{urlsplit('//' + uri.partition('://')[2]).netloc.rpartition('@')[2].lower()}"
    except ValueError:  # an open bracket
        return None


def parse_trusted_host(text: str) -> str | None:
    """Returns a host that the user lists as `WebClient` compares it: `host`, `host:port` or `protocol://host`.

    None where it is no host: something else stands with it, or nothing.
    """
    protocol, separator, host = text.rpartition("://")
    if not host or set(host) & set("/?#@*, "):
        return None
    if separator and protocol.lower() not in _WEB:
        return origin_of(text)
    origin = web_origin(text if separator else f"https://{host}")
    if origin is None or separator:
        return origin
    named, _, port = origin.removeprefix("https://").rpartition(":")
    return f"{named}:{port}" if host.endswith(f":{port}") and host != named else named


def open_file_system(
    uri: str, options: StorageOptions | None = None, trusted: Collection[str] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Finds the file system of an address, and its path there.

    Args:
        options: for every remote store, or one dictionary for each protocol: `{"s3": {"anon": false}}`.
        trusted: web hosts, as `WebClient` takes them; None for an address that the user named, whose own host it is.

    Raises:
        AddressError: no such protocol, its client is not installed, or the options do not fit it.
        whatever its client raises where it connects at once.
    """
    selected = select_options(uri, options or {}, trusted)
    with _explained(uri, options or {}):
        if "://" not in uri or len(links_of(uri)) > 1:
            return fsspec.core.url_to_fs(uri, **selected)
        # Not `url_to_fs`: it takes a `::` in an object's name for a chain.
        kind = fsspec.get_filesystem_class(protocol_of(uri))
        return kind(**{**kind._get_kwargs_from_urls(uri), **selected}), str(kind._strip_protocol(uri))


def select_options(uri: str, options: StorageOptions, trusted: Collection[str] | None = None) -> dict[str, Any]:
    """Returns what `fsspec.core.url_to_fs` takes for one address: the same for inputs, output and model.

    Raises:
        AddressError: the file system of the address is not there, or does not know one of the options.
    """
    if "://" not in uri:
        return {}
    hosts, links = origins_of([uri]) if trusted is None else trusted, links_of(uri)
    with _explained(uri, options):
        if len(links) == 1:
            return _options_of(uri, options, hosts)
        wrapper = {} if "://" in links[0] else {links[0]: _pick(links[0], options)}  # simplecache::
        return {**wrapper, **{protocol_of(link): _options_of(link, options, hosts) for link in links if "://" in link}}


def is_by_protocol(options: StorageOptions) -> bool:
    """Returns whether options are one dictionary for each protocol.

    Raises:
        AddressError: some are, and others are not.
    """
    known = fsspec.registry.keys() | set(fsspec.available_protocols()) | {"abfss"}
    by_protocol = {name for name, value in options.items() if isinstance(value, Mapping) and name in known}
    if by_protocol and by_protocol != options.keys():
        other = sorted(options.keys() - by_protocol)[0]
        raise AddressError(
            f"storage options: {other!r} stands beside {sorted(by_protocol)[0]!r} and is no protocol; wanted one "
            'dictionary for each protocol, such as {"s3": {"anon": true}, "http": {"headers": {}}}'
        )
    return bool(by_protocol)


def families_of(uris: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Returns the protocols of remote addresses, each with the others that mean the same: `("s3", "s3a")`."""
    return frozenset(_family_of(protocol_of(uri)) for uri in uris if protocol_of(uri) != "file")


@contextmanager
def _explained(uri: str, options: StorageOptions) -> Iterator[None]:
    """Raises `AddressError` for what shows that an address or its options make no sense."""
    name = strip_credentials(uri)
    try:
        yield
    except AddressError:
        raise
    except ImportError as error:
        extra = _EXTRAS.get(_family_of(protocol_of(uri))[0])
        how = f"; with FrameScribe's extra: pip install '.[{extra}]' in its folder" if extra else ""
        raise AddressError(f"cannot open {name!r}: {error}{how}") from None
    except ADDRESS_ERRORS as error:
        said = redact(str(error), (*secrets_of(options), *secrets_in(uri)))
        raise AddressError(f"cannot open {name!r}: {said}; local paths and fsspec URIs work") from None


def _family_of(protocol: str) -> tuple[str, ...]:
    return next((family for family in _FAMILIES if protocol in family), (protocol,))


def _options_of(link: str, options: StorageOptions, trusted: Collection[str]) -> dict[str, Any]:
    protocol = protocol_of(link)
    if protocol == "file":
        return {}
    picked = _pick(protocol, options)
    _check_names(protocol, picked)
    if protocol in _WEB:
        picked = {"get_client": WebClient(tuple(sorted(trusted))), **picked}
    return picked


def _pick(protocol: str, options: StorageOptions) -> dict[str, Any]:
    if not is_by_protocol(options):
        return dict(options)
    names = (protocol, *_family_of(protocol))
    return dict(next((options[name] for name in names if name in options), {}))


def _check_names(protocol: str, options: StorageOptions) -> None:
    """Refuses options that a file system does not know: most would drop them, and go on without."""
    known = _known_options(protocol)
    for name in options.keys() - known:
        close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_SIMILAR)
        # Other stores hand what they do not name on to their service.
        if close or protocol in _WEB or (protocol in ROW_PROTOCOLS and isinstance(options[name], Mapping)):
            advice = f"; did you mean {close[0]!r}?" if close else ""
            raise AddressError(f"storage options: {protocol}:// knows no option {name!r}{advice}")


@cache
def _known_options(protocol: str) -> frozenset[str]:
    kinds = fsspec.get_filesystem_class(protocol).__mro__
    named = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    return frozenset({*named, *_OF_FSSPEC, *(REQUEST_OPTIONS if protocol in _WEB else ())} - {"self", "args", "kwargs"})
