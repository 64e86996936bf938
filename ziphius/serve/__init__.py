"""The service over the engine: an OpenAI-compatible API, a chat page, a terminal chat."""
