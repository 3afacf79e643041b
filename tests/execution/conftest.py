"""Processes, and Ray, if it is there, with what it needs to be quiet."""

import os
from collections.abc import Iterator

import pytest

from undertow.execution.processes import Processes, processes
from undertow.execution.ray_cluster import RayCluster, ray_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of this machine alone."""
    pytest.importorskip("ray", reason="Ray is not installed: undertow[ray]")
    before = os.environ.pop("RAY_ADDRESS", None)
    with ray_cluster(cpus=2) as found:
        yield found
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


@pytest.fixture(scope="module")
def pool() -> Iterator[Processes]:
    """Two processes of this machine."""
    with processes(cores=2) as found:
        yield found
