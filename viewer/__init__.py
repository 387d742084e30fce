"""Looking at results: a live viewer in the browser, and pages that need nothing but a browser.

:func:`view` shows what it is given, :func:`export` writes a page of it. Results become layers by their kind's
function in the registry (:func:`vision3d.viewer.registry.shows`); drawing knows layers only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.viewer.live import LiveViewer
    from vision3d.viewer.matches import PairViewer
    from vision3d.viewer.registry import Showable

__all__ = ["export", "show", "view"]

# A notebook keeps every page it shows, so these are smaller than exported ones.
_NOTEBOOK_POINTS, _NOTEBOOK_TEXTURE = 100_000, 1024


def view(
    *things: Showable, block: bool | None = None, open_browser: bool = True, **options: Any
) -> LiveViewer | PairViewer:
    """Show results, meshes, points, result folders and files in the browser.

    Args:
        things: what to show.
        block: return only after Ctrl-C; by default in scripts, which would end and take the viewer with them, but
            not in interactive sessions.
        open_browser: open a tab.
        options: of :class:`vision3d.viewer.live.LiveViewer`: host, port, title, background, point_size.

    Returns:
        The running viewer (``.url``, ``.stop()``, and ``.measurements`` unless it shows matches).

    Raises:
        InputError: what cannot be shown.
        ModuleNotFoundError: the viz extra is not installed; matches and :func:`export` do without it.
    """
    from vision3d.progress import say
    from vision3d.viewer.live import start_viewer
    from vision3d.viewer.registry import items_of

    viewer = start_viewer(items_of(things), **options)
    if open_browser:
        import webbrowser

        webbrowser.open(viewer.url)
    if block or (block is None and not _interactive()):
        say(f"{viewer.url} shows it; Ctrl-C ends")
        try:
            viewer.wait()
        except KeyboardInterrupt:
            viewer.stop()
    return viewer


def export(*things: Showable, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write one page that shows things anywhere, offline.

    Args:
        things: results, meshes, points, result folders or files.
        path: of the page.
        options: of :func:`vision3d.viewer.pages.export_page`: title, background, point_size, max_points, max_texture.

    Returns:
        ``path``.

    Raises:
        InputError: what cannot be shown.
        OutputError: the page cannot be written.
    """
    from vision3d.viewer.pages import export_page
    from vision3d.viewer.registry import items_of

    export_page(items_of(things), Path(path), **options)
    return Path(path)


def show(thing: Showable) -> None:
    """Show one thing where the user is: below a notebook's cell, else in the browser.

    Without the viz extra, an exported page is opened.
    """
    notebook = _notebook_display()
    if notebook is not None:
        notebook(thing)
        return
    from vision3d.viewer.registry import items_of
    from vision3d.viewer.scene import page_of

    items = items_of([thing])
    try:
        if page_of(items) == "space":
            import viser  # noqa: F401
    except ImportError:
        import tempfile
        import webbrowser

        folder = Path(tempfile.mkdtemp(prefix="vision3d-"))
        webbrowser.open(export(*items, path=folder / "view.html").as_uri())
        return
    view(*items)


def _interactive() -> bool:
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or _ipython() is not None


def _ipython() -> Any:
    """The running IPython shell, or None; libraries import IPython outside of it, too."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _notebook_display() -> Any:
    """A function that shows a thing below the cell, or None outside of notebooks."""
    shell = _ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None

    def display(thing: Showable) -> None:
        import html

        from IPython.display import HTML
        from IPython.display import display as put

        from vision3d.viewer.pages import page_html
        from vision3d.viewer.registry import items_of

        text = page_html(items_of([thing]), max_points=_NOTEBOOK_POINTS, max_texture=_NOTEBOOK_TEXTURE)
        put(HTML(f'<iframe srcdoc="{html.escape(text)}" style="width:100%;height:560px;border:0"></iframe>'))

    return display
