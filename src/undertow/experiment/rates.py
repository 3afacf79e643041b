"""What goes through a model, in tokens and operations, and how fast machines are at it.

Operations: N the weights without the embedding, H those of the unembedding. A token that
is read takes 2·N, one that is predicted or drawn 2·(N + H), and a pass back through the
activations as much again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from undertow.audit.cost import PROGRAM, Size, batch_bytes, model_size
from undertow.errors import ModelError
from undertow.models.known_models import REGISTRY


@dataclass(frozen=True)
class Passes:
    """Tokens that go through a model, each counted as often as it does.

    Attributes:
        read: Forward or backward, where nothing is predicted.
        predicted: Forward or backward, with a distribution over the vocabulary.
        drawn: One after the other.
    """

    read: float = 0.0
    predicted: float = 0.0
    drawn: float = 0.0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            self.read + other.read,
            self.predicted + other.predicted,
            self.drawn + other.drawn,
        )

    def __mul__(self, times: int) -> "Passes":
        return Passes(self.read * times, self.predicted * times, self.drawn * times)

    def operations(self, size: Size) -> tuple[float, float]:
        """Of reading (and predicting), and of drawing, in a model of this size."""
        weights = 2.0 * (size.parameters - size.embedding)
        head = 2.0 * size.vocabulary * size.hidden
        reading = weights * (self.read + self.predicted) + head * self.predicted
        return reading, (weights + head) * self.drawn


SIZES: Mapping[str, Size] = {
    "smollm2-135m": Size(134_515_008, 28_311_552, 576, 49_152, 30),
    "gemma3-270m": Size(268_098_176, 167_772_160, 640, 262_144, 18),
    "google/gemma-2b-it": Size(2_506_172_416, 524_288_000, 2048, 256_000, 18),
    "meta-llama/Llama-3.1-8B-Instruct": Size(
        8_030_261_248, 525_336_576, 4096, 128_256, 32
    ),
}
"""Of the packaged recipes' models, for where their configurations cannot be read."""


def known_size(name: str) -> Size | None:
    """The size of a model as far as it is known without a network; None if it is not."""
    if name in SIZES:
        return SIZES[name]
    try:
        return model_size(_here(name))
    except ModelError:
        return None


def worker_bytes(names: Iterable[str]) -> int | None:
    """Main memory of a worker that has one of these models at a time, about.

    Weights in float32, the program, and a batch with what it leaves for a backward pass.
    None if the size of one is not known here.
    """
    sizes = [known_size(name) for name in names]
    if not sizes or None in sizes:
        return None
    each = (4 * size.parameters + batch_bytes(size) for size in sizes if size)
    return max(each) + PROGRAM


def _here(name: str) -> str:
    """Where a model's configuration lies on this machine.

    Raises:
        ModelError: It is a hub's, and was never fetched.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name in REGISTRY or Path(name).expanduser().exists():
        return name
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        raise ModelError(f"model {name!r}: not on this machine")
    return str(Path(found).parent)


@dataclass(frozen=True)
class Rate:
    """How fast a machine is.

    Attributes:
        flops: Operations a second of a matrix product.
        reading: Share of them that reading reaches.
        drawing: Share that drawing reaches.
        token: Seconds of a token that is read, beside products, for each block and
            number of the stream.
        step: Seconds of a token that is drawn, beside products, for each block.
    """

    flops: float
    reading: float
    drawing: float
    token: float = 0.0
    step: float = 0.0

    def seconds(self, passes: Passes, size: Size) -> float:
        """Wall-clock of the passes, about."""
        reading, drawing = passes.operations(size)
        products = reading / self.reading + drawing / self.drawing
        tokens = (passes.read + passes.predicted) * size.hidden * self.token
        return products / self.flops + size.layers * (tokens + passes.drawn * self.step)


def processor(flops: float) -> Rate:
    """A processor, by the product that `audit.cost.timed_flops` timed on it.

    The shares are what stored studies reached beside other work, in bfloat16 with matrix
    units and in float32 without (docs/studies, `seconds` of their results).
    """
    return Rate(flops, reading=0.45, drawing=0.35)


_FLOPS, _SHARE = 7.904e14, 0.7  # of a product in bfloat16, and what is taken to reach
_SCORED = 1338.86  # rows a second: 90 tokens of a prompt that two rows share, and 37 of
_SCORED_PASSES = 90 / 2 + 2 * 37  # a completion, forward and backward
_DRAWN = 36_351.9  # tokens a second, 512 rows at once


def one_h100() -> Rate:
    """An H100, by what was measured on it with smollm2-135m.

    That model is so small that its products hardly count there. What a token takes
    beside them is taken to grow with the blocks, and where tokens are read side by side
    with the stream's width too. Not measured on larger models.

    Source: benchmarks/results/2026-11-26-smollm2-135m-h100.json.
    """
    size, products = SIZES["smollm2-135m"], Rate(_FLOPS, _SHARE, _SHARE)
    token = 1 / (_SCORED * _SCORED_PASSES) - products.seconds(Passes(read=1.0), size)
    step = 1 / _DRAWN - products.seconds(Passes(drawn=1.0), size)
    return replace(
        products, token=token / (size.layers * size.hidden), step=step / size.layers
    )
