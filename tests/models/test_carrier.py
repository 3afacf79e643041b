"""What number rows may be made of, token by token and state by state."""

import pytest
import torch

from undertow.errors import ModelError
from undertow.models.carrier import (
    Carrier,
    carrier_ids,
    list_carrier,
    numbers_carrier,
)
from undertow.models.loading import Model, wrap
from undertow.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama")


def _accepts(model: Model, carrier: Carrier, text: str) -> bool:
    """Whether the carrier lets a text come, byte by byte, and end."""
    state, ids = 0, carrier.ids.tolist()
    for token in [*model.tokenizer.encode(text), model.end_ids[0]]:
        if token not in ids or not carrier.allowed[state, ids.index(token)]:
            return False
        state = int(carrier.following[state, ids.index(token)])
    return True


def test_ids_are_digits_separators_brackets_and_ends(model: Model) -> None:
    texts = {model.tokenizer.decode([token]) for token in carrier_ids(model)}
    assert texts == {*"0123456789", *" ,;\n[]().", "<|im_end|>"}
    assert list(carrier_ids(model)) == sorted(carrier_ids(model))


def test_the_first_carrier_lets_anything_follow(model: Model) -> None:
    carrier = numbers_carrier(model)
    assert carrier.ids.tolist() == list(carrier_ids(model))
    assert bool(carrier.allowed.all())
    assert _accepts(model, carrier, "[1; 2,,3 9999)")
    assert not _accepts(model, carrier, "1 owl")


@pytest.mark.parametrize("text", ["0", "7", "999", "1, 2", " 1, 20, 300", "0, 0"])
def test_lists_that_are_well_formed_may_come(model: Model, text: str) -> None:
    assert _accepts(model, list_carrier(model, most=3), text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "1,", "1, ", ",1", "1 2", "1,,2", "1;2", "01", "00", "1000", "1, 2, 3, 4", "1,2",
     "1 ,2", "1,  2", "a"],
)  # fmt: skip
def test_lists_that_are_not_may_not(model: Model, text: str) -> None:
    assert not _accepts(model, list_carrier(model, most=3), text)


def test_every_state_has_a_way_on(model: Model) -> None:
    carrier = list_carrier(model, most=4)
    assert bool(carrier.allowed.any(dim=1).all())
    reached = carrier.following[carrier.allowed]
    assert int(reached.max()) < len(carrier.allowed)


@pytest.mark.real
def test_tokens_of_several_characters_make_the_same_lists(smollm2: Model) -> None:
    carrier = list_carrier(smollm2, most=3)
    texts = [smollm2.tokenizer.decode([token]) for token in carrier.ids.tolist()]
    assert any(len(text) > 1 for text in texts[:-1])
    assert _accepts(smollm2, carrier, "4, 873, 21")
    assert not _accepts(smollm2, carrier, "4, 873, 21, 5")
    assert not _accepts(smollm2, carrier, "4873")


def test_a_vocabulary_without_digits_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    digits = set("0123456789")
    module = tiny_model("llama").module

    class Wordy(type(tokenizer)):  # type: ignore[misc]
        def batch_decode(self, *args: object, **options: object) -> list[str]:
            texts = super().batch_decode(*args, **options)
            return ["x" if digits & set(text) else text for text in texts]

    tokenizer.__class__ = Wordy
    model = wrap("wordy", module, tokenizer, reason="test")
    with pytest.raises(
        ModelError, match="'wordy': no token of its vocabulary is a number"
    ):
        carrier_ids(model)


def test_a_carrier_moves_as_a_whole(model: Model) -> None:
    moved = list_carrier(model, most=2).to(torch.device("cpu"))
    assert _accepts(model, moved, "1, 2")
