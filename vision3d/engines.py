"""Where the batches of a run are worked on: in this process, or by the processes of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from vision3d.errors import ResourceError
from vision3d.progress import is_debug, is_quiet, set_debug, set_quiet

Batch = TypeVar("Batch")
Result = TypeVar("Result")
EngineName = Literal["local", "ray"]


class Engine(Protocol):
    """Applies a worker to batches, here or elsewhere."""

    def map(self, worker: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """Results of the batches as they come; ``batches`` is read no further ahead than memory allows."""


class LocalEngine:
    """One batch after the other in this process."""

    def map(self, worker: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """See :class:`Engine`."""
        for batch in batches:
            yield worker(batch)


class RayEngine:
    """Actors of Ray: one for each GPU of the cluster, or for each machine where there are none.

    The cluster is the one that ``RAY_ADDRESS`` names, or this machine. All of its machines need this package and see
    the same folders under the same names. Each actor loads the method once; it is sent one batch at a time.

    Args:
        actors: how many, instead.

    Raises:
        ResourceError: Ray is not installed, or there is no cluster at its address.
    """

    def __init__(self, actors: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ResourceError(
                "--engine ray needs Ray, which is not installed", "pip install 'vision3d[ray]'"
            ) from error
        self._ray: Any = ray
        self._actors = actors

    def map(self, worker: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """See :class:`Engine`; errors of the worker are raised as they are.

        Raises:
            ResourceError: a worker's process has died, of too little memory most often.
        """
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool

        ray, ours = self._ray, not self._ray.is_initialized()
        if ours:
            self._start()
        actors: list[Any] = []
        try:
            actors = self._make_actors(worker)
            pool = ActorPool(actors)
            for batch in batches:
                while not pool.has_free():
                    yield pool.get_next_unordered()
                pool.submit(lambda actor, value: actor.work.remote(value), batch)
            while pool.has_next():
                yield pool.get_next_unordered()
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise ResourceError(
                f"a worker of Ray has died ({reason})", "if memory was short, try smaller images or --memory"
            ) from error
        finally:
            for actor in actors:
                ray.kill(actor)
            if ours:
                ray.shutdown()

    def _start(self) -> None:
        try:
            # what Ray says of itself stays away, what the workers say does not
            self._ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=True)
        except ConnectionError as error:
            raise ResourceError(
                f"no Ray cluster at {os.environ.get('RAY_ADDRESS')}", "start one, or unset RAY_ADDRESS"
            ) from error

    def _make_actors(self, worker: Callable[[Any], Any]) -> list[Any]:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        count, cpus, gpus = share_out(machines, self._actors)
        # the number of CPUs is also that of an actor's threads
        options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        made = self._ray.remote(**options)(_Actor)
        return [made.remote(worker, Path.cwd(), is_quiet(), is_debug()) for _ in range(count)]


def share_out(machines: Sequence[Mapping[str, float]], actors: int | None = None) -> tuple[int, int, int]:
    """Number of actors, and CPUs and GPUs of each; all are alike and find room, as none may span machines.

    Args:
        machines: "CPU" and "GPU" of each.
        actors: how many, instead of one for each GPU, or for each machine where there are none.
    """
    gpus = int(any(machine.get("GPU", 0) >= 1 for machine in machines))
    able = [m for m in machines if m.get("CPU", 0) >= 1 and m.get("GPU", 0) >= gpus]
    places = -(-actors // max(1, len(able))) if actors and not gpus else 1
    rooms = [min(int(m["CPU"]), int(m["GPU"]) if gpus else places) for m in able]
    share = min((int(m["CPU"]) // room for m, room in zip(able, rooms, strict=True)), default=1)
    return actors or max(1, sum(rooms)), share, gpus


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, worker: Callable[[Any], Any], folder: Path, quiet: bool, debug: bool) -> None:
        # relative paths are those of the person who started the run
        if folder.is_dir():
            os.chdir(folder)
        set_quiet(quiet)
        set_debug(debug)
        self._worker = worker

    def work(self, batch: Any) -> Any:
        return self._worker(batch)


def engine_of(name: EngineName) -> Engine:
    """The engine by its name on the command line.

    Raises:
        ResourceError: Ray is not installed.
    """
    return RayEngine() if name == "ray" else LocalEngine()
