"""GGUF files, llama.cpp's, in and out."""

from ziphius.checkpoint.gguf.write import Exported, WeightType, write_gguf

__all__ = ["Exported", "WeightType", "write_gguf"]
