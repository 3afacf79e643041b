"""What a model finds here: packages, processor, memory, devices, the cache folder.

Speed is measured, not looked up: a matrix product in float32 and in bfloat16.
Which packages and extras there are is read from the installed package itself. Knows
nothing of any model's insides (see `models.self_tests`).
"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from undertow.execution.processes import usable_cores
from undertow.models import registry
from undertow.models.checks import Check, Found, advice, check, failed, ok
from undertow.runs import provenance, version

EXTRAS = {
    "trl": "rows and students in TRL's own trainers",
    "judge": "a judge behind an endpoint, that refuses rows (undertow filter)",
    "track": "numbers of a training in trackio or wandb, while it goes on",
    "inspect": "undertow's read-outs as tasks of inspect_ai",
    "ray": "runs that share the machines of a Ray cluster",
    "notebooks": "the notebooks of the repository, run again and stored",
    "docs": "the documentation as a site",
    "dev": "the tests and checks of undertow itself",
}
"""What each optional extra gives."""
_FOR_DEVELOPERS = ("notebooks", "docs", "dev")
_INSTALL = "pip install -c constraints.txt -e ."
_NAMED = ("torch", "transformers")
_GIB = 2**30
_GROUP = Path("/sys/fs/cgroup")
"""Where a container is told what it may have."""
_LEAST_MEMORY = 4 * _GIB  # what the demo wants
_LEAST_DISK = 2 * _GIB  # a pulled model while it is converted
_FASTER = 1.5  # times float32: from here on another dtype is worth a word


def environment_checks(*, device: str = "auto", dtype: str = "auto") -> list[Check]:
    """Looks at everything around a model.

    Args:
        device: As it will be asked for: "auto", "cpu", "cuda" …
        dtype: As it will be asked for.

    Cost: a few seconds, most of them for importing torch.
    """
    origin = provenance()
    return [*_packages(origin), *_machine(origin, device, dtype), *_cache()]


# ── packages ─────────────────────────────────────────────────────────────────────


def _packages(origin: Mapping[str, Any]) -> list[Check]:
    group = "packages"
    found = [check(group, "undertow", partial(_undertow, origin))]
    found.append(check(group, "python", _python))
    found += [check(group, name, partial(_package, name)) for name in _NAMED]
    try:
        needed = [Requirement(text) for text in metadata.requires("undertow") or []]
        extras = metadata.metadata("undertow").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        needed, extras = [], []
    found.append(check(group, "requirements", partial(_requirements, needed)))
    found += [
        check(group, f"extra {name}", partial(_extra, name, needed)) for name in extras
    ]
    return found


def _undertow(origin: Mapping[str, Any]) -> Found:
    """As runs keep it, so that a report of a fault names the same."""
    number, commit = origin["undertow_version"], origin["commit"]
    if number is None:
        number = "not installed as a package"
    return ok(f"{number}, " + (f"commit {commit}" if commit else "no checkout of git"))


def _python() -> Found:
    running = platform.python_version()
    try:
        wanted = str(metadata.metadata("undertow").json.get("requires_python", ""))
    except metadata.PackageNotFoundError:
        wanted = ""
    if running in SpecifierSet(wanted, prereleases=True):
        return ok(f"{running} ({sys.executable})")
    return advice(f"{running}, tested with {wanted}", f"use a Python {wanted}")


def _package(name: str) -> Found:
    return ok(metadata.version(name))


def _unmet(needed: Sequence[Requirement]) -> list[str]:
    """Requirements that are not met, each with what is there."""
    found = []
    for each in needed:
        there = version(each.name)
        if there is None:
            found.append(f"{each.name} (not installed)")
        elif not each.specifier.contains(there, prereleases=True):
            found.append(f"{each.name}{each.specifier} (found {there})")
    return found


def _needed_for(extra: str, needed: Sequence[Requirement]) -> list[Requirement]:
    """What an extra brings along; "" is the package without any."""
    return [
        each
        for each in needed
        if (each.marker is None and not extra)
        or (each.marker is not None and each.marker.evaluate({"extra": extra}))
    ]


def _requirements(needed: Sequence[Requirement]) -> Found:
    plain = _needed_for("", needed)
    if not plain:
        return advice(
            "undertow is not installed as a package, so its needs are not known",
            f"install it: {_INSTALL}",
        )
    missing = _unmet(plain)
    if missing:
        return failed(", ".join(missing), f"install them: {_INSTALL}")
    return ok(f"all {len(plain)} are there")


def _extra(name: str, needed: Sequence[Requirement]) -> Found:
    brought = _needed_for(name, needed)
    missing = _unmet(brought)
    if not missing:
        versions = [f"{each.name} {version(each.name)}" for each in brought]
        return ok(", ".join(versions) or "brings nothing of its own")
    gives = EXTRAS.get(name, "an optional part")
    command = f"pip install 'undertow[{name}]'"
    if name in _FOR_DEVELOPERS:
        return ok(f"not installed: {', '.join(missing)}; {gives}: {command}")
    return advice(f"not installed: {', '.join(missing)}", f"for {gives}: {command}")


# ── the machine ──────────────────────────────────────────────────────────────────


def _machine(origin: Mapping[str, Any], device: str, dtype: str) -> list[Check]:
    group = "machine"
    return [
        check(group, "processor", partial(_processor, origin["processor"])),
        check(group, "memory", _memory),
        check(group, "cuda", _cuda),
        check(group, "device", partial(_device, device)),
        check(group, "dtype", partial(_dtype, dtype, device)),
        check(group, "bfloat16", partial(_bfloat16, device)),
        check(group, "kernels", partial(_kernels, dtype, device)),
    ]


def _processor(name: str) -> Found:
    import torch

    threads = torch.get_num_threads()
    return ok(f"{name}, {usable_cores()} cores, torch uses {threads} threads")


def free_memory() -> int | None:
    """Bytes that a process can still have; None where the system does not say."""
    known = [free for free in (_machine_memory(), _group_memory()) if free is not None]
    return min(known, default=None)


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _group_memory() -> int | None:
    """Left of a container's limit; pages of files that it would drop count as free."""
    limit, used, lines = (_GROUP / f"memory.{n}" for n in ("max", "current", "stat"))
    try:
        most, now = (int(path.read_text(encoding="ascii")) for path in (limit, used))
        facts = dict(line.split() for line in lines.read_text("ascii").splitlines())
        return max(0, most - now + int(facts["inactive_file"]))
    except (OSError, KeyError, ValueError):  # no such file; no limit is the word "max"
        return None


def _memory() -> Found:
    free = free_memory()
    if free is None:
        return ok("the system does not say how much is free")
    if free < _LEAST_MEMORY:
        return advice(
            f"{free / _GIB:.1f} GiB free, the demo wants {_LEAST_MEMORY / _GIB:g}",
            "end other programs, or take a smaller model",
        )
    return ok(f"{free / _GIB:.1f} GiB free")


def _cuda() -> Found:
    import torch

    if not torch.cuda.is_available():
        return ok("no device: all is computed on the processor")
    devices = []
    for place in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(place)
        name = torch.cuda.get_device_name(place)
        devices.append(
            f"cuda:{place} {name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        )
    return ok("; ".join(devices))


def _device(wanted: str) -> Found:
    from undertow.models.loading import choose_device

    return ok(choose_device(wanted)[1])


def _dtype(wanted: str, device: str) -> Found:
    from undertow.models.loading import choose_device, choose_dtype

    return ok(choose_dtype(wanted, choose_device(device)[0])[1])


def _bfloat16(device: str) -> Found:
    import torch

    from undertow.models.loading import choose_device, choose_dtype
    from undertow.models.speed import product_flops

    place, _ = choose_device(device)
    chosen, _ = choose_dtype("auto", place)
    plain, half = (product_flops(k, place) for k in (torch.float32, torch.bfloat16))
    ratio = half / plain
    measured = (
        f"{ratio:.2g} times as fast as float32 ({plain / 1e9:.3g} and "
        f"{half / 1e9:.3g} GFLOP/s, float32 first)"
    )
    if chosen == torch.bfloat16 and ratio < 1:
        return advice(measured, "'auto' takes bfloat16 here; say --dtype float32")
    if chosen == torch.float32 and ratio >= _FASTER:
        return advice(measured, "'auto' takes float32 here; try --dtype bfloat16")
    return ok(measured)


def _kernels(dtype: str, device: str) -> Found:
    """Of our own, for what lies between products; in bfloat16 on a processor only."""
    import torch

    from undertow.models.kernels import kernels
    from undertow.models.loading import choose_device, choose_dtype

    place, _ = choose_device(device)
    if place.type != "cpu" or choose_dtype(dtype, place)[0] != torch.bfloat16:
        return ok("not used here: they are for bfloat16 on a processor")
    built = kernels()
    if built.library is None and built.remedy:
        return advice(
            f"none: {built.reason}",
            f"for training and scores about 1.2 times as fast: {built.remedy}",
        )
    return ok(built.reason if built.library else f"none: {built.reason}")


# ── the cache ────────────────────────────────────────────────────────────────────


def _cache() -> list[Check]:
    return [
        check("cache", "folder", _folder),
        check("cache", "models", _models),
        check("cache", "weights", _weights),
    ]


def _folder() -> Found:
    folder = registry.cache_directory()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    measured = f"{folder}, {free / _GIB:.1f} GiB free"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return advice(
            f"{measured}, cannot be written: {error.strerror}",
            "models cannot be pulled; let UNDERTOW_CACHE name a folder of yours",
        )
    if free < _LEAST_DISK:
        return advice(measured, "free some space before you pull a model")
    return ok(f"{measured}, can be written")


def _models() -> Found:
    entries = registry.entries()
    pulled = [entry.name for entry in entries if registry.is_pulled(entry.name)]
    measured = f"{len(pulled)} of {len(entries)} pulled: {', '.join(pulled) or '—'}"
    if pulled:
        return ok(measured)
    return advice(measured, f"fetch one: undertow models pull {entries[0].name}")


def _weights() -> Found:
    """Whether the files of pulled models are those that were pulled."""
    pulled = [e.name for e in registry.entries() if registry.is_pulled(e.name)]
    found = {name: registry.changed_files(name) for name in pulled}
    changed = [
        f"{registry.model_directory(n)}: {f}" for n in pulled for f in found[n] or ()
    ]
    if changed:
        return failed(
            f"not as they were pulled: {', '.join(changed)}",
            "if you did not change them, remove the folder and pull the model again",
        )
    words = {True: "not recorded", False: "as they were pulled"}
    said = [f"{name} {words[found[name] is None]}" for name in pulled]
    return ok(", ".join(said) or "none are here")
