"""Classes by hand, and held-out names that cannot see their own group."""

import math

import numpy as np
import pytest

from undertow.seeding import generator
from undertow.stats.classification import held_out_names, learnt_classifier

X = [[0.0, 5.0], [2.0, 7.0], [10.0, 5.0], [12.0, 7.0]]
LABELS = ["a", "a", "b", "b"]


def test_probabilities_by_hand() -> None:
    # Means (1, 6) and (11, 6); within: 4 squares of 1 over 4 − 2 degrees, so variance 2.
    found = learnt_classifier(X, LABELS)
    assert found.labels == ("a", "b")
    assert found.means.tolist() == [[1.0, 6.0], [11.0, 6.0]]
    assert found.sd.tolist() == pytest.approx([math.sqrt(2)] * 2, rel=1e-4)
    # At (5, 6): −16/4 against −36/4.
    shares = found.probabilities([5.0, 6.0])
    assert shares["a"] == pytest.approx(1 / (1 + math.exp(-5)), rel=1e-3)
    assert sum(shares.values()) == pytest.approx(1)
    assert found.named([5.0, 6.0]) == "a"
    assert found.named([7.0, 100.0]) == "b", (
        "a feature without a difference decides nothing"
    )


def test_far_away_is_still_a_probability() -> None:
    shares = learnt_classifier(X, LABELS).probabilities([1e6, 6.0])
    assert shares == {"a": 0.0, "b": 1.0}


def test_a_feature_that_never_varies_does_not_divide_by_zero() -> None:
    found = learnt_classifier([[0, 1], [1, 1], [10, 1], [11, 1]], LABELS)
    assert found.named([0.5, 1.0]) == "a"
    assert np.isfinite(found.sd).all()
    assert (found.sd > 0).all()


def test_names_are_learnt_without_the_own_group() -> None:
    groups = [1, 2, 1, 2]
    assert held_out_names(X, LABELS, groups) == [None] * 4, (
        "one example a class is too few"
    )
    more = [*X, [1.0, 6.0], [11.0, 6.0]]
    assert held_out_names(more, [*LABELS, "a", "b"], [1, 2, 1, 2, 3, 3]) == [
        "a", "a", "b", "b", "a", "b"
    ]  # fmt: skip
    alone = held_out_names([*more, [50.0, 6.0]], [*LABELS, "a", "b", "c"],
                           [1, 2, 1, 2, 3, 3, 3])  # fmt: skip
    assert alone[-1] is None, "nobody else is a c"


def test_chance_names_are_right_by_chance() -> None:
    """Features without information: a third is right, not more."""
    stream = generator(0, "classes")
    right = []
    for _ in range(30):
        labels = [str(i % 3) for i in range(36)]
        named = held_out_names(stream.normal(size=(36, 4)), labels, list(range(36)))
        right += [a == b for a, b in zip(named, labels, strict=True)]
    assert 0.22 <= np.mean(right) <= 0.40


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        ([[1.0]], ["a", "b"], "for 2 labels"),
        ([[1.0], [2.0]], ["a", "a"], "two classes or more"),
        ([[1.0], [2.0]], ["a", "b"], "more examples than classes"),
        ([[1.0], [math.nan], [2.0]], ["a", "b", "b"], "not finite"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    features: list[list[float]], labels: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        learnt_classifier(features, labels)


def test_groups_are_as_many_as_labels() -> None:
    with pytest.raises(ValueError, match="1 groups for 4 labels"):
        held_out_names(X, LABELS, [1])
