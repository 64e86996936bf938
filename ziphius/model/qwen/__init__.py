"""Qwen2 and 2.5 (R1's distilled Qwens), Qwen3, and Qwen3's mixtures of experts."""
