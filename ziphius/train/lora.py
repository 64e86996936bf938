"""Training low-rank updates in place of the weights: which matrices get one, and what is saved or sampled with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ziphius.checkpoint.adapter import Factors
from ziphius.checkpoint.names import layer_of, published_places
from ziphius.model.experts import Experts
from ziphius.model.layers import Linear
from ziphius.model.lora import AdaptedExperts, AdaptedLinear, LowRank
from ziphius.model.transformer import Transformer
from ziphius.model.twin import twin
from ziphius.train.settings import LoRASettings


@dataclass(frozen=True)
class Site:
    """The published matrices `names` that lie in one tensor of ours under one last name: one, or one an expert."""

    module: str
    part: str
    rows: int
    stacked: bool
    names: list[str]


class LoRA:
    """Freezes `model` and puts low-rank updates onto its matrices; from then on only those are trained.

    Prediction modules get none. Raises ValueError for targets that the network does not have.
    """

    def __init__(self, model: Transformer, settings: LoRASettings, seed: int) -> None:
        self.model, self.settings = model, settings
        generator = torch.Generator().manual_seed(seed)
        model.requires_grad_(False)
        self.updates: dict[str, LowRank] = {}  # by module and part
        self.adapted: dict[str, AdaptedLinear | AdaptedExperts] = {}
        self.sites = _sites(model)
        chosen = self._chosen()
        for path in dict.fromkeys(site.module for site in chosen):
            self._adapt(path, [site for site in chosen if site.module == path], generator)

    def _chosen(self) -> list[Site]:
        s = self.settings
        known = [site for site in self.sites if s.experts or not site.stacked]
        there = sorted({site.part for site in known})
        for target in s.targets or ():
            if target not in there:
                raise ValueError(
                    f"lora.targets: this network has no matrix called {target!r}; it has {', '.join(there)}"
                )
        return [site for site in known if s.targets is None or site.part in s.targets]

    def _adapt(self, path: str, sites: list[Site], generator: torch.Generator) -> None:
        parent, _, name = path.rpartition(".")
        plain = self.model.get_submodule(path)
        device = next(plain.parameters()).device
        scale = self.settings.alpha / self.settings.rank
        updates = {
            site.part: LowRank(_shape(plain, site), self.settings.rank, scale, generator).to(device) for site in sites
        }
        adapted: AdaptedLinear | AdaptedExperts
        if isinstance(plain, Experts):
            adapted = AdaptedExperts(plain, updates)
        else:
            assert isinstance(plain, Linear)
            adapted = AdaptedLinear(plain, {s.part: s.rows for s in self.sites if s.module == path}, updates)
        setattr(self.model.get_submodule(parent), name, adapted)
        self.adapted[path] = adapted
        self.updates |= {f"{path}/{part}": update for part, update in updates.items()}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the network is the one without updates."""
        for module in self.adapted.values():
            module.active = False
        try:
            yield
        finally:
            for module in self.adapted.values():
                module.active = True

    def sampler(self) -> Transformer:
        """A plain network on the same memory, with copies of the updated matrices that `refresh` brings up to date."""
        own = {f"{path}.{name}" for path, module in self.adapted.items() for name in module.merged()}
        return twin(self.model, own)

    @torch.no_grad()
    def refresh(self, sampler: Transformer) -> None:
        """Write the matrices with their present updates into `sampler`."""
        parameters = dict(sampler.named_parameters())
        for path, module in self.adapted.items():
            for name, matrix in module.merged().items():
                parameters[f"{path}.{name}"].copy_(matrix)

    def factors(self) -> dict[str, Factors]:
        """The updates by the published names of their matrices."""
        found = {}
        for site in self.sites:
            update = self.updates.get(f"{site.module}/{site.part}")
            if update is None:
                continue
            for number, name in enumerate(site.names):
                A, B = (update.A[number], update.B[number]) if site.stacked else (update.A, update.B)
                found[name] = Factors(A.detach(), B.detach(), update.scale)
        return found


def _sites(model: Transformer) -> list[Site]:
    """Every matrix of the main layers that could have an update, in the network's order."""
    state, config = model.state_dict(), model.config
    found: dict[tuple[str, str], Site] = {}
    for published, place in published_places(state, config).items():
        layer = layer_of(published)
        if layer is None or layer >= config.num_hidden_layers or not published.endswith(".weight"):
            continue
        module = place.name.rpartition(".")[0]
        owner = model.get_submodule(module)
        if not isinstance(owner, (Linear, Experts)):
            continue
        name = published.removesuffix(".weight")
        part = name.rpartition(".")[2]
        rows = state[place.name][place.at].shape[0]
        found.setdefault((module, part), Site(module, part, rows, isinstance(owner, Experts), [])).names.append(name)
    return list(found.values())


def _shape(plain: torch.nn.Module, site: Site) -> tuple[int, ...]:
    if isinstance(plain, Experts):
        E, D, F = plain.down_proj.shape
        return (E, D, F) if site.part == "down_proj" else (E, F, D)
    assert isinstance(plain, Linear)
    return (site.rows, plain.in_features)
