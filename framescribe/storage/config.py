"""How clips are read, the same for the planner and for the workers."""

from __future__ import annotations

from dataclasses import dataclass

from framescribe.storage.retries import RetryPolicy

_RETRIES = RetryPolicy(max_attempts=5, patience_s=60.0)


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
        trusted_hosts: whom rows may name though their network address is private, and who gets the credentials of web
            addresses (`framescribe.storage.web_client`): hosts as `host`, `host:port` or `https://host:port`, and whole
            stores as `sftp://host`, since rows may name others of the usual protocols only. A shard's own host is
            always one.
        retries: how a store is asked again. Less often than an output is: an address that is dead costs its clip alone,
            and the default waits 7.5 s at the most for it.
    """

    video_column: str | None = None
    window_columns: tuple[str, str] | tuple[()] | None = None
    max_video_bytes: int = 2 << 30
    max_sidecar_bytes: int = 1 << 20
    trusted_hosts: tuple[str, ...] = ()
    retries: RetryPolicy = _RETRIES

    @property
    def columns_key(self) -> str:
        """Says which columns were chosen by hand, for the ids of units: others are other clips."""
        chosen = [self.video_column, self.window_columns]
        return "" if chosen == [None, None] else f"{chosen} "

    def __post_init__(self) -> None:
        for name in ("max_video_bytes", "max_sidecar_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
