"""GGUF files, llama.cpp's, in and out."""

from ziphius.checkpoint.gguf.file import GGUFFile
from ziphius.checkpoint.gguf.read import Described, Dtype, describe, write_folder
from ziphius.checkpoint.gguf.write import Exported, WeightType, write_gguf

__all__ = [
    "Described",
    "Dtype",
    "Exported",
    "GGUFFile",
    "WeightType",
    "describe",
    "write_folder",
    "write_gguf",
]
