"""The command line. Each command imports what it needs when it is called, so that `--help` is quick."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hgrnx.bench.commands import app as bench_app
from hgrnx.errors import UserError
from hgrnx.launch.cluster_commands import app as cluster_app
from hgrnx.options import Home

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, distil and evaluate HGRN2 language models on small amounts of text.",
)
app.add_typer(bench_app, name="bench")
app.add_typer(cluster_app, name="cluster")

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides: training.learning_rate=2e-3 ...")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of reusing what was done before.")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a .yaml file.")],
    overrides: Overrides = None,
    home: Home = None,
    fresh: Fresh = False,
) -> None:
    """Train one model from a recipe on Ray Train."""
    from hgrnx.config import DistillRecipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if isinstance(loaded, DistillRecipe):
        raise UserError(f"'{recipe}' describes a teacher and a student: use `hgrnx distill {recipe}`.")
    _run(loaded, home, fresh)


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a .yaml file.")] = "demo",
    overrides: Overrides = None,
    home: Home = None,
    fresh: Fresh = False,
) -> None:
    """Train a teacher, a distilled student and its undistilled twin, evaluate and compare them."""
    from hgrnx.config import Recipe, load_recipe

    if "=" in recipe:  # overrides alone: the default recipe
        recipe, overrides = "demo", [recipe, *(overrides or [])]
    loaded = load_recipe(recipe, overrides or [])
    if isinstance(loaded, Recipe):
        raise UserError(f"'{recipe}' describes a single model: use `hgrnx train {recipe}`.")
    _run(loaded, home, fresh)


def _run(recipe: object, home: Path | None, fresh: bool) -> None:
    from hgrnx.config import AnyRecipe
    from hgrnx.launch.jobs import run_job
    from hgrnx.paths import resolve_places

    assert isinstance(recipe, AnyRecipe)
    try:
        run_job(recipe, resolve_places(home), fresh=fresh)
    except KeyboardInterrupt:
        print("\nhgrnx: stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def tune(
    track: Annotated[str | None, typer.Option(help="Track, and its space [demo].")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Recipe keys to hold fixed: seed=1 ...")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to start from [the space's].")] = None,
    space: Annotated[str | None, typer.Option(help="A shipped space or a .yaml file [the track's].")] = None,
    source: Annotated[str | None, typer.Option(help="Folder of the track's text, or hub.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Begin no more trials than this.")] = None,
    hours: Annotated[float | None, typer.Option(help="Begin no trial after so many hours.")] = None,
    words: Annotated[int | None, typer.Option(min=1, help="Words that a trial sees [the recipe's].")] = None,
    search: Annotated[str | None, typer.Option(help="tpe, random or grid.")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="METRIC:min or METRIC:max; several make a Pareto front.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search that ran last.")] = False,
    home: Home = None,
    fresh: Fresh = False,
) -> None:
    """Search a recipe's hyperparameters; the same command goes on with a search that was interrupted."""
    from hgrnx.launch.search_request import last_plan, read_plan
    from hgrnx.launch.tune import run_search
    from hgrnx.paths import resolve_places

    places = resolve_places(home)
    if resume:
        if any((track, overrides, recipe, space, source, trials, hours, words, search, objective, fresh)):
            raise UserError("--resume takes the settings of the last search; to change one, repeat its command.")
        plan = last_plan(places)
    else:
        budget = {"trials": trials, "hours": hours}
        plan = read_plan(track, space, recipe, source, overrides or [], budget, words, search, objective or [])
    try:
        run_search(plan, places, fresh=fresh)
    except KeyboardInterrupt:
        print("\nhgrnx: stopped. The same command, or hgrnx tune --resume, goes on from here.", file=sys.stderr)
        raise typer.Exit(130) from None


@bench_app.command(name="launch")
def bench_launch(
    recipe: Annotated[str, typer.Argument(help="Whose steps: a shipped recipe or a .yaml file.")] = "demo",
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed, in turns.")] = 3,
    home: Home = None,
) -> None:
    """Training steps in a plain process, on Ray with DeepSpeed, and with checkpoints."""
    from dataclasses import replace

    import torch

    from hgrnx.bench.run import Bench
    from hgrnx.config import Recipe, load_recipe
    from hgrnx.console import make_console
    from hgrnx.data.progress import prepare_with_progress
    from hgrnx.launch.launch_cost import measure_launch
    from hgrnx.paths import resolve_places

    loaded, places, console = load_recipe(recipe, overrides or []), resolve_places(home), make_console()
    dataset = prepare_with_progress(loaded.data, places, console)
    chosen = loaded if isinstance(loaded, Recipe) else loaded.twin_recipe()
    folder, threads = places.home / "bench", torch.get_num_threads()
    own = replace(places, home=folder, runs=folder)
    Bench(folder, console, rounds=rounds).turns(
        "launch",
        f"launch, steps of {chosen.training.batch_size} x {chosen.training.seq_len} tokens of {chosen.name}",
        lambda count, on_progress: measure_launch(chosen, dataset, own, threads, count, on_progress),
    )


@app.command()
def reproduce(
    experiment: Annotated[
        str, typer.Argument(help="table2, dynamics, data, distill, objectives, training, ablations or lr-sweep.")
    ],
    overrides: Overrides = None,
    scale: Annotated[str, typer.Option(help="demo, cpu, gpu or paper.")] = "cpu",
    seeds: Annotated[str | None, typer.Option(help="Instead of the experiment's: 0,1,2.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms, and their teachers: hgrn2,lstm.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' data in the BabyLM pipeline's layout.")
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Runs at a time [as many as there is room for].")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and what they cost; run nothing.")] = False,
    home: Home = None,
) -> None:
    """Run one of the paper's experiments: every arm with every seed, scored and compared in one report."""
    from hgrnx.config.experiments import plan_experiment
    from hgrnx.console import make_console
    from hgrnx.launch.experiment import run_experiment
    from hgrnx.launch.task_request import read_numbers
    from hgrnx.paths import resolve_places

    plan = plan_experiment(
        experiment,
        scale,
        seeds=read_numbers("seeds", seeds) if seeds else None,
        arms=[name.strip() for name in arms.split(",")] if arms else None,
        overrides=overrides or [],
    )
    places, console = resolve_places(home), make_console()
    if dry_run:
        from hgrnx.doctor.experiment import print_plan

        print_plan(plan, places, console)
        return
    try:
        run_experiment(plan, places, console, data=data, at_once=at_once, command=_typed())
    except KeyboardInterrupt:
        print("\nhgrnx: stopped. The same command goes on from the last checkpoints.", file=sys.stderr)
        raise typer.Exit(130) from None


def _typed() -> str:
    """What was typed, for a report that says how to repeat it."""
    import shlex

    return shlex.join(["hgrnx", *sys.argv[1:]])


@app.command()
def report(
    experiment: Annotated[str, typer.Argument(help="An experiment that was run: table2-cpu, or its folder.")],
    home: Home = None,
) -> None:
    """Write and print the report of an experiment, finished or not: HTML and Markdown."""
    from hgrnx.console import make_console
    from hgrnx.launch.experiment_report import report_experiment
    from hgrnx.paths import resolve_places

    report_experiment(experiment, resolve_places(home), make_console())


@app.command()
def prepare(
    track: Annotated[
        str, typer.Option(help="demo, strict-small, strict, pile-10m, pile-100m or a .yaml file.")
    ] = "demo",
    source: Annotated[str | None, typer.Option(help="Folder of text files, or hub [where it was before; hub]")] = None,
    words: Annotated[int | None, typer.Option(help="Use only this many words of the track.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Entries of the BPE vocabulary [16000].")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Existing tokenizer.json to use, or its folder.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Take the data settings of this recipe.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes [one a core, at most 8].")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the ledger of words.")] = False,
    home: Home = None,
    fresh: Fresh = False,
) -> None:
    """Turn text into a tokenizer, token shards and a manifest that counts every word."""
    from hgrnx.config import DataConfig, load_recipe
    from hgrnx.console import make_console
    from hgrnx.data.ledger import print_ledger
    from hgrnx.data.progress import prepare_with_progress
    from hgrnx.data.tracks import HUB
    from hgrnx.paths import resolve_places

    config = load_recipe(recipe).data if recipe else DataConfig(track=track)
    changes = {
        "source": str(Path(source).expanduser().resolve()) if source and source != HUB else source,
        "words": words,
        "vocab_size": vocab_size,
        "tokenizer": str(tokenizer.expanduser().resolve()) if tokenizer else None,
    }
    config = DataConfig.model_validate({**config.model_dump(), **{k: v for k, v in changes.items() if v is not None}})
    console = make_console()
    dataset = prepare_with_progress(config, resolve_places(home), console, fresh=fresh, workers=workers)
    console.print(f"{dataset.dir}\ndata hash {dataset.hash}", highlight=False)
    if show:
        print_ledger(dataset.manifest, console)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Name or folder of a run, a checkpoint or a Hugging Face folder.")],
    tasks: Annotated[
        str | None,
        typer.Option(help="blimp,supplement,ewok,bear,glue, their _fast forms, or tasks of GLUE [the zero-shot ones]."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' data in the BabyLM pipeline's layout.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="Without tasks: folder of minimal pairs in BLiMP's JSONL.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Without tasks: prepared dataset with the development text [the run's].")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the hidden states (tasks).")] = "fp32",
    bear_templates: Annotated[str, typer.Option(help="all, or numbers from 0: 0,2.")] = "all",
    bear_reduction: Annotated[str, typer.Option(help="A statement's score: sum or mean over its tokens.")] = "sum",
    glue: Annotated[list[str] | None, typer.Option(help="Fine-tuning settings: epochs=3, tasks.cola.epochs=5.")] = None,
    seeds: Annotated[str, typer.Option(help="Of fine-tunings: 12,13,14.")] = "12",
    challenge_predictions: Annotated[
        Path | None,
        typer.Option(help="Write the BabyLM challenge's JSON here (.json.gz; EWoK's into a zip beside it)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray workers that share the tasks; 0 for none [all of the cluster in RAY_ADDRESS]."),
    ] = None,
    cpus_per_worker: Annotated[int, typer.Option(min=1, help="Of each Ray worker.")] = 1,
    home: Home = None,
    fresh: Fresh = False,
) -> None:
    """Score a model on the BabyLM tasks; without tasks, on development text and a folder of minimal pairs."""
    from hgrnx.console import make_console
    from hgrnx.paths import resolve_places

    places, console = resolve_places(home), make_console()
    if tasks is None and data is None:
        if workers:
            raise UserError("--workers shares out benchmark tasks: name them with --tasks (and --data).")
        from hgrnx.launch.evaluate import evaluate_model

        evaluate_model(model, places, pairs, text, console)
        return
    from hgrnx.launch.evaluate_tasks import evaluate_tasks
    from hgrnx.launch.task_request import read_request

    request = read_request(
        tasks, data, precision, bear_templates, bear_reduction, glue or [], seeds, challenge_predictions
    )
    evaluate_tasks(model, places, request, console, fresh=fresh, workers=workers, cpus_per_worker=cpus_per_worker)


@app.command()
def score(
    predictions: Annotated[
        list[Path], typer.Argument(help="Predictions in the BabyLM challenge's JSON, gzipped or not.")
    ],
    data: Annotated[Path, typer.Option(help="The challenge's evaluation data: blimp_filtered, ewok, ...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score anyone's BabyLM predictions by the challenge's rules."""
    from hgrnx.console import make_console
    from hgrnx.evaluation.predictions import print_scores, read_predictions, score_predictions

    scores = score_predictions(read_predictions(predictions), data)
    if as_json:
        print(json.dumps(scores.as_dict(), indent=1))
    else:
        print_scores(scores, make_console())


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Names or folders of finished runs, or scored Hugging Face folders.")
    ],
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex.")] = "text",
    home: Home = None,
) -> None:
    """Print models side by side: runs' summaries, and benchmark scores beside the paper's with their differences."""
    from typing import cast, get_args

    from hgrnx.console import make_console
    from hgrnx.launch.compare import compare_runs
    from hgrnx.paths import resolve_places
    from hgrnx.report.task_comparison import Format

    if form not in get_args(Format):
        raise UserError(f"--format {form}: give one of {', '.join(get_args(Format))}.")
    compare_runs(runs, resolve_places(home), make_console(), cast(Format, form))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    folder: Annotated[Path, typer.Argument(help="New folder for config.json, safetensors and tokenizer.")],
    milestones: Annotated[bool, typer.Option("--milestones", help="Also a folder for each word milestone.")] = False,
    push: Annotated[str | None, typer.Option(help="Upload to this repository (USER/NAME) of the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    home: Home = None,
) -> None:
    """Write a Hugging Face folder with a model card, which transformers (and for HGRN2 FLA, on a GPU) opens."""
    from hgrnx.export import check_repo, export_run, push_folders
    from hgrnx.paths import resolve_places

    if push is not None:
        check_repo(push)
    folders = export_run(run, folder, resolve_places(home), milestones=milestones)
    print("\n".join(str(path.resolve()) for path in folders.values()))
    if push is not None:
        print(push_folders(folders, push, private=private))


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="Name or folder of a run, or a Hugging Face folder.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Text to go on from; may be given several times.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="File with a prompt on each line.")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Only the k likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Only the likeliest tokens of this total.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    home: Home = None,
) -> None:
    """Continue texts; memory per token is constant, because the state is all that is kept."""
    from hgrnx.models.generation import Sampling, complete_texts, stream_text
    from hgrnx.paths import resolve_places
    from hgrnx.runs import open_model

    prompts = [*(prompt or []), *(_lines(prompts_file) if prompts_file else [])] or [""]
    sampling = Sampling(temperature, top_k or None, top_p, seed)
    opened = open_model(run, resolve_places(home))
    if len(prompts) == num_samples == 1:
        for piece in stream_text(opened.model, opened.tokenizer(), prompts[0], tokens, sampling):
            print(piece, end="", flush=True)
        print()
        return
    texts = complete_texts(opened.model, opened.tokenizer(), prompts, tokens, sampling, samples=num_samples)
    for text, continuations in zip(prompts, texts, strict=True):
        for number, continuation in enumerate(continuations, start=1):
            print(f"--- {text}" + (f" ({number} of {num_samples})" if num_samples > 1 else ""))
            print(continuation, flush=True)


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the prompts in {path}: {error}.") from None
    if not lines:
        raise UserError(f"{path} has no prompt in it.")
    return lines


@app.command()
def runs(
    name: Annotated[str | None, typer.Argument(help="Show this run in full.")] = None,
    home: Home = None,
) -> None:
    """List the runs on this machine, or show one."""
    from hgrnx.console import make_console
    from hgrnx.paths import resolve_places
    from hgrnx.runs import print_run, print_runs

    places = resolve_places(home)
    if name is None:
        print_runs(places, make_console())
    else:
        print_run(name, places, make_console())


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="Also try this recipe: memory and time on this machine.")] = None,
    overrides: Overrides = None,
    home: Home = None,
) -> None:
    """Say what this machine has, what a recipe will need of it, and whether a cluster's nodes are alike."""
    from hgrnx.config import load_recipe
    from hgrnx.console import make_console
    from hgrnx.doctor.show import print_estimates, print_machine
    from hgrnx.paths import resolve_places

    places, console = resolve_places(home), make_console()
    loaded = load_recipe(recipe, overrides or []) if recipe else None
    print_machine(places, console)
    if loaded is not None:
        print_estimates(loaded, places, console)
    if os.environ.get("RAY_ADDRESS"):  # in a job, or in a shell that talks to a cluster
        from hgrnx.launch.nodes import print_cluster

        print_cluster(places, console)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the page.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs MLFLOW_AUTH_ADMIN_PASSWORD.")
    ] = "127.0.0.1",
    home: Home = None,
) -> None:
    """Open MLflow's page on the right store, on loopback unless another address is asked for."""
    from hgrnx.paths import resolve_places
    from hgrnx.tracking.mlflow import serve

    serve(resolve_places(home).mlflow_uri, port, host)


def main() -> None:
    """Run the command line; a :class:`UserError` is a message and an exit status, never a stack trace."""
    try:
        app()
    except UserError as error:
        print(f"hgrnx: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None


if __name__ == "__main__":
    main()
