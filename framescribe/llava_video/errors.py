"""The errors of the model and its engine."""


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or asks for something that is not implemented."""


class PromptTooLong(ValueError):
    """A prompt and its answer do not fit the model's context; nothing was truncated."""


class ClipTooLarge(RuntimeError):
    """A clip alone needs more memory than the engine has."""


class EngineBroken(RuntimeError):
    """The device failed; the process cannot go on using it and should be restarted."""


class EngineClosed(RuntimeError):
    """The engine or the video was closed before the question was answered."""
