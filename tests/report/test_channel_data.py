"""What of a channel measurement is the axis, what tells lines apart, which other is near."""

from tests.report.measured import grid, spot

from undertow.report.channel_data import axis_of, from_base, line_names, nearest_other


def test_the_axis_is_what_differs_most() -> None:
    doses = grid()
    assert axis_of(doses) == "dose"
    assert (
        list(map(line_names(doses), doses.points))
        == ["block 16"] * 3 + ["block 24"] * 3
    )
    noisy = grid(
        *(spot(noise=p, seed=s if p else None, carrier=c)
          for c in ("numbers", "code") for p in (0.0, 0.1, 0.2) for s in (1, 2))
    )  # fmt: skip
    assert axis_of(noisy) == "noise"
    assert set(map(line_names(noisy), noisy.points)) == {"numbers", "code"}
    blocks = grid(*(spot(layer=at, dose=d) for at in (8, 16, 24) for d in (0.1, 0.3)))
    assert axis_of(blocks) == "layer"
    assert line_names(blocks)(blocks.points[0]) == "dose 0.1"


def test_a_prompt_has_neither_dose_nor_block() -> None:
    alone = grid(spot(None, layer=None), teacher="prompt")
    assert axis_of(alone) == "noise"
    kinds = grid(
        *(spot(None, layer=None, carrier=c) for c in ("numbers", "code")),
        teacher="prompt",
    )
    assert axis_of(kinds) == "noise"
    assert list(map(line_names(kinds), kinds.points)) == ["numbers", "code"]


def test_the_nearest_other_is_the_one_that_is_hardest_to_tell() -> None:
    here = spot()
    base, near = from_base(here), nearest_other(here)
    assert base is not None
    assert near is not None
    assert (base.other, near.other) == ("base", "wolf")
    assert from_base(spot(rows=0)) is None
    unknown = here.widths[1].vocabulary.model_copy(update={"mean": None})
    widths = [
        here.widths[0],
        here.widths[1].model_copy(update={"vocabulary": unknown}),
        here.widths[2],
    ]
    left = nearest_other(here.model_copy(update={"widths": widths}))
    assert left is not None
    assert left.other == "cat"
