"""What is true of a scene: its caption, the pair for each question type, short answers and wrong answers."""

from __future__ import annotations

from demo.world import DIRECTIONS, Actor, Scene

WITHOUT_VIDEO = "I cannot tell without the video."
# Wrong answers are the next three of the same category, in a circle. Some words are never shown: they are only wrong.
CATEGORIES = (
    ("red", "green", "blue", "yellow"),
    ("black", "white", "grey", "pink"),
    ("square", "ring", "cross", "star"),
    ("a square", "a ring", "a cross", "a star"),
    ("one", "two", "three", "four"),
    ("yes", "no", "sometimes", "only at the end"),
    ("left", "right", "up", "down"),
    ("it grows", "it shrinks", "it turns red", "it turns green", "it turns blue", "it turns yellow"),
)
Pair = tuple[str, str]


def caption(scene: Scene) -> str:
    """Says the shape, colour and motion of each object and the background in one sentence."""
    ground = f"on a {scene.background} background."
    if len(scene.actors) == 1:
        return f"A {_deed(scene.actors[0])} {ground}"
    left, right = scene.actors
    return f"On the left a {_deed(left)}, on the right a {_deed(right)}, {ground}"


def _deed(actor: Actor) -> str:
    verbs = {"turns": f"turns {actor.end_colour}", "still": "stands still"}
    verbs |= {way: f"moves {way}" for way in DIRECTIONS}
    return f"{actor.colour} {actor.shape} {verbs.get(actor.motion, actor.motion)}"


def names(scene: Scene) -> tuple[str, ...]:
    """Returns what a question calls each object."""
    return ("the object",) if len(scene.actors) == 1 else ("the left object", "the right object")


def shape_pair(name: str, actor: Actor) -> Pair:
    """Asks for the shape."""
    return f"What shape is {name}?", actor.shape


def moves_pair(name: str, actor: Actor) -> Pair:
    """Asks whether it goes anywhere; growing and turning are no moves."""
    return f"Does {name} move?", "yes" if actor.motion in DIRECTIONS else "no"


def direction_pair(name: str, actor: Actor) -> Pair | None:
    """Asks for the way it moves; None where it does not."""
    return (f"Which way does {name} move?", actor.motion) if actor.motion in DIRECTIONS else None


def change_pair(name: str, actor: Actor) -> Pair | None:
    """Asks how it changes; None where it does not."""
    changes = {"grows": "it grows", "shrinks": "it shrinks", "turns": f"it turns {actor.end_colour}"}
    return (f"How does {name} change?", changes[actor.motion]) if actor.motion in changes else None


def colour_pairs(name: str, actor: Actor) -> list[Pair]:
    """Asks for the first and the last colour."""
    return [
        (f"What colour is {name} at the start?", actor.colour),
        (f"What colour is {name} at the end?", actor.end_colour),
    ]


def background_pair(scene: Scene) -> Pair:
    """Asks for the background."""
    return "What colour is the background?", scene.background


def count_pair(scene: Scene) -> Pair:
    """Asks for the number of objects."""
    return "How many objects are there?", ("one", "two")[len(scene.actors) - 1]


def side_pairs(scene: Scene) -> list[Pair]:
    """Returns what stands on each side, right first; nothing of one object alone."""
    if len(scene.actors) == 1:
        return []
    left, right = scene.actors
    return [("What is on the right?", f"a {right.shape}"), ("What is on the left?", f"a {left.shape}")]


def typed_pairs(scene: Scene) -> dict[str, Pair]:
    """Returns the pair for each question type that applies; the left object is asked about first."""
    named = list(zip(names(scene), scene.actors, strict=True))
    first = named[0]
    pairs: dict[str, Pair | None] = {
        "Description-Scene": background_pair(scene),
        "Description-Object": shape_pair(*first),
        "Count": count_pair(scene),
        "Binary": moves_pair(*first),
        "Object Direction": next((pair for one in named if (pair := direction_pair(*one))), None),
        "Attribute Change": next((pair for one in named if (pair := change_pair(*one))), None),
        "Spatial": next(iter(side_pairs(scene)), None),
    }
    return {name: pair for name, pair in pairs.items() if pair is not None}


def all_pairs(scene: Scene) -> list[Pair]:
    """Returns every question that has one right answer, with it."""
    pairs: list[Pair | None] = [background_pair(scene), count_pair(scene), *side_pairs(scene)]
    for name, actor in zip(names(scene), scene.actors, strict=True):
        pairs += [shape_pair(name, actor), moves_pair(name, actor), *colour_pairs(name, actor)]
        pairs += [direction_pair(name, actor), change_pair(name, actor)]
    return [pair for pair in pairs if pair is not None]


def wrong_answers(answer: str) -> tuple[str, str, str]:
    """Returns the three wrong answers that go with a right one.

    Raises:
        ValueError: `answer` is none of the demo's answers.
    """
    for category in CATEGORIES:
        if answer in category:
            at = category.index(answer)
            one, two, three = (category[(at + step) % len(category)] for step in (1, 2, 3))
            return one, two, three
    raise ValueError(f"no category holds {answer!r}: wrong answers exist for {CATEGORIES}")


def retell(descriptions: list[str]) -> str:
    """Returns the summary of some descriptions: a single one as it is, several as First, Then, Then."""
    if len(descriptions) == 1:
        return descriptions[0]
    return "First: " + " Then: ".join(descriptions)
