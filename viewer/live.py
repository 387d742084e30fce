"""The live viewer: a local web server (viser) that shows items and answers to sliders and clicks.

viser draws meshes as GLB, which knows neither opacity nor overlays; both are baked into what is sent. Changes come
in faster than they can be sent while a slider is dragged, so one thread sends the newest state of what has
changed and drops what lies between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from vision3d.errors import InputError, ResourceError
from vision3d.io.mesh import encode_glb
from vision3d.viewer.pages import Background, frustum_corners
from vision3d.viewer.picking import distance_text, pick
from vision3d.viewer.scene import (
    CameraLayer,
    Item,
    Layer,
    MeshLayer,
    PointsLayer,
    View,
    blend,
    bounds,
    frustum_size,
    page_of,
    positions,
    shown_at_start,
    thinned,
    views,
)
from vision3d.viewer.server import (
    LOOPBACK,
    PORT,
    STRANGERS,
    Running,
    address_of,
    check_address,
    is_foreign,
    url_of,
)

if TYPE_CHECKING:
    import viser

    from vision3d.viewer.matches import PairViewer

BACKGROUNDS: dict[Background, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "night": ((37, 46, 58), (14, 18, 24)),
    "day": ((242, 245, 247), (204, 212, 219)),
    "black": ((0, 0, 0), (0, 0, 0)),
    "white": ((255, 255, 255), (255, 255, 255)),
}
"""Colours at the top and at the bottom."""
_Y_UP_TO_WORLD = (0.0, 1.0, 0.0, 0.0)  # half a turn about x, as a quaternion (w, x, y, z)
_FRUSTUM_COLOUR = (92, 200, 255)
_MARK_COLOUR = (255, 209, 64)
_GREY = 200
_SEND_SECONDS = 0.15
_PHOTO_SIDE = 1024  # pixels of the picture in a frustum
_starting = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A length between two clicked points.

    Attributes:
        start, end: (3,) in world axes.
        unit: "m", or None if the world has no real scale.
    """

    start: np.ndarray
    end: np.ndarray
    unit: str | None

    @property
    def length(self) -> float:
        """Distance between the two."""
        return float(np.linalg.norm(self.end - self.start))

    def __str__(self) -> str:
        return distance_text(self.length, self.unit)


class _Shown(ABC):
    """A layer as it stands in the browser."""

    def __init__(self, viewer: LiveViewer, item: _ShownItem, layer: Layer, path: str) -> None:
        self.viewer, self.item, self.layer, self.path = viewer, item, layer, path
        self.visible, self.opacity = layer.visible, layer.opacity
        self.handles: list[Any] = []

    @property
    def on(self) -> bool:
        return self.item.visible and self.visible and self.opacity > 0

    def over(self, look: str, base: np.ndarray) -> np.ndarray:
        """A picture or colour list with the chosen look laid over it."""
        looks: dict[str, np.ndarray] = getattr(self.layer, "looks", {})
        return blend(base, looks[look], self.viewer.strength) if look in looks else base

    def send(self) -> None:
        """Draw it, or bring what is drawn up to date."""
        if self.on:
            self.draw(self.viewer.server.scene, self.viewer.look)
        for handle in self.handles:
            handle.visible = self.on

    @abstractmethod
    def draw(self, scene: Any, look: str) -> None:
        """Put the layer into viser's scene, with a look laid over it."""


class _ShownMesh(_Shown):
    layer: MeshLayer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: tuple[Any, ...] = ()

    def draw(self, scene: Any, look: str) -> None:
        look = look if look in self.layer.looks else ""
        state = (look, self.viewer.strength if look else 0, self.opacity)
        if state == self.sent:  # many megabytes are not sent again for a change of visibility
            return
        for number, part in enumerate(self.layer.parts):
            if part.texture is not None:
                part = dataclasses.replace(part, texture=self.over(look, part.texture))
            elif part.colours is None:
                part = dataclasses.replace(part, colours=np.full(part.vertices.shape, _GREY, np.uint8))
            data = encode_glb(part, opacity=self.opacity)
            if number < len(self.handles):
                self.handles[number].glb_data = data
            else:
                path = f"{self.path}/{number}"
                self.handles.append(
                    scene.add_glb(path, data, wxyz=_Y_UP_TO_WORLD, cast_shadow=False, receive_shadow=False)
                )
        self.sent = state


class _ShownPoints(_Shown):
    layer: PointsLayer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent_share = -1.0

    def draw(self, scene: Any, look: str) -> None:
        cloud = self.layer.cloud
        colours = np.full((len(cloud), 3), _GREY, np.uint8) if cloud.colours is None else cloud.colours
        keep = thinned(len(cloud), self.opacity)
        colours = self.over(look, colours)[keep]
        size = self.size
        if self.handles and self.sent_share == self.opacity:
            self.handles[0].colors = colours
            self.handles[0].point_size = size
            return
        handle = scene.add_point_cloud(
            self.path,
            cloud.positions[keep],
            colours,
            point_size=size,
            point_shape="circle",
            point_shading="flat",
            precision="float32",
        )
        self.handles, self.sent_share = [handle], self.opacity

    @property
    def size(self) -> float:
        base = self.viewer.point_size or 1.25 * self.layer.spacing
        return base * self.viewer.point_scale


class _ShownCamera(_Shown):
    layer: CameraLayer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hidden = False

    def draw(self, scene: Any, look: str) -> None:
        layer, size = self.layer, frustum_size(self.layer, self.item.outline)
        corners, centre = frustum_corners(layer, size), layer.pose[:3, 3]
        if not self.handles:
            edges = [[centre, corner] for corner in corners]
            edges += [[corners[i], corners[(i + 1) % 4]] for i in range(4)]
            self.handles.append(
                scene.add_line_segments(
                    f"{self.path}/edges",
                    np.array(edges, np.float32),
                    _FRUSTUM_COLOUR,
                    thickness=2.0,
                    thickness_units="screen",
                )
            )
        picture = self._picture(look)
        if picture is None:
            return
        if len(self.handles) > 1:
            self.handles[1].image = picture
            return
        width = float(np.linalg.norm(corners[1] - corners[0]))
        height = float(np.linalg.norm(corners[3] - corners[0]))
        import viser.transforms

        turned = layer.pose[:3, :3]
        self.handles.append(
            scene.add_image(
                f"{self.path}/photo",
                picture,
                width,
                height,
                format="png",
                wxyz=viser.transforms.SO3.from_matrix(turned).wxyz,
                position=corners.mean(axis=0),
                cast_shadow=False,
                receive_shadow=False,
            )
        )

    @property
    def on(self) -> bool:
        return super().on and not self.hidden

    def _picture(self, look: str) -> np.ndarray | None:
        """(h, w, 4) uint8 of the photograph with the look over it, as opaque as wanted."""
        from PIL import Image

        base = self.layer.photo
        if base is None and self.layer.looks:
            first = next(iter(self.layer.looks.values()))
            base = np.full(first.shape, 45, np.uint8)
        if base is None:
            return None
        image = Image.fromarray(base)
        image.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
        pixels = self.over(look, np.asarray(image))
        alpha = np.full((*pixels.shape[:2], 1), round(255 * self.opacity), np.uint8)
        return np.concatenate([pixels, alpha], axis=2)


_DRAWN: dict[type[Layer], type[_Shown]] = {
    MeshLayer: _ShownMesh,
    PointsLayer: _ShownPoints,
    CameraLayer: _ShownCamera,
}
"""How each kind of layer is drawn by viser; a new kind is added here."""


def sendable(name: str) -> str:
    """A file's name without what UTF-8 does not hold, which no browser could be sent."""
    return name.encode("utf-8", "replace").decode()


def as_plain(text: str) -> str:
    """Text that Markdown shows as it is: what came with a result's files must not become part of the page."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(sendable(text).split()))


class _ShownItem:
    """An item whose layers are read and sent when it is first shown."""

    def __init__(self, viewer: LiveViewer, item: Item, visible: bool, number: int) -> None:
        self.viewer, self.item, self.visible, self.number = viewer, item, visible, number
        self._layers: list[_Shown] | None = None
        self.folder: Any = None
        self.outline = np.zeros((0, 3))
        self.lock = threading.RLock()

    @property
    def loaded(self) -> bool:
        return self._layers is not None

    @property
    def layers(self) -> list[_Shown]:
        if self._layers is None:
            self.outline = positions(self.item.layers)
            self._layers = [
                _DRAWN[type(layer)](self.viewer, self, layer, f"/{self.number}/{number}")
                for number, layer in enumerate(self.item.layers)
            ]
        return self._layers


class LiveViewer(Running):
    """A running viewer.

    Args:
        items: what it shows; the visible ones are read at once, the others when they are switched on.
        host: address to listen on; only this machine can connect to the default.
        port: to listen on, or the next free one; 0 is any free one.
        title: of the page.
        background: at the start.
        point_size: diameter of points in the scene's unit; by default they just close the surface.

    Attributes:
        url: where to look.
        measurements: what was measured so far.

    Raises:
        InputError: an item that cannot be read, a host or port that cannot be used.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        host: str = LOOPBACK,
        port: int = PORT,
        title: str | None = None,
        background: Background = "night",
        point_size: float | None = None,
    ) -> None:
        import viser

        super().__init__()
        self.point_size, self.point_scale = point_size, 1.0
        self.look, self.strength = "", 1.0
        self.measurements: list[Measurement] = []
        self._start: tuple[np.ndarray, str | None] | None = None
        self._marks: list[Any] = []
        self._lock = threading.RLock()
        self._changed: dict[int, _Shown] = {}
        self._wake = threading.Event()
        shown = shown_at_start(items)
        self.items = [
            _ShownItem(self, item, on, n) for n, (item, on) in enumerate(zip(items, shown, strict=True))
        ]
        for item in self.items:
            if item.visible:
                _ = item.layers
        free = check_address(host, port)
        running = set(threading.enumerate())
        # viser announces itself on stdout
        with contextlib.redirect_stdout(io.StringIO()), _own_pages_only(host) as guarded:
            self.server: viser.ViserServer = viser.ViserServer(
                host=address_of(host), port=free, label=title or "vision3d", verbose=False
            )
        self._threads = [thread for thread in threading.enumerate() if thread not in running]
        if not guarded:
            self.server.stop()
            raise ResourceError(
                "this version of viser would answer any web page", "pip install 'viser==1.1.1'"
            )
        self.host, self.port = host, self.server.get_port()
        self.url = url_of(host, self.port)
        self._build(background)
        self._look_from(self._views()[0], initial=True)
        for item in self.items:
            if item.visible:
                for layer in item.layers:
                    layer.send()
        self._sender = threading.Thread(target=self._send_changes, name="vision3d viewer", daemon=True)
        self._sender.start()

    # ---- running

    @override
    def _close(self) -> None:
        self._wake.set()
        self._sender.join(5)
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # one of its threads says on stdout that it has stopped
            self.server.stop()
            for thread in self._threads:
                thread.join(3)

    def _change(self, layers: Sequence[_Shown]) -> None:
        with self._lock:
            self._changed.update({id(layer): layer for layer in layers})
        self._wake.set()

    def _send_changes(self) -> None:
        from vision3d.progress import warn

        while True:
            self._wake.wait()
            if self._closed.is_set():
                return
            self._wake.clear()
            with self._lock:
                layers, self._changed = list(self._changed.values()), {}
            for layer in layers:
                try:
                    with self._lock:
                        layer.send()
                except Exception as error:  # one layer that cannot be sent must not end the others' updates
                    warn(f"{layer.item.item.name}, {layer.layer.name}: {error}")
            self._closed.wait(_SEND_SECONDS)

    # ---- the panel

    def _build(self, background: Background) -> None:
        server, gui = self.server, self.server.gui
        server.scene.set_up_direction("-y")
        # Sharing would send the scene through a stranger's server.
        gui.configure_theme(
            dark_mode=background in ("night", "black"),
            control_width="medium",
            show_logo=False,
            show_share_button=False,
        )
        self._set_background(background)
        with gui.add_folder("Layers"):
            for item in self.items:
                self._item_controls(item)
        self._overlay_controls()
        if any(isinstance(layer, PointsLayer) for item in self._loaded() for layer in item.item.layers):
            slider = gui.add_slider("point size", min=-2.0, max=3.0, step=0.05, initial_value=0.0)
            slider.on_update(lambda _: self._set_point_scale(2**slider.value))
        with gui.add_folder("View"):
            names = list(dict.fromkeys(view.name for view in self._views()))
            jump = gui.add_button_group("look from", names)
            jump.on_click(lambda event: self._jump(str(jump.value), event.client))
            choice = gui.add_dropdown("background", list(BACKGROUNDS), initial_value=background)
            choice.on_update(lambda _: self._set_background(choice.value))
            shot = gui.add_button("screenshot", hint="save a PNG of what you see")
            shot.on_click(self._screenshot)
        with gui.add_folder("Measure"):
            self.measuring = gui.add_checkbox("click two points", initial_value=False)
            self.measuring.on_update(lambda _: self._listen(self.measuring.value))
            clear = gui.add_button("clear")
            clear.on_click(lambda _: self.clear())
            self._list = gui.add_markdown("")
        server.on_client_connect(self._greet)

    def _loaded(self) -> list[_ShownItem]:
        return [item for item in self.items if item.loaded]

    def _item_controls(self, item: _ShownItem) -> None:
        gui = self.server.gui
        if len(self.items) == 1:
            self._layer_controls(item)
            return
        item.folder = gui.add_folder(sendable(item.item.name), expand_by_default=item.visible)
        with item.folder:
            box = gui.add_checkbox("show", initial_value=item.visible)
        box.on_update(lambda _: self._show_item(item, box))
        if item.loaded:
            with item.folder:
                self._layer_controls(item)

    def _layer_controls(self, item: _ShownItem) -> None:
        gui = self.server.gui

        def bind(layer: _Shown, box: Any, slider: Any) -> None:
            def changed(_: Any) -> None:
                layer.visible, layer.opacity = box.value, slider.value
                self._change([layer])

            box.on_update(changed)
            slider.on_update(changed)

        if item.item.note:
            gui.add_markdown(as_plain(item.item.note))
        for layer in item.layers:
            name = layer.layer.name
            box = gui.add_checkbox(name, initial_value=layer.visible)
            slider = gui.add_slider(
                f"{name} opacity", min=0.0, max=1.0, step=0.01, initial_value=layer.opacity
            )
            bind(layer, box, slider)

    def _show_item(self, item: _ShownItem, box: Any) -> None:
        from vision3d.progress import warn

        item.visible = box.value
        with item.lock:  # callbacks run side by side
            if not item.loaded and item.visible:
                try:
                    _ = item.layers
                except InputError as error:
                    warn(str(error))
                    box.value = item.visible = False
                    return
                with item.folder:
                    self._layer_controls(item)
                self._overlay.options = self._overlay_options()
        if item.loaded:
            self._change(item.layers)

    def _overlay_options(self) -> list[str]:
        found = [look for item in self._loaded() for look in item.item.looks]
        return ["nothing", *dict.fromkeys(found)]

    def _overlay_controls(self) -> None:
        gui = self.server.gui
        with gui.add_folder("Overlay"):
            self._overlay = gui.add_dropdown("lay over", self._overlay_options(), initial_value="nothing")
            strength = gui.add_slider("strength", min=0.0, max=1.0, step=0.01, initial_value=1.0)

        def changed(_: Any) -> None:
            self.look = "" if self._overlay.value == "nothing" else self._overlay.value
            self.strength = strength.value
            self._change([layer for item in self._loaded() for layer in item.layers])

        self._overlay.on_update(changed)
        strength.on_update(changed)

    def _set_point_scale(self, scale: float) -> None:
        self.point_scale = scale
        self._change([x for item in self._loaded() for x in item.layers if isinstance(x, _ShownPoints)])

    def _set_background(self, name: Background) -> None:
        top, bottom = (np.array(colour, np.float64) for colour in BACKGROUNDS[name])
        share = np.linspace(0, 1, 256)[:, None, None]
        column = np.round(top * (1 - share) + bottom * share).astype(np.uint8)
        self.server.scene.set_background_image(np.repeat(column, 4, axis=1), format="png")

    # ---- where to look from

    def _views(self) -> list[View]:
        visible = [item for item in self.items if item.visible and item.loaded] or self._loaded()
        if all(item.item.alone for item in visible):
            return views(visible[0].item.layers) if visible else views([])
        return views([layer for item in visible for layer in item.item.layers])

    def _look_from(self, view: View, *, initial: bool = False) -> None:
        if initial:
            camera = self.server.initial_camera
            camera.position, camera.look_at, camera.up = view.eye, view.target, view.up
            camera.fov = view.vertical_fov(1.6)
            _, radius = bounds(positions([x for item in self._loaded() for x in item.item.layers]))
            camera.near, camera.far = radius * 1e-3, radius * 1e3

    def _greet(self, client: Any) -> None:
        """Open the angle for the window of whoever has come, once the window's shape is known."""
        view = self._views()[0]
        with contextlib.suppress(Exception):  # a window that closes again at once needs no angle
            client.camera.fov = view.vertical_fov(float(client.camera.aspect))
            client.camera.on_update(lambda _: self._moved(np.asarray(client.camera.position)))

    def _moved(self, eye: np.ndarray) -> None:
        """Hide a photograph from whoever stands where it was taken: it would hide all else."""
        for layer in [x for item in self._loaded() for x in item.layers if isinstance(x, _ShownCamera)]:
            away = float(np.linalg.norm(eye - layer.layer.pose[:3, 3]))
            through = away < frustum_size(layer.layer, layer.item.outline)
            if through != layer.hidden:
                layer.hidden = through
                self._change([layer])

    def _jump(self, name: str, client: Any) -> None:
        view = next((view for view in self._views() if view.name == name), None)
        if view is None or client is None:
            return
        with client.atomic():
            client.camera.up_direction = view.up
            client.camera.position = view.eye
            client.camera.look_at = view.target
            client.camera.fov = view.vertical_fov(float(client.camera.aspect))

    def _screenshot(self, event: Any) -> None:
        client = event.client
        if client is None:
            return
        from PIL import Image

        height, width = client.camera.image_height, client.camera.image_width
        pixels = client.get_render(height, width, transport_format="png", timeout=120)
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGBA").save(buffer, "PNG")
        client.send_file_download("vision3d.png", buffer.getvalue())

    # ---- measuring

    def _listen(self, on: bool) -> None:
        if on:
            self.server.scene.on_click()(self._clicked)
        else:
            self.server.scene.remove_click_callback("all")
            self._start = None
            self._draw_marks()

    def _clicked(self, event: Any) -> None:
        self.click(np.asarray(event.ray_origin), np.asarray(event.ray_direction))

    def click(self, origin: np.ndarray, direction: np.ndarray) -> None:
        """What a click does while measuring: the first sets a point, the second measures from it.

        Args:
            origin: (3,) of the ray in world axes.
            direction: (3,) of the ray.
        """
        best = None
        for item in self._loaded():
            for layer in item.layers:
                size = layer.size if isinstance(layer, _ShownPoints) else 0.0
                hit = pick([layer.layer], origin, direction, point_size=size) if layer.on else None
                if hit is not None and (best is None or hit.distance < best[0].distance):
                    best = hit, item.item.unit
        if best is None:
            return
        point, unit = best[0].position, best[1]
        with self._lock:
            if self._start is None:
                self._start = point, unit
            else:
                start, first = self._start
                self._start = None
                self.measurements.append(Measurement(start, point, unit if unit == first else None))
            self._draw_marks()

    def clear(self) -> None:
        """Forget all lengths."""
        with self._lock:
            self.measurements.clear()
            self._start = None
            self._draw_marks()

    def _draw_marks(self) -> None:
        scene = self.server.scene
        for mark in self._marks:
            mark.remove()
        ends = [point for m in self.measurements for point in (m.start, m.end)]
        ends += [self._start[0]] if self._start is not None else []
        self._marks = []
        _, radius = bounds(positions([x for item in self._loaded() for x in item.item.layers]))
        for number, point in enumerate(ends):
            self._marks.append(
                scene.add_icosphere(
                    f"/measure/{number}", radius * 0.006, _MARK_COLOUR, position=point, cast_shadow=False
                )
            )
        for number, m in enumerate(self.measurements):
            line = np.array([[m.start, m.end]], np.float32)
            self._marks += [
                scene.add_line_segments(
                    f"/measure/line{number}", line, _MARK_COLOUR, thickness=3.0, thickness_units="screen"
                ),
                scene.add_label(
                    f"/measure/label{number}", str(m), position=(m.start + m.end) / 2, anchor="bottom-center"
                ),
            ]
        self._list.content = "\n".join(f"- {as_plain(str(m))}" for m in self.measurements)


@contextlib.contextmanager
def _own_pages_only(host: str) -> Iterator[list[bool]]:
    """Lets a viser server that starts here answer its own pages alone; viser itself lets any page in.

    What it yields is empty as long as no server has started that way.
    """
    from websockets.asyncio import server as sockets

    plain = sockets.serve
    started: list[bool] = []

    def serve(handler: Any, *address: Any, process_request: Any = None, **settings: Any) -> Any:
        def answer(connection: Any, request: Any) -> Any:
            hosts, origins = (request.headers.get_all(name) for name in ("Host", "Origin"))
            if len(hosts) != 1 or any(is_foreign(hosts[0], origin, host) for origin in origins or [None]):
                return connection.respond(403, f"{STRANGERS}\n")
            return None if process_request is None else process_request(connection, request)

        started.append(True)
        return plain(handler, *address, process_request=answer, **settings)

    with _starting:
        sockets.serve = serve  # type: ignore[assignment, misc]
        try:
            yield started
        finally:
            sockets.serve = plain  # type: ignore[misc]


def start_viewer(
    items: Sequence[Item], *, point_size: float | None = None, **options: Any
) -> LiveViewer | PairViewer:
    """The viewer of things in space or that of pairs of photographs, as the items need it.

    Args:
        items: what it shows.
        point_size: see :class:`LiveViewer`; pairs have no points.
        options: of both: host, port, title, background.

    Raises:
        InputError: items that cannot be shown, or not together; a host or port that cannot be used.
        ModuleNotFoundError: things in space, and the viz extra is not installed.
    """
    if page_of(items) == "pairs":
        from vision3d.viewer.matches import PairViewer

        return PairViewer(items, **options)
    return LiveViewer(items, point_size=point_size, **options)
