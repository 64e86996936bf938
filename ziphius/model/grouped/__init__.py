"""Decoders with grouped-query attention: what Llama's and Qwen's families share."""
