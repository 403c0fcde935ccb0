"""``hgrnx cluster up|down|status``: a cluster on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hgrnx.options import Home

app = typer.Typer(no_args_is_help=True, help="A Ray cluster and an MLflow server on this machine, on loopback.")


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, help="Nodes besides the head.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each worker.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each worker.")] = 0,
    port: Annotated[int, typer.Option(help="Port of Ray's page, which takes the jobs.")] = 8265,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's server.")] = 5000,
    home: Home = None,
) -> None:
    """Start a head, workers and MLflow's server, and say what to type next."""
    from hgrnx.console import make_console
    from hgrnx.launch import local_cluster
    from hgrnx.paths import resolve_places

    local_cluster.up(
        resolve_places(home),
        workers=workers,
        cpus=cpus,
        gpus=gpus,
        dashboard_port=port,
        mlflow_port=mlflow_port,
        console=make_console(),
    )


@app.command()
def down(home: Home = None) -> None:
    """Stop all that was started, jobs included; runs go on from their checkpoints when submitted again."""
    from hgrnx.launch.local_cluster import down as stop
    from hgrnx.paths import resolve_places

    ended = stop(resolve_places(home))
    print(f"Ended {ended} processes." if ended else "Nothing was running.")


@app.command()
def status(home: Home = None) -> None:
    """Say whether the cluster is whole, and where."""
    from hgrnx.console import make_console
    from hgrnx.launch.local_cluster import status as show
    from hgrnx.paths import resolve_places

    show(resolve_places(home), make_console())
