"""One small Ray actor per run on a cluster, beside the driver: hands out parcels, takes results, notes who ran where."""

from __future__ import annotations

from petlbench.harness.parcels import Parcel

Files = list[tuple[str, bytes]]


class Desk:
    """What the driver and the workers of other nodes leave for each other."""

    def __init__(self) -> None:
        self._parcels: dict[str, Parcel] = {}
        self._results: dict[str, Files] = {}
        self._places: dict[str, list[str]] = {}

    def offer(self, path: str, parcel: Parcel) -> None:
        """The driver sends what lies at ``path``."""
        self._parcels[path] = parcel

    def parcel(self, path: str) -> Parcel | None:
        """A worker asks for it."""
        return self._parcels.get(path)

    def began(self, spec_id: str, node: str) -> None:
        """A worker on a node (Ray's id) begins a trial."""
        self._places.setdefault(spec_id, []).append(node)

    def places(self, spec_id: str) -> list[str]:
        """Nodes on which a trial was begun, in order."""
        return self._places.get(spec_id, [])

    def deliver(self, spec_id: str, files: Files) -> None:
        """A worker that cannot write to the results folder leaves what a trial wrote."""
        self._results[spec_id] = files

    def take(self, spec_id: str) -> Files:
        """The driver takes it away."""
        return self._results.pop(spec_id, [])
