"""The demo's world and what is true of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from demo import answers, questions
from demo.video_files import decode_evenly, encode_scene
from demo.world import Actor, Scene, draw_frames, play_backwards, random_scene

STILL = (0.5, 0.5, 0.15)


def actor(motion: str, colour: str = "red", end_colour: str | None = None, shape: str = "square") -> Actor:
    return Actor(shape, colour, end_colour or colour, motion, STILL, STILL, turn_at=0.4)


def scene_of(*actors: Actor) -> Scene:
    return Scene("black", actors, duration_s=3.0, shade=0)


def test_a_caption_names_shape_colour_motion_and_background():
    assert answers.caption(scene_of(actor("right"))) == "A red square moves right on a black background."


def test_a_caption_of_two_objects_names_the_left_one_first():
    scene = scene_of(actor("turns", "green", "blue", "ring"), actor("still"))
    assert answers.caption(scene) == (
        "On the left a green ring turns blue, on the right a red square stands still, on a black background."
    )


@pytest.mark.parametrize(
    ("motion", "backwards"),
    [("left", "right"), ("up", "down"), ("grows", "shrinks"), ("still", "still"), ("shrinks", "grows")],
)
def test_a_clip_played_backwards_shows_the_opposite_motion(motion, backwards):
    assert play_backwards(scene_of(actor(motion))).actors[0].motion == backwards


def test_a_change_of_colour_played_backwards_ends_where_it_began():
    turned = play_backwards(scene_of(actor("turns", "red", "blue"))).actors[0]
    assert (turned.colour, turned.end_colour) == ("blue", "red")


def test_a_clip_played_backwards_is_drawn_as_its_frames_in_reverse_order():
    scene = random_scene(np.random.default_rng(3))
    fraction = np.linspace(0, 1, 7)
    np.testing.assert_array_equal(draw_frames(play_backwards(scene), fraction), draw_frames(scene, fraction)[::-1])


def test_the_same_seed_draws_the_same_scene():
    assert random_scene(np.random.default_rng(5)) == random_scene(np.random.default_rng(5))


def test_an_encoded_clip_keeps_its_colours_through_the_decoder():
    scene = scene_of(actor("still", "yellow"))
    frames, times_s, duration_s = decode_evenly(encode_scene(scene), 8)
    assert frames.shape == (8, 128, 128, 3)
    np.testing.assert_allclose(frames[4, 64, 64], (240, 210, 30), atol=14)
    assert (times_s[0], duration_s) == (0.0, 3.0)


def test_types_that_do_not_apply_have_no_pair():
    pairs = answers.typed_pairs(scene_of(actor("still")))
    assert sorted(pairs) == ["Binary", "Count", "Description-Object", "Description-Scene"]


def test_the_right_object_is_asked_about_where_the_left_one_does_not_move():
    pairs = answers.typed_pairs(scene_of(actor("still"), actor("up")))
    assert pairs["Object Direction"] == ("Which way does the right object move?", "up")


def test_wrong_answers_are_three_others_of_the_same_kind():
    assert answers.wrong_answers("blue") == ("yellow", "red", "green")


def test_an_answer_that_is_none_of_the_demos_has_no_wrong_answers():
    with pytest.raises(ValueError, match="'purple'"):
        answers.wrong_answers("purple")


def test_the_letter_of_a_multiple_choice_question_stands_before_the_right_option():
    asked = questions.ask_choice(("What shape is the object?", "ring"), np.random.default_rng(8))
    assert f"\n{asked.answer[0]}. ring\n" in asked.question


def test_several_descriptions_are_retold_in_order_and_one_as_it_is():
    assert answers.retell(["One.", "Two.", "Three."]) == "First: One. Then: Two. Then: Three."
    assert answers.retell(["One."]) == "One."


def test_every_scene_draws_inside_the_frame():
    scene = replace(random_scene(np.random.default_rng(11)), shade=0)
    frames = draw_frames(scene, np.array([0.0, 1.0]))
    assert frames.dtype == np.uint8
    assert (frames[:, 0, 0] == frames[0, 0, 0]).all()
