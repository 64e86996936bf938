"""The forms in which people keep conversations: a file each, which turns a row into a `Conversation`."""
