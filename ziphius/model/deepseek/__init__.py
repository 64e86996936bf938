"""DeepSeek-V2 and V3, and what is built like them (Moonlight, Kimi-K2)."""
