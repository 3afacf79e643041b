"""The CSV files behind the figures: every value, and nothing that computes."""

import csv
from collections.abc import Sequence
from pathlib import Path

from undertow.report.figure_data import figure_data, write_figure_data
from undertow.results import Results


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_has_its_file(realistic: Results, tmp_path: Path) -> None:
    written = write_figure_data(realistic, tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in written) == [
        "figures/channel.csv", "figures/confusion.csv", "figures/emergence.csv",
        "figures/gradients.csv",
        "figures/noise_factors.csv", "figures/readouts.csv",
        "figures/shape.csv", "figures/shift.csv", "figures/spectrum.csv",
        "figures/sweeps.csv", "figures/training.csv",
        "figures/traits.csv", "figures/transfer.csv",
    ]  # fmt: skip
    assert {path.stem: len(read(path)) for path in written} == {
        "transfer": 4,
        "readouts": 20 * 4 * 4,  # conditions × roles × measures
        "shift": 20 * 2 * 30,
        "shape": 20 * 2 * 30,
        "spectrum": 20 * 2 * 30 * 8,
        "emergence": 20 * 3,
        "traits": 20 * 20,
        "confusion": 2 * 2 * 2,
        "noise_factors": 1,
        "sweeps": 4 * 10,
        "training": 20 * 2 * 90,
        "channel": 4,
        "gradients": 7 * 30 * 2,  # sets of rows × blocks × vectors
    }


def test_the_values_are_the_results_own(realistic: Results, tmp_path: Path) -> None:
    write_figure_data(realistic, tmp_path)
    for row, item in zip(
        read(tmp_path / "figures" / "transfer.csv"), realistic.transfers, strict=True
    ):
        assert row["trait"] == item.trait
        assert float(row["noise"]) == item.noise
        assert float(row["mean"]) == item.transfer.mean
        assert float(row["low"]) == item.transfer.low
        assert float(row["specific_high"]) == item.specific.high
        assert int(row["n"]) == item.transfer.n
    changes = read(tmp_path / "figures" / "traits.csv")
    first = realistic.conditions[0]
    assert [float(r["change"]) for r in changes[:20]] == list(first.all_traits.values())
    assert [r["measured"] for r in changes[:20] if r["is_own"] == "true"] == ["owl"]


def test_the_chosen_point_is_marked(realistic: Results, tmp_path: Path) -> None:
    write_figure_data(realistic, tmp_path)
    chosen = [
        (r["sweep"], r["layer"], r["dose"], r["is_allowed"])
        for r in read(tmp_path / "figures" / "sweeps.csv")
        if r["is_chosen"] == "true"
    ]
    assert chosen == [(str(n), "24.0", "0.5", "true") for n in (1, 2, 3, 4)]


def test_what_is_missing_is_an_empty_field(empty: Results, tmp_path: Path) -> None:
    write_figure_data(empty, tmp_path)
    (row,) = read(tmp_path / "figures" / "transfer.csv")
    assert (row["mean"], row["low"], row["high"]) == ("", "", "")
    assert row["n"] == "0"
    factors = read(tmp_path / "figures" / "noise_factors.csv")
    assert (factors[1]["ratio"], factors[1]["low"]) == ("3.25", "")
    assert not (tmp_path / "figures" / "training.csv").exists()
    assert "training" not in figure_data(empty)


def test_no_field_is_a_formula_or_hides_anything(
    hostile: Results, evil: Sequence[str], tmp_path: Path
) -> None:
    paths = write_figure_data(hostile, tmp_path)
    for path in paths:
        text = path.read_bytes()
        assert b"\x1b" not in text
        assert b"\0" not in text
        assert "\u202e" not in text.decode()
        for row in read(path):
            for field in row.values():
                is_number = (
                    field.lstrip("-").replace(".", "").replace("e-", "").isdigit()
                )
                assert is_number or field[:1] not in tuple("=+-@\t\r")
    traits = {row["trait"] for row in read(tmp_path / "figures" / "transfer.csv")}
    assert "'" + evil[3] in traits
    assert evil[0] in traits


def test_text_behind_white_space_is_no_formula_either(
    realistic: Results, tmp_path: Path
) -> None:
    names = ["  =1+1", "\n@SUM(A1)", "＝1", "owl-like"]
    item = realistic.transfers[0]
    changed = realistic.model_copy(
        update={"transfers": [item.model_copy(update={"trait": n}) for n in names]}
    )
    write_figure_data(changed, tmp_path)
    assert [r["trait"] for r in read(tmp_path / "figures" / "transfer.csv")] == [
        "'  =1+1", "'\n@SUM(A1)", "'＝1", "owl-like",
    ]  # fmt: skip


def test_channels_and_gradients_keep_their_values(
    realistic: Results, tmp_path: Path
) -> None:
    write_figure_data(realistic, tmp_path)
    for row, item in zip(
        read(tmp_path / "figures" / "channel.csv"), realistic.transfers, strict=True
    ):
        assert item.channel is not None
        assert float(row["carrier"]) == item.channel.carrier.mean
        assert float(row["transfer"]) == item.transfer.mean
    rows = read(tmp_path / "figures" / "gradients.csv")
    first = realistic.alignments[0]
    at = [
        r
        for r in rows
        if (r["teacher"], r["trait"], r["layer"]) == ("steer", "owl", "24")
    ]
    assert [float(r["cosine"]) for r in at] == first.cosines[24]
    assert [r["is_own"] for r in at] == ["true", "false"]
    assert float(at[0]["nats_se"]) == 2.0 / 8
    assert rows[-1]["teacher"] == "untouched base"
    assert rows[-1]["vector_layer"] == ""
