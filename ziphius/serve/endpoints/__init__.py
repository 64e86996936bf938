"""The doors of the API: chat, completions, Anthropic's messages, OpenAI's responses, and the page."""
