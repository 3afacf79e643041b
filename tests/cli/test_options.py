"""Groups of options become options of a command, and values of the library."""

import inspect
from pathlib import Path
from typing import Annotated

import pytest
import typer

from undertow.cli.options import (
    Loading,
    Sampling,
    Steering,
    Training,
    expanded,
    numbers,
    refuse_existing,
    words,
)
from undertow.errors import ConfigError, ModelError, RunError


def test_a_command_shows_the_options_of_its_groups_in_their_place() -> None:
    got: dict[str, object] = {}

    @expanded
    def act(
        first: str, *, sampling: Sampling, count: Annotated[int, typer.Option()] = 3
    ) -> None:
        """Acts."""
        got.update(first=first, sampling=sampling, count=count)

    names = list(inspect.signature(act).parameters)
    assert names == [
        "first", "temperature", "top_p", "top_k", "max_new_tokens", "allowed",
        "list_values", "count",
    ]  # fmt: skip
    assert act.__doc__ == "Acts."
    rest = dict.fromkeys(names[2:-1])
    act(first="a", temperature=0.5, count=4, **rest)
    assert got == {"first": "a", "sampling": Sampling(temperature=0.5), "count": 4}


def test_options_that_are_not_given_leave_the_library_its_defaults() -> None:
    from undertow.models.sampling import SamplerSettings
    from undertow.pipeline.training_settings import TrainingSettings

    assert Sampling().settings() == SamplerSettings()
    assert Training().settings() == TrainingSettings()
    assert Sampling(top_k=0, temperature=0.0).settings() == SamplerSettings(
        top_k=0, temperature=0.0
    )


def test_every_training_setting_can_be_reached() -> None:
    from undertow.pipeline.training_settings import TrainingSettings

    for name, field in TrainingSettings.model_fields.items():
        text = "null" if field.default is None else str(field.default)
        settings = Training(overrides=[f"{name}={text}"]).settings()
        assert settings == TrainingSettings(), name
    assert Training(rank=4, overrides=["rank=2"]).settings().rank == 2


def test_all_faults_of_a_group_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1.0, top_p=2.0).settings()
    assert caught.value.where == "sampler options"
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "temperature", "top_p",
    ]  # fmt: skip


def test_loading_hands_on_what_it_was_given(llama: Path) -> None:
    model = Loading(model=str(llama), dtype="float32", template="plain").load()
    assert model.template.name == "plain"
    assert str(model.dtype) == "torch.float32"


def test_a_device_map_is_handed_on_as_what_it_says(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"model": "disk", "lm_head": "cpu"}')
    model = Loading(model=str(llama), dtype="float32", device_map=str(path)).load()
    assert model.is_split
    assert model.reason == "float32 as asked; device map as given (disk 1, cpu 1)"
    with pytest.raises(ModelError, match=r"device map 'nowhere': .*expected one of"):
        Loading(model=str(llama), device_map="nowhere").load()


def test_a_dose_is_a_strength_at_one_layer(vector: Path) -> None:
    from undertow.interventions.steering import load_vector

    found, strength = Steering(vector=vector, dose=0.5, layer=1).settled()
    whole = load_vector(vector)
    assert found.layers == (1,)
    # The strength makes the added part half as long as the stream.
    assert strength * whole.norm(1) == pytest.approx(whole.residual_norms[0] / 2)
    both, strength = Steering(vector=vector, strength=-2.0).settled()
    assert both.layers == (1, 2)
    assert strength == -2.0


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [("1,2", int, (1, 2)), (" 3 ", int, (3,)), ("0.5,1e-3", float, (0.5, 0.001))],
)
def test_numbers_are_read(text: str, kind: type[int], wanted: tuple[int, ...]) -> None:
    assert numbers("--x", text, kind) == wanted


@pytest.mark.parametrize("text", ["", "1,", "1;2", "1.5"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="expected whole numbers with commas"):
        numbers("--x", text, int)


def test_words_are_parted_at_commas() -> None:
    assert words("sea lion, owl,,cat ") == ("sea lion", "owl", "cat")


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "free")
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    for place in (tmp_path, dangling):
        with pytest.raises(RunError, match="exists already and is left as it is"):
            refuse_existing(place)
