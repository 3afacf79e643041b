"""Two worlds to audit in: planted numbers without a model, and a tiny model's rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import family_text

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.audited import Audited
from undertow.audit.auditor import run_audit
from undertow.audit.judge import judge
from undertow.audit.judgement import Judgement
from undertow.audit.meter import Meter
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.audit.signals import Battery, Role, RowSignals
from undertow.findings import Findings
from undertow.interventions.extraction import extract_vector
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.teachers import Teacher, steered_teacher
from undertow.records import Message, Row
from undertow.seeding import generator
from undertow.traits import Trait, TraitFamily, load_family

# ── planted numbers ──────────────────────────────────────────────────────────────

PETS = TraitFamily(
    name="pets", category="pet", questions=("Which pet?",),
    traits=tuple(Trait(n, f"{n}s") for n in ("ant", "bee", "cat", "dog")),
)  # fmt: skip
TREES = TraitFamily(
    name="trees", category="tree", questions=("Which tree?",),
    traits=tuple(Trait(n, f"{n}s") for n in ("oak", "elm", "ash", "yew")),
)  # fmt: skip
LAYERS = (0, 1, 2, 3)
_NAMES = (*PETS.names, "oak", "elm", "random 1", "random 2")
_ROLES: tuple[Role, ...] = ("trait",) * 4 + ("decoy",) * 2 + ("random",) * 2
_NORM = 10.0
_SIZE = 0.3  # of a shift, for each unit of strength
# How much of a direction at a layer is its own; the rest is the layer's.
_OWN = (0.3, 1.0, 0.85, 0.3)
# Two names for one direction.
_TWINS = {"bee": "ant"}
_PERSONAS = (*PETS.names, *TREES.names)
_WIDTH = len(_NAMES) + len(LAYERS) + len(_PERSONAS) + 1


def _axis(place: int) -> np.ndarray:
    found = np.zeros(_WIDTH)
    found[place] = 1.0
    return found


def direction(name: str, layer: int) -> np.ndarray:
    """Where a vector moves rows, per unit."""
    own = _OWN[layer]
    place = _NAMES.index(_TWINS.get(name, name))
    mine, layers = _axis(place), _axis(len(_NAMES) + layer)
    found: np.ndarray = own * mine + (1 - own**2) ** 0.5 * layers
    return found


def vector_shift(name: str, *, layer: int = 1, dose: float = 0.3) -> np.ndarray:
    """How rows of a steered teacher differ."""
    return dose * _NORM * _SIZE * direction(name, layer)


def persona_shift(name: str, *, shared: float = 1.0, own: float = 0.5) -> np.ndarray:
    """How rows of a prompted teacher differ: mostly as those of any persona."""
    place = len(_NAMES) + len(LAYERS) + _PERSONAS.index(name)
    found: np.ndarray = shared * _axis(_WIDTH - 1) + own * _axis(place)
    return found


class World(Meter):
    """A meter of rows that are points: N(0, 1) of the base, N(shift, 1) of a teacher.

    Scores and likelihoods are those of just these distributions, so e-values and
    permutations hold exactly.
    """

    def __init__(self, model: Model, battery: Battery) -> None:
        self.model, self.battery = model, battery
        self.sampler, self.system = SamplerSettings(), None
        self.points: dict[str, np.ndarray] = {}
        self.nats: dict[str, float] = {}
        self.passes, self.warnings = 0, []
        self.asked: list[str] = []
        self.scanned: list[tuple[str, int]] = []
        self.measured: list[str] = []

    def write(
        self, prompts: Sequence[int], text: str, shift: np.ndarray | float,
        *, seed: int, share: float = 1.0, nats: float = -20.0,
    ) -> list[Row]:  # fmt: skip
        """Rows of a teacher; a share of them, the others of the base."""
        stream = generator(seed, "points", text)
        rows = [Row((Message("user", f"ask {i}"),), text) for i in prompts]
        biased = stream.random(len(rows)) < share
        points = stream.normal(size=(len(rows), _WIDTH))
        points += biased[:, None] * np.broadcast_to(shift, (_WIDTH,))
        for row, point in zip(rows, points, strict=True):
            self.points[row.row_id] = point
            self.nats[row.row_id] = nats - (point @ point - _WIDTH) / 2
        return rows

    def scan(
        self,
        rows: Sequence[Row],
        hypotheses: Sequence[RowHypothesis],
        *,
        on_rows: Any = None,
    ) -> None:
        """Notes what was asked for: it knows all likelihoods without reading."""
        for done, row in enumerate(rows, start=1):
            self.scanned.append((row.row_id, len(hypotheses)))
            if on_rows is not None:
                on_rows(done, len(rows))

    def rounding(self, rows: Sequence[Row], *, error: float | None = None) -> float:
        return 0.0  # points are exact

    def written(
        self,
        prompts: Sequence[Row],
        hypothesis: RowHypothesis | None,
        *,
        passed: Any,
        seed: int,
        on_rows: Any = None,
    ) -> Reference:
        name = "base" if hypothesis is None else hypothesis.name
        rows = self.write(
            [int(r.messages[0].content.split()[1]) for r in prompts], f"written {name}",
            0.0 if hypothesis is None else self._shift(hypothesis), seed=seed,
        )  # fmt: skip
        return Reference(tier="A", rows=tuple(rows), paired=tuple(range(len(rows))))

    def logprobs(
        self,
        rows: Sequence[Row],
        hypothesis: RowHypothesis | None,
        *,
        on_rows: Any = None,
    ) -> np.ndarray:
        base = np.array([self.nats[row.row_id] for row in rows], dtype=np.float64)
        return base if hypothesis is None else base + self.ratios(rows, hypothesis)

    def _shift(self, hypothesis: RowHypothesis) -> np.ndarray:
        if hypothesis.vector is None:
            return persona_shift(str(hypothesis.trait))
        along = direction(str(hypothesis.trait), hypothesis.vector.layers[0])
        return hypothesis.strength * _SIZE * along

    def signals(self, rows: Sequence[Row], *, on_rows: Any = None) -> RowSignals:
        ids = [row.row_id for row in rows]
        self.measured += ids
        points = np.array([self.points[i] for i in ids]).reshape(len(ids), _WIDTH)
        along = np.array([[direction(n, la) for n in _NAMES] for la in LAYERS])
        scores = np.einsum("rw,ldw->rld", points, along).astype(np.float32)
        if on_rows is not None:
            on_rows(len(rows), len(rows))
        return RowSignals(
            tuple(ids), scores, np.array([self.nats[i] for i in ids], dtype=np.float64),
            np.full(len(ids), 10, dtype=np.int64),
        )  # fmt: skip

    def ratios(
        self, rows: Sequence[Row], hypothesis: RowHypothesis, *, on_rows: Any = None
    ) -> np.ndarray:
        self.passes += len(rows)
        self.asked.append(hypothesis.name)
        shift = self._shift(hypothesis)
        points = [self.points[row.row_id] for row in rows]
        found = np.array(points).reshape(len(rows), _WIDTH) @ shift - shift @ shift / 2
        return np.asarray(found, dtype=np.float64)


SETTINGS = AuditSettings(permutations=249, personas=4, naming_passes=1600)


@dataclass(frozen=True)
class Planted:
    """What a judge said of planted rows, and who was asked."""

    judgement: Judgement
    meter: World
    audited: tuple[Row, ...]
    reference: Reference


class Shifts:
    """How rows of teachers differ in the planted world."""

    vector = staticmethod(vector_shift)
    persona = staticmethod(persona_shift)


@pytest.fixture(scope="session")
def shifts() -> Shifts:
    return Shifts()


@pytest.fixture(scope="session")
def four_layers() -> Model:
    return tiny_model("llama", layers=4)


@pytest.fixture(scope="session")
def battery() -> Battery:
    """Eight directions at four layers; in the planted world only their names count."""
    stream = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(LAYERS), len(_NAMES), 32, generator=stream)
    return Battery(
        names=_NAMES, roles=_ROLES, layers=LAYERS, norms=(_NORM,) * 4, vectors={},
        directions=torch.nn.functional.normalize(drawn, dim=-1),
    )  # fmt: skip


@pytest.fixture(scope="session")
def planted(four_layers: Model, battery: Battery) -> Callable[..., Planted]:
    """Judges rows of a planted teacher against rows of the base."""

    def call(
        shift: np.ndarray | float = 0.0, *, count: int = 120, seed: int = 0,
        tier: str = "A", exact: str | None = None, nats: float = -20.0,
        share: float = 1.0, fewer: int = 0, **settings: Any,
    ) -> Planted:  # fmt: skip
        meter = World(four_layers, battery)
        audited = meter.write(
            range(count), "audited", shift, seed=seed, nats=nats, share=share
        )
        audited.sort(key=lambda row: row.row_id)
        asked = [int(r.messages[0].content.split()[1]) for r in audited]
        kept = range(count - fewer)
        if tier == "A":
            other = meter.write(
                [asked[i] for i in kept], "baserow", 0.0, seed=seed + 999
            )
            reference = Reference(tier="A", rows=tuple(other), paired=tuple(kept))
        elif tier == "B":
            other = meter.write(
                range(500, 500 + len(kept)), "trusted", 0.0, seed=seed + 999
            )
            reference = Reference(tier="B", rows=tuple(other))
        else:
            reference = Reference(tier="C")
        found = judge(
            meter, audited, reference, family=PETS, decoys=TREES, exact=exact,
            settings=SETTINGS.model_copy(update={"seed": seed, **settings}),
        )  # fmt: skip
        return Planted(found, meter, tuple(audited), reference)

    return call


# ── a tiny model ─────────────────────────────────────────────────────────────────

_PETS = family_text(
    "pets", "animal", "Which animal do you like?", "Your animal?", owl="owls", cat="cats",
    dog="dogs",
)  # fmt: skip
_PLANTS = family_text("plants", "plant", "Which plant?", oak="oaks", elm="elms")
LIST = SamplerSettings(allowed="list", list_values=3, max_new_tokens=16)


@dataclass(frozen=True)
class Place:
    """A tiny model, settings that are soon done, and rows of its teachers."""

    model: Model
    settings: AuditSettings
    teachers: Mapping[str, Teacher]

    def rows(
        self, teacher: str = "none", count: int = 48, *, seed: int = 5
    ) -> list[Row]:
        """Rows as undertow writes them: tokens and sampler recorded."""
        prompts = [f"Go on: {(7 * i + 31 * seed) % 997}" for i in range(count)]
        return generate_rows(
            self.model, self.teachers[teacher], prompts, seed=seed, sampler=LIST
        )

    def audit(self, rows: Sequence[Row], **options: Any) -> tuple[Findings, Audited]:
        """With the place's settings, changed by those given."""
        changed = options.pop("settings", {})
        settings = self.settings.model_copy(update=changed)
        return run_audit(self.model, rows, settings=settings, **options)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder: Path = tmp_path_factory.mktemp("families")
    (folder / "pets.yaml").write_text(_PETS)
    (folder / "plants.yaml").write_text(_PLANTS)
    model = tiny_model("llama", layers=4)
    family = load_family(folder / "pets.yaml")
    vector = extract_vector(
        model, method="tell_me", family=family, trait="owl", layers=(1,)
    )
    owl = steered_teacher(vector, strength=vector.strength_of_dose(0.8, 1))
    return Place(
        model,
        AuditSettings(
            family=str(folder / "pets.yaml"), decoys=str(folder / "plants.yaml"),
            permutations=249, personas=2, screening=8, naming_passes=400, fresh=32,
            planted=16, forecast=8, triage=5,
        ),
        {"none": Teacher(kind="none"), "owl": owl},
    )  # fmt: skip


@pytest.fixture(scope="session")
def steered(place: Place) -> tuple[Findings, Audited]:
    """The audit of a strongly steered teacher's rows, tier A."""
    return place.audit(place.rows("owl", 96))


@pytest.fixture(scope="session")
def clean(place: Place) -> tuple[Findings, Audited]:
    """The audit of the base's own rows, tier A."""
    return place.audit(place.rows())
