"""Which frames of a clip the model sees, what decoding them may cost, and the one error for a clip without any."""

from __future__ import annotations

from dataclasses import dataclass

DECODERS = ("auto", "decord", "pyav")
TIME_BASES = ("pts", "model_card")


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Which frames of a clip the model sees, and what decoding them may cost.

    Attributes:
        max_frames: frames per clip; with `fps` the most frames per clip.
        fps: frames per second of the clip; None for `max_frames` frames spread evenly, as the model card does.
        time_base: `pts` for true presentation times, `model_card` for the model card's arithmetic (index over mean
            rate).
        decoder: `auto` is `pyav`: right on every file, and cheaper than decord where decord is right too.
        image_size: width and height in pixels that every frame is resized to; the aspect ratio is not kept.
        deadline_s: seconds of wall time a clip may take; its decoder is killed after that.
        memory_limit_bytes: resident memory a decoder process may reach before it is killed.
        min_decoded_fraction: least fraction of a damaged clip's frames that must decode for it to be annotated.
        max_pixels: largest width x height of a video; beyond it one frame alone would exhaust the memory limit.
    """

    max_frames: int = 64
    fps: float | None = None
    time_base: str = "pts"
    decoder: str = "auto"
    image_size: int = 384
    deadline_s: float = 300.0
    memory_limit_bytes: int = 4 << 30
    min_decoded_fraction: float = 0.9
    max_pixels: int = 8192 * 8192

    def __post_init__(self) -> None:
        _check_choice("decoder", self.decoder, DECODERS)
        _check_choice("time_base", self.time_base, TIME_BASES)
        for name in ("max_frames", "image_size", "deadline_s", "memory_limit_bytes", "max_pixels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be a positive number of frames per second, got {self.fps}")
        if not 0 <= self.min_decoded_fraction <= 1:
            raise ValueError(f"min_decoded_fraction must lie between 0 and 1, got {self.min_decoded_fraction}")

    @property
    def chosen_decoder(self) -> str:
        """The decoder that `auto` comes to."""
        return "pyav" if self.decoder == "auto" else self.decoder

    @property
    def frames_bytes(self) -> int:
        """The most bytes that the sampled frames of one clip take: uint8 [max_frames, S, S, 3]."""
        return self.max_frames * self.image_size * self.image_size * 3


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


class UndecodableClip(Exception):
    """A clip of which no faithful frames can be had.

    Attributes:
        reason: short and for people, for example `no video stream` or `truncated after 3.2 s`.
        message: the details: what was seen, what was wanted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """What a video's headers say, without decoding; `frames_per_s` is the mean rate, 0 where they do not tell it."""

    duration_s: float
    width_px: int
    height_px: int
    codec: str
    frames_per_s: float


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The part of a video that is the clip, in seconds from its first frame; None for the video's own bounds."""

    start_s: float | None = None
    end_s: float | None = None
