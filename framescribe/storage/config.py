"""How clips are read, the same for the planner and for the workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How shards and videos are read.

    Attributes:
        video_column: the column with the videos or their addresses; None finds it by its name and type in Parquet, and
            takes `video` in manifests.
        window_columns: the two columns with the start and the end of the clip in its video; None takes `start_s` and
            `end_s` and refuses other columns that look like a window; empty takes every video whole.
        max_video_bytes: a larger video fails; 2 GiB is an hour of good 1080p, and it has to fit into memory.
        max_sidecar_bytes: a larger sidecar or manifest line is no metadata; of a sidecar only its size is kept.
        max_attempts: how often a store is asked before the run stops.
        backoff_s: the wait before the second attempt; it doubles with each, so the default waits 7.5 s in all.
        trusted_hosts: whom rows may name though their network address is private, and who gets the credentials of web
            addresses (`framescribe.storage.web_client`): hosts as `host`, `host:port` or
            `https://host:port`, and whole stores as
            `sftp://host`, since rows may name others of the usual protocols only. A shard's own host is always one.
        patience_s: no further attempt after so long: most clients of stores try for half a minute by themselves.
    """

    video_column: str | None = None
    window_columns: tuple[str, str] | tuple[()] | None = None
    max_video_bytes: int = 2 << 30
    max_sidecar_bytes: int = 1 << 20
    max_attempts: int = 5
    backoff_s: float = 0.5
    patience_s: float = 60.0
    trusted_hosts: tuple[str, ...] = ()

    @property
    def columns_key(self) -> str:
        """Says which columns were chosen by hand, for the ids of units: others are other clips."""
        chosen = [self.video_column, self.window_columns]
        return "" if chosen == [None, None] else f"{chosen} "

    def __post_init__(self) -> None:
        for name in ("max_video_bytes", "max_sidecar_bytes", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("backoff_s", "patience_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
