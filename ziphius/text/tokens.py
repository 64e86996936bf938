"""DeepSeek's special tokens, spelt as in R1's tokenizer.json: fullwidth bars (U+FF5C) and low blocks (U+2581)."""

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
THINK = "<think>"
END_THINK = "</think>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_BEGIN = "<｜fim▁begin｜>"
FIM_END = "<｜fim▁end｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
OUTPUTS_BEGIN = "<｜tool▁outputs▁begin｜>"
OUTPUTS_END = "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN = "<｜tool▁output▁begin｜>"
OUTPUT_END = "<｜tool▁output▁end｜>"
TOOL_SEP = "<｜tool▁sep｜>"
TOOLS = (
    CALLS_BEGIN,
    CALLS_END,
    CALL_BEGIN,
    CALL_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    OUTPUT_BEGIN,
    OUTPUT_END,
    TOOL_SEP,
)

# The first three are ids 0, 1, 2 and marked special: decoding may skip them. The rest follow the merges at the end of
# the vocabulary and are *not* marked special, as in the published files, so that decoded text keeps its thinking tags.
CONTROL = (BOS, EOS, PAD)
MARKUP = (THINK, END_THINK, FIM_HOLE, FIM_BEGIN, FIM_END, USER, ASSISTANT, *TOOLS)
