"""Pictures of a run, without display or pyplot: whatever class names hold, and never its end."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from common.training.checkpoint import atomic_file

BOXES = "Characters drawn as boxes are in no installed font; Noto Sans CJK has most of them."


def picture(path: Path, draw: Callable, *args: object) -> None:
    """Save what ``draw(figure, *args)`` draws, or say in one line why there is no such picture.

    The figures of a run are worth more than its pictures: none of them ends it.
    """
    try:
        save_picture(path, draw, *args)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {path}: no such picture is drawn ({reason})", file=sys.stderr, flush=True)


def save_picture(path: Path, draw: Callable, *args: object) -> None:
    """Save what ``draw(figure, *args)`` draws as PNG.

    Characters that Matplotlib's own font lacks come from another installed one; where there is
    none, a line below the picture says so.
    """
    image, lacking = _render(draw, args)
    if lacking:
        fonts, lacking = _fonts_with(lacking)
        image, _ = _render(draw, args, fonts, note=BOXES if lacking else "")
    with atomic_file(path) as file:
        file.write(image)


def literal(text: object) -> str:
    """Text that Matplotlib draws as it is: a pair of ``$`` would be a formula."""
    return str(text).encode(errors="replace").decode().replace("$", r"\$")


def _render(
    draw: Callable, args: tuple, fonts: list[str] | None = None, note: str = ""
) -> tuple[bytes, set[int]]:
    """The PNG, and the characters that neither Matplotlib's font nor ``fonts`` have."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image, lacking = io.BytesIO(), set()
    with (
        rc_context({"font.family": ["sans-serif", *(fonts or [])]}),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, *args)
        if note:
            figure.supxlabel("\n".join(filter(None, [figure.get_supxlabel(), note])), fontsize=8)
        figure.savefig(image, dpi=110, format="png")
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) ", str(warning.message)):
            lacking.add(int(glyph[1]))
        else:
            warnings.warn(warning.message, warning.category, stacklevel=4)
    return image.getvalue(), lacking


def _fonts_with(characters: set[int]) -> tuple[list[str], set[int]]:
    """Names of installed fonts that have the characters, and the characters that none has."""
    from matplotlib import font_manager

    fonts = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        if not characters:
            break
        if font.style != "normal" or font.weight != 400 or font.name.startswith("Last Resort"):
            continue
        with contextlib.suppress(OSError, RuntimeError):  # a font file that cannot be read
            found = characters & font_manager.get_font(font.fname).get_charmap().keys()
            if found:
                fonts.append(font.name)
                characters = characters - found
    return fonts, characters
