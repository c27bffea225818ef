"""How clips are read, the same for the planner and for the workers."""

from __future__ import annotations

from dataclasses import dataclass

from framescribe.storage.retries import RetryPolicy

# Beside the video, and start and end in seconds: `windows` has several pairs of them in one cell, and frame numbers
# count from 0 at `fps`, which is a column or the number itself.
COLUMN_ROLES = ("clip_id", "windows", "start_frame", "end_frame", "fps")
_RETRIES = RetryPolicy(max_attempts=5, patience_s=60.0)


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How shards and videos are read.

    Attributes:
        video_column: the column with the videos or their addresses; None finds it by its name and type in Parquet, and
            takes `video` in manifests.
        window_columns: the two columns with the start and the end of the clip in its video; None takes `start_s` and
            `end_s` and refuses other columns that look like a window; empty takes every video whole.
        columns: what other columns hold, as pairs of one of `COLUMN_ROLES` and the column's name.
        video_root: folder or URI that relative names of videos in rows begin at; None takes the folder of the file with
            the rows.
        max_video_bytes: a larger video fails; 2 GiB is an hour of good 1080p, and it has to fit into memory.
        max_sidecar_bytes: a larger sidecar or manifest line is no metadata; of a sidecar only its size is kept.
        trusted_hosts: whom rows may name though their network address is private, and who gets the credentials of web
            addresses (`framescribe.storage.web_client`): hosts as `host`, `host:port` or `https://host:port`, and whole
            stores as `sftp://host`, since rows may name others of the usual protocols only. A shard's own host is
            always one.
        retries: how a store is asked again. Less often than an output is: an address that is dead costs its clip alone,
            and the default waits 7.5 s at the most for it.
    """

    video_column: str | None = None
    window_columns: tuple[str, str] | tuple[()] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    video_root: str | None = None
    max_video_bytes: int = 2 << 30
    max_sidecar_bytes: int = 1 << 20
    trusted_hosts: tuple[str, ...] = ()
    retries: RetryPolicy = _RETRIES

    @property
    def columns_key(self) -> str:
        """Says which columns were chosen by hand, for the ids of units: others are other clips."""
        chosen = [self.video_column, self.window_columns]
        return ("" if chosen == [None, None] else f"{chosen} ") + self.places_key

    @property
    def places_key(self) -> str:
        """Says so of `columns` and `video_root` alone."""
        return f"{sorted(self.columns)} {self.video_root} " if self.columns or self.video_root else ""

    @property
    def columns_of_times(self) -> tuple[str, ...]:
        """Columns with windows in one cell or frame numbers, which are read in place of seconds."""
        return tuple(name for role, name in self.columns if role in ("windows", "start_frame", "end_frame"))

    def column_of(self, role: str) -> str | None:
        """Returns the column with one of `COLUMN_ROLES`, None where none was named."""
        return dict(self.columns).get(role)

    def __post_init__(self) -> None:
        for name in ("max_video_bytes", "max_sidecar_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
