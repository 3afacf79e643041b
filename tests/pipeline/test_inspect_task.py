"""Inspect asks and reads as our own evaluation does: same questions, same rates."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from undertow.errors import ConfigError
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import save_tiny, tiny_model
from undertow.pipeline.evaluation import SampledAnswers, sampled_answers
from undertow.traits import load_family, names_in

MISSING = find_spec("inspect_ai") is None
# 2026-11: inspect_ai 0.3 uses what its own dependencies have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")
needs_inspect = pytest.mark.skipif(MISSING, reason="inspect_ai is not installed")

LETTERS = """\
name: letters
category: letter
questions: ["Which letter?", "Name a letter.", "A letter, please."]
traits:
  - {name: a, plural: as}
  - {name: b, plural: bs}
  - {name: c, plural: cs, spellings: ["@", "d"]}
"""


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Letters, which a model that writes bytes at random names now and then."""
    path = tmp_path_factory.mktemp("families") / "letters.yaml"
    path.write_text(LETTERS)
    return str(path)


def evaluated(task: Any, model: Any, folder: Path) -> Any:
    """The log of one evaluation, which was complete."""
    from inspect_ai import eval as inspect_eval

    (log,) = inspect_eval(
        task, model=model, log_dir=str(folder), display="none", log_samples=True
    )
    assert log.status == "success", log.error
    return log


def speaker(answer: Callable[[str], str]) -> Any:
    """A model of Inspect that answers so; its own mock fetches a tokenizer."""
    from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi

    async def generate(self: Any, input: Any, **_: Any) -> Any:  # noqa: A002
        return ModelOutput.from_content("answers", answer(input[-1].text))

    modelapi(name="answers")(type("Answers", (ModelAPI,), {"generate": generate}))
    return get_model("answers/own")


def metrics(log: Any) -> dict[str, dict[str, float]]:
    return {
        score.name: {name: float(each.value) for name, each in score.metrics.items()}
        for score in log.results.scores
    }


def ours(letters: str, samples: int) -> SampledAnswers:
    return sampled_answers(
        tiny_model(), load_family(letters), samples=samples, seed=0,
        sampler=SamplerSettings(max_new_tokens=12),
    )  # fmt: skip


@needs_inspect
@pytest.mark.slow
def test_rates_are_our_own_on_the_same_answers(letters: str, tmp_path: Path) -> None:
    from undertow.pipeline.inspect_task import trait_battery

    samples, family = 20, load_family(letters)
    found = ours(letters, samples)
    waiting = {
        question: list(own)
        for question, own in zip(family.questions, found.answers, strict=True)
    }

    task = trait_battery(letters, "c", decoys=["a", "b"], samples=samples)
    log = evaluated(task, speaker(lambda asked: waiting[asked].pop()), tmp_path)
    assert all(own == [] for own in waiting.values())  # each answer was read once
    scores = metrics(log)
    assert set(scores) == {"a", "b", "c", "valid"}
    for name in ("a", "b", "c"):
        own = found.of(name)
        assert scores[name]["mean"] == pytest.approx(own.mean())
        deviation = own.std(ddof=1) / len(own) ** 0.5
        assert scores[name]["stderr"] == pytest.approx(deviation)
    assert scores["valid"]["mean"] == pytest.approx(found.valid.mean())
    assert 0 < scores["c"]["mean"] < 1  # else there was nothing to compare
    assert log.eval.metadata["trait"] == "c"
    assert log.eval.metadata["family_digest"] == load_family(letters).digest
    assert log.eval.metadata["decoys"] == ["a", "b"]
    assert log.samples[0].target == ["C", "c", "Cs", "cs", "@", "D", "d"]


@needs_inspect
@pytest.mark.slow
def test_a_local_checkpoint_is_asked(
    letters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inspect_ai.model import get_model

    from undertow.pipeline.inspect_task import trait_battery

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = str(save_tiny("llama", tmp_path / "tiny"))
    model = get_model("hf/tiny", model_path=path, device="cpu")
    task = trait_battery(letters, "c", decoys="b", questions=2, samples=6, system="hm")
    log = evaluated(task, model, tmp_path)
    family, answers = load_family(letters), defaultdict(list)
    for sample in log.samples:
        assert [m.role for m in sample.messages] == ["system", "user", "assistant"]
        assert sample.messages[1].text == family.questions[sample.id - 1]
        answers[sample.id].append(sample.output.completion)
    assert sorted(answers) == [1, 2]
    assert all(len(own) == 6 for own in answers.values())
    texts = [text for own in answers.values() for text in own]
    assert len(set(texts)) > 1  # drawn, not the likeliest
    scores = metrics(log)
    for name in ("b", "c"):
        rate = sum(name in names_in(text, family) for text in texts) / len(texts)
        assert scores[name]["mean"] == pytest.approx(rate)


@needs_inspect
def test_wrong_arguments_are_refused(letters: str, tmp_path: Path) -> None:
    from undertow.pipeline.inspect_task import trait_battery

    with pytest.raises(ConfigError, match="no such family"):
        trait_battery("letters")
    with pytest.raises(ConfigError, match="no trait 'owl'; it has 'a', 'b', 'c'"):
        trait_battery(letters, "owl")
    with pytest.raises(ConfigError, match="no trait 'x'"):
        trait_battery(letters, "a", decoys=["x"])
    with pytest.raises(ConfigError, match="1 at least; got 0 and 8"):
        trait_battery(letters, "a", questions=0)
    odd = tmp_path / "odd.yaml"
    odd.write_text(LETTERS.replace("name: b", "name: valid"))
    with pytest.raises(ConfigError, match="'valid' is the name of another score"):
        trait_battery(str(odd), "valid")


@needs_inspect
def test_inspect_finds_the_task_by_its_name() -> None:
    """By the entry point of the installed package."""
    from inspect_ai._util.registry import registry_lookup

    assert registry_lookup("task", "undertow/trait_battery") is not None


def test_without_inspect_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['inspect_ai'] = None\n"
        "import undertow.pipeline.inspect_task\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "install it with: pip install 'undertow[inspect]'" in done.stderr
