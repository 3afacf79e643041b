"""Each row is measured once, also by the next process."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undertow.analysis.hypotheses import RowHypothesis, hypothesis_logprobs
from undertow.analysis.many_vectors import read_streams
from undertow.audit import meter as meter_module
from undertow.audit.candidates import vector_hypothesis
from undertow.audit.meter import Meter, whole_arrays
from undertow.audit.signals import Battery, RowSignals, make_battery, measure
from undertow.models.chat import Rendered, render_row
from undertow.models.hooks import current_completion_positions
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?",),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs")),
)
SAMPLER = SamplerSettings(allowed="list", temperature=0.8)
ROWS = [
    Row((Message("user", f"Go on: {i}"),), ", ".join(str(7 * i + j) for j in range(1 + i % 3)))
    for i in range(9)
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama", layers=2)


@pytest.fixture(scope="module")
def battery(model: Model) -> Battery:
    return make_battery(model, PETS, decoys=None)


@pytest.fixture
def owl(battery: Battery) -> RowHypothesis:
    vector = battery.vectors["cat"].at(1)
    return RowHypothesis("cat vector", "steer", "cat", vector=vector, strength=0.5)


@pytest.fixture
def passes(model: Model) -> Iterator[list[int]]:
    """How many completions go through the model, whoever asks."""
    seen: list[int] = []

    def count(*_: Any) -> None:
        mask = current_completion_positions()
        if mask is not None and bool(mask.any()):
            seen.append(len(mask))

    handle = model.architecture.blocks[0].register_forward_hook(count)
    yield seen
    handle.remove()


def _meter(model: Model, battery: Battery, folder: Path | None = None) -> Meter:
    return Meter(model, battery, SAMPLER, folder=folder)


def test_signals_are_those_of_one_pass(model: Model, battery: Battery) -> None:
    found = _meter(model, battery).signals(ROWS)
    rendered = [render_row(model, row) for row in ROWS]
    ids = [row.row_id for row in ROWS]
    wanted = measure(model, rendered, ids, battery, sampler=SAMPLER)
    assert found.row_ids == wanted.row_ids
    assert np.array_equal(found.scores, wanted.scores)
    assert np.array_equal(found.total_logprobs, wanted.total_logprobs)
    assert found.tokens.tolist() == wanted.tokens.tolist()


def test_rows_are_measured_once(
    model: Model, battery: Battery, passes: list[int]
) -> None:
    meter = _meter(model, battery)
    first = meter.signals(ROWS[:5])
    assert sum(passes) == 5
    again = meter.signals([*ROWS[2:7], ROWS[2]])  # two new ones, one of them twice
    assert sum(passes) == 7
    assert again.row_ids == tuple(r.row_id for r in [*ROWS[2:7], ROWS[2]])
    assert np.array_equal(again.scores[:3], first.scores[2:5])
    assert np.array_equal(again.scores[5], again.scores[0])
    meter.signals(ROWS[:7])
    assert sum(passes) == 7


def test_ratios_are_those_of_plain_passes(
    model: Model, battery: Battery, owl: RowHypothesis, passes: list[int]
) -> None:
    base = hypothesis_logprobs(model, ROWS, None, sampler=SAMPLER)
    own = hypothesis_logprobs(model, ROWS, owl, sampler=SAMPLER)
    passes.clear()
    meter = _meter(model, battery)
    found = meter.ratios(ROWS, owl)
    assert found == pytest.approx(own - base, abs=1e-5)
    assert float(np.abs(found).max()) > 1e-3
    assert meter.passes == 18  # the base once and the hypothesis once
    assert passes
    passes.clear()
    assert np.array_equal(meter.ratios(ROWS[::-1], owl), found[::-1])
    assert passes == []
    still = RowHypothesis("still", "steer", "cat", vector=owl.vector, strength=0.0)
    assert meter.ratios(ROWS, still) == pytest.approx(np.zeros(9), abs=1e-5)
    assert meter.passes == 27  # the base's are known


def test_rows_are_read_up_to_a_block_once_while_doses_are_tried(
    model: Model, battery: Battery, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = read_streams

    def counted(model: Model, rows: list[Rendered], *rest: Any, **more: Any) -> Any:
        read.append(len(rows))
        return real(model, rows, *rest, **more)

    monkeypatch.setattr(meter_module, "read_streams", counted)
    meter = _meter(model, battery)
    weak, strong, other = (
        vector_hypothesis(model, battery, 0, place, dose)
        for place, dose in ((1, 0.2), (1, 0.4), (0, 0.4))
    )
    meter.scan(ROWS[:4], [weak])
    meter.scan(ROWS[:4], [strong])
    assert read == [4]
    assert len(meter._streams) == 1
    meter.scan(ROWS[:4], [other])
    meter.scan(ROWS[4:], [strong])
    assert read == [4, 4, 5]
    assert len(meter._streams) == 1  # those of other rows and blocks are let go
    known = _meter(model, battery)
    known.scan(ROWS[:2], [weak])
    known.scan(ROWS[:2], [other, weak])  # of which one block is read now
    known.scan(ROWS[:2], [replace(other, name="again"), strong])
    assert np.isfinite(known.ratios(ROWS[:2], strong)).all()
    monkeypatch.setattr(meter_module, "_KEPT", 10)
    meter.scan(ROWS[:3], [strong, other])
    meter.scan(ROWS[3:5], [weak])
    assert not meter._streams  # too many tokens
    wanted = _meter(model, battery)
    wanted.scan(ROWS[:4], [strong])
    assert np.array_equal(
        meter.ratios(ROWS[:4], strong), wanted.ratios(ROWS[:4], strong)
    )


def test_a_scan_is_each_vector_s_own_pass(
    model: Model, battery: Battery, tmp_path: Path
) -> None:
    places = [(0, 0), (1, 0), (1, 1)]  # direction and layer
    vectors = [vector_hypothesis(model, battery, k, at, 0.5) for k, at in places]
    apart, together = _meter(model, battery), _meter(model, battery, tmp_path)
    wanted = [float(apart.ratios(ROWS[:1], h)[0]) for h in vectors]
    together.scan(ROWS[:1], vectors[:2])
    together.scan(ROWS[:1], vectors)  # two of them are known
    assert together.passes == 3
    found = [float(together.ratios(ROWS[:1], h)[0]) for h in vectors]
    assert together.passes == 4  # the base's
    assert found == pytest.approx(wanted, abs=1e-4)
    assert len({round(value, 3) for value in found}) == 3
    recalled = _meter(model, battery, tmp_path)
    recalled.scan(ROWS[:1], vectors)
    assert recalled.passes == 0
    assert [float(recalled.ratios(ROWS[:1], h)[0]) for h in vectors] == found


def test_rounding_is_what_two_kinds_of_pass_differ_by(
    model: Model, battery: Battery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 next to nothing; in bfloat16 a part of a nat."""
    assert _meter(model, battery).rounding(ROWS) < 1e-8
    meter = _meter(model, battery)
    score = meter.signals(ROWS).total_logprobs

    def noisy(*_: Any, **__: Any) -> np.ndarray:
        noise = np.where(np.arange(len(score)) % 2, 0.3, -0.3)
        noise[0] = -np.inf  # a row that rounding puts outside a cut
        return np.asarray(score + noise)

    monkeypatch.setattr(meter_module, "hypothesis_logprobs", noisy)
    assert meter.rounding(ROWS) == pytest.approx(0.09)
    assert meter.rounding([]) == 0
    early = _meter(model, battery)
    early.logprobs(ROWS, None)  # what was read like this before is no second way
    assert early.rounding(ROWS) == pytest.approx(0.09)
    limit = meter.rounding(ROWS, error=0.01)  # eight rows: chi squared's 1 % is 1.65
    assert limit == pytest.approx(8 * 0.09 / 1.6465, rel=1e-3)


def test_what_the_base_cannot_draw_is_no_evidence(
    model: Model, battery: Battery, owl: RowHypothesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(*options: Any, **__: Any) -> np.ndarray:
        values = np.arange(9.0)
        values[:2] = (-np.inf, -1.0) if options[2] is None else (-2.0, -np.inf)
        return values

    monkeypatch.setattr(meter_module, "hypothesis_logprobs", fake)
    found = _meter(model, battery).ratios(ROWS, owl)
    assert math.isnan(found[0])
    assert found[1] == -math.inf  # the hypothesis forbids it
    assert found[2:].tolist() == [0.0] * 7


def test_progress_counts_what_is_left(model: Model, battery: Battery) -> None:
    meter = _meter(model, battery)
    meter.signals(ROWS[:4])
    told: list[tuple[int, int]] = []
    meter.signals(ROWS, on_rows=lambda done, count: told.append((done, count)))
    assert told[-1] == (5, 5)


def test_no_rows_have_no_signals(
    model: Model, battery: Battery, owl: RowHypothesis
) -> None:
    meter = _meter(model, battery)
    found = meter.signals([])
    assert found.scores.shape == (0, 2, 2)
    assert found.tokens.shape == found.total_logprobs.shape == (0,)
    assert meter.ratios([], owl).shape == (0,)
    assert meter.passes == 0


# ── on disk ──────────────────────────────────────────────────────────────────────


def test_the_next_process_recalls_what_was_measured(
    model: Model, battery: Battery, owl: RowHypothesis, passes: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(meter_module, "_PART", 4)
    folder = tmp_path / "measured"
    first = _meter(model, battery, folder)
    signals, ratios = first.signals(ROWS), first.ratios(ROWS, owl)
    assert len(list(folder.glob("signals-*.npz"))) == 3
    passes.clear()
    second = _meter(model, battery, folder)
    found = second.signals(ROWS)
    assert np.array_equal(found.scores, signals.scores)
    assert np.array_equal(found.total_logprobs, signals.total_logprobs)
    assert found.tokens.tolist() == signals.tokens.tolist()
    assert np.array_equal(second.ratios(ROWS, owl), ratios)
    assert passes == []
    assert second.passes == 0


def test_an_interrupted_pass_keeps_its_parts(
    model: Model, battery: Battery, passes: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(meter_module, "_PART", 4)

    def stop(done: int, _: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _meter(model, battery, tmp_path).signals(ROWS, on_rows=stop)
    passes.clear()
    second = _meter(model, battery, tmp_path)
    found = second.signals(ROWS)
    assert sum(passes) == 5  # the second and the third part
    assert found.row_ids == tuple(row.row_id for row in ROWS)
    assert not list(tmp_path.glob(".undertow-*"))


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("again", [False, True])
def test_parts_that_are_measured_again_have_the_same_bits(
    model: Model, battery: Battery, owl: RowHypothesis, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...], again: bool,
) -> None:  # fmt: skip
    """Whichever are lost, and whatever had been known before they were first asked for."""
    monkeypatch.setattr(meter_module, "_PART", 3)

    def measured() -> tuple[RowSignals, Any]:
        meter = _meter(model, battery, tmp_path)
        if again:
            meter.signals(ROWS[2:6])
        return meter.signals(ROWS), meter.ratios(ROWS, owl)

    def kept() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(tmp_path.iterdir())}

    (first, ratios), files = measured(), kept()
    parts = [name for name in files if name.endswith(".npz")]
    for place in lost:
        (tmp_path / parts[place]).unlink()
    if again:
        (tmp_path / "logprobs.jsonl").unlink()
    second, others = measured()
    assert kept() == files
    assert np.array_equal(first.scores, second.scores)
    assert np.array_equal(first.total_logprobs, second.total_logprobs)
    assert np.array_equal(ratios, others)


@pytest.mark.parametrize("tear", [1, 7, 40])
def test_a_torn_line_is_measured_again(
    model: Model, battery: Battery, owl: RowHypothesis, tmp_path: Path, tear: int
) -> None:
    wanted = _meter(model, battery, tmp_path).ratios(ROWS, owl)
    path = tmp_path / "logprobs.jsonl"
    path.write_bytes(path.read_bytes()[:-tear])
    second = _meter(model, battery, tmp_path)
    assert np.array_equal(second.ratios(ROWS, owl), wanted)
    assert second.passes == 9  # the last line was the base's
    third = _meter(model, battery, tmp_path)
    assert np.array_equal(third.ratios(ROWS, owl), wanted)
    assert third.passes == 0


def test_impossible_rows_are_recalled_as_impossible(
    model: Model, battery: Battery, owl: RowHypothesis, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """JSON has no infinity; a row that a cut forbids stays forbidden after a resume."""

    def fake(*_: Any, **__: Any) -> np.ndarray:
        return np.array([-1.0, -math.inf])

    monkeypatch.setattr(meter_module, "hypothesis_logprobs", fake)
    first = _meter(model, battery, tmp_path)
    found = first.ratios(ROWS[:2], owl)
    assert found[0] == 0
    assert math.isnan(found[1])  # both forbid it: nothing can be said
    second = _meter(model, battery, tmp_path).ratios(ROWS[:2], owl)
    assert second.dtype == np.float64
    assert np.array_equal(second, found, equal_nan=True)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_measurement_is_set_aside_and_made_again(
    model: Model, battery: Battery, tmp_path: Path, share: float, cut: bool
) -> None:
    wanted = _meter(model, battery, tmp_path).signals(ROWS)
    (path,) = tmp_path.glob("signals-*.npz")
    data = bytearray(path.read_bytes())
    place = int(share * len(data))
    data[place] ^= 4
    path.write_bytes(data[:place] if cut else data)
    with pytest.warns(RuntimeWarning, match=r"signals-\w{16}\.npz: damaged: "):
        again = _meter(model, battery, tmp_path)
    found = again.signals(ROWS)
    assert found.row_ids == wanted.row_ids
    assert np.array_equal(found.scores, wanted.scores)
    assert path.with_name(f"{path.name}.set-aside").exists()
    assert path.exists()


def test_a_packed_measurement_is_set_aside_unread(tmp_path: Path) -> None:
    path = tmp_path / "signals-0000000.npz"
    zeros = np.zeros(1 << 20)
    np.savez_compressed(path, ids=zeros, scores=zeros)
    assert path.stat().st_size < zeros.nbytes / 400
    with pytest.warns(
        RuntimeWarning, match=r"damaged: ValueError: 'ids\.npy', 'scores"
    ):
        assert whole_arrays(path, ("ids", "scores")) is None
    assert path.with_name(f"{path.name}.set-aside").exists()


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"ids": np.zeros(3)}, "KeyError: 'scores'"),
        ({"ids": np.zeros(3), "scores": np.zeros(4)}, "not of one length"),
        ({"ids": np.array(3.0), "scores": np.zeros(4)}, "TypeError"),
    ],
)
def test_arrays_that_do_not_belong_together_are_set_aside(
    arrays: dict[str, np.ndarray[Any, Any]], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.warns(RuntimeWarning, match=f"damaged: .*{why}"):
        assert whole_arrays(path, ("ids", "scores")) is None


def test_a_damaged_likelihood_is_read_again(
    model: Model, battery: Battery, owl: RowHypothesis, tmp_path: Path
) -> None:
    wanted = _meter(model, battery, tmp_path).ratios(ROWS, owl)
    path = tmp_path / "logprobs.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b"-", b"-1", 1)  # still a number
    path.write_bytes(b"".join(lines))
    with pytest.warns(RuntimeWarning, match=r"logprobs\.jsonl: damaged: line 1 is not"):
        again = _meter(model, battery, tmp_path)
    assert again.ratios(ROWS, owl) == pytest.approx(wanted, abs=1e-6)
    assert again.passes == 9  # those of that line alone
