"""README's own examples: each recipe snippet loads, each command line is one that the program takes."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer

from ziphius.cli import app
from ziphius.recipe.schema import check_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands():
    """Every `ziphius ...` line of a code block, continued lines joined, comments cut off."""
    for page in PAGES:
        for block in blocks(page, r"[a-z]*"):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.match(r" *(?:\$ )?(ziphius .*)", line):
                    yield found[1].partition(" #")[0].strip()


SNIPPETS = [text for page in PAGES for text in blocks(page, "toml") if re.search(r"^ *\[(corpora|tasks)", text, re.M)]


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_snippet_makes_a_recipe(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("A book.")
    (tmp_path / "questions.jsonl").write_text('{"question": "Who dives?", "answer": "a whale"}\n')
    (tmp_path / "checks.py").write_text("def judge(answer, gold):\n    return answer == gold\n")
    raw = tomllib.loads(re.sub(r"^  ", "", text, flags=re.M))
    small = {
        "name": "example",
        "model": {"depth": 2},
        "tasks": {"other": {"family": "chain_sum"}},
        "corpora": {"lessons": {"task": "other"}},
        "stages": {"tokenizer": {"kind": "tokenizer"}},
    }
    recipe = check_recipe({**small, **raw, "tasks": small["tasks"] | raw.get("tasks", {})}, "README")
    for name, corpus in raw.get("corpora", {}).items():
        assert recipe.corpora[name].files() == ["books/one.txt"]
        assert recipe.corpora[name].weight == corpus["weight"]


def test_snippets_and_commands_were_found():
    assert len(SNIPPETS) >= 2
    assert len(set(commands())) >= 15


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_line_is_one_that_the_program_takes(line):
    """Parsed to the last option, not run."""
    command: click.Command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = click.Context(command, info_name="ziphius")
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"no verb {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.parse_args(context, words)


def test_the_python_example_runs(tmp_path, monkeypatch):
    import torch

    from ziphius.checkpoint.folder import save_state
    from ziphius.model.presets import ladder
    from ziphius.model.transformer import Transformer
    from ziphius.text.learn import train_tokenizer

    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer(["How many legs?"], 320)
    model = Transformer(ladder(2, tokenizer.vocab_size, max_position_embeddings=512))
    model.init_weights(torch.Generator().manual_seed(0))
    (example,) = blocks(ROOT / "README.md", "python")
    folder = tmp_path / re.search(r'folder = "(.*?)"', example)[1]
    save_state(model.config, dict(model.state_dict()), folder)
    tokenizer.save(folder)
    exec(compile(example, "README.md", "exec"), {})
