"""Damage for `tests.fuzz`: files of run folders and checkpoints, changed as a disk, an editor or a stranger might."""

import json
import os
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cifar_lab.measures.surface import Grid, layout

# --- Run folders ------------------------------------------------------------------------------------------------------

TEXTS = (
    "$", r"$\frac{$", "_", "|", "`", "<img src=x>", "\n", "\x1b[31m", "\x00", "\u202e", "\ud800", "é" * 200, "x" * 3000,
    "../../x", "=1", "", "-", "CON", "a/b", "实验",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, -0.0, 5e-324, 1e-40, 1e-9, 0.5, 1e9, 2**53, 2**63, 10**400, 3e38, 1e300, -1e300, float("nan"),
    float("inf"),
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], {"": None})
CELLS = ("", "x", "nan", "inf", "-inf", "0", "-0", "1e999", "0x1", "1_0", " 1", '"1"', "1;2", "é", "\0")


def nest(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def any_value(draw: random.Random) -> Any:
    kind = draw.randrange(6)
    return draw.choice(TEXTS if kind < 2 else NUMBERS if kind < 5 else OTHERS) if kind else draw.choice(TEXTS)


def change_json(content: Any, draw: random.Random) -> Any:
    """The same with one of its entries, at any depth, replaced, removed, repeated under another name, or its number
    scaled."""
    places = list(_places(content))
    holder, key = draw.choice(places)
    how = draw.randrange(8)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[draw.choice(TEXTS)] = holder[key]
    elif how == 2 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * draw.choice((-1, 0, 1000, 10**7, 1e-7))
    elif how == 3:
        holder[key] = nest(draw.choice((1, 100)))
    else:
        holder[key] = any_value(draw)
    return content


def _places(content: Any):
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def change_csv(text: str, draw: random.Random) -> str:
    """A table with some of its cells, a column or some rows changed."""
    head, *table = [line.split(",") for line in text.splitlines()]
    if not table:
        return text + draw.choice(CELLS)
    how, column = draw.randrange(7), draw.randrange(len(head))
    numbers = [repr(float(x)) if abs(x) < 1e308 else "1e308" for x in NUMBERS]
    if how <= 1:
        for row in draw.sample(table, min(len(table), draw.choice((1, 3)))):
            row[min(column, len(row) - 1)] = draw.choice((*CELLS, *numbers))
    elif how <= 3:
        column = draw.randrange(1, len(head))  # not the number of the row
        cell = draw.choice(numbers[:13])
        factor = draw.choice((0.0, -1.0, 1e-40, 1e30))
        for row in table:
            with suppress(ValueError, IndexError):  # a text, or not as many columns as the first line has
                row[column] = cell if how == 2 else repr(float(row[column]) * factor)
    elif how == 4:
        del table[draw.randrange(len(table)) :]
    elif how == 5:
        table.insert(draw.randrange(len(table) + 1), draw.choice(table))
    else:
        head[column] = draw.choice(TEXTS)
    return "\n".join(",".join(row) for row in (head, *table)) + draw.choice(("\n", "\n", ""))


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, left out or put in."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 5))):
        at = draw.randrange(len(changed) + 1)
        how = draw.randrange(4)
        if how == 0:
            changed[at:at] = draw.randbytes(draw.choice((1, 4)))
        elif how == 1:
            del changed[at : at + draw.choice((1, 20))]
        elif changed:
            changed[min(at, len(changed) - 1)] ^= 1 << draw.randrange(8)
    return bytes(changed) if draw.randrange(5) else bytes(changed[: draw.randrange(len(changed) + 1)])


def damage(run_folder: Path, draw: random.Random) -> None:
    """Changes one or two files of a run folder, or puts something else in a file's place."""
    for _ in range(draw.choice((1, 1, 2))):
        file = draw.choice(
            [path for path in sorted(run_folder.iterdir()) if path.is_file()] or [run_folder / "config.json"]
        )
        how = draw.randrange(12)
        if not file.exists() or how == 0:
            in_its_place(file, draw)
        elif how == 1:
            file.write_bytes(change_bytes(file.read_bytes(), draw))
        elif file.suffix == ".json":
            try:
                changed = change_json(json.loads(file.read_text(encoding="utf-8")), draw)
                file.write_text(json.dumps(changed), encoding="utf-8")
            except (ValueError, TypeError, RecursionError):  # damaged before
                file.write_bytes(change_bytes(file.read_bytes(), draw))
        elif file.suffix == ".csv" and not file.name.startswith("surface"):
            file.write_text(change_csv(file.read_text(encoding="utf-8", errors="replace"), draw), encoding="utf-8",
                            errors="replace")  # fmt: skip
        else:
            file.write_bytes(change_bytes(file.read_bytes(), draw))


def in_its_place(file: Path, draw: random.Random) -> None:
    """Removes a file, or puts a folder, a pipe, a device or something huge there."""
    if file.exists():
        file.unlink()
    how = draw.randrange(7)
    if how == 1:
        file.mkdir()
    elif how == 2:
        os.mkfifo(file)
    elif how == 3:
        file.symlink_to(draw.choice(("/dev/zero", "/dev/full", "/dev/null", "nowhere", file.name)))
    elif how == 4:
        with open(file, "wb") as sparse:
            sparse.truncate(2**33)
    elif how == 5:
        file.touch(mode=0o000)
    elif how == 6:
        file.write_bytes(b"")


def surface_file(run_folder: Path, draw: random.Random) -> None:
    """A surface of losses that are all equal, zero, negative, tiny, huge or not finite, or of any of these."""
    grid = Grid(dims=draw.choice((1, 2)), points=draw.choice((3, 5)), images=64, mode=draw.choice(("eval", "train")))
    one, several = draw.choice(NUMBERS), draw.randrange(2)
    losses = [draw.choice(NUMBERS) if several else one for _ in grid.coordinates()]
    losses = [min(float(loss), 1e308) if loss != 10**400 else 1e308 for loss in losses]
    whole = len(losses) - (draw.randrange(3) == 0)
    lines = [
        f"{a!r},{b!r},{loss!r}\n" for (a, b), loss in zip(grid.coordinates().tolist()[:whole], losses, strict=False)
    ]
    name = grid.stem if draw.randrange(4) else f"surface-{draw.choice(TEXTS)[:99]}".replace("/", "").replace("\0", "")
    file = (
        os.fsencode(run_folder)
        + b"/"
        + name.encode("utf-8", "surrogatepass")
        + draw.choice((b"", b"", b"\xff"))
        + b".csv"
    )
    with open(file, "w", encoding="utf-8") as out:
        out.write(layout(grid, "0" * 64).header + "".join(lines))


# --- Checkpoints ------------------------------------------------------------------------------------------------------

TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float16),
    lambda t: t.reshape(-1)[:0],
    lambda t: t.reshape(-1)[: max(1, t.numel() - 1)],
    lambda t: t.reshape(-1).sum(),
    lambda t: t.unsqueeze(0),
    lambda t: t.expand(7, *t.shape),
    lambda t: t.to_sparse(),
    lambda t: t.tolist(),
    lambda t: torch.zeros(3),
    lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else -t - 1,
    lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else t + 2**40,
)
PLAIN = (
    None, True, -1, 0, 2**70, 0.5, float("nan"), float("inf"), "x", "", [], {}, torch.tensor(1.0), torch.zeros(2, 3),
    [1], {"a": 1}, (1, 2), b"x", 1 + 2j,
)  # fmt: skip


def change_state(state: dict, draw: random.Random) -> None:
    """Changes something in the content of a checkpoint that tells it from the one that was saved."""
    holder, key = draw.choice(list(_places(state)))
    value, how = holder[key], draw.randrange(6)
    if isinstance(value, torch.Tensor) and how > 1:
        holder[key] = draw.choice(TENSORS)(value)
    elif how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[draw.choice(("x", 3, None, "weight"))] = value
    elif how == 2 and isinstance(value, int | float):
        holder[key] = value * draw.choice((-1, 2, 10**9)) + draw.choice((0, 1))
    else:
        holder[key] = draw.choice(PLAIN)


def change_checkpoint(path: Path, draw: random.Random) -> None:
    """Changes a checkpoint: its content, its bytes, parts of its archive, or puts something else in its place."""
    how = draw.randrange(10)
    if how == 0:
        path.write_bytes(change_bytes(path.read_bytes(), draw))
    elif how == 1:
        in_its_place(path, draw)
    elif how == 2:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = draw.choice(list(parts))
        # Not of the same size: other finite numbers of the same shape are a network that nobody can tell from this one.
        others = [data for data in parts.values() if len(data) != len(parts[name])]
        parts[name] = draw.choice((b"", draw.choice(others), parts[name][:-1], b"\x80\x02."))
        with zipfile.ZipFile(path, "w") as archive:
            for each, data in parts.items():
                archive.writestr(each, data)
    else:
        state = torch.load(path, weights_only=True)
        change_state(state, draw)
        torch.save(state, path)
