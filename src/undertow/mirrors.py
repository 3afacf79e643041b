"""A run directory at a URL: a folder here where work is done, and a copy of it there.

Stores have no locks, renames and appends, on which resuming rests; so work is done in a
folder, and what is new in it is sent while the work goes on. A list there, written last,
names every file with its sha256: what is not on it is not there, and what differs from
it is not taken. Files are compared with the list as it was last seen, so whichever side
changed since is the newer one; where both did, the URL stands. That one machine at a time
works at a URL is its users' care. Of runs it knows the recipe and that stage markers come
last.
"""

import hashlib
import json
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from undertow.errors import DatasetError, RunError, UndertowError, shown
from undertow.runs import RECIPE
from undertow.storage import DRAFT_PREFIX, file_sha256, read_json, write_json
from undertow.storage.files import ASIDE
from undertow.storage.remote import find_store, without_secrets

LIST = "mirror.json"
"""The list of what is at the URL."""
_STAGES = "stages"
_LOOK = 2.0
"""Seconds between two looks for stages that are finished."""
_SEND = 60.0
"""Seconds after which other files are sent too, and what is half done."""

Digests = dict[str, str]
"""sha256 by the path in the run directory."""


def as_folder(place: str) -> Path:
    """The folder that a path, or a file:// URL, names."""
    return Path(place.removeprefix(_LOCAL))


_LOCAL = "file://"


@contextmanager
def mirrored(url: str, *, cache: Path) -> Iterator[Path]:
    """A folder to work in that is kept equal to a run directory at a URL.

    Args:
        url: Any that fsspec knows, with write access; its library must be installed
            (s3fs for s3://, gcsfs for gs://, paramiko for sftp://).
        cache: Where the folder lies; kept afterwards.

    Raises:
        ConfigError: No library here knows such a URL.
        RunError: Another process works at it, it holds something else, or it cannot be
            read or written.
    """
    name = without_secrets(url).rstrip("/")
    folder = cache / hashlib.sha256(name.encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock"), name):
        mirror = _Mirror(name, folder, *_opened(url))
        mirror.fetch()
        try:
            with mirror.following():
                yield folder
        except BaseException:
            mirror.try_to_send()
            raise
        mirror.send()


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{name}: is in use by another process of this machine; wait until it ends, "
            "stop it, or choose another place"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _opened(url: str) -> tuple[Any, str]:
    """The store of a URL, and the place in it."""
    try:
        return find_store(url)
    except UndertowError:
        raise
    except Exception as error:  # some connect at once, and each has errors of its own
        raise _failed(without_secrets(url), "reached", error) from error


class _Mirror:
    """A folder, its copy, and what is known to be there.

    Attributes:
        there: The list as it is at the URL.
    """

    def __init__(self, name: str, folder: Path, store: Any, root: str) -> None:
        self.name, self.folder, self.store, self.root = name, folder, store, root
        self.there: Digests = {}
        self._is_listed = False
        self._hashed: dict[str, tuple[tuple[int, int], str]] = {}
        self._is_told = False

    # ── from there ───────────────────────────────────────────────────────────────

    def fetch(self) -> None:
        """Brings here what is newer there, and sees whether the place can be written.

        Raises:
            RunError: It cannot be read or written, or holds something else.
        """
        with self._explained("read"):
            told = self._told()
            names = self._names()
        own_recipe = self.folder / RECIPE
        if told is None and names and not own_recipe.is_file():
            raise RunError(
                f"{self.name}: holds {shown(sorted(names), limit=3)} but no {LIST}, so it "
                "is no run that was kept there; choose an empty or new place"
            )
        with suppress(DatasetError):
            if told and file_sha256(own_recipe) != told.get(RECIPE):
                self._put_aside()
        self.folder.mkdir(exist_ok=True)
        if told is not None:
            lost = self._take(told)
            self.there = {n: told[n] for n in told if n in names and n not in lost}
            self._is_listed = self.there == told
        with self._explained("written"):
            self._try()
        self._remember()

    def _told(self) -> Digests | None:
        """The list at the URL; None if there is none."""
        try:
            content: bytes = self.store.cat_file(self._at(LIST))
        except FileNotFoundError:
            return None
        try:
            found = json.loads(content)["files"]
            if all(_is_place(n) and isinstance(told, str) for n, told in found.items()):
                return dict(found)
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        raise RunError(
            f"{self._at(LIST)}: is damaged; got {content[:60]!r}, expected the names of "
            f"files and their digests. Remove it where {self.folder} is whole: then all "
            "of that is sent again"
        )

    def _names(self) -> set[str]:
        """The files there, whether they are on the list or not."""
        self.store.invalidate_cache()
        found: set[str] = set()
        try:
            for _, _, files in self.store.walk(
                self.root, detail=True, on_error="raise"
            ):
                found |= {str(info["name"]) for info in files.values()}
        except FileNotFoundError:
            return set()
        start = self.root.lstrip("/") + "/"
        names = {name.lstrip("/").removeprefix(start) for name in found}
        return {name for name in names if _travels(name)} - {LIST}

    def _take(self, told: Mapping[str, str]) -> set[str]:
        """Fetches what changed there, and removes here what is there no more.

        Returns what is on the list and could not be had.
        """
        own, before, lost = self._digests(), self._before(), set()
        for name, digest in told.items():
            is_newer_here = before.get(name) == digest
            if own.get(name) == digest or (name in own and is_newer_here):
                continue
            # A marker that went here was set aside; its stage is to be done again.
            if not (is_newer_here and _is_marker(name)):
                with self._explained("read"):
                    if not self._get(name, digest):
                        lost.add(name)
        for name in before.keys() - told.keys():
            if own.get(name) == before[name]:
                (self.folder / name).unlink(missing_ok=True)
        return lost

    def _get(self, name: str, digest: str) -> bool:
        """Fetches a file; False if it is not there, or not what the list says."""
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f"{DRAFT_PREFIX}{digest[:12]}")
        try:
            self.store.get_file(self._at(name), str(draft))
            if file_sha256(draft) == digest:
                draft.replace(place)
                return True
        except FileNotFoundError:
            pass
        finally:
            draft.unlink(missing_ok=True)
        return False

    def _put_aside(self) -> None:
        """Makes room for another run, which lies at the URL."""
        aside = self.folder.with_name(f"{self.folder.name}-{time.time_ns()}{ASIDE}")
        self.folder.rename(aside)
        warnings.warn(
            f"{self.name}: another run lies there than the one that was kept here; that "
            f"is set aside as {aside}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _try(self) -> None:
        """Whether the place can be written, before anything is worked for."""
        probe = self._at(f"{DRAFT_PREFIX}probe")
        self._make_folder_of(probe)
        self.store.pipe_file(probe, b"undertow")
        with suppress(Exception):  # to write without the right to delete is enough
            self.store.rm_file(probe)

    # ── to there ─────────────────────────────────────────────────────────────────

    @contextmanager
    def following(self) -> Iterator[None]:
        """While open, what is new is sent beside the work."""
        ended = threading.Event()

        def follow() -> None:
            seen, since = self._marks(), time.monotonic()
            while not ended.wait(_LOOK):
                marks = self._marks()
                if marks == seen and time.monotonic() - since < _SEND:
                    continue
                if self.try_to_send():
                    seen, since = marks, time.monotonic()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def try_to_send(self) -> bool:
        """Sends what is new; a fault is warned of once, and False."""
        try:
            self.send()
        except UndertowError as error:
            if not self._is_told:
                text = f"{error} (it is tried again while the command runs)"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            self._is_told = True
            return False
        return True

    def send(self) -> None:
        """Sends what is new here, markers after files, the list last.

        Raises:
            RunError: The place cannot be written.
        """
        if not (self.folder / RECIPE).is_file():
            return  # nothing has begun, or somebody took the folder away
        own = self._digests()
        new = [name for name, told in own.items() if self.there.get(name) != told]
        gone = [name for name in self.there if name not in own]
        if not new and not gone and self._is_listed:
            return
        with self._explained("written"):
            for name in sorted(new, key=_is_marker):
                self.there.pop(name, None)
                if self._put(name, own[name]):
                    self.there[name] = own[name]
            for name in gone:
                del self.there[name]
            self._write_list()
            for name in gone:
                with suppress(Exception):  # it is on the list no more
                    self.store.rm_file(self._at(name))
        self._remember()

    def _put(self, name: str, digest: str) -> bool:
        """Sends a file; False if it changed or went meanwhile, and will be sent again."""
        place, target = self.folder / name, self._at(name)
        self._make_folder_of(target)
        try:
            self.store.put_file(str(place), target)
        except FileNotFoundError:
            if place.exists():
                raise
            return False
        return self._digest(name) == digest

    def _write_list(self) -> None:
        """In one step where a store can: half a list would hide the rest."""
        draft = self._at(f"{DRAFT_PREFIX}list")
        content = json.dumps({"files": self.there}, indent=1, sort_keys=True)
        self.store.pipe_file(draft, content.encode("ascii"))
        self.store.mv(draft, self._at(LIST))
        self._is_listed = True

    def _make_folder_of(self, target: str) -> None:
        self.store.makedirs(target.rpartition("/")[0], exist_ok=True)

    # ── here ─────────────────────────────────────────────────────────────────────

    def _digests(self) -> Digests:
        """The files here. Markers are looked for first: what they name is there then."""
        markers = sorted((self.folder / _STAGES).rglob("*.json"))
        rest = (p for p in sorted(self.folder.rglob("*")) if p.is_file())
        names = (p.relative_to(self.folder).as_posix() for p in (*markers, *rest))
        wanted = [n for n in dict.fromkeys(names) if _travels(n) and n != LIST]
        listed = {path.relative_to(self.folder).as_posix() for path in markers}
        wanted = [name for name in wanted if name in listed or not _is_marker(name)]
        found = {name: self._digest(name) for name in wanted}
        return {name: told for name, told in found.items() if told is not None}

    def _digest(self, name: str) -> str | None:
        """Of a file here; None if it is gone. Read again only when it changed."""
        path = self.folder / name
        try:
            stat = path.stat()
            key = (stat.st_size, stat.st_mtime_ns)
            known = self._hashed.get(name)
            if known is None or known[0] != key:
                known = self._hashed[name] = key, file_sha256(path)
        except (OSError, DatasetError):
            if path.exists():
                raise
            return None
        return known[1]

    def _marks(self) -> list[tuple[str, int]]:
        """The stage markers, and when they were written."""
        marks = []
        for path in (self.folder / _STAGES).rglob("*.json"):
            with suppress(OSError):
                marks.append((str(path), path.stat().st_mtime_ns))
        return sorted(marks)

    @property
    def _memory(self) -> Path:
        return self.folder.with_suffix(".json")

    def _remember(self) -> None:
        write_json(self._memory, {"files": self.there})

    def _before(self) -> Digests:
        """The list as it was last seen here; empty if the folder is not from then."""
        if not (self.folder / RECIPE).is_file():
            return {}
        with suppress(DatasetError, TypeError, LookupError):
            return dict(read_json(self._memory)["files"])
        return {}

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except UndertowError:
            raise
        except Exception as error:  # each store has errors of its own
            raise _failed(self.name, what, error, self.folder) from error


def _failed(
    name: str, what: str, error: Exception, folder: Path | None = None
) -> RunError:
    kept = "" if folder is None else f"; what is done lies in {folder}"
    return RunError(
        f"{name}: cannot be {what}: {str(error) or type(error).__name__}; check the "
        f"address, the network and your rights there, and give the same command again{kept}"
    )


def _is_marker(name: str) -> bool:
    return name.startswith(f"{_STAGES}/") and name.endswith(".json")


def _is_place(name: str) -> bool:
    """Whether a name leads to a place inside a folder, and is no working file."""
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name
    return is_plain and not {"", ".", ".."} & set(parts) and _travels(name)


def _travels(name: str) -> bool:
    """Whether a file is of the run, and not of whoever works at it."""
    last = name.rpartition("/")[2]
    return not (last.startswith((DRAFT_PREFIX, ".lock")) or last.endswith(ASIDE))
