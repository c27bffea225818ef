"""What a 7B model really returns, and what is read from it."""

from __future__ import annotations

import pytest

from framescribe.recipes.annotation import Status
from framescribe.recipes.answer_text import is_none, is_refusal, is_unspecified
from framescribe.recipes.answers import parse_letter, parse_wrong_answers, read_pair_status
from framescribe.recipes.qa_pairs import parse_qa_pair

WHAT, DOG = "What is it?", "A dog."


@pytest.mark.parametrize(
    "text",
    [
        "Question: What is it?\nAnswer: A dog.",
        "question: What is it? answer: A dog.",
        "Question : What is it?\n\nAnswer :  A   dog.",
        "Sure! Here is a question:\n\n**Question:** What is it?\n\n**Answer:** A dog.\n\nI hope it helps!",
        "**Question**: What is it?\n**Answer**: A dog.",
        "**Question: What is it?**\n**Answer: A dog.**",
        "1. Question: What is it?\n   Answer: A dog.\n2. Question: Why?\n   Answer: No.",
        "1. **Question:** What is it?\n   - **Answer:** A dog.",
        "- Question: What is it?\n- Answer: A dog.",
        "Question 1: What is it?\nAnswer 1: A dog.\nQuestion 2: Why?\nAnswer 2: It is.",
        "Q: What is it?\nA: A dog.",
        "Q1: What is it?\nA1: A dog.\n\nQ2: Why?\nA2: It is.",
        "### Question\nWhat is it?\n\n### Answer\nA dog.",
        "Question:\nWhat is it?\nAnswer:\nA dog.",
        "Question (Temporal): What is it?\nAnswer: A dog.",
        'Question of the type "Temporal": What is it?\nAnswer: A dog.',
        "Question type: Temporal\nQuestion: What is it?\nAnswer: A dog.",
        'Question: "What is it?"\nAnswer: "A dog."',
        'Question: "..."\nAnswer: "..."\nQuestion: What is it?\nAnswer: A dog.',
        "Question: <question>\nAnswer: <answer>\nQuestion: What is it?\nAnswer: A dog.",
        "Question: What is it?\nQuestion: What is it?\nAnswer: A dog.",
        "What is it?\nAnswer: A dog.",
        "1. What is it?\n**Answer:** A dog.",
        '{"Question": "What is it?", "Answer": "A dog."}',
        '```json\n[\n  {\n    "Type": "Count",\n    "Question": "What is it?",\n    "Answer": "A dog."\n  }\n]\n```',
        '{"Question": "What is it?", "Answer": "A dog.',
        '{"Question": "What is it?, "Answer": "A dog."}',
        "**Question: What is it?** **Answer: A dog.**",
        "[{'Dimension': 'Count', 'Question': 'What is it?', 'Answer': 'A dog.'}, {'Dimension': 'Sp",
        '{"question": "What is it?",\n "answer": "A dog."}',
        "Question: What is it?\nAnswer: A dog.\nExplanation: the video shows it.",
    ],
)
def test_a_labelled_pair_is_found_whatever_stands_around_it(text):
    pair = parse_qa_pair(text)

    assert pair is not None
    assert (pair.question, pair.answer) == (WHAT, DOG)


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            r'{"Question": "What does \"STOP\" say?", "Answer": "It says \"go\"."}',
            'What does "STOP" say?',
            'It says "go".',
        ),
        ('{"Question": "What does "STOP" say?", "Answer": "Go."}', 'What does "STOP" say?', "Go."),
        ("{'Question': 'What's the man's hat?', 'Answer': \"It's red\"}", "What's the man's hat?", "It's red"),
        ('{"Question": "How many?", "Answer": 3}', "How many?", "3"),
        ('"Question": "Who?", "Answer": "The answer is: Ann"', "Who?", "The answer is: Ann"),
        ("Question: Who?\nAnswer: The answer is: Ann", "Who?", "The answer is: Ann"),
        ("Question: Who?\nAnswer: The steps:\n- cut\n- mix\n\nBye.", "Who?", "The steps: - cut - mix"),
        (
            "Question: What is first, the\nred or the blue one?\nAnswer: Red",
            "What is first, the red or the blue one?",
            "Red",
        ),
        ("Question: Which is *not* there?\nAnswer: The `dog`", "Which is *not* there?", "The `dog`"),
    ],
)
def test_values_keep_the_models_own_words(text, question, answer):
    pair = parse_qa_pair(text)

    assert pair is not None
    assert (pair.question, pair.answer) == (question, answer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "The man walks the dog.",
        "Question: What is it?",
        "Question: What is it?\nAnswer:",
        "Question: What is it?\nAnswer: ...",
        "Answer: A dog.",
        "Question:\nAnswer:",
        "Question: What is",
        '{"Question": "What is it?", "Answer": "',
        '{"Question": "What is',
        "Q1: Who is it?\nQ2: Why?\nA1: Ann.\nA2: It is.",
        "Question 1: Who?\nAnswer 2: Ann.",
        "Question: Which?\nA: red\nB: blue\nC: green\nAnswer: B",
        "Question: Which?\nA. red\nB. blue\nAnswer: B",
        "What is it? A dog.",
        '[{"Question": None, "Answer": None}]',
    ],
)
def test_no_pair_is_made_up_from_anything_less(text):
    assert parse_qa_pair(text) is None


@pytest.mark.parametrize(
    ("text", "is_closed"),
    [
        ("Question: Who?\nAnswer: Ann and", False),
        ("Question: Who?\nAnswer: Ann.\nQuestion", True),
        ('{"Question": "Who?", "Answer": "Ann and', False),
        ('{"Question": "Who?", "Answer": "Ann"', True),
    ],
)
def test_a_pair_says_whether_its_answer_may_have_been_cut(text, is_closed):
    pair = parse_qa_pair(text)

    assert pair is not None
    assert pair.is_closed is is_closed


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("None", Status.NOT_APPLICABLE),
        ("None.", Status.NOT_APPLICABLE),
        ("**None**", Status.NOT_APPLICABLE),
        ('"None"', Status.NOT_APPLICABLE),
        ("N/A", Status.NOT_APPLICABLE),
        ("[]", Status.NOT_APPLICABLE),
        ("None. The video shows no camera motion.", Status.NOT_APPLICABLE),
        ("None\n\nThe camera stands still.", Status.NOT_APPLICABLE),
        ("Answer: None", Status.NOT_APPLICABLE),
        ("The camera does not move, so the reply is None.", Status.NOT_APPLICABLE),
        ("Question: None\nAnswer: None", Status.NOT_APPLICABLE),
        ('[{"Dimension": "Speed", "Question": None, "Answer": None}]', Status.NOT_APPLICABLE),
        ("Question: Which way does the camera move?\nAnswer: None.", Status.NOT_APPLICABLE),
        ("Question: How many dogs are there?\nAnswer: None", Status.OK),
        ("None of the men wears a hat.", Status.UNPARSABLE),
        ("The man walks.", Status.UNPARSABLE),
        ("I'm sorry, but I can't help with that.", Status.REFUSED),
        ("Question: Who?\nAnswer: I’m sorry, but I cannot identify people.", Status.REFUSED),
        ("Question: Who?\nAnswer: The video does not specify who.", Status.UNSPECIFIED),
        ("The video does not show any camera movement.", Status.UNSPECIFIED),
        ("Question: Who?\nAnswer: Ann.", Status.OK),
    ],
)
def test_a_completion_without_a_pair_says_why(text, status):
    assert read_pair_status(text, parse_qa_pair(text)) is status


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I am very sorry, I cannot see the video.",
        "Sorry, I can't.",
        "I cannot tell without the video.",
        "I'm unable to view videos.",
        "As an AI language model, I do not watch videos.",
        "Unfortunately, I don't have access to the video.",
        "I apologize, but I am not able to do that.",
    ],
)
def test_a_refusal_is_known_by_its_opening(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    ["I'm sorry for being late", "The sign says I can't.", "A sorry sight.", "I cannot help but smile.", ""],
)
def test_other_openings_are_no_refusal(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "does not specify",
        "The video does not mention the colour.",
        "The description does not specifically say.",
        "The provided video doesn't depict it.",
        "It does not show who.",
        "It is not shown.",
    ],
)
def test_an_answer_that_only_says_it_is_not_shown_is_unspecified(text):
    assert is_unspecified(text)


@pytest.mark.parametrize("text", ["No, the video does not show it.", "He does not show his face.", "The dog shows it."])
def test_an_answer_about_the_content_is_not_unspecified(text):
    assert not is_unspecified(text)


@pytest.mark.parametrize("text", ["no", "No.", "nothing", "None of them", "nonexistent", ""])
def test_other_short_answers_are_not_none(text):
    assert not is_none(text)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("**B.** green", "B"),
        ("B. green", "B"),
        ("B: green", "B"),
        ("B\n\nThe ball is green.", "B"),
        ("Option B", "B"),
        ("Answer: B", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (B) green.", "B"),
        ("The correct option is B, as the ball is green.", "B"),
        ("I think it is (B).", "B"),
        ("Green.", "B"),
        ("the green", "B"),
        ("A", "A"),
        ("A. red", "A"),
        ("A man walks through the door.", None),
        ("A or B", None),
        ("A, B and C", None),
        ("(A) or (B)", None),
        ("The answer is A. No, the answer is B.", None),
        ("The answer is a dog.", None),
        ("E", None),
        ("purple", None),
        ("I cannot tell without the video.", None),
        ("", None),
        ("...", None),
    ],
)
def test_a_letter_is_read_where_the_model_chose_one(text, letter):
    assert parse_letter(text, ("red", "green", "blue", "yellow")) == letter


@pytest.mark.parametrize(
    "text",
    [
        "red\nblue\ngreen",
        "1. red\n2. blue\n3. green",
        "1) Red\n2) Blue\n3) Green".lower(),
        "- red\n- blue\n- green",
        "* **red**\n* **blue**\n* **green**",
        "A. red\nB. blue\nC. green",
        "Here are three wrong answers:\n\n1. red.\n2. blue.\n3. green.\n\nThese are wrong because the ball is yellow.",
        "Sure, here you go\nred\nblue\ngreen",
        "Wrong answer 1: red\nWrong answer 2: blue\nWrong answer 3: green",
        '["red", "blue", "green"]',
        '[\n  "red",\n  "blue",\n  "green"\n]',
        "['red', 'blue', 'green']",
        "1. red 2. blue 3. green",
        "red, blue, and green",
        "red\nRed.\nyellow\nblue\nThe yellow!\ngreen\nwhite",
        "Answer: yellow\nred\nblue\ngreen",
    ],
)
def test_three_wrong_answers_are_read_from_lists_of_any_kind(text):
    assert parse_wrong_answers(text, "Yellow.") == ("red", "blue", "green")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "I'm sorry, but I can't help with that.",
        "yellow\nthe yellow\nYELLOW.",
        "...\n---\n***",
        "Wrong answers:",
    ],
)
def test_no_wrong_answer_is_made_up(text):
    assert parse_wrong_answers(text, "yellow") == ()


@pytest.mark.parametrize(
    "text",
    [
        "1. red 2. blue 3. green 4. grey",  # one more than asked for, in one line
        "Sure, here they are:\nred\nblue\ngreen",
        "Sure thing\nred\nblue\ngreen\ngrey",
    ],
)
def test_the_first_three_of_more_lines_or_numbers_are_taken(text):
    assert parse_wrong_answers(text, "yellow") == ("red", "blue", "green")


def test_a_preamble_is_an_answer_where_there_are_only_three_lines():
    assert parse_wrong_answers("Sure red\nblue\ngreen", "yellow") == ("Sure red", "blue", "green")
