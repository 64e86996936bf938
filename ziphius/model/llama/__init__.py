"""Llama 2 and 3.x, and what is built like them (SmolLM2, R1's distilled Llamas)."""
