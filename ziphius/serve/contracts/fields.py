"""Fields of chat and of completions that are not honoured: left out without harm, or refused, and why.

`docs/SERVING.md` has a table of them. Sources: the public API references of OpenAI and DeepSeek, and what vLLM, SGLang,
llama.cpp, OpenRouter and the clients made for them send beyond. Imports no torch.
"""

from __future__ import annotations

from ziphius.serve.contracts.lenient import Refused

_CACHE = "the prefix cache finds what it can by itself"
_TIER = "there is one tier"
_AS_WRITTEN = "the answer is shown as it was written, without its end token"
_TEXT_ONLY = "the model reads and writes text alone"
_NOT_DONE = "this way of drawing tokens is not offered"
_FORM = "ask for a form by response_format"
_BEAMS = "only beam search, which is refused, would read it"

# What changes nothing in the answer: name → why.
PART_IGNORED: dict[str, str] = {"prompt_cache_breakpoint": _CACHE, "cache_control": _CACHE}
FORM_IGNORED: dict[str, str] = {"description": "the form is kept by a grammar; the model is not told of it"}
ANSWER_IGNORED: dict[str, str] = {
    "annotations": "it is about an answer that was given",
    "parsed": "it repeats the content",
    "reasoning": "thinking of earlier turns is not shown to the model again",
    "reasoning_details": "thinking of earlier turns is not shown to the model again",
}
IGNORED: dict[str, str] = {
    "store": "nothing is stored",
    "service_tier": _TIER,
    "priority": _TIER,
    "prompt_cache_key": _CACHE,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
    "cache_salt": _CACHE,
    "skip_special_tokens": _AS_WRITTEN,
    "spaces_between_special_tokens": _AS_WRITTEN,
    "detokenize": "answers are text",
    "length_penalty": _BEAMS,
    "early_stopping": _BEAMS,
    "request_id": "the answer's id is the server's",
}
CHAT_IGNORED: dict[str, str] = IGNORED | {
    "prediction": "it is about speed alone",
    "verbosity": "the model knows no such switch; say it in a message",
    "include_reasoning": "thinking always stands apart in reasoning_content",
    "separate_reasoning": "thinking always stands apart in reasoning_content",
    "reasoning_format": "thinking always stands apart in reasoning_content",
    "models": "there is one model",
}
COMPLETION_IGNORED: dict[str, str] = IGNORED

# What would change the answer and is not done, unless its value asks for nothing.
ANSWER_REFUSED: dict[str, Refused] = {"audio": Refused(_TEXT_ONLY)}
FORM_REFUSED: dict[str, Refused] = {"schema": Refused("a schema comes with the type json_schema")}
CUSTOM_REFUSED: dict[str, Refused] = {"custom": Refused("custom tools are not offered; describe a function")}
REFUSED: dict[str, Refused] = {
    "best_of": Refused("more answers than are sent back are not drawn; use n", (1,)),
    "use_beam_search": Refused(_NOT_DONE),
    "top_a": Refused(_NOT_DONE, (0,)),
    "typical_p": Refused(_NOT_DONE, (1,)),
    "tfs_z": Refused(_NOT_DONE, (1,)),
    "mirostat": Refused(_NOT_DONE, (0, False)),
    "dry_multiplier": Refused(_NOT_DONE, (0,)),
    "xtc_probability": Refused(_NOT_DONE, (0,)),
    "logits_processors": Refused("code of the client's is not run"),
    "bad_words": Refused("use logit_bias"),
    "allowed_token_ids": Refused("use logit_bias, or response_format"),
    "include_stop_str_in_output": Refused("the answer ends before the stop string"),
    "truncate_prompt_tokens": Refused("a prompt is read whole or not at all", (-1,)),
    "prompt_logprobs": Refused("use /v1/completions with echo and logprobs", ()),
    "return_token_ids": Refused("answers are text; /tokenize gives the ids of a text"),
    "max_new_tokens": Refused("it is called max_tokens here", ()),
    "max_length": Refused("the longest answer is called max_tokens here", ()),
    "max_output_tokens": Refused("it is called max_tokens here", ()),
    "num_predict": Refused("it is called max_tokens here", (-1,)),
    "stop_sequences": Refused("it is called stop here", ([],)),
    "structured_outputs": Refused(_FORM),
    "guided_json": Refused(_FORM, ("",)),
    "guided_regex": Refused(_FORM),
    "guided_choice": Refused(_FORM),
    "guided_grammar": Refused(_FORM),
    "json_schema": Refused(_FORM, ("",)),
    "regex": Refused(_FORM),
    "ebnf": Refused(_FORM),
    "grammar": Refused(_FORM),
    "lora_path": Refused("there is one model, as its folder has it"),
}
CHAT_REFUSED: dict[str, Refused] = REFUSED | {
    "audio": Refused(_TEXT_ONLY, ({},)),
    "modalities": Refused(_TEXT_ONLY, ([], ["text"])),
    "moderation": Refused("nothing moderates questions or answers here", ()),
    "web_search_options": Refused("the server searches nothing; offer a tool that does", ()),
    "thinking_budget": Refused("it is called thinking.budget_tokens here", ()),
    "chat_template": Refused("the folder's template is used"),
    "add_special_tokens": Refused("the template says which special tokens there are", (False,)),
    "documents": Refused("put them into a message"),
    "input": Refused("it is called messages here", ()),
    "prompt": Refused("it is called messages here; a text is continued by /v1/completions", ()),
    "system": Refused("send a message with the role system", ("",)),
    "echo": Refused("send the beginning of the answer as a last message with prefix: true", (False,)),
}
COMPLETION_REFUSED: dict[str, Refused] = REFUSED | {
    "messages": Refused("it is called prompt here; a conversation is answered by /v1/chat/completions", ()),
    "add_special_tokens": Refused("a text begins with the begin token; send ids to begin without it", (True,)),
    "prompt_embeds": Refused("a prompt is text or token ids"),
}
