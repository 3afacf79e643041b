"""Models from disk: the same bits back, everything unsafe or damaged refused."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from undertow.errors import ModelError
from undertow.models import loading
from undertow.models.loading import (
    choose_device,
    choose_dtype,
    fingerprint,
    load_model,
    save_checkpoint,
)
from undertow.models.tiny import FAMILIES, Family, save_tiny, tiny_model

IDS = torch.tensor([[7, 50, 9, 120, 33]])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_bit_for_bit(family: Family, tmp_path: Path) -> None:
    model = tiny_model(family, seed=3)
    save_checkpoint(model, tmp_path / "checkpoint", provenance={"why": "test"})
    loaded = load_model(tmp_path / "checkpoint", dtype="float32", device="cpu")
    weights = dict(model.module.named_parameters())
    again = dict(loaded.module.named_parameters())
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert torch.equal(model.module(IDS).logits, loaded.module(IDS).logits)
    assert loaded.fingerprint == model.fingerprint
    assert loaded.end_ids == model.end_ids
    assert loaded.template == model.template
    assert loaded.context == model.context == 2048
    assert loaded.reason == "float32 as asked; device cpu as asked"
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    facts = json.loads((tmp_path / "checkpoint" / "undertow.json").read_text())
    assert facts == {
        "format": 1,
        "base": f"tiny-{family}",
        "fingerprint": model.fingerprint,
        "provenance": {"why": "test"},
    }


def test_a_checkpoint_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    target = save_tiny("llama", tmp_path / "checkpoint", seed=0)
    left_over = tmp_path / "checkpoint.partial"
    left_over.mkdir()
    (left_over / "stale.txt").write_text("from a killed process")
    save_tiny("llama", target, seed=1)
    assert load_model(target).fingerprint == tiny_model("llama", seed=1).fingerprint
    assert not (target / "stale.txt").exists()
    assert not left_over.exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("precious")
    with pytest.raises(ModelError, match=r"thesis: holds other files"):
        save_tiny("llama", other)
    assert (other / "chapter.txt").read_text() == "precious"


def test_saving_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_tiny("llama", tmp_path / "checkpoint")
    load_model(tmp_path / "checkpoint")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_fingerprint_follows_the_weights_not_the_dtype(llama: Path) -> None:
    full = load_model(llama, dtype="float32")
    half = load_model(llama, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert full.fingerprint == half.fingerprint
    assert len(full.fingerprint) == 16
    assert int(full.fingerprint, 16) >= 0
    assert full.fingerprint != tiny_model("llama", seed=1).fingerprint
    assert full.fingerprint != tiny_model("llama", hidden=48).fingerprint
    full.module.model.norm.weight[0] += 1
    assert fingerprint(full.module) != full.fingerprint


def test_dtypes_have_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(loading, "_bf16_units", lambda: "AMX")
    assert choose_dtype("auto", cpu) == (
        torch.bfloat16, "bfloat16: the processor has AMX",
    )  # fmt: skip
    monkeypatch.setattr(loading, "_bf16_units", lambda: None)
    assert choose_dtype("auto", cpu) == (
        torch.float32, "float32: the processor has no bfloat16 units",
    )  # fmt: skip
    assert choose_dtype("float16", cpu) == (torch.float16, "float16 as asked")
    with pytest.raises(ModelError, match=r"dtype 'int8': expected auto or one of"):
        choose_dtype("int8", cpu)


def test_devices_have_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto")[1] == "device cpu: there is no CUDA device"
    assert choose_device("cpu") == (torch.device("cpu"), "device cpu as asked")
    with pytest.raises(ModelError, match=r"device 'cuda:1': no CUDA device; use 'cpu'"):
        choose_device("cuda:1")
    with pytest.raises(ModelError, match=r"device 'gpu': torch knows no such device"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert choose_device("auto") == (torch.device("cuda"), "device cuda: Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    why = choose_dtype("auto", torch.device("cuda"))[1]
    assert why == "bfloat16: the GPU computes it"


@pytest.mark.parametrize("name", ["nobody/no-such-model", "nothing-of-this-name"])
def test_an_unreachable_hub_is_said_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert f"model {name!r} cannot be loaded" in message
    assert "couldn't connect" in message
    assert "smollm2-135m, gemma3-270m" in message
    assert "a hub name where the hub can be reached" in message


def test_a_path_or_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.gguf: no such file or folder"):
        load_model(tmp_path / "gone.gguf")
    with pytest.raises(ModelError, match=r"missing\.gguf: no such file or folder"):
        load_model("missing.gguf")
    with pytest.raises(ModelError, match=r"gone: no such file or folder"):
        load_model(tmp_path / "gone")


def test_pickled_weights_are_never_read(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load_model(copy)
    assert "no file named model.safetensors" in str(caught.value)
    assert "pickled weights and remote code are never loaded" in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", "something_of_their_own"])
def test_a_folder_s_own_code_is_never_run(copy: Path, model_type: str) -> None:
    proof = copy / "proof"
    (copy / "evil.py").write_text(f"open({str(proof)!r}, 'w').write('it ran')\n")
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
    }
    (copy / "config.json").write_text(json.dumps(config))
    if model_type == "llama":  # transformers has code of its own for it
        load_model(copy)
    else:
        with pytest.raises(ModelError, match="remote code are never loaded"):
            load_model(copy)
    assert not proof.exists()


def _torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _missing_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_torn_weights, "SafetensorError"),
        (_missing_weight, "weights are missing: 'model.layers.1.mlp.up_proj.weight'"),
        (_other_shape, "RuntimeError"),
        (_bad_config, "not a valid JSON"),
        (_no_tokenizer, "tokenizer"),
    ],
)
def test_damaged_folders_are_refused(copy: Path, damage: object, said: str) -> None:
    assert callable(damage)
    damage(copy)
    with pytest.raises(ModelError) as caught:
        load_model(copy)
    assert said in str(caught.value)
    assert str(copy) in str(caught.value)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "torn.gguf"
    path.write_bytes(b"GGUF and then nothing")
    with pytest.raises(ModelError, match=r"torn\.gguf' cannot be loaded"):
        load_model(path)


def test_a_gguf_header_that_lies_is_refused_at_once(tmp_path: Path) -> None:
    # The reader of the gguf package would fill the memory with what is not there.
    path = tmp_path / "lie.gguf"
    name = struct.pack("<Q", 1) + b"a"
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + name
        + struct.pack("<IIQ", 9, 4, 1 << 23)
    )
    with pytest.raises(ModelError, match="leads out of the file"):
        load_model(path)


class PanicException(BaseException):
    """As tokenizers raises it, at a vocabulary that makes no sense."""


@pytest.mark.parametrize("error", [TypeError("odd"), PanicException("range end")])
def test_whatever_other_libraries_raise_is_a_model_error(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> object:
        raise error

    monkeypatch.setattr(loading, "_load_from", fail)
    with pytest.raises(ModelError, match=f"{type(error).__name__}: {error}"):
        load_model(copy)


def test_an_interruption_is_not_taken_for_a_bad_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "_load_from", stop)
    with pytest.raises(KeyboardInterrupt):
        load_model(copy)


def test_a_model_without_end_token_is_refused(copy: Path) -> None:
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        facts = json.loads((copy / name).read_text())
        facts.pop("eos_token_id", None)
        facts.pop("eos_token", None)
        (copy / name).write_text(json.dumps(facts))
    (copy / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(ModelError, match=r"no end token.*set tokenizer\.eos_token"):
        load_model(copy)


def test_a_model_without_template_asks_for_one(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template.*'plain', 'gemma'"):
        load_model(copy)
    model = load_model(copy, template="plain")
    newline = model.tokenizer.encode("\n", add_special_tokens=False)
    assert model.template.name == "plain"
    assert model.end_ids[:1] == tuple(newline)
    with pytest.raises(ModelError, match="unknown chat template 'vicuna'"):
        load_model(copy, template="vicuna")


@pytest.fixture
def verbose() -> Iterator[int]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(20)
    yield 20
    logging.set_verbosity(before)


def test_loading_leaves_the_verbosity_of_transformers(
    llama: Path, verbose: int
) -> None:
    from transformers.utils import logging

    load_model(llama)
    assert logging.get_verbosity() == verbose


@pytest.mark.parametrize(("given", "kept"), [(None, "128"), ("7", "7")])
def test_kernels_of_few_shapes_are_kept_unless_the_user_says_otherwise(
    given: str | None, kept: str
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    there = {key: value for key, value in os.environ.items() if key != name}
    code = f"import undertow.models, os; print(os.environ[{name!r}])"
    told = subprocess.run(
        [sys.executable, "-c", code], env=there | ({name: given} if given else {}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == kept
