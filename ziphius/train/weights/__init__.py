"""Where the weights that are trained lie, with their gradients: one face, so that another storage can stand beside."""

from ziphius.train.weights.face import Slot, Weights
from ziphius.train.weights.replicated import ReplicatedWeights

__all__ = ["ReplicatedWeights", "Slot", "Weights"]
