"""Datasets of the hub are fetched as plain files; a hub that is away is said at once."""

import socket
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from undertow.errors import DatasetError
from undertow.storage import hub, take_rows
from undertow.storage.sources import find_source

FILES = [
    "README.md", "data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet",
    "rows.jsonl", "load.py",
]  # fmt: skip


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one dataset of `FILES`; gives what was downloaded."""
    asked: list[Any] = []

    class Api:
        def dataset_info(self, name: str, timeout: float) -> SimpleNamespace:
            if name != "owner/rows":
                raise RuntimeError(f"404: no {name}\nand more")
            files = [SimpleNamespace(rfilename=file) for file in FILES]
            return SimpleNamespace(sha="abc", siblings=files)

    def download(name: str, file: str, *, repo_type: str, revision: str) -> str:
        asked.append((name, file, repo_type, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("name", ["hub:owner/rows", "owner/rows"])
def test_files_of_one_kind_and_the_split_train(
    name: str, there: list[Any], tmp_path: Path
) -> None:
    source = find_source(name)
    assert source.name == "hub:owner/rows"
    wanted = ["data/train-0.parquet", "data/train-1.parquet"]
    assert source.files == tuple(tmp_path / file for file in wanted)
    assert there == [("owner/rows", file, "dataset", "abc") for file in wanted]
    (test,) = find_source(name, "test").files
    assert test == tmp_path / "data/test-0.parquet"
    with pytest.raises(DatasetError, match="hub:owner/rows: no such split; got 'dev'"):
        find_source(name, "dev")


def test_other_kinds_where_there_is_no_parquet(
    there: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(globals(), "FILES", ["a.csv.gz", "b.csv", "dataset_infos.json"])
    assert find_source("owner/rows").files == (
        tmp_path / "a.csv.gz",
        tmp_path / "b.csv",
    )
    monkeypatch.setitem(globals(), "FILES", ["load.py", "dataset_infos.json"])
    with pytest.raises(DatasetError) as caught:
        find_source("owner/rows")
    assert str(caught.value) == (
        "hub:owner/rows: holds no data files that can be read without running its code; "
        "got 'dataset_infos.json', 'load.py', expected some that end in '.parquet', "
        "'.jsonl', '.ndjson', '.csv', '.tsv', '.json'; convert it"
    )


def test_a_dataset_that_is_not_there(there: list[Any]) -> None:
    with pytest.raises(DatasetError) as caught:
        find_source("hub:owner/gone")
    assert str(caught.value) == (
        "hub:owner/gone: cannot be fetched: RuntimeError: 404: no owner/gone; expected "
        "the name of a public dataset, or one that your token may read; check the name "
        "and the network"
    )


def test_a_download_that_breaks_off(
    there: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("reset")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        DatasetError, match="cannot be fetched: ConnectionError: reset;"
    ):
        find_source("owner/rows")


def test_a_path_comes_before_the_hub(
    there: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    Path("owner/rows").mkdir()
    Path("owner/rows/d.jsonl").write_text('{"text": "a"}\n')
    assert take_rows("owner/rows").sources == ("owner/rows",)
    assert there == []


@pytest.mark.parametrize("name", ["hub:nobody/nothing", "nobody/nothing"])
def test_an_unreachable_hub_is_said_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    start = time.monotonic()
    with pytest.raises(DatasetError) as caught:
        take_rows(name)
    assert time.monotonic() - start < 5
    assert str(caught.value) == (
        "hub:nobody/nothing: the hub cannot be reached, and no file or folder here has "
        "that name; got no answer, expected a dataset owner/name; check the network, or "
        "download the dataset and name its folder"
    )


def test_who_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://p"})
    assert hub.hub_answers()
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", place)
        assert hub.hub_answers()
    assert not hub.hub_answers()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://p"})
    assert not hub.hub_answers()
