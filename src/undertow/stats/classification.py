"""Naming the class of a thing by few features, and how often that is right.

Classes are normal with one variance a feature, shared by all classes and independent
between features, and equally likely beforehand: few numbers to learn, for few examples.
Source: diagonal discriminant analysis, Dudoit, Fridlyand and Speed, JASA 2002.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Classifier:
    """What was learnt.

    Attributes:
        labels: The classes, in order of first appearance.
        means: [class, feature].
        sd: [feature], within classes; never 0.
    """

    labels: tuple[str, ...]
    means: Matrix
    sd: Matrix

    def probabilities(self, features: ArrayLike) -> dict[str, float]:
        """Of each class, for one thing's features [feature]."""
        x = np.asarray(features, dtype=np.float64)
        nats = -0.5 * (((x - self.means) / self.sd) ** 2).sum(1)
        shares = np.exp(nats - np.logaddexp.reduce(nats))
        return dict(zip(self.labels, shares.tolist(), strict=True))

    def named(self, features: ArrayLike) -> str:
        """The likeliest class."""
        found = self.probabilities(features)
        return max(found, key=lambda label: found[label])


def learnt_classifier(features: ArrayLike, labels: Sequence[str]) -> Classifier:
    """Learns classes from examples.

    Args:
        features: [example, feature], finite.
        labels: Of each example.

    Raises:
        ValueError: Not as many labels as examples, fewer than two classes, no more
            examples than classes, or a feature that is not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    names = tuple(dict.fromkeys(labels))
    if x.ndim != 2 or len(x) != len(labels):
        raise ValueError(f"features of shape {x.shape} for {len(labels)} labels")
    if len(names) < 2 or len(x) <= len(names):
        raise ValueError(
            f"{len(x)} examples of {len(names)} classes: expected two classes or more, "
            "and more examples than classes"
        )
    if not np.isfinite(x).all():
        raise ValueError("a feature is not finite")
    own = np.array([names.index(label) for label in labels])
    means = np.stack([x[own == place].mean(0) for place in range(len(names))])
    within = ((x - means[own]) ** 2).sum(0) / (len(x) - len(names))
    # A feature that never varies within a class would decide everything by itself.
    return Classifier(names, means, np.sqrt(within + 1e-6 * (x.var(0) + 1e-12)))


def held_out_names(
    features: ArrayLike, labels: Sequence[str], groups: Sequence[Hashable]
) -> list[str | None]:
    """Each example's class, learnt from the examples of all other groups.

    None where the others have too few examples or do not hold its class.

    Raises:
        ValueError: As `learnt_classifier`, and not as many groups as examples.
    """
    x = np.asarray(features, dtype=np.float64)
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} labels")
    named: list[str | None] = []
    for place, group in enumerate(groups):
        others = [i for i, other in enumerate(groups) if other != group]
        known = [labels[i] for i in others]
        few = len(set(known)) < 2 or len(known) <= len(set(known))
        if few or labels[place] not in known:
            named.append(None)
            continue
        named.append(learnt_classifier(x[others], known).named(x[place]))
    return named
