"""A whole census: planted truths, any order and cut and resume, edges, integrity."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.audit.test_sums import plain
from tests.execution.strangers import Strangers

from undertow.audit.census import census
from undertow.audit.census_settings import CensusSettings
from undertow.audit.shard_sums import ShardTask, sum_shard
from undertow.audit.sums import Sums
from undertow.errors import DatasetError, RunError
from undertow.execution.executor import Needs
from undertow.findings import Census
from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import load_vector
from undertow.models.tiny import tiny_model
from undertow.records import Message, Row
from undertow.storage import read_rows, write_rows
from undertow.traits import load_family

if TYPE_CHECKING:
    from tests.audit.conftest import Place

Take = Callable[..., Census]


@pytest.fixture
def take(place: "Place", tmp_path: Path) -> Take:
    """A census of rows or files, in small batches."""

    def call(rows: Any, out: str = "out", **options: Any) -> Census:
        if isinstance(rows, list) and rows and isinstance(rows[0], Row):
            write_rows(tmp_path / f"{out}-rows.jsonl", rows)
            rows = [tmp_path / f"{out}-rows.jsonl"]
        usual = {
            "family": place.settings.family, "decoys": place.settings.decoys,
            "batch_rows": 16, "shard_batches": 2, "pilot": 32, "flips": 199, "top": 2,
            "subsample": 16,
        }  # fmt: skip
        settings = CensusSettings(**usual | options.pop("settings", {}))
        model = options.pop("model", place.model)
        return census(model, rows, tmp_path / out, settings=settings, **options)

    return call


def figures(found: Census) -> dict[str, Any]:
    """Everything that was computed of the sums."""
    plain = found.model_dump(mode="json")
    loose = ("seconds", "provenance", "next_commands", "command")
    for name in loose:
        del plain[name]
    for name in ("sources", "files"):
        del plain["data"][name]
    return plain


def test_rows_at_a_url_are_summed_where_they_lie(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    rows = place.rows("owl", 96)
    here = take(rows)
    (file,) = tmp_path.glob("*-rows.jsonl")
    MemoryFileSystem().pipe_file("/census/a.jsonl?key=secret", file.read_bytes())
    try:
        there = take(["memory://census/a.jsonl?key=secret"], out="there")
    finally:
        MemoryFileSystem().rm("/census", recursive=True)
    assert figures(there) == figures(here)
    assert there.data.sources == ["memory://census/a.jsonl?…"]
    assert "secret" not in (tmp_path / "there" / "recipe.yaml").read_text("utf-8")


def test_steered_rows_are_found_where_they_were_steered(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    found = take(place.rows("owl", 96))
    assert (found.verdict, found.reference_tier) == ("shift", "A")
    assert found.p_value == 1 / 200
    assert found.layer in (1, 2, 3)  # the vector acts after block 1
    owl = next(d for d in found.directions if d.name == "owl")
    assert (owl.z[1] or 0.0) > 5
    assert found.data.used == found.reference.rows == 96
    top = read_rows(tmp_path / "out" / "top_rows.jsonl")
    assert {row.row_id for row in top} <= {r.row_id for r in place.rows("owl", 96)}
    assert top[0].provenance["direction"] in {d.name for d in found.directions}
    assert len(read_rows(tmp_path / "out" / "subsample.jsonl")) == 16
    assert "cannot be tested again" in found.selection
    (command,) = found.next_commands
    assert "undertow audit" in command
    assert "subsample.jsonl" in command
    assert "where, not what" in found.sentence


def test_rows_of_the_base_are_not(place: "Place", take: Take) -> None:
    found = take(place.rows(count=96))
    assert found.verdict == "none"
    assert (found.p_value or 0.0) > 0.01
    assert Census.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.slow
def test_order_cut_and_files_change_no_bit(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    rows = place.rows(count=64)
    for name, part in (("a", rows[:32]), ("b", rows[32:])):
        write_rows(tmp_path / f"{name}.jsonl", part)
    a, b = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    write_rows(b, rows[32:])
    whole = figures(take(rows, "one"))
    assert figures(take(rows, "large", settings={"shard_batches": 9})) == whole
    assert figures(take([b, a], "turned")) == whole
    assert figures(take([a, tmp_path / "b.jsonl"], "two")) == whole


class Stopping:
    """An executor that gives up after some calls, and one that calls twice, last first."""

    is_here = True

    def __init__(self, after: int | None) -> None:
        self.after, self.calls = after, 0

    def slots(self, needs: Needs) -> int:
        return 2

    def map(
        self,
        function: Callable[[ShardTask], tuple[str, Sums]],
        values: Iterable[ShardTask],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, tuple[str, Sums]]]:
        tasks: Sequence[ShardTask] = list(values)
        for place in reversed(range(len(tasks))):
            if self.calls == self.after:
                raise KeyboardInterrupt
            self.calls += 1
            yield place, function(tasks[place])
            if self.after is None:
                yield place, function(tasks[place])


@pytest.mark.slow
def test_an_interrupted_census_goes_on_and_ends_the_same(
    place: "Place", take: Take
) -> None:
    rows = place.rows(count=96)
    whole = figures(take(rows, "whole"))
    with pytest.raises(KeyboardInterrupt):
        take(rows, "cut", executor=Stopping(2))
    rest = Stopping(99)
    assert figures(take(rows, "cut", executor=rest)) == whole
    assert rest.calls == 1
    assert figures(take(rows, "twice", executor=Stopping(None))) == whole


def test_a_damaged_shard_is_redone(place: "Place", take: Take, tmp_path: Path) -> None:
    rows = place.rows(count=96)
    whole = figures(take(rows))
    path = sorted((tmp_path / "out" / "sums").rglob("*.npz"))[1]
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "out" / "census.json").unlink()
    again = Stopping(99)
    with pytest.warns(RuntimeWarning, match="damaged: BadZipFile"):
        assert figures(take(rows, executor=again)) == whole
    assert again.calls == 1


def test_sums_of_a_plan_that_is_gone_are_not_those_of_another_model(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    rows = place.rows(count=64)
    take(rows)
    path = tmp_path / "out" / "plan.npz"
    path.write_bytes(path.read_bytes()[:-200])
    other = tiny_model("llama", layers=4, seed=9)
    again = Stopping(99)
    with pytest.warns(RuntimeWarning, match=r"plan\.npz"):
        found = take(rows, model=other, executor=again)
    assert again.calls == 2
    assert figures(found) == figures(take(rows, "fresh", model=other))


def test_other_processes_measure_the_same(place: "Place", take: Take) -> None:
    rows = place.rows(count=64)
    whole = figures(take(rows, "here"))
    strangers = Strangers()
    assert figures(take(rows, "there", executor=strangers)) == whole
    assert len(strangers.called) == 2
    task = strangers.called[0]
    assert isinstance(task, ShardTask)
    # All that crosses: a task whole by itself, and its answer.
    key, sums = pickle.loads(pickle.dumps(sum_shard(pickle.loads(pickle.dumps(task)))))
    assert key == task.key
    assert plain(sums) == plain(sum_shard(task)[1])


def test_a_prompt_that_ends_with_an_answer_goes_on_after_the_survey(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    rows = [
        Row((Message("user", f"go {i}"), Message("assistant", "1")), f"{i}, 7")
        for i in range(20)
    ]
    path = tmp_path / "turns.jsonl"
    write_rows(path, rows, layout="messages")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take([path], on_survey=stop)
    assert take([path]).data.used > 0
    handed = read_rows(tmp_path / "out" / "subsample.jsonl")
    assert {row.row_id for row in handed} <= {row.row_id for row in rows}
    assert len(handed) == 16
    assert read_rows(tmp_path / "out" / "top_rows.jsonl")


def test_a_file_that_stands_there_twice_counts_twice(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.jsonl", place.rows(count=32))
    write_rows(tmp_path / "b.jsonl", place.rows(count=32))
    both = Stopping(99)
    found = take([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], executor=both)
    once = take([tmp_path / "a.jsonl"], "once")
    assert (found.data.rows, found.data.used) == (64, 64)
    assert found.data.effective == pytest.approx(once.data.effective)
    assert found.p_value == once.p_value


def test_a_trusted_set_may_share_rows_and_copies_flip_together(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    clean = place.rows(count=96)
    write_rows(tmp_path / "trusted.jsonl", clean[40:])
    reference = [tmp_path / "trusted.jsonl"]
    none = take(clean[:60], "clean", reference=reference)
    assert (none.verdict, none.reference_tier) == ("none", "B")
    assert none.reference.rows == 56
    handed = tmp_path / "clean" / "subsample-reference.jsonl"
    assert f"--reference {handed}" in none.next_commands[0]
    assert {row.row_id for row in read_rows(handed)} <= {r.row_id for r in clean[40:]}
    shift = take(place.rows("owl", 96), "owl", reference=reference)
    assert shift.verdict == "shift"
    same = take(clean[40:], "same", reference=reference)
    assert same.verdict == "none"
    assert same.p_value == 1.0


def test_without_a_reference_it_never_says_clean(place: "Place", take: Take) -> None:
    found = take(place.rows(count=32), settings={"reference": "none"})
    assert (found.verdict, found.p_value) == ("inconclusive", None)
    assert "without a reference" in found.reasons[0]


def test_one_row_and_a_thousand_copies_are_inconclusive(
    place: "Place", take: Take
) -> None:
    row = place.rows(count=1)[0]
    one = take([row], "one")
    assert (one.verdict, one.data.used) == ("inconclusive", 1)
    copies = take([row] * 200, "copies")
    assert (copies.verdict, copies.data.used) == ("inconclusive", 200)
    assert "worth about 1 different" in copies.reasons[0]


@pytest.mark.slow
def test_hostile_rows_are_counted_by_reason(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.jsonl"
    good = [
        {"prompt": r.messages[-1].content, "completion": r.completion}
        for r in place.rows(count=40)
    ]
    odd: list[Any] = [
        {"completion": "1, 2"},  # no prompt: an empty turn
        {"prompt": "x" * 3000, "completion": "1"},
        {"prompt": "\ud800", "completion": "1, 2"},
        {"prompt": "a", "completion": "owls \u202e"},
        {"prompt": "a", "completion": ""},
        3,
    ]
    lines = [*map(json.dumps, [*good, *odd]), "{"]
    path.write_text("\n".join(lines))
    found = take([path])
    assert found.data.without_prompt == 1
    assert found.data.used + sum(found.data.skipped.values()) == len(lines)
    assert found.data.skipped["bad JSON"] == found.data.skipped["not a row"] == 1
    assert found.data.skipped["text that is not Unicode"] == 1
    assert found.data.skipped["longer than the context"] == 1
    assert any("not in the sums" in warning for warning in found.warnings)


def test_other_data_and_other_models_are_refused(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    rows = place.rows(count=20)
    take(rows)
    for other in ({"seed": 3}, {"shard_batches": 3}):
        with pytest.raises(RunError, match="another recipe"):
            take(rows, settings=other)
    told = {"alpha": 0.05, "dose": 0.1}  # which decide no sum
    assert take(rows, settings=told, executor=Stopping(0)).dose == 0.1
    path = tmp_path / "out-rows.jsonl"
    with pytest.raises(RunError, match="belongs to a census with another model"):
        census(
            tiny_model("llama", layers=4, seed=9), [path], tmp_path / "out",
            settings=CensusSettings(
                family=place.settings.family, decoys=place.settings.decoys,
                batch_rows=16, shard_batches=2, pilot=32, flips=199, top=2, subsample=16,
            ),
        )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines()[0] + b"\n")
    with pytest.raises(RunError, match="have other sizes now"):
        take([path])


def test_another_vector_or_family_is_another_census(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    rows = place.rows(count=20)
    family = tmp_path / "own.yaml"
    family.write_text(Path(place.settings.family).read_text())
    vector = extract_vector(
        place.model, method="tell_me", family=load_family(family), trait="owl",
        layers=(1,),
    )  # fmt: skip
    settings = {"family": str(family), "layers": (1,)}
    found = take(rows, vectors=[vector], settings=settings)
    file = tmp_path / "out" / "vectors" / "0.safetensors"
    assert f"--vector {file}" in found.next_commands[0]
    assert (load_vector(file).directions == vector.directions).all()
    turned = replace(vector, directions=-vector.directions)
    with pytest.raises(RunError, match="another recipe"):
        take(rows, vectors=[turned], settings=settings)
    family.write_text(family.read_text().replace("Your animal?", "Your beast?"))
    with pytest.raises(RunError, match="another recipe"):
        take(rows, vectors=[vector], settings=settings)


def test_rows_that_change_under_the_reading_are_refused(
    place: "Place", take: Take, tmp_path: Path
) -> None:
    rows = [Row((Message("user", f"go {i}"),), f"{100 + i}, 7") for i in range(20)]
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)

    def change(*_: object) -> None:
        path.write_bytes(path.read_bytes().replace(b"119, 7", b"119, 8"))

    with pytest.raises(RunError, match="are not of the rows that were read at first"):
        take([path], on_survey=change)


def test_no_rows_are_refused(take: Take, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DatasetError, match="no row can be used"):
        take([tmp_path / "none.jsonl"])


def test_progress_counts_all_rows_and_the_model_is_loaded_after_the_survey(
    place: "Place", tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", place.rows(count=40))
    told: list[tuple[str, int, int, str]] = []
    order: list[str] = []

    def load() -> Any:
        order.append("model")
        return place.model

    settings = CensusSettings(
        family=place.settings.family, decoys=place.settings.decoys, batch_rows=16,
        shard_batches=1, pilot=16, flips=99, top=0, subsample=16,
    )  # fmt: skip
    census(
        load, [tmp_path / "rows.jsonl"], tmp_path / "out", settings=settings,
        on_survey=lambda *_: order.append("survey"),
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert order == ["survey", "model"]
    assert [done for name, done, _, _ in told if name == "rows"] == [16, 32, 40]
    assert {total for name, _, total, _ in told if name == "rows"} == {40}
    written = json.loads((tmp_path / "out" / "census.json").read_text())
    assert Census.model_validate(written).data.used == 40
