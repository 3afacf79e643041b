"""Data files of a dataset on the Hugging Face hub, by its name.

Plain data files of the default branch, at one commit; a dataset that needs a script to
be read is refused. Knows nothing of what stands in the files.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from undertow.errors import DatasetError, shown

_WAIT_SECONDS = 20


def hub_files(
    name: str, kinds: Sequence[str], choose: Callable[[list[str]], list[str]]
) -> tuple[Path, ...]:
    """Downloads data files of a dataset into the hub's cache; says where they lie.

    Args:
        name: "owner/name".
        kinds: Suffixes that can be read, the preferred one first. Datasets often hold
            the same rows twice, so files of one kind are taken.
        choose: Picks names of files among those, say of one split.

    Raises:
        DatasetError: The hub or the dataset cannot be reached, or holds no such file.
    """
    if not hub_answers():
        raise DatasetError(
            f"hub:{name}: the hub cannot be reached, and no file or folder here has "
            "that name; got no answer, expected a dataset owner/name; check the "
            "network, or download the dataset and name its folder"
        )
    try:
        commit, names = _listed(name)
    except Exception as error:  # its HTTP client's errors too, and that one changes
        raise _unfetched(name, error) from error
    chosen = choose(_of_one_kind(name, names, kinds))
    try:
        return tuple(_downloaded(name, file, commit) for file in chosen)
    except Exception as error:
        raise _unfetched(name, error) from error


def _listed(name: str) -> tuple[str | None, list[str]]:
    """The newest commit of the default branch, and the files in it."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(name, timeout=_WAIT_SECONDS)
    return info.sha, sorted(item.rfilename for item in info.siblings or ())


def _downloaded(name: str, file: str, commit: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))


def _of_one_kind(name: str, names: list[str], kinds: Sequence[str]) -> list[str]:
    for kind in kinds:
        found = [n for n in names if n.lower().removesuffix(".gz").endswith(kind)]
        described = ("dataset_info.json", "dataset_infos.json")
        if found := [n for n in found if Path(n).name not in described]:
            return found
    raise DatasetError(
        f"hub:{name}: holds no data files that can be read without running its code; "
        f"got {shown(names)}, expected some that end in {shown(kinds)}; convert it"
    )


def _unfetched(name: str, error: Exception) -> DatasetError:
    said = str(error).strip().splitlines() or [""]
    return DatasetError(
        f"hub:{name}: cannot be fetched: {type(error).__name__}: {said[0][:300]}; "
        "expected the name of a public dataset, or one that your token may read; "
        "check the name and the network"
    )


def hub_answers() -> bool:
    """Whether the hub, or a proxy that may lead to it, can be reached; 5 s at most."""
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        with socket.create_connection((hub.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False
