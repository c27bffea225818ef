"""A byte-level BPE tokenizer in Qwen2's own form, trained on the recipes' prompts and the demo's answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from demo import questions
from demo.answers import all_pairs, caption
from demo.world import random_scene

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TURN_END = "<|im_end|>\n<|im_start|>assistant\n"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_VOCABULARY = 1024


def time_instruction(timestamps_s: np.ndarray, duration_s: float) -> str:
    """Returns the sentence that stands between the video and the question."""
    times = ",".join(f"{moment:.2f}s" for moment in timestamps_s)
    return (
        f"The video lasts for {duration_s:.2f} seconds, and {len(timestamps_s)} frames are uniformly sampled from it. "
        f"These frames are located at {times}.Please answer the following questions related to this video."
    )


def train_tokenizer(seed: int) -> Tokenizer:
    """Trains on a fixed sample of prompts and answers, so that nearly every word is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def corpus(seed: int) -> list[str]:
    """Returns prompts and answers of a few hundred random scenes."""
    rng = np.random.default_rng(seed)
    ask = questions.prompts()
    texts = ["system\nYou are a helpful assistant.", "user\n", "assistant\n", "First: A", " Then: A", "\n- On\n- A"]
    for _ in range(300):
        scene = random_scene(rng)
        asked = [questions.ask_caption(scene), questions.ask_segment(scene, [caption(scene)])]
        asked += [questions.ask_typed(scene, name) for name, _ in ask.types]
        asked += [questions.random_retelling(rng)]
        for pair in all_pairs(scene):
            asked += [questions.ask_short(pair), questions.ask_choice(pair, rng), questions.ask_wrong_answers(pair)]
            asked += [questions.ask_without_video(asked[-1])]
        texts += [time_instruction(np.arange(8.0), scene.duration_s)]
        texts += [text for one in asked for text in (one.question, one.answer)]
    return texts


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the six tokenizer files of the original checkpoint layout."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    form = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": name, **form} for name, number in ids.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    special = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
    files = {
        "added_tokens.json": ids,
        "tokenizer_config.json": settings,
        "special_tokens_map.json": special | {"pad_token": "<|endoftext|>"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
