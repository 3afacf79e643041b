"""Three numbers of a student's shift that set kinds of intervention apart.

A prompted teacher's student moves as the base does under a persona, whichever; a steered
teacher's student moves along one of a family's vectors more than along the others; a
fine-tuned teacher's student moves ever more towards the last blocks. Knows nothing of
how students are made, nor of what the numbers are for other bases.
"""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.analysis.shifts import ShiftProfile
from undertow.errors import VectorMismatchError


@dataclass(frozen=True)
class Traces:
    """What a student's shift shows; no finite numbers if nothing has moved.

    Attributes:
        persona: Mean over the upper half of the blocks of cos(shift, mean shift of the
            base under a family's personas).
        vector: Largest number of standard deviations over a family's traits by which
            cos(shift, trait's vector) stands out, over the upper three quarters of the
            blocks.
        growth: Log of the shift's relative size after the last block over that after
            the first third.
    """

    persona: float
    vector: float
    growth: float

    def values(self) -> list[float]:
        """In order."""
        return list(asdict(self).values())


def traces(
    profile: ShiftProfile,
    *,
    vectors: Float[Tensor, "trait layer hidden"],
    personas: Float[Tensor, "trait layer hidden"],
) -> Traces:
    """The three numbers of one student.

    Args:
        profile: Of the student's shift, over the base's own rows.
        vectors: Of each trait of a family, centred over it.
        personas: Shift of the base under each trait's persona, over the same rows.

    Raises:
        VectorMismatchError: Vectors or personas of another model, or of one trait.
    """
    depth = len(profile.mean)
    for given in (vectors, personas):
        if given.shape[1:] != profile.mean.shape or len(given) < 3:
            raise VectorMismatchError(
                f"vectors of shape {tuple(given.shape)}: expected three traits or more, "
                f"each {tuple(profile.mean.shape)}"
            )
    along = trait_cosines(profile, vectors)
    outstanding = (along - along.mean(0)) / along.std(0, correction=0)
    persona = torch.cosine_similarity(profile.mean, personas.double().mean(0), dim=-1)
    size = profile.size
    return Traces(
        persona=float(persona[depth // 2 :].mean()),
        vector=float(outstanding[:, depth // 4 :].max()),
        growth=float((size[-1] / size[depth // 3]).log()),
    )


def trait_cosines(
    profile: ShiftProfile, vectors: Float[Tensor, "trait layer hidden"]
) -> Float[Tensor, "trait layer"]:
    """cos(shift, trait's vector) after every block."""
    return torch.cosine_similarity(profile.mean[None], vectors.double(), dim=-1)
