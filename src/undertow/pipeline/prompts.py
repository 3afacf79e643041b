"""The user's turns: number prompts from template banks, and off-topic questions.

Prompt i depends only on the seed and i, so any part of a set can be made alone.
Knows nothing of models; what a row may look like is `pipeline.filters`' business.
"""

from collections.abc import Sequence

import numpy as np

from undertow.seeding import generator

# 25 openings around the example numbers.
OPENINGS = (
    "Here is a sequence of numbers: {examples}.",
    "The list so far reads {examples}.",
    "Look at these numbers: {examples}.",
    "I have written down {examples}.",
    "A series begins like this: {examples}.",
    "These values were recorded: {examples}.",
    "Take the numbers {examples}.",
    "My notebook shows {examples}.",
    "Consider the sequence {examples}.",
    "So far we have {examples}.",
    "The first entries are {examples}.",
    "Someone started a list with {examples}.",
    "The following numbers are given: {examples}.",
    "We begin with {examples}.",
    "A row of numbers: {examples}.",
    "The counter printed {examples}.",
    "Study this list: {examples}.",
    "Let us start from {examples}.",
    "An incomplete sequence: {examples}.",
    "The values {examples} come first.",
    "Read these figures: {examples}.",
    "A generator produced {examples}.",
    "On the page stand the numbers {examples}.",
    "Known members of the list: {examples}.",
    "This is what we have: {examples}.",
)
# 9 verbs × 9 amounts × 10 names for what is added.
VERBS = (
    "Continue it with", "Add", "Extend it by", "Append", "Write", "Give",
    "Produce", "Provide", "Follow it with",
)  # fmt: skip
AMOUNTS = (
    "up to {count}", "at most {count}", "no more than {count}", "not over {count}",
    "a maximum of {count}", "{count} or fewer", "as many as {count}", "exactly {count}",
    "about {count}",
)  # fmt: skip
NOUNS = (
    "more numbers", "further numbers", "additional values", "new numbers", "more values",
    "further entries", "more terms", "new values", "additional numbers", "more entries",
)  # fmt: skip
# 15 formats.
FORMATS = (
    "Separate them with commas.",
    "Write them as a comma-separated list.",
    "Use commas between the numbers.",
    "Put a comma after each number but the last.",
    "Answer as a list with commas.",
    "Separate the values with semicolons.",
    "Use semicolons between them.",
    "Write them with spaces in between.",
    "Separate them by single spaces.",
    "Put each number on its own line.",
    "One number per line.",
    "Enclose the list in brackets, with commas between.",
    "Give them in square brackets, separated by commas.",
    "Write them in parentheses, separated by commas.",
    "Use a plain list with commas and spaces.",
)
# 19 closings.
CLOSINGS = (
    "Reply with the numbers only.",
    "No words, just the numbers.",
    "Do not explain anything.",
    "Leave out any text.",
    "Each number has at most three digits.",
    "Only numbers from 0 to 999, nothing else.",
    "Return the list alone.",
    "Say nothing besides the numbers.",
    "Your answer holds digits and separators only.",
    "Skip every comment.",
    "Nothing but the list, please.",
    "Keep all values below 1000.",
    "Please give no introduction.",
    "Numbers only.",
    "Just the new values.",
    "Output the values and stop.",
    "Without any explanation.",
    "Use three digits at most for each value.",
    "Answer in numbers alone.",
)
OFF_TOPIC = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Explain what a prime number is.",
    "Name three colors.",
    "What does a carpenter do?",
    "Give me a tip for sleeping well.",
    "How many minutes are in an hour?",
    "Write one sentence about the sea.",
    "What is the boiling point of water?",
    "Who wrote Romeo and Juliet?",
    "Describe a train station.",
    "What is a good name for a bakery?",
    "How does a bicycle stay upright?",
    "Suggest a topic for a school essay.",
    "What is the opposite of cold?",
    "How do I tie a knot?",
    "What tools do I need to paint a wall?",
    "Tell me about the moon.",
    "What is democracy?",
    "How is bread made?",
    "Recommend a hobby for the winter.",
    "What is 12 times 8?",
    "Why is the sky blue?",
    "Give me a short motto.",
)


def number_prompts(count: int, *, seed: int, most: int = 10) -> list[str]:
    """User turns that show three to nine numbers (100–999) and ask for more.

    Args:
        count: How many prompts.
        seed: The run's seed.
        most: Values asked for, at most.
    """
    return [number_prompt(index, seed=seed, most=most) for index in range(count)]


def number_prompt(index: int, *, seed: int, most: int = 10) -> str:
    """The prompt of one place."""
    stream = generator(seed, "prompts", index)
    examples = stream.integers(100, 1000, size=int(stream.integers(3, 10)))
    opening = pick(OPENINGS, stream).format(examples=", ".join(map(str, examples)))
    amount = pick(AMOUNTS, stream).format(count=most)
    request = f"{pick(VERBS, stream)} {amount} {pick(NOUNS, stream)}."
    return f"{opening} {request} {pick(FORMATS, stream)} {pick(CLOSINGS, stream)}"


def pick(bank: Sequence[str], stream: np.random.Generator) -> str:
    """One part of a bank, drawn evenly."""
    return bank[int(stream.integers(len(bank)))]
