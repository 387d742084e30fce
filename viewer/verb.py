"""``vision3d view``: look at results and files, in a browser or as one page."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vision3d.errors import InputError, OutputError
from vision3d.progress import say, warn


@dataclass
class PageReport:
    """A page that was written.

    Attributes:
        page: the file.
        size: in bytes.
        items: names of what it shows.
    """

    page: Path
    size: int
    items: list[str]
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"page": str(self.page), "bytes": self.size, "items": self.items}

    def __str__(self) -> str:
        what = self.items[0] if len(self.items) == 1 else f"{len(self.items)} results"
        return f"{self.page} shows {what} ({self.size / 1e6:.1f} MB, opens offline)"


def view(
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")],
    export: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    open: bool = True,
    title: str | None = None,
    background: Literal["night", "day", "black", "white"] = "night",
    point_size: float | None = None,
    max_points: int = 300_000,
    max_texture: int = 2048,
    up: Literal["auto", "y", "-y", "z"] = "auto",
) -> PageReport | int:
    """Look at results and 3D files: turn, zoom, switch layers, lay depth or normals over, measure.

    Matches are shown on their photographs: click a point, see where it goes and how similar everything else is to it.
    Opens a viewer in the browser that runs until Ctrl-C; with --export it writes one HTML file instead, which opens
    anywhere without a network.

    Args:
        paths: result folders, folders of these, or GLB, glTF, OBJ and PLY files.
        export: write this page instead of starting a viewer.
        host: address to listen on; only this machine can connect to the default, 0.0.0.0 lets others in.
        port: to listen on; the next free one is taken if it is in use, 0 is any.
        open: open the browser.
        title: of the page.
        background: behind the scene.
        point_size: diameter of points in the scene's unit; by default they just close the surface.
        max_points: clouds are thinned evenly to so many points in an exported page.
        max_texture: longest side in pixels of pictures in an exported page.
        up: the axis that points up in plain files; auto is y, and -y for PLY files of this program.
    """
    from vision3d.viewer.pages import export_page
    from vision3d.viewer.registry import items_of

    if point_size is not None and not point_size > 0:
        raise InputError(f"point_size {point_size}", "give a positive length")
    if max_points < 1 or max_texture < 1:
        raise InputError("max_points and max_texture", "give 1 or more")
    items = items_of(paths, up=up)
    if export is not None:
        if export.suffix.lower() not in (".html", ".htm"):
            raise OutputError(f"a page called {export.name}", "give a name that ends in .html")
        size = export_page(
            items,
            export,
            title=title,
            background=background,
            point_size=point_size,
            max_points=max_points,
            max_texture=max_texture,
        )
        return PageReport(export, size, [item.name for item in items])

    from vision3d.viewer.live import start_viewer
    from vision3d.viewer.server import is_loopback

    with start_viewer(
        items, host=host, port=port, title=title, background=background, point_size=point_size
    ) as viewer:
        if not is_loopback(host):
            warn(f"everyone who can reach port {viewer.port} of this machine can look at this")
        say(f"{viewer.url} shows {len(items)} {'thing' if len(items) == 1 else 'things'}; Ctrl-C ends")
        if open:
            webbrowser.open(viewer.url)
        try:
            viewer.wait()
        except KeyboardInterrupt:
            say("viewer closed")
    return 0
