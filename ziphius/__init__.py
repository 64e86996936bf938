"""Ziphius: make, run and price DeepSeek-style reasoning models."""
