"""Puts the members of a WebDataset shard together: a video and the sidecars under its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shards.kinds import VIDEO_EXTENSIONS, split_extension
from shards.tar_headers import TarMember

SIDECAR_EXTENSIONS = frozenset({".json", ".txt"})
# Names such as `2023.01.31.mp4` put a whole shard under the key `2023`; a group has to fit into memory.
_MAX_GROUP_MEMBERS = 16


@dataclass(frozen=True, slots=True)
class TarGroup:
    """Adjacent members under one key: any number of videos, usually one, and their sidecars."""

    key: str
    videos: tuple[TarMember, ...]
    sidecars: tuple[TarMember, ...]
    byte_start: int
    byte_stop: int


def normal_name(name: str) -> str:
    """Returns a member's name without leading `./` and `/`."""
    while name.startswith(("./", "/")):
        name = name[2:] if name.startswith("./") else name[1:]
    return name


def key_of(name: str) -> str:
    """Returns the WebDataset key of a member: its name up to the first dot of the last component."""
    folder, slash, base = normal_name(name).rpartition("/")
    return folder + slash + base.partition(".")[0]


def clip_key(name: str) -> str:
    """Returns what a clip is called after its video: the name without its extension.

    That is the WebDataset key, unless the name has further dots: those tell the videos of one key apart.
    """
    return split_extension(normal_name(name))[0]


def is_video(member: TarMember) -> bool:
    """Returns whether a member is, or claims to be, a video; links to videos are, so that they fail visibly."""
    return _is_ours(member) and split_extension(member.name)[1] in VIDEO_EXTENSIONS and member.unusual != "folder"


def is_sidecar(member: TarMember) -> bool:
    """Returns whether a member is a regular `.json` or `.txt` file."""
    return _is_ours(member) and split_extension(member.name)[1] in SIDECAR_EXTENSIONS and member.unusual is None


def sidecars_of(video: TarMember, group: TarGroup) -> tuple[TarMember, ...]:
    """Returns the sidecars of one video of a group: those under its own name and those under the bare key."""
    names = (clip_key(video.name), group.key)
    return tuple(sidecar for sidecar in group.sidecars if clip_key(sidecar.name) in names or len(group.videos) == 1)


def group_members(members: Iterator[TarMember]) -> Iterator[TarGroup]:
    """Yields the groups of an archive in its order; members that are neither video nor sidecar belong to none."""
    pending: list[TarMember] = []
    for member in members:
        if not (is_video(member) or is_sidecar(member)):
            continue
        if pending and _starts_group(member, pending):
            yield _make_group(pending)
            pending = []
        pending.append(member)
    if pending:
        yield _make_group(pending)


def _is_ours(member: TarMember) -> bool:
    name = normal_name(member.name)
    base = name.rpartition("/")[2]
    # `._a.mp4` is what macOS keeps of a file's attributes; WebDataset, too, passes over names that begin with a dot.
    return not base.startswith(".") and not name.startswith("__MACOSX/")


def _starts_group(member: TarMember, pending: list[TarMember]) -> bool:
    if key_of(member.name) != key_of(pending[0].name):
        return True
    return len(pending) >= _MAX_GROUP_MEMBERS and clip_key(member.name) != clip_key(pending[-1].name)


def _make_group(members: list[TarMember]) -> TarGroup:
    return TarGroup(
        key=key_of(members[0].name),
        videos=tuple(member for member in members if is_video(member)),
        sidecars=tuple(member for member in members if is_sidecar(member)),
        byte_start=members[0].start,
        byte_stop=members[-1].stop,
    )
