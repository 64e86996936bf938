"""Where a started stage goes on, and whether the disk will hold it: rank 0 looks, all ranks learn the same."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import torch

from ziphius.checkpoint.commit import sweep
from ziphius.disk.errors import AGAIN, DiskError, free_bytes, size
from ziphius.ops.backend import kernels_of_cpu
from ziphius.train.machine import describe
from ziphius.train.place import Place
from ziphius.train.state import KEEP, StateError, find_state, read_state, saved_bytes, set_aside, tensor_bytes
from ziphius.train.weights import Weights


def newest_state(folder: Path, weights: Weights, place: Place, title: str) -> dict[str, Any] | None:
    """The newest good state of the stage in `folder`, the same on all ranks; None where nothing was saved.

    What a killed writer left is swept. Newer states that are bad are named on stderr and kept under another name.
    Raises StateError where none is good, or where it is another number of processes'.
    """
    states = folder / "state"
    name = place.on_main(lambda: _find(folder, states, network_of(weights), title))
    if name is None:
        return None
    state = read_state(states / name)
    before, now = state.get("made_by"), what_rounds(place)
    if before not in (None, now) and place.is_main:
        same = "its result will be the same up to rounding"
        print(f"{title}: begun with {before}, goes on with {now}: {same}", file=sys.stderr, flush=True)
    if state["world_size"] != place.size:
        raise StateError(
            f"{folder} was begun with {state['world_size']} processes and cannot go on to the same result "
            f"with {place.size}; start it with {state['world_size']}, or remove its folder to begin anew"
        )
    return state


def _find(folder: Path, states: Path, network: dict[str, int | str], title: str) -> str | None:
    sweep(folder)
    found = find_state(states, network)
    for path, what in found.bad.items():
        kept = set_aside(path).name
        print(f"{title}: {what}: going on from {found.path}; it is kept as {kept}", file=sys.stderr, flush=True)
    return None if found.path is None else found.path.name


def network_of(weights: Weights) -> dict[str, int | str]:
    """What a saved state is known by to be of this network, laid out as here."""
    slots = ";".join(f"{slot.name}{tuple(slot.shape)}" for slot in weights.slots)
    return {"parameters": weights.master.numel(), "layout": f"{zlib.crc32(slots.encode()):08x}"}


def what_rounds(place: Place) -> str:
    """What the last bits of a result depend on beside the recipe: processor and kernels, or the card, and torch."""
    if place.device.type == "cpu":
        return f"{describe(place)['cpu']}, {kernels_of_cpu()} kernels, torch {torch.__version__}"
    return f"{place.device_name}, torch {torch.__version__}"


def need_room(folder: Path, state: dict[str, Any], finished: bool, place: Place, title: str) -> None:
    """Refuse before the first step what a save would fail at after hours. Raises DiskError, on all ranks.

    `state` is what a save would write now. A stage that is `finished` only has its model to write.
    """
    one, model = tensor_bytes(state), tensor_bytes(state["master"])
    place.on_main(lambda: _weigh(folder, 0 if finished else one, model, title))


def _weigh(folder: Path, state: int, model: int, title: str) -> None:
    states = (KEEP + 1) * state - saved_bytes(folder / "state")  # a new one is whole before the oldest goes
    needed, free = max(0, states) + model, free_bytes(folder)
    parts = f"{size(needed)} ({KEEP + 1} states of {size(state)} and a model of {size(model)})"
    if free < needed:
        raise DiskError(
            f"{title} would fill the disk of {folder}: it writes up to {parts}, and {size(free)} are free; make room "
            f"or choose another folder, and {AGAIN}"
        )
    if free < 2 * needed:
        print(f"{title}: little room on the disk: {size(free)} are free for up to {parts}", file=sys.stderr, flush=True)
