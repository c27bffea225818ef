"""Tells a web host that is gone from a store or a network that is down, by asking the other hosts of the shard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from shards.errors import StoreRefused, StoreUnavailable, VideoUnreadable
from shards.store import Store
from shards.videos import fetch_video, find_web_host

# A host of more rows than this is no link that died but the store of the shard: the run stops until it is back.
_FEW_ROWS = 100
_SMALL_SHARE = 0.1
_MAX_ASKED = 8
# Of an address that nobody could be asked for, the client says "not found" even where there is no network.
_SOUND_ADDRESS = re.compile(r"https?://([\w-]{1,63}\.)*[\w-]{1,63}(:\d+)?([/?#]|$)", re.ASCII)


class WebHosts:
    """Fetches the videos that one shard names, for one unit of it.

    A web host that gives no answer at all, after all attempts, fails its clips and no others: if it has few of the
    shard's rows, and if another host of the shard answers right then.

    Args:
        sample_uris: gives the URIs of a fair sample of the shard's rows; called once, when a host gives no answer.
    """

    def __init__(self, store: Store, sample_uris: Callable[[], Iterable[str]]) -> None:
        self._store = store
        self._sample_uris = sample_uris
        self._gone: dict[str, str] = {}

    def fetch(self, uri: str) -> bytes | Path:
        """Returns the path of a local video, the bytes of any other.

        Raises:
            VideoUnreadable: as `fetch_video`, and for a host that is gone.
            StoreUnavailable: the store does not answer.
        """
        host = find_web_host(uri)
        if host not in self._gone:
            try:
                return fetch_video(self._store, uri)
            except StoreUnavailable as error:
                witness = None if host is None or error.silence is None else self._find_witness(host)
                if host is None or witness is None:
                    raise
                self._gone[host] = f"{host} gives no answer ({error.silence}), while {witness} does"
        raise VideoUnreadable("host unreachable", self._gone[host])

    def _find_witness(self, silent: str) -> str | None:
        """Returns a host that answers, or None where none does or the silent one is too much of the shard."""
        num_rows, uris = self._sample
        if num_rows[silent] > max(_FEW_ROWS, _SMALL_SHARE * num_rows.total()):
            return None
        others = ((host, uri) for host, uri in uris.items() if host != silent and host not in self._gone)
        return next((host for host, uri in islice(others, _MAX_ASKED) if self._answers(uri)), None)

    @cached_property
    def _sample(self) -> tuple[Counter[str | None], dict[str, str]]:
        """How many rows of the sample each host has, and one URI of each that can be asked for."""
        num_rows: Counter[str | None] = Counter()
        uris: dict[str, str] = {}
        for uri in self._sample_uris():
            host = find_web_host(uri)
            num_rows[host] += 1
            if host and _SOUND_ADDRESS.match(uri):
                uris.setdefault(host, uri)
        return num_rows, uris

    def _answers(self, uri: str) -> bool:
        once = replace(self._store, config=replace(self._store.config, max_attempts=1))
        try:
            once.size(once.locate(uri))
        except StoreUnavailable as error:
            return error.silence is None
        except (FileNotFoundError, StoreRefused):
            pass  # answers, too
        return True
