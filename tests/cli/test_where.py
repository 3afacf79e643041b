"""The options that say where work is done."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.execution.strangers import Strangers

from undertow.cli.options import Loading
from undertow.cli.where import Where, others
from undertow.errors import RunError
from undertow.execution import processes as module
from undertow.execution import ray_cluster
from undertow.execution.executor import Needs
from undertow.execution.local import Here
from undertow.models import environment


def test_work_is_done_here_if_nothing_is_said() -> None:
    with Where().opened() as (executor, needs):
        assert executor == Here()
        assert needs == Needs()


def test_the_command_line_goes_before_the_recipe() -> None:
    with Where(on="here").opened("ray") as (executor, _):
        assert executor.is_here


def test_a_recipe_may_ask_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise ConnectionError("asked")

    monkeypatch.setattr(ray_cluster, "ray_cluster", refused)
    with pytest.raises(ConnectionError, match="asked"), Where().opened("ray"):
        pass


def test_others_load_the_model_as_it_was_asked_for_here() -> None:
    loading = Loading(model="tiny", dtype="float32", device_map='{"": "cpu"}')
    assert others(Here(), Needs(), loading) is None
    found = others(Strangers(), Needs(cpus=2.0), loading)
    assert found is not None
    assert (found.name, found.needs) == ("tiny", Needs(cpus=2.0))
    assert found.options["dtype"] == "float32"
    assert found.options["device_map"] == {"": "cpu"}


# Weights in float32, what a batch leaves for its backward pass, and the program.
SMOL = 4 * 134_515_008 + 30 * 576 * 1536 * 60 + 1100 * 2**20
GEMMA = 4 * 268_098_176 + 18 * 640 * 1382 * 60 + 1100 * 2**20


@pytest.mark.parametrize("given", [None, 4.0])
def test_processes_share_what_is_free(
    given: float | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(environment, "free_memory", lambda: 10 * 2**30)
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    where = Where(on="processes", worker_memory=given)
    with where.opened(models=["smollm2-135m"], devices=["cpu"]) as (executor, needs):
        assert not executor.is_here
        own = SMOL if given is None else 4 * 2**30
        assert needs == Needs(1.0, 0.0, own)
        assert executor.slots(needs) == (2 if given is None else 1)
    said = "2 processes" if given is None else "1 process"
    assert f"{said} of this machine at once" in capsys.readouterr().out


def test_processes_do_not_share_an_accelerator() -> None:
    with (
        pytest.raises(RunError, match=r"share the device meta; --on here takes all"),
        Where(on="processes").opened(devices=["cpu", "meta"]),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "free", "cores", "is_here"),
    [
        ("cpu", 10, 8, False),
        ("cpu", 8, 8, True),  # 3.1 for this process, 3.1 for one more
        ("cpu", 10, 1, True),
        ("cpu", None, 8, True),  # nobody knows what is free
        ("meta", 10, 8, True),
    ],
)
def test_processes_are_taken_where_they_fit_if_nobody_says(
    device: str, free: int | None, cores: int, is_here: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bytes_free = None if free is None else free * 2**30
    monkeypatch.setattr(environment, "free_memory", lambda: bytes_free)
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    opened = Where().opened("auto", models=["smollm2-135m"], devices=["cpu", device])
    with opened as (executor, needs):
        assert executor.is_here == is_here
        assert (needs == Needs()) == is_here


def test_processes_that_cannot_be_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "free_memory", lambda: 50 * 2**30)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    many = Where(worker_cpus=4.0).opened(
        "auto", models=["smollm2-135m"], devices=["cpu"]
    )
    unknown = Where().opened("auto", models=["nobody/knows-it"], devices=["cpu"])
    for opened in (many, unknown):
        with opened as (executor, _):
            assert executor.is_here


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that nobody has to start."""

    class Cluster:
        is_here = False
        gpus = 4.0

        def slots(self, needs: Needs) -> int:
            return 4

        def map(self, function: object, values: object, *, needs: Needs) -> object:
            raise NotImplementedError

    @contextmanager
    def opened() -> Iterator[Cluster]:
        yield Cluster()

    monkeypatch.setattr(ray_cluster, "ray_cluster", opened)


@pytest.mark.usefixtures("cluster")
def test_a_worker_declares_the_memory_of_the_largest_model_that_it_loads() -> None:
    def declared(*models: str, given: float | None = None) -> int | None:
        where = Where(on="ray", worker_memory=given)
        with where.opened(models=models) as (_, needs):
            return needs.memory_bytes

    assert declared("smollm2-135m") == SMOL
    assert declared("gemma3-270m") == GEMMA
    assert SMOL > GEMMA, "more blocks keep more"
    assert declared("smollm2-135m", "gemma3-270m") == SMOL
    assert declared("smollm2-135m", given=3.0) == 3 * 2**30
    assert declared("smollm2-135m", "nobody/knows-it") is None
    assert declared() is None


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("gpus", [None, 0.0, 0.5])
def test_a_worker_takes_a_gpu_where_there_are_any(gpus: float | None) -> None:
    where = Where(on="ray", worker_gpus=gpus, worker_memory=2.0)
    with where.opened() as (executor, needs):
        assert not executor.is_here
        assert needs.gpus == (1.0 if gpus is None else gpus)
        assert needs.memory_bytes == 2 * 2**30
