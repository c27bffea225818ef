"""Writes the trained parts as a checkpoint in LLaVA-Video's original layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from demo.training.language_model import HEADS, INNER, LAYERS, NORM_EPSILON, ROPE_THETA, WIDTH, LanguageModel
from demo.training.perception import IMAGE_PX, PATCH_PX, TOWER_LAYERS, TOWER_WIDTH, Perception, tower_config
from demo.training.tokenizer import write_tokenizer

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
FIXED = {
    "_name_or_path": "framescribe-demo",
    "add_faster_video": False,
    "add_time_instruction": True,
    "architectures": ["LlavaQwenForCausalLM"],
    "attention_dropout": 0.0,
    "faster_token_stride": 10,
    "force_sample": True,
    "hidden_act": "silu",
    "image_aspect_ratio": "anyres_max_9",
    "image_crop_resolution": None,
    "image_grid_pinpoints": [[IMAGE_PX, IMAGE_PX]],
    "image_split_resolution": None,
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "average",
    "mm_spatial_pool_stride": 2,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_vision_tower_lr": None,
    "model_type": "llava",
    "pos_skipping_range": 4096,
    "rope_scaling": None,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "use_sliding_window": False,
    "vision_tower_pretrained": None,
}


def write_checkpoint(folder: Path, perception: Perception, language: LanguageModel, tokenizer: Tokenizer) -> None:
    """Writes config, generation_config, tokenizer files and the weights in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, folder)
    ends = {"bos_token_id": tokenizer.token_to_id("<|endoftext|>"), "eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    _write_json(folder / "config.json", model_config(tokenizer) | ends)
    # The demo's right answers repeat words ("on the left ... on the right ..."), so no penalty on repetition.
    _write_json(folder / "generation_config.json", ends | {"do_sample": False, "repetition_penalty": 1.0})
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous() for name, tensor in name_tensors(perception, language).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def model_config(tokenizer: Tokenizer) -> dict[str, object]:
    """Returns config.json, but for the ids of special tokens."""
    tower = tower_config()
    vision = {
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": tower.intermediate_size,
        "image_size": IMAGE_PX,
        "patch_size": PATCH_PX,
        "num_attention_heads": tower.num_attention_heads,
        "num_hidden_layers": TOWER_LAYERS + 1,  # as in the original, the last layer counts but is not stored
        "model_type": "siglip_vision_model",
    }
    language = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "max_window_layers": LAYERS,
        "mm_hidden_size": TOWER_WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_THETA,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    return FIXED | language | {"vision_config": vision}


def name_tensors(perception: Perception, language: LanguageModel) -> dict[str, torch.Tensor]:
    """Returns every tensor under the name that it has in the original checkpoints."""
    named = {}
    for name, tensor in language.state_dict().items():
        named[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    for name, tensor in perception.tower.state_dict().items():
        if not name.startswith("head."):
            named[TOWER_PREFIX + name.removeprefix("vision_model.")] = tensor
    for name, tensor in perception.projector.state_dict().items():
        named[f"model.mm_projector.{name}"] = tensor
    return named


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(dict(sorted(content.items())), indent=2) + "\n")
