"""Settings of a recipe that cannot work together, found before the first stage. Imports no torch.

Every check raises ValueError with one sentence: the keys, what they clash with and the mend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from ziphius.cost.shape import shape_of
from ziphius.recipe.low_rank import lora_matrices
from ziphius.recipe.origin import START
from ziphius.tasks.base import Family, Problem, TaskError
from ziphius.tasks.registry import make_family

if TYPE_CHECKING:
    from ziphius.recipe.schema import Recipe

SHORTEST_PROMPT = 6  # tokens: the chat template's four, the opening of the thinking, and one of the question's
PATIENCE_S = 0.25  # of this process, for drawing problems; what it did not come to is found when its stage starts


def check_order(recipe: Recipe) -> None:
    """Raise ValueError where the stages do not begin with a model, or no stage reads what the recipe names."""
    kinds = [stage.kind for stage in recipe.stages.values()]
    if recipe.model.from_ is not None:
        if START in recipe.stages:
            raise ValueError(f"stages.{START}: this name stands for the folder of model.from; give the stage another")
        if "tokenizer" in kinds:
            raise ValueError("model.from brings its own tokenizer; remove the stage of kind 'tokenizer'")
        if not kinds:
            raise ValueError("stages is empty; name one of kind 'pretrain', 'sft' or 'grpo'")
        if "pretrain" in kinds[1:]:
            raise ValueError("a stage of kind 'pretrain' goes on from model.from, so it must be the first and only one")
    else:
        if not kinds or kinds[0] != "tokenizer" or kinds.count("tokenizer") > 1:
            raise ValueError("stages must begin with one of kind 'tokenizer', unless model.from names a folder")
        if len(kinds) > 1 and kinds[1] != "pretrain":
            raise ValueError(f"the stage after the tokenizer is {kinds[1]!r}; a model begins with 'pretrain'")
        if kinds.count("pretrain") > 1:
            raise ValueError("stages has two of kind 'pretrain', which begins with random weights; keep one")
    reading = [kind for kind in kinds if kind in ("tokenizer", "pretrain")]
    if reading and not recipe.corpora:
        raise ValueError("corpora is empty; name at least one text to learn from")
    if recipe.corpora and not reading:
        raise ValueError("corpora names text that no stage reads; add a stage of kind 'pretrain', or remove corpora")


def check_together(recipe: Recipe) -> None:
    """Raise ValueError for the first thing in `recipe` that the stages would trip over."""
    _weights(recipe)
    _lengths(recipe)
    _targets(recipe)
    _tasks(recipe)


def _weights(recipe: Recipe) -> None:
    if recipe.corpora and not any(corpus.weight for corpus in recipe.corpora.values()):
        raise ValueError("corpora: every weight is 0, so there is nothing to read; give one a weight above 0")


def _lengths(recipe: Recipe) -> None:
    """Rows, and prompts with their answers, against the context of the network."""
    limit = recipe.model.config(vocab_size=1024).max_position_embeddings
    wanted: list[tuple[str, int, int]] = []  # (key, tokens, tokens that stand before them)
    for name, stage in recipe.stages.items():
        if stage.kind == "grpo":
            wanted.append((f"stages.{name}.grpo.max_new_tokens", stage.grpo.max_new_tokens, SHORTEST_PROMPT))
        elif stage.kind != "tokenizer":
            wanted.append((f"stages.{name}.seq_len", stage.seq_len, 0))
    if recipe.evaluation.tasks:
        wanted.append(("evaluation.max_new_tokens", recipe.evaluation.max_new_tokens, SHORTEST_PROMPT))
    for key, length, before in wanted:
        if length + before > limit:
            behind = f", of which a prompt takes at least {before}" if before else ""
            raise ValueError(
                f"{key} is {length} but the model reaches {limit} tokens{behind}; lower it, or raise "
                "model.overrides.max_position_embeddings"
            )


def _targets(recipe: Recipe) -> None:
    """The matrices that low-rank updates name, against those of the network."""
    for name, stage in recipe.stages.items():
        lora = stage.train.lora if stage.kind in ("sft", "grpo") else None
        if lora is None or lora.targets is None:
            continue
        there = lora_matrices(shape_of(recipe.model.config(vocab_size=1024)), lora.experts)
        unknown = [target for target in lora.targets if target not in there]
        if unknown:
            raise ValueError(
                f"stages.{name}.train.lora.targets: this network has no matrix called {unknown[0]!r}; it has "
                f"{', '.join(sorted(there))}"
            )


# --- what the task families can give ----------------------------------------------------------------------------------


def _tasks(recipe: Recipe) -> None:
    """Draw from each task what the stages will ask of it, as long as that is cheap."""
    end = time.process_time() + PATIENCE_S
    for key, draw, complaint in _demands(recipe, end):
        try:
            drawn = draw()
        except TaskError as error:
            raise ValueError(f"{key}: {str(error).removeprefix('tasks: ')}") from None
        if drawn is None:
            raise ValueError(f"{key}: {complaint}")
        if time.process_time() > end:
            return


def _demands(recipe: Recipe, end: float) -> Iterator[tuple[str, Callable[[], object], str]]:
    """The keys that name tasks: what they want drawn, and what is wrong where that is None."""
    families = {name: make_family(task.family, **task.settings) for name, task in recipe.tasks.items()}
    for name, corpus in recipe.corpora.items():
        if corpus.task:
            lessons = partial(families[corpus.task].lesson, Random(0), corpus.kinds)
            none = f"the family {families[corpus.task].name} writes no lessons; give a path to files in place of task"
            yield f"corpora.{name}.task", lessons, none
    for name, stage in recipe.stages.items():
        if stage.kind == "pretrain" and stage.probe:
            family, key = families[stage.probe], f"stages.{name}.probe"
            none = f"the family {family.name} has no worked solutions to measure a skill by; name another task or none"
            yield key, partial(_solution, family, "probe"), none
            yield key, partial(_enough, family, "probe", stage.probe_n, end), ""
        elif stage.kind == "sft" and stage.task:
            family = families[stage.task]
            none = f"the family {family.name} has no worked solutions to imitate; give a path to chats in place of task"
            yield f"stages.{name}.task", partial(_solution, family, "train"), none
        elif stage.kind == "grpo":
            for task in stage.tasks:
                yield f"stages.{name}.tasks.{task}", partial(families[task].problem, "train", 0), ""
    for task in recipe.evaluation.tasks:
        asked = recipe.evaluation
        yield f"evaluation ({task})", partial(_enough, families[task], asked.split, asked.n, end), ""


def _solution(family: Family, split: str) -> str | None:
    return family.trace(family.problem(split, 0), Random(0), thorough=True)


def _enough(family: Family, split: str, n: int, end: float) -> Problem | list[Problem]:
    """The `n` distinct problems of a split that will be asked, or the first of them where all would take too long."""
    began = time.process_time()
    first = family.problem(split, 0)
    slow = began + 2 * n * (time.process_time() - began) > end
    return first if slow else family.problems(split, n)
