"""LLaVA-Video on current PyTorch and transformers: the model as its authors run it, and a fast engine around it.

from framescribe.llava_video import Engine, EngineConfig, GenerationConfig

engine = Engine.load(EngineConfig(model="lmms-lab/LLaVA-Video-7B-Qwen2"))
video = engine.open(frames, timestamps_s, duration_s)  # uint8 [T, H, W, 3], T seconds, and how long the clip lasts
print(video.ask("Please describe this video in detail.", GenerationConfig(max_new_tokens=512)).result().text)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig, Score

if TYPE_CHECKING:
    from framescribe.llava_video.engine.config import EngineConfig
    from framescribe.llava_video.engine.engine import Engine, Video

__all__ = ["Completion", "Engine", "EngineConfig", "FinishReason", "GenerationConfig", "Score", "Video"]

# Torch is imported with the engine only, so that `plan` and `publish` start at once.
_LAZY = {
    "Engine": "framescribe.llava_video.engine.engine",
    "Video": "framescribe.llava_video.engine.engine",
    "EngineConfig": "framescribe.llava_video.engine.config",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'framescribe.llava_video' has no attribute {name!r}")
