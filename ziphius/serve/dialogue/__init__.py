"""Between a conversation and its tokens: prompts, the parts of a reply, tools, stop strings. Imports no torch."""
