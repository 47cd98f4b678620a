"""The command line: one subcommand a stage. torch and its like are imported by the stage that needs them."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from synopsis.commands import options, results
from synopsis.commands.judging import judge
from synopsis.commands.models import compress, convert, generate
from synopsis.commands.options import (
    STAGES,
    check_choice,
    command_line,
    measure,
    offline,
    plain_logs,
    read,
    run_to_train,
    show,
)
from synopsis.commands.workflow import doctor, rerun, submit
from synopsis.errors import SynopsisError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train, evaluate and benchmark language models that compress their context.

Every subcommand is one stage and does what one job of the workflow does. Runs are named as in the results:
a model by its name, a trained compressor as <compressor>-s<seed>.

\b
  synopsis check --config config/demo.yaml
  synopsis train --config config/demo.yaml autocompressor-s0
  synopsis icl --config config/demo.yaml autocompressor-s0 world_eats --seed 1 --json

Three subcommands need no experiment, only a model: compress, generate --model and convert. verify needs only results,
and paper the released data of the gist paper.

\b
  synopsis compress MODEL --file story.txt --out story.safetensors
  synopsis generate --model MODEL --context story.safetensors "Who is it about?"

The whole grid at once: snakemake --cores 2 --configfile config/demo.yaml
""",
)


@app.callback()
def common(
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write messages and progress to this file, as plain lines.")
    ] = None,
) -> None:
    if log is not None and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        from synopsis.progress import also_log_to

        also_log_to(log)


@app.command(cls=options.Command)
def check(config: options.Config, change: options.Set = None) -> None:
    """Check an experiment file and list its runs.

    \b
      synopsis check --config config/demo.yaml
      synopsis check --config config/demo.yaml --set icl.max_examples=50
    """
    experiment = read(config, change)
    print(f"{experiment.name}: no faults")
    for run in experiment.run_names:
        print(f"  {run}  ({experiment.subject(run).method})")


@app.command(cls=options.Command)
def plan(
    config: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="Experiment file; later ones win.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="GPU that the runs are to be trained on.")] = "H100",
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs that train one run together.")] = 1,
    mfu: Annotated[
        float, typer.Option(metavar="SHARE", help="What training reaches of the GPU's peak, as a share of 1.")
    ] = 0.35,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=FILE", help="The config.json of a model whose size is not known."),
    ] = None,
    change: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Estimate what the training runs of an experiment cost, before anyone starts them.

    \b
      synopsis plan config/paper/autocompressor-opt-2.7b.yaml
      synopsis plan config/paper/gist-llama-7b.yaml --device A100 --processes 4 --mfu 0.1
      synopsis plan FILE --size my-model=path/to/config.json --json

    Parameters, tokens, FLOPs and hours of each run, and the memory of a device by what it holds; nothing is downloaded.
    Without sequences_per_step in the experiment, a step has more sequences with more --processes.

    Hours follow from --mfu. Long segments on an H100 reach 0.3 to 0.45 at 7 billion parameters. Small batches of short
    rows reach far less: the published gist runs took 28 hours of an A100 (LLaMA-7B) and 100 (FLAN-T5-XXL), evaluation
    included, which is 0.04 and 0.006. Memory leaves out what CUDA and communication need, a few GB.
    """
    experiment = read(config, change)
    from synopsis.costs import plan as costs
    from synopsis.stages.record import stages

    machine = costs.Machine(device, processes, mfu)
    found = costs.training_costs(experiment, machine, costs.named_files(size or []), config)
    jobs = {stage.name: sum(1 for _ in stage.grid(experiment)) for stage in stages().values() if stage.section}
    if as_json:
        print(json.dumps(costs.as_json(experiment, found, machine, jobs)))
    else:
        print(costs.as_text(experiment, found, machine, jobs))


@app.command(cls=options.Command)
def schema() -> None:
    """Print the JSON schema of experiment files.

    \b
      synopsis schema > experiment.schema.json
    """
    from synopsis.config.experiment import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command(cls=options.Command)
def prepare(
    config: options.Config,
    kind: Annotated[str, typer.Argument(help="model, tokenizer, corpus, instructions or task")],
    name: Annotated[str, typer.Argument(help="Name in the configuration.")],
    model: Annotated[str | None, typer.Argument(help="For a corpus: the model whose tokenizer it is for.")] = None,
    change: options.Set = None,
) -> None:
    """Fetch, convert or tokenise one input; the only stage that uses the network.

    \b
      synopsis prepare --config config/smollm2.yaml model smollm2
      synopsis prepare --config config/demo.yaml corpus stories base
    """
    if not sys.stderr.isatty():
        plain_logs()
    from synopsis.data.prepare import prepare as make

    print(make(read(config, change), kind, name, model))


@app.command(cls=options.Command)
def train(
    config: options.Config,
    run: options.RunOrNone = None,
    compressor: options.CompressorOption = None,
    seed: options.TrainingSeed = None,
    processes: options.Processes = None,
    change: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Train a run, or resume it from its last checkpoint.

    \b
      synopsis train --config config/demo.yaml autocompressor-s0
      synopsis train --config FILE --compressor gist-1 --seed 0 --set training.learning_rate=1e-4
      srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 synopsis train --config FILE RUN

    Started by torchrun or srun, each process is one of the run's; else the command starts as many as there are GPUs.
    SIGTERM, SIGINT and SIGUSR1 save a checkpoint and end with 128 + their number.
    While another process trains the run, this one waits, and then takes its model or resumes from its checkpoints.
    """
    run, change = run_to_train(config, run, compressor, seed, change)
    experiment = read(config, change)
    check_choice("run", run, experiment.run_names)
    offline()
    from synopsis.training.launch import launch

    code = launch(command_line("train", config, change, as_json, run), processes)
    if code is not None:
        sys.exit(code)
    from synopsis.training.stage import train as stage

    result = stage(experiment, run, config)
    if os.environ.get("RANK", "0") == "0":
        show(result, as_json)


def add_stage(name: str) -> None:
    """The subcommand of a stage, with its words as arguments and, where any number will do, as options.

    OPTIONS of its package are flags that do their work by themselves.
    """

    def command(config: Any, change: Any, as_json: bool, **job: Any) -> None:
        measure(name, config, change, as_json, {word: job[word] for word in STAGES[name].WORDS})

    parameters = [Parameter("config", Parameter.KEYWORD_ONLY, annotation=options.Config)]
    for word, about in STAGES[name].WORDS.items():
        kind: Any = Annotated[str, typer.Argument(help=about.help)]
        if about.known is None:
            kind = Annotated[int, typer.Option(min=0, help=about.help)]
        default = Parameter.empty if about.known is not None else 0
        parameters.append(Parameter(word, Parameter.KEYWORD_ONLY, annotation=kind, default=default))
    for option, annotation in getattr(STAGES[name], "OPTIONS", {}).items():
        parameters.append(Parameter(option, Parameter.KEYWORD_ONLY, annotation=annotation, default=False))
    parameters.append(Parameter("change", Parameter.KEYWORD_ONLY, annotation=options.Set, default=None))
    parameters.append(Parameter("as_json", Parameter.KEYWORD_ONLY, annotation=options.Json, default=False))
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    app.command(name, cls=options.Command, help=STAGES[name].__doc__)(command)


WITHOUT_EXPERIMENT: dict[str, Any] = {"generate": generate, "judge": judge}
"""Stages that have a form of their own without an experiment."""
for stage in STAGES:
    if stage in WITHOUT_EXPERIMENT:
        app.command(cls=options.Command, help=STAGES[stage].__doc__)(WITHOUT_EXPERIMENT[stage])
    else:
        add_stage(stage)
for further in (
    *(compress, convert, rerun, submit, doctor),
    *(results.score, results.report, results.summary, results.scores, results.compare, results.export),
    *(results.verify, results.paper),
):
    app.command(cls=options.Command)(further)


class Stopped(SystemExit):
    """SIGTERM or SIGINT arrived; the code is 128 + its number. No `except Exception` and no command swallows it."""


def stop(number: int, frame: Any) -> NoReturn:
    raise Stopped(128 + number)


def main() -> NoReturn:
    """Run a subcommand and exit; errors of the input are one message without a traceback."""
    code = run_command()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # All is written. Threads of the communication libraries can abort a process that exits in the ordinary way,
        # whatever its exit code was to be.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command() -> int:
    """The exit code of the command line."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        app(standalone_mode=True)
    except SynopsisError as error:
        print(f"synopsis: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print("synopsis: interrupted; finished results are kept", file=sys.stderr)
        return int(str(stopped.code))
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as in `synopsis check ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"synopsis: the disk is full: {error}; finished results are kept", file=sys.stderr)
        return 1
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


if __name__ == "__main__":
    main()
