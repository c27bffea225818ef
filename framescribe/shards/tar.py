"""WebDataset tar shards: one clip per video member, with the sidecars under its key as metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from framescribe.shards.kinds import VIDEO_EXTENSIONS, compression_of, split_extension
from framescribe.shards.naming import IndexedClip, check_unit, clean_id
from framescribe.shards.rows import dump_metadata, merge_sidecars
from framescribe.shards.tar_stream import DecompressedStream, TarMember, iterate_members
from framescribe.shards.videos import check_size
from framescribe.storage.access import Location, Store
from framescribe.storage.errors import InputError, NoVideos, VideoUnreadable
from framescribe.storage.ranged_file import INDEX_BLOCK_BYTES, READ_BLOCK_BYTES, ByteStream, open_shard
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, Stage, WorkUnit

_SIDECAR_EXTENSIONS = frozenset({".json", ".txt"})
# Names such as `2023.01.31.mp4` put a whole shard under the key `2023`; a group has to fit into memory.
_MAX_GROUP_MEMBERS = 16


def index_tar(store: Store, shard: Location, shard_id: str) -> Iterator[IndexedClip]:
    """Yields the clips of a tar shard by its headers; only a compressed shard is read whole.

    Raises:
        NoVideos: it holds none.
        InputError: the shard is damaged, or a sidecar lies apart from its video.
    """
    name = strip_credentials(shard.uri)
    stream, stop = _open_whole(store, shard, INDEX_BLOCK_BYTES)
    apart: dict[str, str] = {}
    keys: set[str] = set()
    with closing(stream):
        for group in _group_members(iterate_members(stream, name, 0, stop)):
            yield from _index_group(group, shard_id, name)
            keys.update([group.key] if group.videos else [])
            apart.update({} if group.videos else {group.key: group.sidecars[0].name})
    _check_sidecars(name, keys, apart)
    if not keys:
        raise NoVideos(f"{name} holds no video: wanted members such as 000.mp4 with 000.json beside them")


def read_tar(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit in the shard's order, from one ranged read or one stream.

    Raises:
        ShardChanged: the shard does not hold there what was planned; found before the first clip is yielded, or
            at the end of the unit where only reading it all can tell.
        InputError, StoreUnavailable: the shard is damaged, or the store does not answer.
    """
    shard = store.locate(unit.shard)
    store.describe(shard, *unit.versions)
    contents: list[str] = []
    for group, kept in _read_groups(store, shard, unit):
        for video in group.videos:
            contents.append(_content_of(unit.shard_id, video))
            yield _make_clip(store, unit, group, video, kept)
    check_unit(unit, contents)


@dataclass(frozen=True, slots=True)
class _TarGroup:
    """Adjacent members under one key: any number of videos, usually one, and their sidecars."""

    key: str
    videos: tuple[TarMember, ...]
    sidecars: tuple[TarMember, ...]
    byte_start: int
    byte_stop: int


def _group_members(members: Iterator[TarMember]) -> Iterator[_TarGroup]:
    """Yields the groups of an archive in its order; members that are neither video nor sidecar belong to none."""
    pending: list[TarMember] = []
    for member in members:
        if not (is_video(member) or _is_sidecar(member)):
            continue
        if pending and _starts_group(member, pending):
            yield _make_group(pending)
            pending = []
        pending.append(member)
    if pending:
        yield _make_group(pending)


def _open_whole(store: Store, shard: Location, block_bytes: int) -> tuple[ByteStream, int | None]:
    """Opens a shard from its beginning; with the byte it ends at, None for a compressed one."""
    compression = compression_of(shard.uri)
    size = store.size(shard)
    if compression is None:
        return open_shard(store, shard, stop=size, block_bytes=block_bytes), size
    compressed = open_shard(store, shard, stop=size, block_bytes=8 << 20)
    return DecompressedStream(compressed, compression, size or 1 << 30, strip_credentials(shard.uri)), None


def _index_group(group: _TarGroup, shard_id: str, shard: str) -> Iterator[IndexedClip]:
    for video in group.videos:
        clip_id = _clip_id(shard_id, video)
        yield IndexedClip(
            clip_id=clip_id,
            where=f"{shard}: {clean_text(normal_name(video.name))}",
            content=f"{clip_id} {video.size}",
            size_bytes=video.size,
            byte_start=group.byte_start,
            byte_stop=group.byte_stop,
        )


def _check_sidecars(shard: str, keys: set[str], apart: dict[str, str]) -> None:
    separated = sorted(name for key, name in apart.items() if key in keys)
    if separated:
        raise InputError(
            f"{shard}: sidecar {clean_text(separated[0])!r} lies apart from its video ({len(separated)} such); members "
            "of one key belong side by side: pack the shard again with `tar --sort=name`"
        )


def _clip_id(shard_id: str, video: TarMember) -> str:
    return clean_id(f"{shard_id}/{_clip_key(video.name)}")


def _content_of(shard_id: str, video: TarMember) -> str:
    return f"{_clip_id(shard_id, video)} {video.size}"


def _read_groups(store: Store, shard: Location, unit: WorkUnit) -> Iterator[tuple[_TarGroup, dict[int, bytes]]]:
    """Yields each group with the content of its members, by their `data_start`; oversized members are left out."""
    name = strip_credentials(shard.uri)
    stop: int | None = unit.byte_stop
    if stop:
        stream = open_shard(store, shard, stop, unit.byte_start, READ_BLOCK_BYTES)
    else:
        stream, stop = _open_whole(store, shard, READ_BLOCK_BYTES)
    kept: dict[int, bytes] = {}
    with closing(stream):
        if 0 < unit.byte_stop - unit.byte_start <= READ_BLOCK_BYTES:  # one block: looking ahead costs no second read
            _check_headers(stream, unit)
        members = iterate_members(stream, name, unit.byte_start, stop)
        for group in _group_members(_keep_contents(store, stream, members, kept)):
            yield group, kept
            for member in (*group.videos, *group.sidecars):
                kept.pop(member.data_start, None)


def _check_headers(stream: ByteStream, unit: WorkUnit) -> None:
    groups = _group_members(iterate_members(stream, unit.shard_id, unit.byte_start, unit.byte_stop))
    try:
        contents = [_content_of(unit.shard_id, video) for group in groups for video in group.videos]
    except InputError:  # no header where there was one
        contents = []
    check_unit(unit, contents)


def _keep_contents(
    store: Store, stream: ByteStream, members: Iterator[TarMember], kept: dict[int, bytes]
) -> Iterator[TarMember]:
    for member in members:
        limit = store.config.max_video_bytes if is_video(member) else store.config.max_sidecar_bytes
        if (is_video(member) or _is_sidecar(member)) and member.size <= limit and member.unusual is None:
            stream.seek(member.data_start)
            kept[member.data_start] = stream.read(member.size)
            if len(kept[member.data_start]) < member.size:
                raise InputError(f"a shard ends inside of {clean_text(member.name)!r}: it is truncated; copy it again")
        yield member


def _make_clip(
    store: Store, unit: WorkUnit, group: _TarGroup, video: TarMember, kept: dict[int, bytes]
) -> Clip | FailedClip:
    ref = ClipRef(
        clip_id=_clip_id(unit.shard_id, video),
        unit_id=unit.unit_id,
        source=strip_credentials(unit.shard),
        member=clean_text(normal_name(video.name)),
        metadata=_read_metadata(video, group, kept),
    )
    if video.unusual is not None:
        return FailedClip(ref, Stage.READ, "not a regular file", f"the member is a {video.unusual}: not followed")
    try:
        check_size(store, video.size)
    except VideoUnreadable as error:
        return FailedClip(ref, Stage.READ, error.reason, error.message)
    return Clip(ref, kept[video.data_start])


def _read_metadata(video: TarMember, group: _TarGroup, kept: dict[int, bytes]) -> str:
    contents: dict[str, bytes] = {}
    for sidecar in _sidecars_of(video, group):
        extension = normal_name(sidecar.name).rpartition("/")[2].partition(".")[2]
        if _clip_key(sidecar.name) == _clip_key(video.name) != _key_of(video.name):
            extension = extension.rpartition(".")[2]
        too_large = f"[left out: {sidecar.size} bytes, over the limit for sidecars]".encode()
        contents[clean_text(extension)] = kept.get(sidecar.data_start, too_large)
    return dump_metadata(merge_sidecars(contents))


def normal_name(name: str) -> str:
    """Returns a member's name without leading `./` and `/`."""
    while name.startswith(("./", "/")):
        name = name[2:] if name.startswith("./") else name[1:]
    return name


def _key_of(name: str) -> str:
    """Returns the WebDataset key of a member: its name up to the first dot of the last component."""
    folder, slash, base = normal_name(name).rpartition("/")
    return folder + slash + base.partition(".")[0]


def _clip_key(name: str) -> str:
    """Returns what a clip is called after its video: the name without its extension.

    That is the WebDataset key, unless the name has further dots: those tell the videos of one key apart.
    """
    return split_extension(normal_name(name))[0]


def is_video(member: TarMember) -> bool:
    """Returns whether a member is, or claims to be, a video; links to videos are, so that they fail visibly."""
    return _is_ours(member) and split_extension(member.name)[1] in VIDEO_EXTENSIONS and member.unusual != "folder"


def _is_sidecar(member: TarMember) -> bool:
    """Returns whether a member is a regular `.json` or `.txt` file."""
    return _is_ours(member) and split_extension(member.name)[1] in _SIDECAR_EXTENSIONS and member.unusual is None


def _sidecars_of(video: TarMember, group: _TarGroup) -> tuple[TarMember, ...]:
    """Returns the sidecars of one video of a group: those under its own name and those under the bare key."""
    names = (_clip_key(video.name), group.key)
    return tuple(sidecar for sidecar in group.sidecars if _clip_key(sidecar.name) in names or len(group.videos) == 1)


def _is_ours(member: TarMember) -> bool:
    name = normal_name(member.name)
    base = name.rpartition("/")[2]
    # `._a.mp4` is what macOS keeps of a file's attributes; WebDataset, too, passes over names that begin with a dot.
    return not base.startswith(".") and not name.startswith("__MACOSX/")


def _starts_group(member: TarMember, pending: list[TarMember]) -> bool:
    if _key_of(member.name) != _key_of(pending[0].name):
        return True
    return len(pending) >= _MAX_GROUP_MEMBERS and _clip_key(member.name) != _clip_key(pending[-1].name)


def _make_group(members: list[TarMember]) -> _TarGroup:
    return _TarGroup(
        key=_key_of(members[0].name),
        videos=tuple(member for member in members if is_video(member)),
        sidecars=tuple(member for member in members if _is_sidecar(member)),
        byte_start=members[0].start,
        byte_stop=members[-1].stop,
    )
