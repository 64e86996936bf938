r"""Taking the answer out of what a model wrote, for every family: `\boxed{}`, `<answer>`, "Answer: 42", "#### 42", or
all of it. Each rule looks at each character a bounded number of times, whatever the text.
"""

import re

# An opening of a box, any other escaped character (its brace is no brace of TeX's), a brace.
BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s${}\\]+)")
ANSWER_IS = re.compile(
    r"(?:^[ \t>*_#-]{0,9}|(?<=[.!?,;:][ \t])[*_]{0,3})"  # an opening of the line or of a clause
    r"(?:(?:so|thus|hence|therefore|then)\b,? {0,2})?(?:(?:the|my|our) {1,2})?(?:(?:final|correct) {1,2})?answer"
    r"[*_]{0,3} {0,2}(?P<is>is {0,2}:?|:|=)[*_]{0,3}|(?:最终)?答案 {0,2}(?:[:：]|[是为])",
    re.IGNORECASE | re.MULTILINE,
)
LAST_LINE_MARK = "####"  # how GSM8K's solutions end (Cobbe et al. 2021, arXiv:2110.14168)
SENTENCE_END = re.compile(r"(?<!\\)[.!。](?=\s|$)")  # `\!` is a space of TeX's


def extract_answer(text: str) -> str:
    r"""The answer in a text, stripped; empty only where there is none.

    The first that is there: what the last complete `\boxed{...}` (or `\fbox`, or `\boxed 5`) holds; the last
    `<answer>...</answer>`; what follows the last "Answer:", "The final answer is" or "答案：" that opens a line or a
    clause, or `####` on the last line; else the whole text. Marks around the whole of the last two kinds (`**42**`,
    `$42$`) go.
    """
    text = text.strip()
    if (inside := boxed(text)) is not None:
        return inside
    if (end := text.rfind("</answer>")) >= 0 and (start := text.rfind("<answer>", 0, end)) >= 0:
        start += len("<answer>")
        return text[start : text.index("</answer>", start)].strip()
    return _announced(text) or _unmarked(text)


def boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` of a text holds, stripped; None where there is none."""
    opened: list[int | None] = []  # for each open brace, where the content of its box starts; None: it opens no box
    first = last = -1
    for match in BRACES.finditer(text):
        token = match[0]
        if token == "}":
            start = opened.pop() if opened else None
            if start is not None and start > first:
                first, last = start, match.start()
        elif token.endswith("{") and token != r"\{":
            opened.append(match.end() if len(token) > 1 else None)
    if first >= 0:
        return text[first:last].strip()
    bare = BARE_BOX.findall(text)
    return bare[-1].rstrip(".,;:") if bare else None


def _announced(text: str) -> str:
    """What the last phrase announces, or the last line's `####`; empty where there is neither."""
    last_line = text.rfind("\n") + 1
    phrases = list(ANSWER_IS.finditer(text))
    if text.startswith(LAST_LINE_MARK, last_line) and not (phrases and phrases[-1].start() >= last_line):
        return text[last_line:].lstrip("#").strip()
    for phrase in reversed(phrases[-2:]):  # the very last may announce nothing
        rest, _, below = text[phrase.end() :].partition("\n")
        if answer := _follows(rest.strip(), below.strip(), (phrase["is"] or ":").startswith("is")):
            return answer
    return ""


def _follows(rest: str, below: str, sentence: bool) -> str:
    """The answer behind a phrase: the `rest` of its line, or all that stands `below` it. A `sentence` ends there."""
    if not rest.strip("*_ "):
        return _unmarked(below)
    if sentence and (stop := SENTENCE_END.search(rest)):
        rest = rest[: stop.start()]
    if rest.count("**") == 1:  # the other one stood before the phrase
        rest = rest.removeprefix("**").removesuffix("**").strip()
    return _unmarked(rest if " " in rest else rest.rstrip(".。"))


def _unmarked(text: str) -> str:
    """Without Markdown's bold and TeX's `$` around the whole; marks within are part of the answer."""
    for mark in ("**", "$$", "$"):
        inside = text[len(mark) : -len(mark)]
        if len(text) > 2 * len(mark) and text == f"{mark}{inside}{mark}" and mark[0] not in inside:
            return _unmarked(inside.strip())
    return text
