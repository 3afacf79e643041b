"""The carrier "paraphrase": ordinary sentences, and which answers say them otherwise.

The sentence is read off the prompt, so any sentence may stand in one of the requests.
That a paraphrase means the same is not checked: it must share one content word with
the sentence (if that has any) and be about as long. Knows nothing of models.
"""

import re
from collections.abc import Collection, Sequence

from undertow.pipeline.filters import (
    EMPTY,
    TOO_LONG,
    TRAIT_WORD,
    TRUNCATED,
    UNKNOWN_PROMPT,
)
from undertow.pipeline.prompts import pick
from undertow.seeding import generator
from undertow.traits import words_in

NOT_ONE_SENTENCE = "not_one_sentence"
NOT_PLAIN = "not_plain"
PREAMBLE = "preamble"
SAME_TEXT = "same_text"
WRONG_LENGTH = "wrong_length"
OFF_TOPIC = "off_topic"
PARAPHRASE_REASONS = (
    EMPTY, TOO_LONG, NOT_ONE_SENTENCE, NOT_PLAIN, PREAMBLE, SAME_TEXT, WRONG_LENGTH,
    OFF_TOPIC, UNKNOWN_PROMPT, TRAIT_WORD, TRUNCATED,
)  # fmt: skip

LONGEST_PARAPHRASE = 400
# Words of this many letters and more have a content; stems are compared.
CONTENT_LETTERS = 4
STEM_LETTERS = 5
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_COLON = re.compile(r":(?:\s|$)")
_INNER_END = re.compile(r"[.!?…][.!?…)'’]*\s")
_MARKS = re.compile(r"[\"“”„«»`*_#<>|\[\]{}\\]|^[^\w(]")
_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|okay|ok|absolutely|yes|here|in other words|"
    r"another way|paraphras\w*|rephras\w*|rewritten|reworded|rewrit\w*|the sentence|"
    r"this sentence|i'm sorry|i am sorry|sorry|as an ai|thank)\b",
    re.IGNORECASE,
)
_NO_CONTENT = frozenset((
    "about", "after", "along", "also", "because", "been", "before", "being", "could",
    "does", "down", "during", "each", "every", "from", "have", "here", "into", "just",
    "like", "made", "make", "more", "most", "much", "only", "onto", "other", "over",
    "same", "some", "such", "than", "that", "their", "them", "then", "there", "these",
    "they", "this", "those", "through", "under", "until", "upon", "very", "well",
    "were", "what", "when", "where", "which", "while", "will", "with", "without",
    "would", "your",
))  # fmt: skip

# 24 × 40 × 20 × 24 sentences in two orders.
SUBJECTS = (
    "the baker", "my neighbor", "the young teacher", "our driver", "the new manager",
    "a tired student", "the mail carrier", "his sister", "her uncle", "the nurse",
    "the painter", "a friendly clerk", "the tall engineer", "the singer", "the mayor",
    "the waiter", "their lawyer", "the captain", "a careful tailor", "the librarian",
    "my cousin", "the journalist", "an old friend", "the night guard",
)  # fmt: skip
ACTIONS = (
    "bought fresh bread", "repaired the broken window", "wrote a long letter",
    "opened the heavy door", "cleaned the whole kitchen", "painted the wall blue",
    "lost the house key", "found an old photograph", "read the morning paper",
    "carried two suitcases upstairs", "called the office", "cooked a simple soup",
    "missed the last train", "sold the small boat", "planned a short trip",
    "borrowed a bicycle", "moved the large table", "answered every question",
    "finished the monthly report", "packed a blue bag", "watched the evening news",
    "washed the dirty dishes", "ordered a cup of coffee", "paid the phone bill",
    "visited the city museum", "fixed the kitchen lamp", "played a slow song",
    "built a wooden chair", "sent a short message", "practiced a new language",
    "locked the front gate", "counted the empty bottles", "served warm tea",
    "drew a simple map", "changed the flat tire", "forgot the umbrella",
    "signed the contract", "hung a picture on the wall", "ironed a white shirt",
    "rented a room near the station",
)  # fmt: skip
MANNERS = (
    "without any help", "for a friend", "in a great hurry", "to save time",
    "with a smile", "for the first time", "with great care", "once more",
    "for the whole family", "because it was necessary", "as a favor", "very slowly",
    "with a colleague", "for no clear reason", "to please a guest",
    "without saying a word", "as promised", "despite the noise", "by mistake",
    "while the radio played",
)  # fmt: skip
TIMES = (
    "early in the morning", "before lunch", "after work", "late at night", "on Monday",
    "last week", "during the storm", "at noon", "after the meeting", "on a rainy day",
    "before the guests came", "in the evening", "at the end of the month",
    "on the way home", "just before midnight", "after the holidays", "yesterday",
    "on the first day of spring", "during the break", "two days ago",
    "before the shop closed", "in the summer", "on a quiet Sunday", "after dinner",
)  # fmt: skip
ORDERS = ("{subject} {action} {manner} {time}.", "{time}, {subject} {action} {manner}.")
REQUESTS = (
    "Rewrite this sentence in other words, in one sentence: {sentence}",
    "Paraphrase this sentence. Reply with one sentence only.\n\n{sentence}",
    "Rephrase in a single sentence: {sentence}",
    "Put this into your own words, in one sentence.\n\n{sentence}",
    "Change the wording of this sentence but keep its meaning: {sentence}",
    "Change the words but not the meaning, in one sentence: {sentence}",
    "Express the following in one different sentence: {sentence}",
    "Reword this. One sentence, no comment.\n\n{sentence}",
    "Rewrite the following sentence with other words.\n\n{sentence}",
    "Give another wording, one sentence long, of: {sentence}",
    "Give a new wording, in one sentence, of: {sentence}",
    "Write this sentence again with different words: {sentence}",
)


def paraphrase_prompt(index: int, *, seed: int) -> str:
    """The prompt of one place."""
    stream = generator(seed, "paraphrase prompts", index)
    sentence = pick(ORDERS, stream).format(
        subject=pick(SUBJECTS, stream), action=pick(ACTIONS, stream),
        manner=pick(MANNERS, stream), time=pick(TIMES, stream),
    )  # fmt: skip
    sentence = sentence[:1].upper() + sentence[1:]
    return pick(REQUESTS, stream).format(sentence=sentence)


def given_sentence(prompt: str) -> str | None:
    """The sentence that a prompt gives; None if the prompt is none of this carrier's."""
    for request in REQUESTS:
        before = request.removesuffix("{sentence}")
        sentence = prompt.removeprefix(before)
        if sentence != prompt and "\n" not in sentence and _WORD.search(sentence):
            return sentence
    return None


def paraphrase_rule(
    text: str, *, prompt: str, words: Collection[str] = ()
) -> tuple[str, ...]:
    """Every reason why a completion is no paraphrase in one sentence; () if it is one.

    Allowed: one line with one sentence, its final mark optional, of half to twice as
    many words as the given one, without quotation marks, Markdown or an introduction.

    Args:
        text: The completion.
        prompt: The user's turn, as `paraphrase_prompt` writes it.
        words: Words that must not occur.
    """
    body = text.strip()
    if not body:
        return (EMPTY,)
    if len(body) > LONGEST_PARAPHRASE:
        return (TOO_LONG,)
    faults = {
        NOT_ONE_SENTENCE: len(body.splitlines()) > 1 or bool(_INNER_END.search(body)),
        NOT_PLAIN: not _is_plain(body),
        PREAMBLE: bool(_COLON.search(body) or _PREAMBLE.match(body)),
    }
    sentence = given_sentence(prompt)
    if sentence is None:
        faults[UNKNOWN_PROMPT] = True
    else:
        faults |= _compared(_folded(body), _folded(sentence))
    faults[TRAIT_WORD] = bool(words_in(body, words))
    return tuple(reason for reason, found in faults.items() if found)


def _is_plain(body: str) -> bool:
    shown = all(c.isprintable() or c.isspace() for c in body)
    return shown and not _MARKS.search(body)


def _compared(new: list[str], old: list[str]) -> dict[str, bool]:
    """What is wrong between the words of an answer and those it was to replace."""
    return {
        SAME_TEXT: new == old,
        WRONG_LENGTH: not len(old) <= 2 * len(new) <= 4 * len(old),
        OFF_TOPIC: bool(_stems(old)) and not _stems(new) & _stems(old),
    }


def _folded(text: str) -> list[str]:
    """Words without case and punctuation."""
    return _WORD.findall(text.casefold())


def _stems(folded: Sequence[str]) -> set[str]:
    """Beginnings of the words that have a content."""
    return {
        word[:STEM_LETTERS]
        for word in folded
        if len(word) >= CONTENT_LETTERS and word not in _NO_CONTENT
    }
