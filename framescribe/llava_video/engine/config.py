"""How an engine is loaded; importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROMPT_LAYOUTS = ("model_card", "demo", "training")
ATTENTION = ("sdpa", "eager", "flash_attention_2", None)
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which model an engine runs, where and how.

    Attributes:
        model: a folder, an fsspec URI or a Hugging Face id in the original LLaVA-Video layout.
        revision: hub commit, branch or tag.
        device: `auto` takes `cuda` where there is one, else `cpu`.
        dtype: `auto` takes bfloat16 on a GPU, as the model was trained, and float32 on a CPU.
        attn_implementation: None is PyTorch's own choice, as on the model card: sdpa.
        device_map: `auto` spreads the language model's layers over all visible GPUs (for the 72B).
        config_overrides: keys of config.json to change, such as {"mm_spatial_pool_mode": "average"}.
        prompt_layout: `model_card` (the model card), `demo` (video_demo.py, lmms-eval) or `training`.
        kv_budget_bytes: memory for keys and values; None takes what is free on the device after loading.
        max_rows: questions answered at the same time.
        vision_batch_frames: frames that pass the vision tower at once; None suits the device.
        static_decode: decoding steps of few fixed shapes, replayed as CUDA graphs on a GPU; None: on one GPU yes, on
            CPUs and over several GPUs no.
        compile: `torch.compile` for the vision tower and for norms, rotary positions, SwiGLU and residual sums; None:
            on one GPU yes, on CPUs and over several GPUs no. Where it fails or disagrees, the plain path is used.
        storage_options: fsspec options for a model given as URI; never written anywhere.
    """

    model: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str | None = "sdpa"
    device_map: str | None = None
    config_overrides: Mapping[str, object] = field(default_factory=dict)
    prompt_layout: str = "model_card"
    kv_budget_bytes: int | None = None
    max_rows: int = 256
    vision_batch_frames: int | None = None
    static_decode: bool | None = None
    compile: bool | None = None
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("dtype", self.dtype, DTYPES),
            ("attn_implementation", self.attn_implementation, ATTENTION),
            ("device_map", self.device_map, (None, "auto")),
            ("prompt_layout", self.prompt_layout, PROMPT_LAYOUTS),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, wanted one of {choices}")
        for name, number in (("max_rows", self.max_rows), ("vision_batch_frames", self.vision_batch_frames)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
