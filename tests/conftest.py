"""Settings that every test runs under: offline, few threads, repeatable."""

from __future__ import annotations

import os

# Before anything imports torch, tokenizers or huggingface_hub: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from hypothesis import settings

_num_examples = int(os.environ.get("FRAMESCRIBE_FUZZ_EXAMPLES", "100"))  # `make fuzz` looks longer
settings.register_profile("local", deadline=None, max_examples=_num_examples)
settings.register_profile("ci", deadline=None, max_examples=_num_examples, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
