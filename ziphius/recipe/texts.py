"""The text that a run learns from: its corpora as one stream, without the questions that will be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from random import Random

from ziphius.ledger.folder import read_json, write_json
from ziphius.recipe.job import Job
from ziphius.recipe.schema import PretrainStage, Recipe, RecipeError, SFTStage, Stage, TokenizerStage
from ziphius.tasks.base import Family, normalised
from ziphius.text.corpora import GeneratedSource, Mixture, Source, open_source
from ziphius.text.decontaminate import Decontaminated, Decontaminator
from ziphius.text.shuffle import Shuffled
from ziphius.train.state import find_state

LESSONS = 4000  # generated documents that a tokenizer learns from
_HELD_OUT = "held_out.json"  # short names of the questions that a pretraining stage's text was held against


def make_mixture(job: Job, sample_bytes: int | None = None) -> Mixture:
    """The recipe's corpora, each with the evaluation questions filtered out where the recipe asks any.

    Files are held to n-grams. Lessons share the wording of the questions by design, so there whole questions count.
    With `sample_bytes`, of each corpus of files only so much is read, spread evenly; else files are shuffled.
    """
    questions = job.evaluation_texts()
    sources: dict[str, Source] = {}
    if questions:
        by_ngram, whole = Decontaminator(questions), Decontaminator(questions, n=max(map(len, questions)))
    for name, corpus in job.recipe.corpora.items():
        if corpus.task is not None:
            write = _lesson_writer(job.family(corpus.task), corpus.kinds, name)
            source: Source = GeneratedSource(write, job.recipe.seed)
        else:
            source = open_source(corpus.files(), corpus.documents, corpus.field, job.recipe.seed, sample_bytes)
            if sample_bytes is None:
                source = Shuffled(source, job.recipe.seed)
        sources[name] = Decontaminated(source, whole if corpus.task else by_ngram, name) if questions else source
    weights = {name: corpus.weight for name, corpus in job.recipe.corpora.items()}
    return Mixture(sources, weights, job.recipe.seed)


def _lesson_writer(family: Family, kinds: dict[str, float] | None, name: str) -> Callable[[Random], str]:
    def write(rng: Random) -> str:
        text = family.lesson(rng, kinds)
        if text is None:
            raise RecipeError(f"corpora.{name}.task: the family {family.name} writes no lessons; give a path instead")
        return text

    return write


def sample_texts(job: Job, stage: TokenizerStage, counts: Counter[str]) -> Iterator[str]:
    """Documents of the corpora up to the stage's limits; `counts` has how many, and their bytes."""
    mixture = make_mixture(job, stage.sample_bytes)
    corpora = {name: corpus for name, corpus in job.recipe.corpora.items() if corpus.weight}
    files = [mixture.sources[name] for name, corpus in corpora.items() if corpus.task is None]
    lessons = len(files) < len(corpora)  # there is no end of them
    while counts["bytes"] < stage.sample_bytes:
        text = mixture.next_document()[1]
        all_read = all(source.epochs for source in files)
        if lessons and counts["documents"] >= (stage.documents or LESSONS) and (stage.documents or all_read):
            return
        if not lessons and (all_read or counts["documents"] == stage.documents):
            return
        counts["documents"] += 1
        counts["bytes"] += len(text.encode())
        yield text


def files_unread(job: Job, stage: Stage, folder: Path) -> bool:
    """Whether the files of a pretraining stage are the same up to where the work in `folder` has read them."""
    if not isinstance(stage, PretrainStage):
        return False
    try:
        state = find_state(folder / "state").state
        return state is None or make_mixture(job).unchanged(state["source"]["mixture"])
    except ValueError:  # a file is another where it was read, or there are other files
        return False


def note_held_out(job: Job, folder: Path) -> None:
    """Write down which questions the text of the stage in `folder` was kept free of."""
    write_json(folder / _HELD_OUT, sorted(map(_short, job.evaluation_texts())))


def not_held_out(job: Job, folder: Path) -> int:
    """How many questions of the evaluation are other ones than those that the text of the stage in `folder` was kept
    from."""
    held = set(read_json(folder / _HELD_OUT) or ())
    return sum(_short(question) not in held for question in job.questions()) if held else 0


def reads_files(recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage learns from files. Lessons and demonstrations never hold a question of the evaluation: they are
    made from problems of another split."""
    if isinstance(stage, PretrainStage):
        return any(corpus.weight and corpus.path for corpus in recipe.corpora.values())
    return isinstance(stage, SFTStage) and stage.path is not None


def _short(question: str) -> str:
    return blake2b(normalised(question).encode(), digest_size=8).hexdigest()
