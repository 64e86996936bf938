"""`ziphius serve`, `chat`, `key`, `export` and `import`. Imports neither torch nor the service's packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ziphius.model.formats import Weights

WeightsOption = Annotated[
    Weights,
    typer.Option(help="Format in memory, e.g. --weights int8 or fp8: half of bf16, rounded; auto: the folder's own."),
]
Thinking = Annotated[bool, typer.Option(help="Let it think before it answers; --no-thinking: answer at once.")]


def serve(
    folder: Annotated[Path, typer.Argument(help="A model folder, or a run folder (its last stage is taken).")],
    host: Annotated[
        str, typer.Option(help="Address to listen at, e.g. --host 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port, e.g. --port 8080; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests, e.g. --name r1; the folder's otherwise.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the model runs, e.g. --device cuda:1; auto: on a GPU where there is one.")
    ] = "auto",
    weights: WeightsOption = "auto",
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter of the model, by a name for requests, e.g. --adapter sums=FOLDER. Repeatable."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys (`ziphius key` writes it), e.g. --keys keys.txt.")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            help="Let pages of this origin use the API, e.g. --cors https://chat.example; * for all. Repeatable."
        ),
    ] = None,
    open_to_all: Annotated[bool, typer.Option("--open-to-all", help="Serve a public address without keys.")] = False,
    dollars_per_hour: Annotated[
        float | None, typer.Option(help="What the machine costs, e.g. 0.09; the run's price otherwise.")
    ] = None,
    price_list: Annotated[
        str | None, typer.Option(help="Compare with this model's list price, e.g. --price-list deepseek-r1.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting of docs/SERVING.md, e.g. --set max_requests=64 --set speculation=off",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers into the log, too.")
    ] = False,
) -> None:
    """Serve a model: an OpenAI-compatible API that shows its thinking, and a chat page.

    Example: `ziphius serve runs/r1-cpu-seed0 --dollars-per-hour 0.09 --price-list deepseek-r1`
    """
    from ziphius.serve.wire.settings import named_folders, read_pairs

    given: dict[str, Any] = {"host": host, "port": port, "name": name, "keys": keys, "price_list": price_list}
    given |= {
        "cors": cors or None,
        "device": device,
        "weights": weights,
        "dollars_per_hour": dollars_per_hour,
        "open_to_all": open_to_all,
        "log_prompts": log_prompts,
    }
    given = {key: value for key, value in given.items() if value is not None}
    _need_packages()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads leave the cores to those who talk to clients
    from ziphius.serve.launch import launch

    if adapter:
        given["adapters"] = named_folders(adapter)
    launch(folder, given | read_pairs(set_ or []))


def chat(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER|URL", help="A model or run folder, or the address of a service.")
    ],
    question: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="E.g. 0 for the likeliest answer; the model's own otherwise.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, thinking included, e.g. 256.")] = None,
    thinking: Thinking = True,
    seed: Annotated[int | None, typer.Option(help="The same answers each time, e.g. --seed 0.")] = None,
    weights: WeightsOption = "auto",
    api_key: Annotated[
        str | None, typer.Option(envvar="ZIPHIUS_API_KEY", help="Key of a service that asks for one.")
    ] = None,
) -> None:
    """Talk to a model in the terminal: its thinking dimmed, then its answer. Ctrl-C stops an answer.

    Example: `ziphius chat runs/r1-cpu-seed0` or `ziphius chat http://127.0.0.1:8000`
    """
    from ziphius.serve.terminal.converse import converse

    settings = {"temperature": temperature, "max_tokens": max_new_tokens, "seed": seed}
    converse(model, question, {k: v for k, v in settings.items() if v is not None}, thinking, weights, api_key)


def key(
    file: Annotated[Path, typer.Argument(help="File of keys; made where there is none.")],
    name: Annotated[
        str | None, typer.Argument(help="Whose key it is: one word, which the log will show. Without it: a list.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="E.g. --requests-per-minute 60.")] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1, help="Days are UTC's.")] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(min=1, help="Of prompts and answers, e.g. --tokens-per-day 100000.")
    ] = None,
    dollars_per_day: Annotated[
        float | None, typer.Option(help="Of the machine's time, e.g. --dollars-per-day 0.5.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Take the key away; a running service obeys at once.")
    ] = False,
) -> None:
    """Make an API key: it is printed once, the file keeps its hash. Or list the file's keys, or delete one.

    Example: `ziphius key keys.txt ada --tokens-per-day 100000`
    """
    from ziphius.serve.key_file import delete_key, list_keys, new_key
    from ziphius.serve.wire.keys import Allowance

    limits = {
        "requests_per_minute": requests_per_minute,
        "requests_per_day": requests_per_day,
        "tokens_per_day": tokens_per_day,
        "dollars_per_day": dollars_per_day,
    }
    words = [f"{limit}={value}" for limit, value in limits.items() if value is not None]
    if words and (name is None or delete):
        raise ValueError("limits are given to a key when it is made: say its name, and no --delete")
    if name is None:
        if delete:
            raise ValueError("--delete needs the name of a key")
        print("\n".join(list_keys(file)))
    elif delete:
        delete_key(file, name)
    else:
        print(new_key(file, name, Allowance.of(words)))


def export(
    folder: Annotated[Path, typer.Argument(help="A model folder, or a run folder (its last stage is taken).")],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write, e.g. model.gguf.")],
    type_: Annotated[
        Literal["f32", "bf16", "q8_0"],
        typer.Option("--type", help="How weights are kept, e.g. --type q8_0 for about a byte each."),
    ] = "f32",
) -> None:
    """Write a model as one GGUF file, which llama.cpp runs.

    Example: `ziphius export runs/r1-cpu-seed0 r1-cpu.gguf --type bf16`
    """
    from ziphius.serve.export import export_folder

    export_folder(folder, out, type_)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="Llama, Qwen2, Qwen3 or DeepSeek, in any format.")],
    folder: Annotated[Path, typer.Argument(help="The model folder to write, a new one.")],
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        typer.Option(help="How weights are kept, e.g. --dtype fp32: unrounded; auto: bf16, or fp32 as in the file."),
    ] = "auto",
) -> None:
    """Write a GGUF file as a model folder: weights, tokenizer and chat template. The way back from `export`.

    Example: `ziphius import SmolLM2-135M-Instruct.Q4_1.gguf smollm2`
    """
    from ziphius.serve.export import import_file

    import_file(file, folder, dtype)


def _need_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "httptools", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ValueError(f"serving needs {', '.join(missing)}: pip install 'ziphius[serve]'")
