"""Build the bank: ``python -m lightning_lyapunov.bank DIRECTORY``, and the same again after an interruption."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_lyapunov.bank.build import build, differing, plan, smoke_plan
from lightning_lyapunov.bank.records import Bank

Backend = Literal["loky", "ray", "dask"]


def build_bank(
    directory: Path,
    *,
    jobs: int = -1,
    smoke: bool = False,
    backend: Backend = "loky",
) -> None:
    """Train the bank's networks that are missing, a record for each population: hours.

    Interrupted at any moment, the same command goes on. Several may share a directory and so the work. The directory is
    the bank.

    Args:
        directory: Where the records of populations are, and go; on a cluster, a place that all machines share.
        jobs: Processes; as many as there are cores if -1.
        smoke: Thirty tiny networks only; give them a DIRECTORY of their own.
        backend: Who runs them: loky, processes of this machine; ray or dask, the cluster that RAY_ADDRESS or
            DASK_SCHEDULER_ADDRESS names, else one on this machine.
    """
    if jobs < 1 and jobs != -1:
        raise ValueError(f"jobs must be at least 1, or -1 for as many as there are cores; got {jobs}.")
    populations = smoke_plan() if smoke else plan()
    with _backend(backend):
        build(populations, directory, jobs)
    bank = Bank.load(directory, expected=[population.name for population in populations])
    families = len(set(bank.column("family")))
    print(f"{len(bank)} networks, {len(bank.best)} tasks of {families} families: {directory}")


def check_bank(directory: Path, count: int) -> None:
    """Train some of the bank's populations again and compare their records, to the last bit."""
    if different := differing(plan(), directory, count):
        raise SystemExit(f"made again, and not as in {directory}: {', '.join(different)}")
    print(f"{count} populations made again, to the last bit as in {directory}")


def _backend(name: Backend) -> AbstractContextManager[Any]:
    """The backend that joblib knows by a name; the cluster is found, or begun, by its own package."""
    import joblib

    if name == "loky":
        return nullcontext()
    try:
        if name == "ray":
            from ray.util.joblib.ray_backend import RayBackend

            class Ray(RayBackend):  # type: ignore[misc, unused-ignore]
                supports_return_generator = True  # its pool calls back as results come, unlike that of multiprocessing

            joblib.register_parallel_backend("ray", Ray)
        else:
            from dask.distributed import Client

            Client()  # joblib uses the latest
    except ModuleNotFoundError as error:
        needed = "'lightning-lyapunov[ray]'" if name == "ray" else "'dask[distributed]'"
        raise ModuleNotFoundError(
            f"backend {name!r} needs {error.name}, which is not installed: pip install {needed}.", name=error.name
        ) from error
    return joblib.parallel_config(name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lightning_lyapunov.bank", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the records of populations are, and go")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; as many as there are cores if left out")
    parser.add_argument("--smoke", action="store_true", help="thirty tiny networks only; give them their own DIRECTORY")
    parser.add_argument("--backend", choices=get_args(Backend), default="loky", help="who runs them: default loky")
    parser.add_argument("--check", type=int, help="train so many of its populations again and compare the records")
    args = parser.parse_args()
    if args.check:
        return check_bank(args.directory, args.check)
    build_bank(args.directory, jobs=args.jobs, smoke=args.smoke, backend=args.backend)


if __name__ == "__main__":
    main()
