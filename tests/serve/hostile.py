"""Answers that are meant to kill a page: every construct of markdown, mathematics, HTML and Unicode, nested and
repeated."""

from random import Random

# (what opens, what closes): put inside each other
NESTS = [
    (r"$$\frac{1}{", "}$$"), (r"$\sqrt{", "}$"), (r"$\left(", r"\right)$"), ("$x^{", "}$"), (r"$\overline{", "}$"),
    (r"$$\begin{matrix}", r"\end{matrix}$$"), (r"$\text{$", "$}$"), (r"$\phantom{", "}$"), (r"$$\underbrace{", "}_y$$"),
    ("> ", ""), ("- ", ""), ("1. ", ""), ("> - 1. ", ""), ("*", "*"), ("**a _b ", "_**"), ("[", "](b)"), ("![", "](b)"),
    ("~~", "~~"), ("<b><i>", ""), ("<table><tr><td>", ""), ("<details>", "</details>"), ("<sub>", "</sub>"),
    ("> ```\n", "\n```"), ("(", ")"), ("{", "}"),
]  # fmt: skip
# put behind each other
REPEATS = [
    "- x\n", "1. x\n", "# a\n", "a\n=\n", "---\n", "> x\n\n", "|a|b|\n|-|-|\n|1|2|\n\n", "|a", "|-", "[a]: b\n", "`x` ",
    "[a](b) ", "![a](http://b/c.png) ", "http://a.b ", "a@b.c ", "**a** ", "*a **b ", "_a __b_ ", "$x^2$ ", "$a ",
    r"\(", r"\[", r"$\rule{99999em}{99999em}$ ", r"$\kern{-99999em}x$ ", r"$\def\a{\a\a}\a$ ", r"$\color{red}x$ ",
    r"$\href{javascript:1}{x}$ ",
    "```js\nlet x = `${1}`;\n```\n", "```python\nf'{", "~~~\n", "- [ ] x\n", "<", "&", "&amp;", "<!--", "<b a=1>",
    "<p>",
    "<script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", "[x](javascript:window.hacked=1) ",
    "<sub>a</sub>", "<br>", "`", "*", "_", "[", "![", "]", "\\", "$", "~", "|", "\n", "  \n", "\t", " ", "\u00a0",
    "\u0301", "\u202e\u2067a", "\u200d", "👩‍👩‍👧‍👦", "\ufdd0", "a", "ﷺ", "\u0000", "0", ";", "x\n    y\n",
]  # fmt: skip


def hostile_text(random: Random, longest: int = 100_000) -> str:
    """One such text, of at most `longest` characters."""
    length = int(longest ** random.uniform(0.5, 1))
    parts: list[str] = []
    while (left := length - sum(map(len, parts))) > 0:
        if random.random() < 0.5:
            opens, closes = random.choice(NESTS)
            times = max(1, min(left // (len(opens) + len(closes)), int(10 ** random.uniform(0.5, 4.7))))
            whole = random.random() < 0.7  # one formula with the nest inside, not formulae inside each other
            bare, end = (opens.lstrip("$"), closes.rstrip("$")) if whole else (opens, closes)
            mark = opens[: len(opens) - len(opens.lstrip("$"))] if whole else ""
            parts.append(mark + bare * times + "x" + end * times + mark)
        else:
            piece = random.choice(REPEATS)
            parts.append(piece * max(1, min(left // len(piece), int(10 ** random.uniform(0.5, 4.7)))))
        parts.append(random.choice(["\n\n", "\n", " ", ""]))
    return "".join(parts)[:longest]


def damaged(random: Random, value: object) -> object:
    """A copy of plain data in which some parts are something else."""
    if random.random() < 0.08:
        return random.choice([None, True, -1, 1e308, "", "x", [], {}, [[]], {"a": 1}])
    if isinstance(value, dict):
        return {key: damaged(random, part) for key, part in value.items() if random.random() > 0.05}
    return [damaged(random, part) for part in value] if isinstance(value, list) else value
