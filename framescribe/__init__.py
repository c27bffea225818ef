"""FrameScribe: LLaVA-Video on current PyTorch, exactly as it was trained, for one video or for millions.

import framescribe

model = framescribe.load("lmms-lab/LLaVA-Video-7B-Qwen2")
print(model.describe("a.mp4"))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framescribe.decoding.sample import sample_frames
    from framescribe.llava_video import Completion, Engine, EngineConfig, GenerationConfig, Score, Video
    from framescribe.recipes import Recipe, RecipeResult, load_recipe
    from framescribe.video_model import VideoModel, load

__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "GenerationConfig",
    "Recipe",
    "RecipeResult",
    "Score",
    "Video",
    "VideoModel",
    "load",
    "load_recipe",
    "sample_frames",
]

# Imported when first used: torch and PyAV take seconds, and whoever wants a recipe's prompts needs neither.
_HOMES = {
    "framescribe.decoding.sample": ("sample_frames",),
    "framescribe.llava_video": ("Completion", "Engine", "EngineConfig", "GenerationConfig", "Score", "Video"),
    "framescribe.recipes": ("Recipe", "RecipeResult", "load_recipe"),
    "framescribe.video_model": ("VideoModel", "load"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'framescribe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
