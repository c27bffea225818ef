"""Videos with their frame numbers in the picture, made with PyAV, and the plain decode to check them against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from framescribe.decoding.demux import open_container

# The committed files, and a larger set that may lie beside the checkout: what is in both is the same.
_MEDIA = Path(__file__).parents[1] / "media"
_MORE_MEDIA = Path(__file__).parents[3] / "shared" / "media"
_BITS = 8


def list_media(folder: str) -> list[Path]:
    """Returns the real files of `clips` or `broken`: the committed ones, and further ones of the larger set."""
    found = {path.name: path for root in (_MORE_MEDIA, _MEDIA) for path in (root / folder).glob("*.*")}
    return [found[name] for name in sorted(found) if name != "manifest.jsonl"]


def media_file(folder: str, name: str, *values: object) -> object:
    """Returns a test's parameters: the path of a real file, then `values`; skipped where the file is not there."""
    path = next((path for path in list_media(folder) if path.name == name), _MORE_MEDIA / folder / name)
    marks = pytest.mark.skipif(not path.exists(), reason=f"{name} is not among the committed files")
    return pytest.param(path, *values, id=name, marks=marks)


def needs_encoder(name: str) -> pytest.MarkDecorator:
    """Skips a test where the installed PyAV cannot encode with `name`."""
    return pytest.mark.skipif(not _can_encode(name), reason=f"this PyAV has no encoder {name}")


def _can_encode(name: str) -> bool:
    try:
        return av.Codec(name, "w").is_encoder
    except av.codec.codec.UnknownCodecError:
        return False


def numbered_frame(number: int, width: int, height: int, is_noisy: bool = False) -> np.ndarray:
    """Returns uint8 [H, W, 3]: a moving gradient, or noise, under eight bars that spell `number` in binary."""
    ramp = (np.arange(width) + 3 * number) % 256
    frame = np.repeat(np.tile(ramp, (height, 1))[:, :, None], 3, axis=2).astype(np.uint8)
    if is_noisy:
        frame[:] = np.random.default_rng(number).integers(0, 256, frame.shape)
    for bit in range(_BITS):
        frame[: height // 2, bit * width // _BITS : (bit + 1) * width // _BITS] = 255 if number >> bit & 1 else 0
    return frame


def read_number(frame: np.ndarray) -> int:
    """Returns the number in a picture of `numbered_frame`, of any size."""
    height, width = frame.shape[:2]
    centres = [(2 * bit + 1) * width // (2 * _BITS) for bit in range(_BITS)]
    return sum(int(frame[height // 4, x].mean() > 127) << bit for bit, x in enumerate(centres))


def make_video(
    path: Path,
    num_frames: int = 30,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (128, 96),
    rate: int = 10,
    pts: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    container_options: Mapping[str, str] | None = None,
    is_noisy: bool = False,
) -> Path:
    """Writes numbered frames; `pts` are in milliseconds, by default a steady `rate`. Noise makes the file large."""
    tick = Fraction(1, 1000) if pts else Fraction(1, rate)
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = tick
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size, is_noisy), format="rgb24")
            frame.pts = pts[number] if pts else number
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_plainly(path: Path, image_size: int) -> tuple[list[float], list[np.ndarray]]:
    """Returns times and PIL-resized pictures, uint8 [S, S, 3], of every frame of the stream that FFmpeg calls best."""
    times_s, pictures = [], []
    with open_container(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            picture = Image.fromarray(upright).resize((image_size, image_size), Image.Resampling.BICUBIC)
            times_s.append(float(frame.pts * frame.time_base))
            pictures.append(np.asarray(picture))
    return [time_s - times_s[0] for time_s in times_s], pictures
