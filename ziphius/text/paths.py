"""Which files a recipe means: a file, a folder, a pattern such as `books/*.txt`, or a list of these."""

import glob
from collections.abc import Sequence
from pathlib import Path

TEXTS = (".txt", ".md", ".jsonl", ".parquet")  # what a corpus can be read from, by suffix
CHATS = (".jsonl", ".json", ".parquet")  # and what chats can
COMPRESSED = (".gz", ".bz2", ".zst", ".xz")  # what may stand behind these, but behind .parquet, which has its own


def is_compressed(path: str | Path) -> bool:
    """Whether a file is unpacked as it is read."""
    return Path(path).suffix in COMPRESSED


def suffix_of(path: str | Path) -> str:
    """What a file is by its name: `.jsonl`, or `.jsonl.zst` where it is compressed."""
    path = Path(path)
    return Path(path.stem).suffix + path.suffix if is_compressed(path) else path.suffix


def kind_of(path: str | Path) -> str:
    """The suffix that says how a file is read once it is unpacked: `.jsonl` of `chats.jsonl.zst`."""
    suffix = suffix_of(path)
    whole = suffix.startswith(".parquet") or not is_compressed(path)
    return suffix if whole else suffix[: -len(Path(path).suffix)]


def expand(paths: str | Path | Sequence[str | Path], suffixes: Sequence[str] = TEXTS) -> list[str]:
    """The files that `paths` name, each once. What a folder or a pattern (`*`, `?`, `[...]`, `**`) holds is sorted.

    A folder stands for all files below it. Folders and patterns pass over hidden files and other suffixes. `~` is the
    user's folder; other names that do not begin with `/` count from the folder that the program was started in.

    Raises:
        ValueError: a name or pattern without a file, a named file of another suffix, or no names at all.
    """
    names = [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
    if not names:
        raise ValueError("path names no file; give one, a folder or a pattern")
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(_files(str(Path(name).expanduser()) if name.startswith("~") else name, suffixes))
    return list(found)


def _files(name: str, suffixes: Sequence[str]) -> list[str]:
    kinds = f"{', '.join(suffixes)}, also with {', '.join(COMPRESSED)} behind"
    if Path(name).is_file():
        if kind_of(name) not in suffixes:
            raise ValueError(f"path: {name} is none of the kinds that can be read ({kinds}); convert or rename it")
        return [name]
    is_folder = Path(name).is_dir()
    pattern = f"{glob.escape(name.rstrip('/'))}/**" if is_folder else name
    where = "correct it, relative to where `ziphius run` is started"
    if not is_folder and not glob.has_magic(name):
        raise ValueError(f"path: there is no file {name}; {where}")
    found = [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]
    readable = sorted(path for path in found if kind_of(path) in suffixes)
    if not readable:
        seen = f" among its {len(found)} files" if found else ""
        braces = "; braces are no pattern: give a list of names" if "{" in name and not found else ""
        raise ValueError(f"path: {name} matches no file of the kinds {kinds}{seen}{braces}; {where}")
    return readable
