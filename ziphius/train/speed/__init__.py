"""What a device can do faster or in less memory, set around a model's blocks from outside."""

from ziphius.train.speed.blocks import compiling_pays, set_speed

__all__ = ["compiling_pays", "set_speed"]
