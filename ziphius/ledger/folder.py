"""How a run's folder is laid out.

    stages.json             the folders of the present recipe's stages, in order
    stages/NN-NAME/         a stage; stages/NN-NAME-HASH/ where a stage of that name with other settings stands already
      settings.json         what its result depends on
      stage.json            written last: the stage is finished, and its bills
      evaluation.json       what was asked of it; evaluations/ keeps those of other settings
    samples/HASH/           what an sft stage imitates, in tokens; made again where it is missing
    control/                the same again, for a run's control
    time/N.json             what each start did when
    lock.json               who works in here

Folders in stages/ that `stages.json` does not name belong to other settings: nothing reads them but `ziphius clean`,
and a run that returns to those settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ziphius.disk.write import write_text

LISTED, SETTINGS, DONE, SAMPLES = "stages.json", "settings.json", "stage.json", "samples"
EVALUATION, KEPT_EVALUATIONS = "evaluation.json", "evaluations"


def present_stages(run: Path) -> list[Path]:
    """The stage folders of the present recipe in order, finished or begun; all there are where no recipe listed any.

    Raises ValueError where `run` is no run folder.
    """
    if not (run / "stages").is_dir():
        raise ValueError(f"{run}: no run folder (it has no stages/); give the folder that `ziphius run` wrote")
    listed = read_json(run / LISTED)
    if listed is None:
        return sorted(path for path in (run / "stages").iterdir() if path.is_dir())
    return [path for path in (run / "stages" / name for name in listed) if path.is_dir()]


def kept_stages(run: Path) -> list[Path]:
    """The stage folders of other settings, which no run deletes."""
    present = set(present_stages(run))
    return sorted(path for path in (run / "stages").iterdir() if path.is_dir() and path not in present)


def finished_stages(run: Path, kind: str | None = None) -> list[Path]:
    """Those of the present stages that are finished, all or of one kind."""
    done = {path: read_json(path / DONE) for path in present_stages(run)}
    return [path for path, about in done.items() if about and kind in (None, about["kind"])]


def parts(run: Path) -> list[Path]:
    """The run and, where it has one, its control, which is laid out the same way."""
    return [part for part in (run, run / "control") if (part / "stages").is_dir()]


def evaluations(stage: Path) -> list[dict[str, Any]]:
    """What the present evaluation found of a stage, an entry a task; [] where it was not asked."""
    found = read_evaluation(stage)
    return found["results"] if found else []


def read_evaluation(stage: Path) -> dict[str, Any] | None:
    """What a stage was asked (`of`), what came of it (`results`) and its `bill`; None where it was not asked."""
    found = read_json(stage / EVALUATION)
    return found if isinstance(found, dict) else None  # an earlier version's does not say what it is of


def stage_key(stage: Path) -> str:
    """What the clock calls the work in a stage's folder; another stage that gets the folder later has another key."""
    of = read_json(stage / SETTINGS)
    return f"{stage.name}:{of['key'] if of else ''}"


def evaluation_key(stage: Path, print_: str) -> str:
    """What the clock calls one evaluation of a stage."""
    return f"{stage_key(stage)}/{print_}"


def read_json(path: Path) -> Any:
    """The contents of a file, None where there is none. Raises ValueError naming a file that is damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the recipe again") from None


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))
