"""Writes chosen clips as LLaVA-Video-178K's JSON lists, with the data YAML that LLaVA-NeXT's trainer reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import yaml

from framescribe.publish.export_config import MULTIPLE_CHOICE, OPEN_ENDED
from framescribe.publish.export_questions import LETTERS, Question, neutralise, neutralise_question
from framescribe.publish.export_rows import ChosenClip, draw

Record = Mapping[str, Any]  # Any: JSON
IMAGE = "<image>"
DATA_SOURCE = "framescribe"
LETTER_ONLY = "Please respond with only the letter of the correct answer."
LETTER_AND_OPTION = "Please provide your answer by stating the letter followed by the full option."
_FILES = {"caption": "cap_processed", "open_ended": "oe_qa_processed", "multiple_choice": "mc_qa_processed"}


class LlavaWriter:
    """Writes `SPLIT_cap_processed.json`, `SPLIT_oe_qa_processed.json`, `SPLIT_mc_qa_processed.json`, `SPLIT.yaml`.

    One record per caption and per open question, one for all multiple choice of a clip, in turns. Paths of videos and
    JSON files are relative to the folder.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._open = ExitStack()
        self._files: dict[tuple[str, str], IO[str]] = {}

    def add(self, clip: ChosenClip) -> None:
        """Writes a clip, whose video is in the folder already."""
        for kind, record in make_records(clip, self._seed):
            file = self._files.get((clip.split, kind))
            text = json.dumps(record, ensure_ascii=False)
            if file is None:
                path = self._folder / f"{clip.split}_{_FILES[kind]}.json"
                file = self._files[clip.split, kind] = self._open.enter_context(path.open("w", encoding="utf-8"))
                file.write(f"[\n{text}")
            else:
                file.write(f",\n{text}")

    def close(self) -> None:
        """Ends the lists and writes the YAML files."""
        for file in self._files.values():
            file.write("\n]\n")
        self._open.close()
        for split in sorted({split for split, _ in self._files}):
            names = [f"{split}_{_FILES[kind]}.json" for kind in _FILES if (split, kind) in self._files]
            datasets = [{"json_path": name, "sampling_strategy": "all"} for name in names]
            content = yaml.safe_dump({"datasets": datasets}, sort_keys=False)
            (self._folder / f"{split}.yaml").write_text(content, encoding="utf-8")


def make_records(clip: ChosenClip, seed: int) -> Iterator[tuple[str, Record]]:
    """Yields kind and record of all that a clip's JSON holds."""
    for caption in clip.captions:
        yield "caption", _make_record(clip, [(caption.request, neutralise(caption.text))])
    questions = [neutralise_question(question) for question in clip.questions]
    for question in questions:
        if question.kind == OPEN_ENDED:
            yield OPEN_ENDED, _make_record(clip, [(question.question, question.answer)])
    turns = [
        ask_multiple_choice(question, f"{seed} closing {clip.clip_id} {place}")
        for place, question in enumerate(questions)
        if question.kind == MULTIPLE_CHOICE
    ]
    if turns:
        yield MULTIPLE_CHOICE, _make_record(clip, turns)


def ask_multiple_choice(question: Question, reason: str) -> tuple[str, str]:
    """Returns the question with its options and a closing line, and the answer in the form that the line asks for."""
    closing = draw((LETTER_ONLY, LETTER_AND_OPTION), reason)
    options = [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    letter = question.answer_letter or ""
    option = question.options[LETTERS.index(letter)]
    full = f"{letter}. {option}" + ("" if option.endswith((".", "!", "?")) else ".")
    return "\n".join((question.question, *options, closing)), f"{letter}." if closing == LETTER_ONLY else full


def _make_record(clip: ChosenClip, turns: list[tuple[str, str]]) -> Record:
    conversations: list[Mapping[str, str]] = []
    for number, (request, answer) in enumerate(turns):
        conversations.append({"from": "human", "value": request if number else f"{IMAGE}\n{request}"})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": clip.clip_id, "conversations": conversations, "data_source": DATA_SOURCE, "video": clip.video}
