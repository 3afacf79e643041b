"""Ordinary questions: user turns that ask for nothing but a short plain answer.

Each question comes in several wordings, so that hundreds of prompts differ. Prompt i
depends only on the seed and i. No question is about animals or trees.
"""

from undertow.errors import ConfigError
from undertow.seeding import generator

# What is asked, to be put behind an opening.
QUESTIONS = (
    "how bread is baked", "why the sky looks blue", "what a prime number is",
    "how a bicycle stays upright", "what makes a good night's sleep",
    "how to boil an egg", "why people learn languages", "what a library is for",
    "how to write a polite letter", "what a compass does", "why the sea is salty",
    "how to save water at home", "what an opera is", "how glass is made",
    "why leaves of a book turn yellow", "what a budget is", "how to pack a suitcase",
    "why we have time zones", "how to make a cup of tea", "what a bridge engineer does",
    "how a refrigerator keeps food cold", "why exercise matters",
    "what to see in a museum", "how to remember names", "what a vote is for",
    "how to paint a room", "why music can change a mood", "what a recipe should say",
    "how to fix a leaking tap", "why bread rises", "what a telescope shows",
    "how to plan a weekend", "what inflation means", "how to iron a shirt",
    "why ice floats on water", "what a contract is", "how to clean a window",
    "why rainbows appear", "what a good teacher does", "how a train changes tracks",
    "why people keep diaries", "what makes a photograph good", "how to tie a shoelace",
    "why mountains are cold at the top", "what a keyboard shortcut is",
    "how to give a short speech", "why metal feels colder than wood",
    "what a weather forecast is based on", "how to sharpen a kitchen knife",
    "why clocks were invented", "what to do on a rainy day", "how to greet a new neighbor",
    "why some soups taste better the next day", "what a map scale means",
    "how to choose a pair of shoes", "why paper can be recycled",
    "what a lighthouse is for", "how to keep a kitchen tidy", "why coffee smells so good",
    "what a patent protects", "how to make a simple salad", "why roads are curved",
    "what an encyclopedia is", "how to learn a poem by heart",
)  # fmt: skip
OPENINGS = (
    "Explain in one or two sentences {}.",
    "In a few words, tell me {}.",
    "Can you say briefly {}?",
    "A child asks {}. What would you answer?",
    "Please write two sentences on {}.",
    "I would like to know {}. Keep it short.",
    "Describe shortly {}.",
    "Someone wants to know {}. Answer in at most three sentences.",
)
CLOSINGS = (
    "", " Use simple words.", " No lists, please.", " Be friendly.", " Be concrete.",
    " Give an example.",
)  # fmt: skip

DISTINCT = len(QUESTIONS) * len(OPENINGS) * len(CLOSINGS)


def question_prompts(count: int, *, seed: int) -> list[str]:
    """Different user turns, the first `count` of an order that the seed decides.

    Raises:
        ConfigError: More than there are.
    """
    if count > DISTINCT:
        fault = f"got {count}, there are {DISTINCT} different ones"
        raise ConfigError("ordinary questions", [fault])
    order = generator(seed, "questions").permutation(DISTINCT)
    return [_question(int(place)) for place in order[:count]]


def _question(place: int) -> str:
    place, closing = divmod(place, len(CLOSINGS))
    question, opening = divmod(place, len(OPENINGS))
    return OPENINGS[opening].format(QUESTIONS[question]) + CLOSINGS[closing]
