"""Files at URLs, read where they lie: s3://…, gs://…, https://…, hf://datasets/….

What is read is fetched by parts as it is asked for, so a set that is larger than the disk
can be read. The one module that imports fsspec; knows nothing of what stands in the files.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from undertow.errors import ConfigError, DatasetError, UndertowError, shown

_LOCAL = "file://"
_PART = 1 << 16
"""Bytes of what is read ahead of a line; stores read further ahead by themselves."""


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

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Its bytes, fetched as they are read.

        Raises:
            DatasetError: It cannot be reached.
        """
        try:
            # Files of stores lack what lines take: a bound on their length.
            return io.BufferedReader(self.store.open(self.path, mode), _PART)
        except Exception as error:  # each store has errors of its own
            raise self.unreachable(error) from error

    def unreachable(self, error: Exception) -> DatasetError:
        """That it cannot be read, and why."""
        return _unreachable(self.place, error, secret=self.path)


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
        told = store.info(root) if _is_data(_name(root), kinds) else {}
        if told.get("type") == "file":
            return (RemoteFile(shown_url, root, _size(store, told), store),)
        found = store.find(root, detail=True)
    except UndertowError:
        raise
    except Exception as error:
        raise _unreachable(shown_url, error, secret=url) from error
    names = {path: path.removeprefix(root).lstrip("/") for path in found}
    kept = sorted(path for path, name in names.items() if _is_data(name, kinds))
    if not kept:
        got = shown(sorted(names.values())) or "nothing"
        raise DatasetError(
            f"{shown_url}: holds no files of rows; got {got}, "
            f"expected some that end in {shown(kinds)}; check that it is the right place"
        )
    try:
        return tuple(
            RemoteFile(
                f"{shown_url}/{names[path]}", path, _size(store, found[path]), store
            )
            for path in kept
        )
    except Exception as error:
        raise _unreachable(shown_url, error, secret=url) from error


def _size(store: Any, told: Mapping[str, Any]) -> int:
    """Bytes of a file; a web server's folder does not tell, so the file is asked for."""
    size = told.get("size")
    return int(store.info(told["name"])["size"] or 0) if size is None else int(size)


def _name(path: str) -> str:
    """The last part of a path, without the query of a URL."""
    return PurePosixPath(path.partition("?")[0]).name


def _is_data(name: str, kinds: Sequence[str]) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and name.lower().removesuffix(".gz").endswith(tuple(kinds))


def _unreachable(place: str, error: Exception, *, secret: str) -> DatasetError:
    """That a place, as it may be shown, cannot be read, and why."""
    said = str(error).replace(secret, place).strip().splitlines() or [""]
    return DatasetError(
        f"{place}: cannot be read: {type(error).__name__}: {said[0][:300]}; expected a "
        "file or a folder that can be read there; check the URL, the network and your "
        "rights"
    )
