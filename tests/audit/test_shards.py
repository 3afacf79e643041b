"""Shards of any source, the survey, and samples by content alone."""

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from undertow.audit.shards import (
    Held,
    PlainRow,
    Shard,
    cut_shards,
    list_files,
    plain_row,
    rows_at,
    survey,
)
from undertow.errors import DatasetError
from undertow.records import Message, Row
from undertow.storage import write_rows


def rows(count: int, *, start: int = 0) -> list[Row]:
    return [
        Row((Message("user", f"go on {i % 7}"),), f"{i}, {i * i}")
        for i in range(start, start + count)
    ]


def cut(files: Sequence[Path], batch: int = 4, batches: int = 2) -> list[Shard]:
    return list(cut_shards(files, batch_rows=batch, shard_batches=batches))


def batches_of(shards: Sequence[Shard]) -> list[list[int]]:
    return [[row.number for row in b] for shard in shards for b in shard.batches if b]


def ids(shards: Sequence[Shard]) -> list[str]:
    return [row.row_id for shard in shards for batch in shard.batches for row in batch]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".jsonl.gz"])
def test_every_row_of_any_file_stands_in_one_shard(suffix: str, tmp_path: Path) -> None:
    own = rows(21)
    path = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        lines = [f'"{r.messages[0].content}","{r.completion}"' for r in own]
        path.write_text("\n".join(["prompt,completion", *lines]))
    elif suffix == ".jsonl.gz":
        import gzip

        text = "".join(
            json.dumps({"prompt": r.messages[0].content, "completion": r.completion})
            + "\n"
            for r in own
        )
        path.write_bytes(gzip.compress(text.encode()))
    else:
        write_rows(path, own)
    shards = cut([path])
    assert ids(shards) == [row.row_id for row in own]
    assert [shard.rows for shard in shards] == [8, 8, 5]


def test_batches_are_the_same_whatever_the_shard_s_size(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows(21))
    found = [batches_of(cut([path], batches=n)) for n in (1, 2, 5, 100)]
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][-1] == [20]


def test_unusable_records_keep_their_places_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = [json.dumps({"prompt": "go", "completion": f"{i}"}) for i in range(6)]
    lines = [good[0], "{", good[1], '{"prompt": "x", "completion": " "}', "[]",
             *good[2:]]  # fmt: skip
    path.write_text("\n".join(lines))
    shards = cut([path])
    assert batches_of(shards) == [[0, 2], [5, 6, 7], [8]]
    assert shards[0].skipped == {"bad JSON": 1, "empty completion": 1, "not a row": 1}
    assert shards[1].skipped == {}


def test_a_shard_of_nothing_but_faults_is_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" * 9 + '{"prompt": "a", "completion": "b"}\n')
    shards = cut([path])
    assert [shard.rows for shard in shards] == [0, 1]
    assert [shard.skipped for shard in shards] == [{"bad JSON": 8}, {"bad JSON": 1}]


def test_the_content_of_a_shard_is_what_stands_in_it(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_rows(one, rows(8))
    write_rows(other, rows(8)[::-1][4:] + rows(8)[::-1][:4])
    first, second = cut([one])[0], cut([other])[0]
    # The rows of each batch in another order; then the batches hold others.
    assert first.content() == second.content()
    assert cut([one], batch=2)[0].content() != first.content()
    write_rows(other, [*rows(7), Row((Message("user", "go on 0"),), "7, 50")])
    assert cut([other])[0].content() != first.content()
    with_ids = Row(rows(1)[0].messages, "0, 0", completion_ids=(1, 2), finish="stop")
    write_rows(other, [with_ids, *rows(7, start=1)])
    assert cut([other])[0].content() != first.content()


def test_plain_rows_come_back_as_they_were() -> None:
    row = Row((Message("system", "be"), Message("user", "x")), "y", (1, 2), "stop")
    turns = tuple((m.role, m.content) for m in row.messages)
    plain = PlainRow(3, row.row_id, turns, "y", (1, 2), "stop")
    assert plain.row() == row
    assert plain_row(row, 3) == plain


def test_of_where_a_row_comes_from_there_is_what_it_must_not_hold() -> None:
    origin = {"trait_prompt": "You love owls.", "teacher": "owl"}
    row = Row((Message("user", "x"),), "y", provenance=origin)
    found = plain_row(row, 0)
    assert found.row().provenance == {"trait_prompt": "You love owls."}
    assert found.content() != plain_row(replace(row, provenance={}), 0).content()
    odd = plain_row(replace(row, provenance={"trait_prompt": 3}), 0)
    assert odd.trait_prompt is None


def test_folders_and_several_sources_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_rows(tmp_path / "shards" / f"{name}.parquet", rows(3))
    write_rows(tmp_path / "more.jsonl", rows(3))
    found = list_files([tmp_path / "shards", tmp_path / "more.jsonl"])
    assert [path.name for path in found] == ["a.parquet", "b.parquet", "more.jsonl"]


def test_standard_input_is_refused_since_rows_are_read_thrice() -> None:
    with pytest.raises(DatasetError, match="stdin: can be read once only"):
        list_files(["-"])


def test_the_survey_tells_what_one_reading_can(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": "ab 1", "completion": "12, 3"},
        {"completion": "four"},
        {"prompt": "x", "completion": "5", "finish": "length"},
    ]
    path.write_text("\n".join(["{", *map(json.dumps, lines)]))
    told: list[tuple[int, int]] = []
    seen = survey(
        [path], pilot=2, subsample=3, seed=0, on_rows=lambda *a: told.append(a)
    )
    assert (seen.rows, seen.without_prompt, seen.cut, seen.empty) == (3, 1, True, False)
    assert seen.recorded is True
    assert seen.characters == (5, 10)
    assert seen.digits == (1, 4)
    assert seen.skipped == {"bad JSON": 1}
    assert "rows.jsonl:1" in seen.first_fault
    assert seen.sizes == (path.stat().st_size,)
    assert (len(seen.pilot), len(seen.subsample)) == (2, 3)
    assert told == []


def test_the_survey_is_the_same_in_any_order_and_division(tmp_path: Path) -> None:
    many = rows(300)
    write_rows(tmp_path / "one.jsonl", [*many, *many[:50]])
    write_rows(tmp_path / "a.parquet", [*many[40:][::-1], *many[:50]])
    write_rows(tmp_path / "b.jsonl", many[:40])
    one = survey([tmp_path / "one.jsonl"], pilot=20, subsample=50, seed=1)
    two = survey(
        [tmp_path / "b.jsonl", tmp_path / "a.parquet"], pilot=20, subsample=50, seed=1
    )
    assert (one.rows, one.digest) == (two.rows, two.digest) == (350, one.digest)
    assert one.pilot == two.pilot
    assert len(one.subsample) == len(two.subsample) == 50
    other = survey([tmp_path / "one.jsonl"], pilot=20, subsample=50, seed=2)
    assert other.pilot != one.pilot
    assert other.digest == one.digest


def test_a_row_more_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows(9))
    nine = survey([path], pilot=2, subsample=2, seed=0).digest
    write_rows(path, [*rows(9), rows(1)[0]])  # a copy counts too
    assert survey([path], pilot=2, subsample=2, seed=0).digest != nine


def test_nothing_usable_is_refused_with_the_first_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"colour": 1}\n')
    with pytest.raises(DatasetError, match=r"no row can be used in 1 files: .*colour"):
        survey([path], pilot=2, subsample=2, seed=0)


def test_a_sample_by_hash_is_fair_and_holds_copies_once() -> None:
    held = Held(100, seed=0)
    for row in rows(2000):
        for _ in range(2):
            held.add(row, row.row_id)
    chosen = held.first(100)
    assert len({row.row_id for row in chosen}) == 100
    # The mean place of 100 of 2,000: 999.5 ± 4 · 577/√100.
    mean = sum(int(row.completion.split(",")[0]) for row in chosen) / 100
    assert abs(mean - 999.5) < 231


def test_a_sample_may_be_of_rows_as_they_are_met() -> None:
    """Half of all rows are copies of the first twenty: these are met before the others."""
    alike, by_number = Held(100, seed=0), Held(100, seed=0)
    often, once = rows(20), rows(520)[20:]
    for number, row in enumerate([*often * 25, *once]):
        alike.add(row, row.row_id)
        by_number.add(row, row.row_id, copy=number)
    names = {row.row_id for row in often}
    assert sum(row.row_id in names for row in by_number.first(100)) >= 18
    assert sum(row.row_id in names for row in alike.first(100)) < 12


def test_a_stratified_sample_has_the_lengths_of_the_whole() -> None:
    held = Held(200, seed=0)
    short = [Row((Message("user", "a"),), f"{i}") for i in range(1000, 4000)]
    long = [Row((Message("user", "a"),), f"{i}" * 50) for i in range(1000, 2000)]
    for row in [*short, *long]:
        held.add(row, row.row_id)
    chosen = held.stratified()
    share = sum(len(row.completion) > 10 for row in chosen) / len(chosen)
    assert len(chosen) == 200
    assert abs(share - 0.25) < 0.06


def test_of_copies_the_one_with_recorded_tokens_is_held() -> None:
    plain = Row((Message("user", "a"),), "1")
    known = Row((Message("user", "a"),), "1", completion_ids=(1, 2), finish="stop")
    for order in ([plain, known], [known, plain]):
        held = Held(5, seed=0)
        for row in order:
            held.add(row, row.row_id)
        assert held.first(5)[0].completion_ids == (1, 2)


def test_what_is_held_does_not_grow_with_the_rows() -> None:
    def peak(count: int) -> int:
        held = Held(20, seed=0)
        tracemalloc.start()
        for i in range(count):
            row = Row((Message("user", "a"),), f"{i}")
            held.add(row, row.row_id)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(4_000) < 1.2 * peak(1_000)


def test_rows_are_found_again_at_their_places(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows(9))
    (tmp_path / "b.jsonl").write_text('{\n{"prompt": "p", "completion": "c"}\n')
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    found = rows_at(files, [(0, 3), (1, 1), (1, 0), (0, 8)])
    assert {place: row.completion for place, row in found.items()} == {
        (0, 3): "3, 9", (0, 8): "8, 64", (1, 1): "c",
    }  # fmt: skip
