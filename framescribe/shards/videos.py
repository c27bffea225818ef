"""Fetches single video files: of a folder, or named by a row of a manifest or a Parquet shard."""

from __future__ import annotations

import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from framescribe.storage.access import Store
from framescribe.storage.addresses import protocol_of
from framescribe.storage.errors import (
    AddressRefused,
    CutShort,
    InputError,
    StoreRefused,
    StoreUnavailable,
    VideoUnreadable,
)
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, Stage

_log = logging.getLogger(__name__)

_MAX_LOOKED_FOR = 12
_MAX_VERSIONS_ASKED = 64
MAX_KEPT_BYTES = 1 << 30


def resolve_uri(video: str, folder: str) -> str:
    """Returns the URI of a video that a shard in `folder` names, relative to that folder or in full.

    Raises:
        VideoUnreadable: a shard in a remote store names a file of this machine, or a web address has no sound host.
    """
    if find_web_host(video) == "":
        raise VideoUnreadable("video not found", f"{strip_credentials(video)!r} has no host that could be asked")
    remote = protocol_of(folder) != "file"
    if protocol_of(video) == "file":
        if remote and video.startswith(("/", "file:", "local:", "~")):
            raise VideoUnreadable("local path in a remote shard", f"{video!r} would be a file of this machine")
        return join_uri(folder, video if remote else video.removeprefix("file://").removeprefix("local://"))
    return video


def find_web_host(uri: str) -> str | None:
    """Returns host and port of a web address, an empty text where they make no sense, and None for any other URI."""
    if protocol_of(uri) not in ("http", "https"):
        return None
    try:
        parts = urlsplit("//" + uri.partition("://")[2])
        return parts.netloc.rpartition("@")[2] if parts.port != 0 else ""
    except ValueError:  # an open bracket, a port that is no number
        return ""


@dataclass(frozen=True, slots=True)
class FetchedVideo:
    """A video: the path of a local one, the bytes of any other, and its version then; empty where nobody knows."""

    content: bytes | Path = field(repr=False)
    version: str = ""


def prepare_fetch(
    fetch: Callable[[str], FetchedVideo], video: str, folder: str
) -> tuple[str, Callable[[], FetchedVideo]]:
    """Returns where a video named by a shard in `folder` is, without credentials, and the call that fetches it."""
    try:
        uri = resolve_uri(video, folder)
    except VideoUnreadable as error:
        return clean_text(strip_credentials(video)), partial(_refuse, error)
    return clean_text(strip_credentials(uri)), partial(fetch, uri)


class FetchedOnce:
    """Fetches a video once for all rows of a unit that name it, and lets go of it with the last of them.

    What would be more than 1 GiB to keep is fetched again.

    Args:
        fetch: returns the video, or raises `VideoUnreadable`.
        videos: what the rows name, relative to `folder` or in full.
    """

    def __init__(self, fetch: Callable[[str], FetchedVideo], videos: Iterable[str], folder: str) -> None:
        self._fetch = fetch
        self._num_left = Counter(_resolve_all(videos, folder))
        self._kept: dict[str, FetchedVideo | VideoUnreadable] = {}

    def fetch(self, uri: str) -> FetchedVideo:
        """Returns a video as `fetch` does, or raises what it raised."""
        found = self._kept.get(uri)
        if found is None:
            found = self._try(uri)
        self._num_left[uri] -= 1
        if self._num_left[uri] > 0 and self._fits(found):
            self._kept[uri] = found
        else:
            self._kept.pop(uri, None)
        if isinstance(found, VideoUnreadable):
            raise found
        return found

    def _try(self, uri: str) -> FetchedVideo | VideoUnreadable:
        try:
            return self._fetch(uri)
        except VideoUnreadable as error:
            return error

    def _fits(self, found: FetchedVideo | VideoUnreadable) -> bool:
        kept = [one.content for one in (*self._kept.values(), found) if isinstance(one, FetchedVideo)]
        return sum(len(content) for content in kept if isinstance(content, bytes)) <= MAX_KEPT_BYTES


def _resolve_all(videos: Iterable[str], folder: str) -> Iterator[str]:
    for video in videos:
        with suppress(VideoUnreadable):
            yield resolve_uri(video, folder)


def folder_of(shard: str) -> str:
    """Returns the folder that a shard's relative videos are in."""
    return shard.split("?", 1)[0].rpartition("/")[0] if "://" in shard else str(Path(shard).parent)


def root_of(shard: str, video_root: str | None) -> str:
    """Returns what relative names in the rows of a shard begin at: `--video-root`, else the shard's folder."""
    if video_root is None:
        return folder_of(shard)
    root = video_root.removeprefix("file://")
    return root if "://" in root else os.path.abspath(os.path.expanduser(root))


def join_uri(folder: str, relative: str) -> str:
    """Joins a folder's URI and a path relative to it; `..` is resolved but never leaves the store's host or bucket."""
    scheme, separator, rest = folder.rpartition("://")
    if not separator:
        return posixpath.normpath(posixpath.join(folder, relative))
    host, _, path = rest.partition("/")
    joined = posixpath.normpath(posixpath.join("/", path, relative))
    return f"{scheme}://{host}/{joined.lstrip('/')}"


def fetch_video(store: Store, uri: str, planned: str = "") -> FetchedVideo:
    """Returns a video.

    Args:
        planned: its version when the work was planned, empty where nobody knows.

    Raises:
        ShardChanged: it has another version now.
        VideoUnreadable: this one file is missing, is empty, too large or cut short, or may not be read or named.
        StoreUnavailable: the store does not answer.
    """
    try:
        location = store.locate(uri)
        size, version = store.describe(location, planned)
        check_size(store, size)
        if location.is_local:
            store.ask(f"open {uri}", lambda: location.local_path.open("rb").close())
            return FetchedVideo(location.local_path, version)
        video = store.read_file(location, size, store.config.max_video_bytes + 1)
    except FileNotFoundError as error:
        raise VideoUnreadable("video not found", str(error)) from None
    except StoreRefused as error:
        raise VideoUnreadable("permission denied", str(error)) from None
    except CutShort as error:
        raise VideoUnreadable("video cut short", str(error)) from None
    except AddressRefused as error:
        raise VideoUnreadable("address not allowed", str(error)) from None
    except InputError as error:
        raise VideoUnreadable("bad address", str(error)) from None
    check_size(store, len(video))
    return FetchedVideo(video, version)


def find_versions(store: Store, uris: Collection[str], tables: str) -> dict[str, str]:
    """Returns the versions that videos have now: of all local ones, of up to 64 in stores, of none of web servers.

    What is gone, or what rows of `tables` may not name, has none.
    """
    once = store.without_retries()
    local = [uri for uri in uris if protocol_of(uri) == "file"]
    others = [uri for uri in uris if protocol_of(uri) not in ("file", "http", "https")]
    asked = [others[number] for number in _spread(len(others), _MAX_VERSIONS_ASKED)]
    with ThreadPoolExecutor(_MAX_LOOKED_FOR, thread_name_prefix="look") as pool:
        versions = [
            *map(partial(_find_version, once), local),
            *pool.map(partial(_find_version, once.for_rows(tables)), asked),
        ]
    return {uri: version for uri, version in zip([*local, *asked], versions, strict=True) if version}


def _find_version(store: Store, uri: str) -> str:
    try:
        return store.describe(store.locate(uri))[1]
    except (FileNotFoundError, InputError, StoreRefused, StoreUnavailable):
        return ""


def _spread(number: int, most: int) -> Iterator[int]:
    """Yields places in a list of so many, evenly spaced."""
    taken = min(most, number)
    return (place * number // taken for place in range(taken))


def check_some_found(store: Store, shard: str, uris: Sequence[str]) -> None:
    """Looks for up to twelve of the videos that a shard names, evenly spaced, before anything is paid for.

    Raises:
        InputError: the store of every one of them says that it is not there.
    """
    looked_for = [uris[number] for number in _spread(len(uris), _MAX_LOOKED_FOR)]
    with ThreadPoolExecutor(_MAX_LOOKED_FOR, thread_name_prefix="look") as pool:
        answers = pool.map(partial(_is_missing, store.without_retries()), looked_for)
    missing = [uri for uri, is_missing in zip(looked_for, answers, strict=True) if is_missing]
    if looked_for and len(missing) == len(looked_for):
        first = clean_text(strip_credentials(missing[0]))
        raise InputError(
            f"{shard}: none of {len(missing)} videos that were looked for is there, the first is {first!r}: relative "
            "paths begin at the folder of the file that names them, or at --video-root"
        )
    if missing:
        _log.warning("%s: %d of %d videos that were looked for are not there", shard, len(missing), len(looked_for))


def _is_missing(store: Store, uri: str) -> bool:
    try:
        store.size(store.locate(uri))
    except FileNotFoundError:
        return True
    except (InputError, StoreRefused, StoreUnavailable):
        pass  # reading it will say more
    return False


def read_videos(
    fetches: Iterator[tuple[ClipRef, Callable[[], FetchedVideo]]],
) -> Iterator[Clip | FailedClip]:
    """Yields a clip for each reference whose video can be fetched, a failed clip for each other.

    Raises:
        StoreRefused: not one of several videos of the unit may be read: the credentials are wrong, not the videos.
    """
    refused: list[str] = []
    num_clips = 0
    for ref, fetch in fetches:
        num_clips += 1
        try:
            video = fetch()
            yield Clip(replace(ref, source_version=video.version), video.content)
        except VideoUnreadable as error:
            refused.extend([error.message] if error.reason == "permission denied" else [])
            yield FailedClip(ref, Stage.READ, error.reason, error.message)
    if num_clips > 1 and len(refused) == num_clips:
        raise StoreRefused(f"none of the {num_clips} videos of a unit may be read; the first: {refused[0]}")


def _refuse(error: VideoUnreadable) -> NoReturn:
    raise error


def check_size(store: Store, size: int | None) -> None:
    """Raises `VideoUnreadable` for a video of no bytes or too many; None, not known, is neither."""
    if size == 0:
        raise VideoUnreadable("empty file", "it has 0 bytes")
    if size is not None and size > store.config.max_video_bytes:
        message = f"{size} bytes, over the limit of {store.config.max_video_bytes} (max_video_bytes)"
        raise VideoUnreadable("video too large", message)
