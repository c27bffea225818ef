"""Random checkpoints of a given geometry, for benchmarks and for runs at full resolution without the real weights."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from framescribe.llava_video.model.weights import Place

DEMO_TOKENIZER = Path(__file__).parents[1] / "demo" / "checkpoint"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def _tower(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> dict[str, int]:
    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    return {**_SO400M, **sizes, "num_hidden_layers": num_layers, "num_attention_heads": num_heads}


# Language geometry and tower of each size; all see 27 x 27 patches of 384 px frames, as the real model does.
_GEOMETRIES: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vision_config": _tower(64, 128, 3, 2),
    },
    "mid": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vision_config": _tower(192, 768, 6, 4),
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vision_config": _SO400M,
    },
}
SIZES = tuple(_GEOMETRIES)
_VOCABULARY = {"small": 0, "mid": 0, "7b": 151646}  # 0: the tokenizer's own


def write_configuration(size: str, folder: Path, tokenizer: Path = DEMO_TOKENIZER) -> None:
    """Writes config.json, generation_config.json and the tokenizer of a random checkpoint.

    Args:
        tokenizer: a folder with a Qwen2-like tokenizer.json; for `7b` it is filled up to the real vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = _fill_vocabulary(json.loads((tokenizer / "tokenizer.json").read_text("utf-8")), _VOCABULARY[size])
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    num_ids = 1 + max([*content["model"]["vocab"].values(), *ids.values()])
    geometry = _GEOMETRIES[size]
    config = {
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "hidden_act": "silu",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_hidden_size": geometry["vision_config"]["hidden_size"],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_patch_token": False,
        "rope_theta": 1000000.0,
        "tokenizer_model_max_length": 32768,
        "vocab_size": math.ceil(num_ids / 64) * 64,
        **geometry,
    }
    generation = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "repetition_penalty": 1.05}
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")


def make_weights(wanted: Mapping[str, tuple[int, ...]], place: Place, seed: int = 0) -> dict[str, Tensor]:
    """Returns random weights, drawn on the device each is placed on; a `ReadWeights` for `load_model`."""
    weights: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(sorted(wanted.items())):
        target = place(name, torch.empty(0))
        generator = torch.Generator(target.device).manual_seed(seed * 100_003 + number)
        weights[name] = _draw(name, shape, target, generator)
    return weights


def write_checkpoint(size: str, folder: Path, tokenizer: Path = DEMO_TOKENIZER) -> None:
    """Writes a whole random checkpoint in the original layout, in bfloat16."""
    from functools import partial

    from framescribe.llava_video.model.checkpoint import Checkpoint
    from framescribe.llava_video.model.config import read_model_config
    from framescribe.llava_video.model.model import load_model

    write_configuration(size, folder, tokenizer)
    config = read_model_config(Checkpoint(str(folder), folder, ""))
    drawn: dict[str, Tensor] = {}

    def draw(wanted: Mapping[str, tuple[int, ...]], place: Place) -> dict[str, Tensor]:
        drawn.update(make_weights(wanted, place))
        return drawn

    devices = [torch.device("cpu")] * config.language.num_hidden_layers
    load_model(partial(draw), config, config.language.vocab_size, devices, torch.bfloat16, "sdpa")
    save_file({name: tensor.contiguous() for name, tensor in drawn.items()}, folder / "model.safetensors")


def _draw(name: str, shape: tuple[int, ...], target: Tensor, generator: torch.Generator) -> Tensor:
    if "norm" in name and name.endswith("weight"):
        return target.new_ones(shape)
    if name.endswith("bias"):
        return target.new_zeros(shape)
    fan_in = shape[-1] if len(shape) < 3 else math.prod(shape[1:])
    scale = 1.0 if "embed" in name or "newline" in name else fan_in**-0.5
    return target.new_empty(shape).normal_(0.0, scale, generator=generator)


def _fill_vocabulary(content: dict[str, Any], num_ids: int) -> dict[str, Any]:
    """Adds tokens that no text contains up to the wanted size, so that the head costs what the real one does."""
    vocabulary = content["model"]["vocab"]
    taken = set(vocabulary.values()) | {token["id"] for token in content["added_tokens"]}
    filler = (index for index in range(num_ids) if index not in taken)
    vocabulary.update({f"\u0120\u0120filler{index}": index for index in filler})
    return content


def main() -> None:
    """Writes a checkpoint where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tokenizer", type=Path, default=DEMO_TOKENIZER, metavar="FOLDER")
    flags = parser.parse_args()
    write_checkpoint(flags.size, flags.out, flags.tokenizer)
    print(f"wrote a random {flags.size} checkpoint to {flags.out}")


if __name__ == "__main__":
    main()
