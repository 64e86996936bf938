r"""Mathematical notation made one: whatever stands for the same signs (Unicode, Markdown, TeX's spacing, `\left`, maths
marks) is written in one way. Nothing here knows what a number, a unit or a set is.
"""

import re

from ziphius.tasks.answers import boxed

SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–‒﹣－", "-"), **dict.fromkeys("×✕⨯", r"\times "), **dict.fromkeys("·⋅∙", r"\cdot "),
        "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "²": "^2", "³": "^3", "¹": "^1", "⁴": "^4", "⁵": "^5", "’": "'", "“": '"', "”": '"', "％": "%", "＝": "=",
        "≈": r"\approx ", "，": ",", "（": "(", "）": ")", "：": ":", **dict.fromkeys("\u00a0\u2009\u202f\u3000", " "),
    }
)  # fmt: skip
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[a-z])|(?=\{))")
# A `$` opens maths only before a character, and closes it only behind one and not before a digit: else it is money.
MARKED = re.compile(r"(?<!\\)(\${1,2})(?=\S)((?:\\.|[^$\\])+?)(?<=\S)\1(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
PROSE = re.compile(r"[A-Za-z]{3,}")
STEPS = [
    (re.compile(r"(?<=\d)(?:\\[,;: !]|\{,\}|,\s*\\!|\\!,)\s*(?=\d{3}(?!\d))"), ","),  # 10,\!080
    (re.compile(r"(?<!\\)(?:\\!\s*|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\(?:display|text)style\b)"), ""),
    (re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad\b)|~"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\\(?!sqrt|frac)[a-z]+)\s*([\da-z])(?!\w)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\lbrace\b ?"), r"\{"),
    (re.compile(r"\\rbrace\b ?"), r"\}"),
    (re.compile(r"\\(?:varnothing|emptyset)\b"), r"\\emptyset"),
    (re.compile(r"\\langle\b ?"), "("),
    (re.compile(r" ?\\rangle\b"), ")"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\s+"), " "),
]
TEXT = re.compile(r"\\(?:text|mbox|hbox|mathrm|textrm|textbf|textit|mathbf|rm)(?:normal)?\s*\{([^{}]*)\}")


def plain(text: str) -> str:
    r"""An answer in one notation, without its box, maths marks and last full stop. `$` is money from here on."""
    inside = boxed(text)
    text = (text if inside is None else inside).translate(SIGNS).strip()
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    text = _without_marks(text)
    text = ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}" if root[1] or root[2] else r"\sqrt", text)
    for pattern, instead in STEPS:
        text = pattern.sub(instead, text)
    return text.strip().rstrip(".,;").strip()


def untexted(text: str) -> str:
    r"""With the content of `\text{...}` and its like in their place."""
    return " ".join(TEXT.sub(r" \1 ", text).split())


def _without_marks(text: str) -> str:
    """Marked maths joined by words stays whole ("$1$ and $2$"); behind prose only the last marked piece counts."""
    pieces = list(MARKED.finditer(text))
    if not pieces:
        return text
    if PROSE.search(text[: pieces[0].start()]):
        text = text[pieces[-1].start() :]
    return MARKED.sub(lambda piece: next(filter(None, piece.groups()[1:])), text)
