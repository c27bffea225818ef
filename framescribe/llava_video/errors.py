"""The errors of the model and its engine."""

from __future__ import annotations

from framescribe.errors import FrameScribeError


class CheckpointError(FrameScribeError, ValueError):
    """A checkpoint is incomplete, damaged, or asks for something that is not implemented."""


class PromptTooLong(FrameScribeError, ValueError):
    """A prompt and its answer do not fit the model's context; nothing was truncated."""


class ClipTooLarge(FrameScribeError, RuntimeError):
    """A clip alone needs more memory than the engine has."""


class EngineBroken(FrameScribeError, RuntimeError):
    """The device failed; the process cannot go on using it and should be restarted."""


class EngineClosed(FrameScribeError, RuntimeError):
    """The engine or the video was closed before the question was answered."""
