"""Draws README's picture from a demo run: frames, captions and QA pairs: `python -m demo.picture out/demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.show import CLIPS, ShownClip, read_shown_clips
from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.sample import sample_frames

PICTURE = Path(__file__).parent.parent / "docs" / "demo.png"
SHOWN = ("01_left.mp4", "02_right_up.mp4", "08_still_shrinks.mp4")
NUM_FRAMES, NUM_QUESTIONS = 8, 2
_FRAME_PX, _GAP_PX, _MARGIN_PX, _LINE_PX = 108, 6, 20, 27
_INK, _GREY, _PAPER = "#1c1e21", "#68707a", "#ffffff"


def draw_picture(shown: Sequence[ShownClip]) -> Image.Image:
    """Draws one strip of frames per clip, with what was written about it below."""
    blocks = [_draw_clip(clip) for clip in shown]
    height = sum(block.height for block in blocks) + _MARGIN_PX * (len(blocks) + 1)
    picture = Image.new("RGB", (blocks[0].width + 2 * _MARGIN_PX, height), _PAPER)
    top = _MARGIN_PX
    for block in blocks:
        picture.paste(block, (_MARGIN_PX, top))
        top += block.height + _MARGIN_PX
    return picture


def _draw_clip(clip: ShownClip) -> Image.Image:
    lines = [("caption", clip.caption)]
    for question, answer in clip.qa_pairs[:NUM_QUESTIONS]:
        lines.append(("QA", f"{question}   {answer.partition('  (')[0]}"))
    width = NUM_FRAMES * (_FRAME_PX + _GAP_PX) - _GAP_PX
    block = Image.new("RGB", (width, _FRAME_PX + 8 + _LINE_PX * len(lines)), _PAPER)
    for place, frame in enumerate(_read_frames(CLIPS / clip.name)):
        block.paste(Image.fromarray(frame), (place * (_FRAME_PX + _GAP_PX), 0))
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(18)
    for number, (label, text) in enumerate(lines):
        top = _FRAME_PX + 8 + number * _LINE_PX
        draw.text((0, top), label, _GREY, font)
        draw.text((84, top), text, _INK, font)
    return block


def _read_frames(path: Path) -> np.ndarray:
    return sample_frames(path, SamplingConfig(max_frames=NUM_FRAMES, image_size=_FRAME_PX)).stack()


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the picture of the clips that README shows."""
    parser = argparse.ArgumentParser(prog="python -m demo.picture", description=__doc__)
    parser.add_argument("output", type=Path, help="the folder that the demo run wrote")
    parser.add_argument("--to", type=Path, default=PICTURE, help="the picture to write (default: %(default)s)")
    given = parser.parse_args(arguments)
    clips = {clip.name: clip for clip in read_shown_clips(given.output, CLIPS)}
    draw_picture([clips[name] for name in SHOWN]).quantize(64).save(given.to, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
