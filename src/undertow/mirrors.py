"""A run directory at a URL: a folder here where work is done, and its copy there.

What is there is fetched first. Each finished stage is sent as its marker appears, files
before markers, so that the copy is at any moment a run that can be continued anywhere;
what is not finished stays here. Object stores have no locks: that one machine at a time
works at a URL is its users' care. The one module that imports fsspec; knows nothing of
what stages do.
"""

import hashlib
import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from undertow.errors import ConfigError, RunError, shown
from undertow.runs import RECIPE
from undertow.storage import DRAFT_PREFIX, file_sha256, replacing
from undertow.storage.files import ASIDE

_STAGES = "stages/"
_EVERY = 2.0
"""Seconds between two looks for stages that are finished."""


def is_url(place: str) -> bool:
    """Whether a place is a URL and not a path: s3://…, gs://…, memory://…."""
    return "://" in place


@contextmanager
def mirrored(url: str, *, cache: Path) -> Iterator[Path]:
    """A folder to work in that is kept equal to a run directory at a URL.

    Args:
        url: Any that fsspec knows, with write access; its library must be installed
            (s3fs for s3://, gcsfs for gs://, paramiko for sftp://).
        cache: Where the folder lies; kept afterwards, for what was not finished.

    Raises:
        ConfigError: No library here knows such a URL.
        RunError: Another process works at it, or it cannot be read or written.
    """
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{_without_password(url)}: is in use by another process of this machine; "
            "wait until it ends, stop it, or choose another place"
        ) from error
    try:
        mirror = _Mirror(url, folder)
        mirror.fetch()
        with mirror.following():
            yield folder
        mirror.send_all()
    finally:
        lock.release()


class _Mirror:
    """A folder, its copy, and what is known to be the same in both."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self.name = folder, _without_password(url)
        self.store, self.root = _opened(url)
        self.sent: dict[str, str] = {}

    def fetch(self) -> None:
        """Brings here what is there; a folder of another run is emptied first.

        Raises:
            RunError: It cannot be read, or holds names that are none.
        """
        with self._explained("read"):
            names = self._names()
            if not self._is_same_run(names):
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
            for name in sorted(filter(_is_marker, names), key=_is_last):
                self._fetch_stage(name)
            for name in names:
                if not (self.folder / name).exists():
                    self._get(name)
        with self._explained("written"):
            self._try()

    def _names(self) -> list[str]:
        """The files there, by their paths in the run directory."""
        found = self.store.find(self.root) if self.store.exists(self.root) else []
        names = [path[len(self.root) :].strip("/") for path in found]
        wrong = [name for name in names if not _is_plain(name)]
        if wrong:
            raise RunError(
                f"{self.name}: holds names that are no places inside a run directory: "
                f"{shown(wrong)}; remove them, or choose another place"
            )
        return [name for name in names if _travels(PurePosixPath(name).name)]

    def _is_same_run(self, names: list[str]) -> bool:
        """Whether the folder holds the run that is there, or one that never got there."""
        own = self.folder / RECIPE
        if not own.is_file():
            return False
        if RECIPE in names:
            found: bytes = self.store.cat_file(self._at(RECIPE))
            return found == own.read_bytes()
        return not self._arrived.exists()

    @property
    def _arrived(self) -> Path:
        """Is there once the run has been seen or written there."""
        return self.folder.with_name(f"{self.folder.name}.arrived")

    def _try(self) -> None:
        """Whether the place can be written, before anything is worked for."""
        probe = self._at(f"{DRAFT_PREFIX}probe")
        self._make_folder_of(probe)
        self.store.pipe_file(probe, b"undertow")
        with suppress(Exception):  # to write without the right to delete is enough
            self.store.rm_file(probe)

    def _make_folder_of(self, target: str) -> None:
        self.store.makedirs(target.rpartition("/")[0], exist_ok=True)

    def _fetch_stage(self, name: str) -> None:
        """A marker and the files that it names; a marker there outranks one here."""
        content: bytes = self.store.cat_file(self._at(name))
        files = _files_of(content)
        self.sent |= files
        self.sent[name] = hashlib.sha256(content).hexdigest()
        own = self.folder / name
        if own.is_file() and own.read_bytes() == content:
            return
        for file, digest in files.items():
            place = self.folder / file
            if not place.is_file() or file_sha256(place) != digest:
                self._get(file)
            if place.is_file():
                self.sent[file] = file_sha256(place)
        self._get(name)

    def _get(self, name: str) -> None:
        if not self.store.exists(self._at(name)):
            return  # what a later stage did not need any more
        with replacing(self.folder / name, lasting=False) as draft:
            self.store.get_file(self._at(name), str(draft))

    @contextmanager
    def following(self) -> Iterator[None]:
        """While open, finished stages are sent as they appear, beside the work.

        What could not be sent is tried again, and warned of once.
        """
        ended = threading.Event()

        def follow() -> None:
            is_told = False
            while not ended.wait(_EVERY):
                try:
                    self.send_stages()
                except RunError as error:
                    if not is_told:
                        warnings.warn(str(error), RuntimeWarning, stacklevel=1)
                    is_told = True

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def send_stages(self) -> None:
        """Sends the recipe, and each finished stage that is not there.

        Raises:
            RunError: The place cannot be written.
        """
        with self._explained("written"):
            self._send(RECIPE)
            self._send_below(self.folder / _STAGES, "*.json")

    def send_all(self) -> None:
        """Sends every file that is not there, or is another there."""
        self.send_stages()
        with self._explained("written"):
            self._send_below(self.folder, "*")

    def _send_below(self, folder: Path, pattern: str) -> None:
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and _travels(path.name):
                self._send(path.relative_to(self.folder).as_posix())

    def _send(self, name: str) -> None:
        """Sends a file that is another there, or not there yet."""
        place = self.folder / name
        try:
            if place.is_file() and self.sent.get(name) != file_sha256(place):
                self._send_now(name, place)
        except Exception:
            # What a later stage does not need any more may go while it is read.
            if place.is_file():
                raise

    def _send_now(self, name: str, place: Path) -> None:
        """Sends a file; before a marker, the files that it names."""
        digest = file_sha256(place)
        if _is_marker(name):
            for file in _files_of(place.read_bytes()):
                self._send(file)
        target = self._at(name)
        self._make_folder_of(target)
        self.store.put_file(str(place), target)
        self.sent[name] = digest
        if name == RECIPE:
            self._arrived.touch()

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except Exception as error:  # each store has errors of its own
            raise RunError(
                f"{self.name}: cannot be {what}: {str(error) or type(error).__name__}; "
                "check the address, the network and your rights there, and give the same "
                f"command again: what is finished lies in {self.folder}"
            ) from error


def _opened(url: str) -> tuple[Any, str]:
    """The store of a URL, and the place in it."""
    import fsspec

    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        fault = f"no library here opens such a place: {error}"
        raise ConfigError(_without_password(url), [fault]) from error
    return store, root


def _files_of(marker: bytes) -> dict[str, str]:
    """The files that a marker names, with their digests; none if it is damaged."""
    try:
        files = json.loads(marker).get("files", {})
    except (ValueError, AttributeError):
        return {}
    if not isinstance(files, dict):
        return {}
    return {str(name): str(told) for name, told in files.items() if _is_plain(name)}


def _is_marker(name: str) -> bool:
    return name.startswith(_STAGES) and name.endswith(".json")


def _is_last(marker: str) -> bool:
    """Whether a marker speaks of other markers."""
    return PurePosixPath(marker).stem == "complete"


def _is_plain(name: str) -> bool:
    """Whether a name leads to a place inside a folder."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)


def _travels(name: str) -> bool:
    """Whether a file is of the run, and not of whoever works at it."""
    is_own = name.startswith((DRAFT_PREFIX, ".lock")) or name.endswith(ASIDE)
    return not is_own


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}"
