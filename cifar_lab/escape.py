"""Text that comes from elsewhere (files, folders, the environment), made harmless where it is shown: one function per
place. What cannot be printed (control characters, line breaks, bytes that are no text) is shown as its escape.
"""

import csv
import hashlib
import html as _html
import io
import os
import re
import shlex
from collections.abc import Iterable

LONGEST_NAME = 255  # bytes, of a file's name on the usual file systems
SUFFIX = 31  # bytes that a name must leave for what is put around it: `.<name>.before-20261126-050646-123456`


def _shown(character: str) -> str:
    """A character that cannot be printed, as Python would write it; a byte that is no text, as that byte."""
    code = ord(character)
    return rf"\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def terminal(text: object) -> str:
    """One line on a terminal, which obeys control characters."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _shown(c) for c in text)


def figure(text: object) -> str:
    r"""A text of a figure: no mathtext between dollars, no text that a legend leaves out.

    Matplotlib takes `\$` for a dollar. It is to be called last: what wraps lines could part the two characters.
    """
    lines = [terminal(line).replace("$", r"\$") for line in str(text).split("\n")]
    return "\n".join(f" {line}" if line.startswith("_") else line for line in lines)


def html(text: object) -> str:
    """Text of an HTML element, which may have several lines, or the value of an attribute in quotes."""
    return "\n".join(_html.escape(terminal(line)) for line in str(text).split("\n"))


# What Markdown, and GitHub's extensions, would take for markup within a line.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")


def markdown(text: object) -> str:
    """Text within a line of Markdown, also in a cell of a table."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", terminal(text))


def code(text: object, *, cell: bool = False) -> str:
    """A span of code in Markdown. cell: of a table, where only a bar needs a backslash."""
    text = terminal(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or (text[:1] == text[-1:] == " ") or not text else ""
    span = f"{fence}{space}{text}{space}{fence}"
    return span.replace("|", r"\|") if cell else span


def csv_cell(value: object) -> object:
    """A cell of a CSV file, which a spreadsheet does not take for a formula; numbers stay what they are."""
    if not isinstance(value, str):
        return value
    text = terminal(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """The content of a CSV file with these rows, its columns' names first; `csv_cell` is for cells from elsewhere."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue()


def file_name(text: str, longest: int = LONGEST_NAME - SUFFIX) -> str:
    """A file's name without its suffix: letters, digits and _.-, at most `longest` bytes, of which a digest is a part
    if the text is longer."""
    return shortened(re.sub(r"[^\w.]+", "-", text).lstrip(".") or "-", longest)


def shortened(name: str, longest: int = LONGEST_NAME - SUFFIX) -> str:
    """A name of at most `longest` bytes: its begin and a digest of all of it, if it is longer."""
    if len(os.fsencode(name)) <= longest:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    return f"{os.fsencode(name)[: longest - 13].decode('utf-8', 'ignore')}-{digest}"


def shell(words: list[str]) -> str:
    """A command line that a shell takes apart into these words again, in one line."""
    return " ".join(shlex.quote(word) if word.isprintable() else f"$'{_in_quotes(word)}'" for word in words)


def _in_quotes(word: str) -> str:
    """The inside of $'...' (bash, zsh, POSIX 2024); what cannot be printed as the bytes that it is."""
    return "".join(
        f"\\{c}" if c in "\\'" else c if c.isprintable() else "".join(f"\\{byte:03o}" for byte in os.fsencode(c))
        for c in word
    )
