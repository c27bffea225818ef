"""Tells a dead address or host from a store or a network that is down, by asking others that its shard names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import islice

from framescribe.shards.videos import FetchedVideo, fetch_video, find_web_host
from framescribe.storage.access import Store
from framescribe.storage.addresses import ROW_PROTOCOLS, origin_of, protocol_of
from framescribe.storage.errors import InputError, StoreRefused, StoreUnavailable, VideoUnreadable

# A host of more rows than this is no link that died but the store of the shard: the run stops until it is back.
_FEW_ROWS = 100
_SMALL_FRACTION = 0.1
_MAX_ASKED = 8
_SAMPLED_PER_HOST = 16
_PROBE_BYTES = 1 << 16
_BUSY = frozenset({408, 425, 429, 503})  # of a host that wants to be asked later
# Of an address that nobody could be asked for, the client says "not found" even where there is no network.
_SOUND_ADDRESS = re.compile(r"https?://([\w-]{1,63}\.)*[\w-]{1,63}(:\d+)?([/?#]|$)", re.ASCII)


class WebHosts:
    """Fetches the videos that one shard names, for one unit of it.

    An address that fails after all attempts fails its clips and no others, if another address of the same host answers
    right then. So does a host or store that gives no answer at all, or only errors of its own: if it has few of the
    shard's rows, and if another host of the shard answers right then.

    Args:
        store: `Store.for_rows` of the shard.
        sample_uris: gives the URIs of a fair sample of the shard's rows; called once, when an address fails.
    """

    def __init__(self, store: Store, sample_uris: Callable[[], Iterable[str]]) -> None:
        self._store = store
        self._sample_uris = sample_uris
        self._once = store.without_retries()
        self._gone: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    def fetch(self, uri: str) -> FetchedVideo:
        """Returns a video.

        Raises:
            VideoUnreadable: as `fetch_video`, and for an address or a host that is gone.
            StoreUnavailable: the store does not answer.
        """
        host = _host_of(uri)
        if host is None:
            return fetch_video(self._store, uri)
        if uri not in self._failed and host not in self._gone:
            try:
                return fetch_video(self._store, uri)
            except StoreUnavailable as error:
                self._judge(uri, host, error)
        if uri in self._failed:
            raise VideoUnreadable("server error", self._failed[uri])
        raise VideoUnreadable("host unreachable", self._gone[host])

    def _judge(self, uri: str, host: str, error: StoreUnavailable) -> None:
        """Remembers an address or a host that is gone; raises the error where it may be the whole store or network."""
        others = [other for other in self._sample[1].get(host, ()) if other != uri]
        if any(map(self._delivers, islice(others, _MAX_ASKED))):
            self._failed[uri] = f"{error.cause}, at every attempt, while other addresses of {host} answer"
            return
        witness = None if error.status in _BUSY else self._find_witness(host)
        if witness is None:
            raise error
        self._gone[host] = f"{host} gives no answer ({error.cause}), while {witness} does"

    def _find_witness(self, unreachable: str) -> str | None:
        """Returns a host that answers; None where none does, or too many rows of the shard name the unreachable one."""
        num_rows, uris = self._sample
        if num_rows[unreachable] > max(_FEW_ROWS, _SMALL_FRACTION * num_rows.total()):
            return None
        others = ((host, found[0]) for host, found in uris.items() if host != unreachable and host not in self._gone)
        sound = ((host, uri) for host, uri in others if find_web_host(uri) is None or _SOUND_ADDRESS.match(uri))
        return next((host for host, uri in islice(sound, _MAX_ASKED) if self._answers(uri)), None)

    @cached_property
    def _sample(self) -> tuple[Counter[str | None], dict[str, list[str]]]:
        """How many rows of the sample each host has, and some URIs of each that can be asked for."""
        num_rows: Counter[str | None] = Counter()
        uris: dict[str, list[str]] = {}
        for uri in self._sample_uris():
            host = _host_of(uri)
            num_rows[host] += 1
            if host and len(known := uris.setdefault(host, [])) < _SAMPLED_PER_HOST and uri not in known:
                known.append(uri)
        return num_rows, uris

    def _answers(self, uri: str) -> bool:
        """Whether a host gives any answer."""
        try:
            self._once.size(self._once.locate(uri))
        except StoreUnavailable as error:
            return error.status is not None
        except InputError:
            return False
        except (FileNotFoundError, StoreRefused):
            pass  # answers, too
        return True

    def _delivers(self, uri: str) -> bool:
        """Whether an address is served, or said not to be there."""
        try:
            location = self._once.locate(uri)
            size = self._once.size(location)
            if size is None or size:
                self._once.read_file(location, None, _PROBE_BYTES)
        except (InputError, StoreUnavailable):
            return False
        except (FileNotFoundError, StoreRefused):
            pass
        return True


def _host_of(uri: str) -> str | None:
    """Returns host and port of a web address, protocol of one in a store, None for a local path."""
    protocol, host = protocol_of(uri), find_web_host(uri)
    if protocol == "file" or host is not None:
        return host
    return f"{protocol}://" if protocol in ROW_PROTOCOLS else origin_of(uri)  # all buckets have one endpoint
