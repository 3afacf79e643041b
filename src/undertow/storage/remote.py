"""Files at URLs, read where they lie: s3://…, gs://…, https://…, hf://datasets/….

What is read is fetched by parts as it is asked for, so a set that is larger than the disk
can be read. The one module that imports fsspec; knows nothing of what stands in the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from undertow.errors import ConfigError, DatasetError, UndertowError, shown

_LOCAL = "file://"


def is_url(place: str) -> bool:
    """Whether a place is a URL and not a folder: s3://…, sftp://…, memory://…."""
    return "://" in place and not place.startswith(_LOCAL)


def without_secrets(url: str) -> str:
    """A URL as it may be shown: no password, and no query, which may be a signature."""
    scheme, sign, rest = url.partition("://")
    if not sign:
        return url
    rest, query, _ = rest.partition("?")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}{'?…' if query else ''}"


def find_store(url: str) -> tuple[Any, str]:
    """The store of a URL, and the place in it.

    Raises:
        ConfigError: No library here knows such a URL.
        OSError: Whatever a store raises that connects at once and cannot, among others.
    """
    import fsspec

    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, TypeError) as error:
        fault = f"no library here opens such a place: {error}"
        raise ConfigError(without_secrets(url), [fault]) from error
    return store, root.rstrip("/")


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL; of `Path` it has what reading takes.

    Attributes:
        place: Its URL as it may be shown.
        path: Its path in the store.
        size: Bytes, as the store has them.
    """

    place: str
    path: str
    size: int
    store: Any = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return _name(self.path)

    def __str__(self) -> str:
        return self.place

    def open(self, mode: str = "rb") -> Any:
        """Its bytes, fetched as they are read.

        Raises:
            DatasetError: It cannot be reached.
        """
        try:
            return self.store.open(self.path, mode)
        except Exception as error:  # each store has errors of its own
            raise unreachable(self.place, error) from error


def remote_files(url: str, kinds: Sequence[str]) -> tuple[RemoteFile, ...]:
    """The file at a URL, or those of a folder there whose names end as asked, sorted.

    Names that begin with "." or "_" are passed over in a folder.

    Raises:
        ConfigError: No library here knows such a URL.
        DatasetError: It cannot be reached, or holds no such file.
    """
    shown_url = without_secrets(url).rstrip("/")
    try:
        store, root = find_store(url)
        # Asked first: a web server's folder is a page, and a file would be fetched as one.
        if _is_data(_name(root), kinds) and store.isfile(root):
            size = int(store.info(root)["size"] or 0)
            return (RemoteFile(shown_url, root, size, store),)
        found = store.find(root, detail=True)
    except UndertowError:
        raise
    except Exception as error:
        raise unreachable(shown_url, error) from error
    names = {path: path.removeprefix(root).lstrip("/") for path in found}
    kept = sorted(path for path, name in names.items() if _is_data(name, kinds))
    if not kept:
        raise DatasetError(
            f"{shown_url}: holds no files of rows; got {shown(sorted(names.values()))}, "
            f"expected some that end in {shown(kinds)}; check that it is the right place"
        )
    return tuple(
        RemoteFile(
            f"{shown_url}/{names[path]}", path, int(found[path]["size"] or 0), store
        )
        for path in kept
    )


def _name(path: str) -> str:
    """The last part of a path, without the query of a URL."""
    return PurePosixPath(path.partition("?")[0]).name


def _is_data(name: str, kinds: Sequence[str]) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and name.lower().removesuffix(".gz").endswith(tuple(kinds))


def unreachable(place: str, error: Exception) -> DatasetError:
    """That a place, as it may be shown, cannot be read, and why."""
    said = str(error).strip().splitlines() or [""]
    return DatasetError(
        f"{place}: cannot be read: {type(error).__name__}: {said[0][:300]}; expected a "
        "file or a folder that can be read there; check the URL, the network and your "
        "rights"
    )
