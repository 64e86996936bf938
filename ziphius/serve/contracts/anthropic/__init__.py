"""Anthropic's Messages API: its requests, replies and errors. Imports no torch."""
