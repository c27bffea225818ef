"""The model in three lines: load it, and ask about a video file."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.sample import sample_frames
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.recipes.engine_video import EngineVideo
from framescribe.recipes.loading import DEFAULT_RECIPE, load_recipe
from framescribe.recipes.recipe import Recipe, RecipeResult

if TYPE_CHECKING:
    from framescribe.llava_video.engine.engine import Engine, Video

MODEL_CARD_PROMPT = "Please describe this video in detail."
_SAMPLING, _GENERATION = SamplingConfig(), GenerationConfig()  # for their defaults
VideoFile = str | os.PathLike[str] | bytes


def load(
    model: str,
    *,
    num_frames: int = _SAMPLING.max_frames,
    engine: EngineConfig | None = None,
    sampling: SamplingConfig | None = None,
) -> VideoModel:
    """Loads a LLaVA-Video checkpoint.

    Args:
        model: a folder, an fsspec URI, or a Hugging Face id such as `lmms-lab/LLaVA-Video-7B-Qwen2`.
        num_frames: frames per video, evenly spread.
        engine: how to load it, where the defaults do not do; its own `model` is not used.
        sampling: which frames to take, instead of `num_frames` and the model card's arithmetic of times.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not supported; the message says what to do.
    """
    from framescribe.llava_video.engine.engine import Engine  # torch takes seconds to import

    loaded = Engine.load(replace(engine or EngineConfig(model), model=os.path.expanduser(model)))
    sampling = sampling or SamplingConfig(max_frames=num_frames, time_base="model_card")
    return VideoModel(loaded, replace(sampling, image_size=loaded.model.config.tower.image_size))


class VideoModel:
    """A loaded model with a rule which frames it sees; all methods may be called from any thread, also in notebooks.

    Each call decodes and encodes its video again. For many questions about one video, or many videos at once, ask
    `engine` (`Engine.open`), which batches whatever is asked.

    Attributes:
        engine: what answers; `engine.open(frames, times, duration)` gives futures.
        sampling: which frames of a video the model sees.
    """

    def __init__(self, engine: Engine, sampling: SamplingConfig) -> None:
        self.engine, self.sampling = engine, sampling

    def describe(self, video: VideoFile) -> str:
        """Returns the answer to the model card's own prompt, greedily, as on the model card.

        Raises:
            FileNotFoundError: there is no such file.
            UndecodableClip: no faithful frames can be had; its `reason` and `message` say why.
        """
        return self.ask(video, MODEL_CARD_PROMPT)

    def ask(self, video: VideoFile, question: str, *, max_new_tokens: int = _GENERATION.max_new_tokens) -> str:
        """Returns the model's answer to a question about a video, a path or the bytes of the file.

        Raises:
            FileNotFoundError, UndecodableClip: as `describe`.
            ValueError: the question is empty.
            PromptTooLong: question and frames do not fit the model's context.
        """
        if not question.strip():
            raise ValueError(
                f"the question is empty, got {question!r}: wanted a text, or `describe` without a question"
            )
        with self._open(video)[0] as opened:
            return opened.ask(question, GenerationConfig(max_new_tokens=max_new_tokens)).result().text

    def annotate(self, video: VideoFile, recipe: str | os.PathLike[str] | Recipe = DEFAULT_RECIPE) -> RecipeResult:
        """Returns the captions and QA pairs of a recipe: the name of a shipped one, a YAML file, or a `Recipe`.

        Raises:
            FileNotFoundError, UndecodableClip: as `describe`.
            RecipeError: the recipe cannot be read.
        """
        chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        opened, asked = self._open(video)
        with opened, ThreadPoolExecutor(1) as thread:  # a notebook's own thread runs an event loop already
            return thread.submit(asyncio.run, chosen.annotate(asked, _name_of(video))).result()

    def close(self) -> None:
        """Stops the engine's thread; the memory goes with the last reference."""
        self.engine.close()

    def __enter__(self) -> VideoModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, video: VideoFile) -> tuple[Video, EngineVideo]:
        sampled = sample_frames(video, self.sampling)
        opened = EngineVideo.open(
            self.engine, _name_of(video), sampled.stack(), sampled.timestamps_s, sampled.duration_s
        )
        return opened.video, opened


def _name_of(video: VideoFile) -> str:
    return "video" if isinstance(video, bytes) else Path(video).name
