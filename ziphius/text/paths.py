"""Which files a recipe means: a file, a folder, a pattern such as `books/*.txt`, or a list of these."""

import glob
from collections.abc import Sequence
from pathlib import Path

TEXTS = (".txt", ".md", ".jsonl", ".parquet")  # what a corpus can be read from, by suffix
CHATS = (".jsonl",)  # and what chats can


def expand(paths: str | Path | Sequence[str | Path], suffixes: Sequence[str] = TEXTS) -> list[str]:
    """The files that `paths` name, each once. What a folder or a pattern (`*`, `?`, `[...]`, `**`) holds is sorted.

    A folder stands for all files below it. Folders and patterns pass over hidden files and other suffixes.

    Raises:
        ValueError: a name or pattern without a file, a named file of another suffix, or no names at all.
    """
    names = [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
    if not names:
        raise ValueError("path names no file; give one, a folder or a pattern")
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(_files(name, suffixes))
    return list(found)


def _files(name: str, suffixes: Sequence[str]) -> list[str]:
    kinds = ", ".join(suffixes)
    if Path(name).is_file():
        if Path(name).suffix not in suffixes:
            raise ValueError(f"path: {name} is none of the kinds that can be read ({kinds}); convert or rename it")
        return [name]
    is_folder = Path(name).is_dir()
    pattern = f"{glob.escape(name.rstrip('/'))}/**" if is_folder else name
    if not is_folder and not glob.has_magic(name):
        raise ValueError(f"path: there is no file {name}; correct it, relative to where `ziphius run` is started")
    found = [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]
    readable = sorted(path for path in found if Path(path).suffix in suffixes)
    if not readable:
        seen = f" among its {len(found)} files" if found else ""
        raise ValueError(
            f"path: {name} matches no file of the kinds {kinds}{seen}; correct it, relative to where `ziphius run` is "
            "started"
        )
    return readable
