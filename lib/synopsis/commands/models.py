"""The subcommands that need no experiment, only a model: compress, convert, and generate with questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from synopsis.commands import options
from synopsis.commands.options import measure, plain_logs, show, values_of
from synopsis.errors import DataError, InputError


def compress(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id of an AutoCompressor, an RMT or a gist model.")
    ],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; - for standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file (- for standard input).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write the context to (safetensors).")] = None,
    question: Annotated[
        str | None,
        typer.Option("--input", metavar="TEXT", help="Answer this, after the context and after the text itself."),
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    segment_length: options.SegmentLength = None,
    tokens: options.GistTokens = None,
    base: options.Base = None,
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Compress a text (AutoCompressor) or an instruction (gist model), for one --input or for `generate --context`.

    \b
      synopsis compress MODEL "Translate into French." --input "Where is the station?"
      synopsis compress MODEL "A text to remember." --out text.safetensors
      synopsis compress MODEL --file book.txt --segment-length 1024 --out book.safetensors --json
      cat book.txt | synopsis compress MODEL - --out book.safetensors

    Prints how many tokens became how many vectors, and their bytes: as keys and values of all tokens, in the file, and
    in the cache of the model that continues from them. With --input also what was compressed, and what the model
    answers with and without compression.
    """
    if out is None and question is None:
        raise InputError("compress: expected --out FILE, --input TEXT, or both")
    if question is None and max_new_tokens is not None:
        raise InputError("compress: --max-new-tokens goes with --input")
    plain_logs()
    from synopsis.engine import texts as compressing

    content = read_text(text, file, "the text")
    if out is not None and out.is_dir():
        raise InputError(f"{out}: is a folder; expected the name of a file for the context")
    loaded, tokenizer = compressing.open_model(model, base, dtype)
    done = compressing.compress_text(loaded, tokenizer, content, segment_length, tokens)
    found, lines = done.record(), str(done).splitlines()
    if question is not None:
        answers = compressing.compare(loaded, tokenizer, question, done, max_new_tokens)
        found |= answers
        shown = answers | {"compressed": shortened(answers["compressed"])}
        lines += [f"{name.replace('_', ' ')}: {text}" for name, text in shown.items()]
    if out is not None:
        done.context.save(out)
        found["out"] = str(out)
        lines.append(f"written to {out}")
    if as_json:
        show(found, as_json)
    else:
        print("\n".join(lines))


def read_text(text: str | None, file: Path | None, what: str) -> str:
    """The one text that is given: as it is, in a file, or on standard input where either is `-`.

    what: its name in messages. InputError when there is none or more than one; DataError when it cannot be read or is
    empty.
    """
    if (text is None) == (file is None):
        given = "both an argument and --file" if text is not None else "none"
        raise InputError(f"{what}: expected an argument, --file FILE, or - for standard input; found {given}")
    if text != "-" and file is None:
        source, found = what, str(text)
    else:
        source = "standard input" if file is None or str(file) == "-" else str(file)
        try:
            stream = sys.stdin.buffer.read() if source == "standard input" else Path(source).read_bytes()
            found = stream.decode("utf-8")
        except OSError as error:
            raise DataError(f"{source}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: is no UTF-8 text (byte {error.start})") from None
    if not found.strip():
        raise DataError(f"{source}: is empty; expected text")
    return found


def shortened(text: str, ends: int = 120) -> str:
    """The text, or its two ends where it is long."""
    return text if len(text) <= 2 * ends else f"{text[:ends]} ... {text[-ends:]}"


def generate(
    words: options.Words = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", "-c", metavar="FILE", help="Experiment file; see above.")
    ] = None,
    change: options.Set = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id that answers the questions.")] = None,
    context: Annotated[Path | None, typer.Option(help="What it has read: a file of `synopsis compress`.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="One more question, the text of a file (- for standard input).")
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    base: options.Base = None,
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    given = {"model": model, "context": context, "file": file, "max-new-tokens": max_new_tokens, "base": base}
    words = words or []
    if config:
        beside = [f"--{option}" for option, value in given.items() if value is not None]
        if beside or len(words) != 2:
            found = " ".join([*beside, *words]) or "nothing"
            raise InputError(f"generate --config: expected RUN and SPLIT alone; found {found}")
        measure("generate", config, change, as_json, {"run": words[0], "split": words[1]})
        return
    if model is None or change:
        raise InputError("generate: expected --config FILE RUN SPLIT, or --model MODEL with questions")
    plain_logs()
    from synopsis.compressors.context import CompressedContext
    from synopsis.engine import texts as compressing

    questions = [read_text(text, None, "the question") if text == "-" else text for text in words]
    if file is not None:
        questions.append(read_text(None, file, "the question"))
    remembered = None if context is None else CompressedContext.load(context)
    loaded, tokenizer = compressing.open_model(model, base, dtype)
    if context is not None and remembered is not None:
        compressing.check_context(loaded, remembered, context)
    answers = compressing.ask(loaded, tokenizer, questions, remembered, max_new_tokens)
    if as_json:
        show({"answers": [vars(answer) for answer in answers]}, as_json)
    elif len(answers) == 1:
        print(answers[0].answer)
    else:
        print("\n".join(f"> {answer.question}\n{answer.answer}" for answer in answers))


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder or hub id: a checkpoint as published, or one of ours.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="Folder to write, which must not be there yet.")
    ],
    to: Annotated[str, typer.Option(help="synopsis, or published: what the published code reads.")] = "synopsis",
    base: options.BaseOfDiff = None,
    checksum: Annotated[float | None, typer.Option(help="Sum of the weights that a diff must lead to.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a hub id.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="bin or safetensors, with --to published.")] = "bin",
    setting: options.Setting = None,
    as_json: options.Json = False,
) -> None:
    """Write a published checkpoint as a model folder of ours, or one of ours as published; weights to the bit.

    \b
      synopsis convert princeton-nlp/AutoCompressor-Llama-2-7b-6k models/autocompressor-7b
      synopsis convert jayelm/llama-7b-gist-1 models/gist-7b --base llama-7b
      synopsis convert models/gist-7b gist-7b-diff --to published --base llama-7b
    """
    plain_logs()
    from dataclasses import asdict

    from synopsis.compressors.published.conversion import convert as write

    options: dict[str, Any] = {"base": base, "checksum": checksum, "revision": revision, "file_format": file_format}
    done = write(source, destination, to, **options, **values_of(setting))
    show(asdict(done), as_json)
