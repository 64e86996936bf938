"""The recipe's questions to a stage that is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ziphius.cost.energy import EnergyMeter
from ziphius.evaluate.runner import evaluate
from ziphius.ledger.folder import EVALUATION, evaluation_key, write_json
from ziphius.recipe.bills import bill
from ziphius.recipe.digests import Digests
from ziphius.recipe.identity import Identity, evaluation_identity
from ziphius.recipe.job import Job
from ziphius.recipe.models import load_to_ask
from ziphius.recipe.screen import undecided_answers
from ziphius.recipe.stage_folder import StageFolder, find_evaluation
from ziphius.recipe.texts import not_held_out
from ziphius.text.tokenizer import Tokenizer


def evaluate_stage(
    job: Job, title: str, name: str, home: StageFolder, tokenizer: Tokenizer, digests: Digests, texts: Sequence[Path]
) -> None:
    """Ask the recipe's problems, unless the folder holds what they gave, and write what was found with its bill.

    `title`: what messages call the stage `name`. `texts`: the folders of the stages that the model has learned from
    files in.
    """

    def find() -> tuple[Identity, bool, str]:
        of = evaluation_identity(job.recipe, home.of, job.thinking, digests)
        return of, *find_evaluation(home.folder, of)

    of, done, why = job.place.on_main(find)
    if done:
        return
    job.say(f"{title}: asking {job.recipe.evaluation.n} held-out problems" + (f" again ({why})" if why else ""))
    counts = {folder.name: job.place.on_main(partial(not_held_out, job, folder)) for folder in texts}
    for text, count in counts.items():
        if count:
            job.say(
                f"{title}: {count} of the questions are others than {text}'s text was kept free of; under another "
                "--name the text is held to these"
            )
    with job.clock.during(evaluation_key(home.folder, of.print)):
        began = time.perf_counter()
        with EnergyMeter(None if job.place.is_main else []) as meter:
            found = _ask(job, home.folder, name, tokenizer)
        row = bill(job.place, f"evaluate {name}", "evaluation", time.perf_counter() - began)
        row.energy_kwh = meter.kwh
        row.priced(job.recipe.price.dollars_per_hour)
        unheld = max(counts.values(), default=0)
        written = {"of": of.as_dict(), "bill": asdict(row), "results": found, "not_held_out": unheld}
        job.place.on_main(lambda: write_json(home.folder / EVALUATION, written))
    for entry in found:
        undecided = undecided_answers(entry)
        shares = f"pass@1 {entry['pass_at_1']:.1%}, greedy {entry['greedy']:.1%}"
        job.say(f"{title}: {entry['task']} {shares}{'; ' if undecided else ''}{undecided}")


def _ask(job: Job, folder: Path, after: str, tokenizer: Tokenizer) -> list[dict]:
    """Ask the model in `folder` the recipe's evaluation problems."""
    model = load_to_ask(job, folder)
    asked = job.recipe.evaluation
    settings = asked.model_copy(update={"show": asked.n})  # how many are shown is the report's to say, and may change
    results = []
    for task in settings.tasks:
        found = evaluate(
            model, tokenizer, job.family(task), settings, thinking=job.thinking, seed=job.recipe.seed, place=job.place
        )
        results.append({"after": after, "task": task, **found.as_dict()})
    return results
