"""One seed, one sample: builds the scene, chooses a camera, casts the rays and collects the labels."""

from __future__ import annotations

import numpy as np

from vision3d.errors import InputError
from vision3d.synthetic import cameras, sensor, shading
from vision3d.synthetic.ade20k import INDEX, NONE
from vision3d.synthetic.cameras import View
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.sample import KEYPOINT, PartInfo, Sample
from vision3d.synthetic.shading import Surfels
from vision3d.synthetic.worlds import World, world

VIEWS = 3
"""Neighbouring seeds that look at one scene: seeds 3k, 3k + 1 and 3k + 2."""


def render_sample(seed: int, size: tuple[int, int] = (128, 128), handheld: bool = False) -> Sample:
    """The sample of a seed.

    Deterministic: the same seed and size give the same arrays. The camera and the scene depend on the seed
    and the aspect ratio only.

    Args:
        seed: any non-negative integer; ``seed // VIEWS`` chooses the scene.
        size: height and width in pixels, each at least 16.
        handheld: furnished rooms alone, as a hand-held camera sees them from near: tilted down and askew.

    Raises:
        InputError: for a negative seed or a size below 16.
        ResourceError: without Open3D.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative", "give a non-negative integer")
    height, width = size
    if min(height, width) < 16:
        raise InputError(f"size {height}x{width} is too small", "give at least 16x16 pixels")
    place = world(seed // VIEWS, handheld)
    draw = Draw(2, seed)
    view = cameras.choose(place, draw, height / width, handheld)
    return render_view(place, view, draw, size, seed)


def render_view(place: World, view: View, draw: Draw, size: tuple[int, int], seed: int = 0) -> Sample:
    """Renders one view of a built world; see :func:`render_sample`."""
    height, width = size
    geometry, scene = place.geometry, place.scene
    K = view.intrinsics(width)
    rotation, eye = view.cam_to_world[:3, :3], view.cam_to_world[:3, 3]
    rays = cameras.pixel_directions(K, rotation, height, width)
    hits = place.caster.first(eye, rays)
    s = shading.surfels(geometry, hits, eye, rays)

    depth = np.full(height * width, np.inf, np.float32)
    depth[s.index] = hits.distance[s.index]
    normals = np.zeros((height * width, 3), np.float32)
    normals[s.index] = s.normal @ rotation.astype(np.float32)
    object_id = np.zeros(height * width, np.int32)
    object_id[s.index] = geometry.part_object[s.part] + 1
    part_id = np.zeros(height * width, np.int32)
    part_id[s.index] = geometry.part_name[s.part]
    semantic = np.full(height * width, INDEX["sky"], np.uint8)
    semantic[s.index] = geometry.part_semantic[s.part]

    radiance = _radiance(place, K, rotation, eye, size, s)
    image = sensor.develop(radiance, draw)
    keypoints = _keypoints(place, K, view.cam_to_world, size, np.unique(object_id))
    present = np.unique(part_id)
    parts = tuple(
        PartInfo(
            int(i),
            scene.names[i - 1][0] + 1,
            scene.names[i - 1][1],
            scene.things[scene.names[i - 1][0]].category,
        )
        for i in present
        if i > 0
    )
    return Sample(
        image,
        depth.reshape(size),
        normals.reshape(height, width, 3),
        object_id.reshape(size),
        part_id.reshape(size),
        semantic.reshape(size),
        K,
        view.cam_to_world,
        keypoints,
        _caption(place, object_id),
        seed,
        parts,
        scene.kind,
    )


def _radiance(
    place: World, K: np.ndarray, rotation: np.ndarray, eye: np.ndarray, size: tuple[int, int], labels: Surfels
) -> np.ndarray:
    """Linear colour (H, W, 3).

    One ray per pixel inside surfaces, where mip-mapped textures need no more, and four where the surface
    changes; shadows are cast from four points of every pixel.
    """
    height, width = size
    pixels = height * width
    scene, geometry = place.scene, place.geometry
    table = shading.material_table(place)
    sun = next((light for light in scene.lights if light.distant), None)
    part = np.full(pixels, -1, np.int32)
    part[labels.index] = labels.part
    normal = np.zeros((pixels, 3), np.float32)
    normal[labels.index] = labels.normal
    part_map, normal_map = part.reshape(size), normal.reshape(height, width, 3)

    row, column = labels.index // width, labels.index % width
    pattern = (row % 4) * 4 + column % 4
    bounce = np.zeros((pixels, 3), np.float32)
    bounce[labels.index] = shading.indirect(place, table, sun, labels, pattern)
    bounce = shading.smooth_within_parts(bounce.reshape(height, width, 3), part_map, normal_map).reshape(
        -1, 3
    )

    edge = shading.edges(part_map, normal_map).ravel()
    inner = labels.take(np.flatnonzero(~edge[labels.index]))
    rays = cameras.pixel_directions(K, rotation, height, width, 2).reshape(height, 2, width, 2, 3)
    rays = rays.transpose(0, 2, 1, 3, 4).reshape(pixels, 4, 3)
    border = np.flatnonzero(edge)
    border_rays = rays[border].reshape(-1, 3)
    outer = shading.surfels(geometry, place.caster.first(eye, border_rays), eye, border_rays)
    quarter = outer.index % 4

    # Quarters of inner pixels: the tangent plane is near enough for shadows.
    towards = rays[inner.index]
    height_above = np.einsum("pk,pk->p", inner.face, inner.point - eye.astype(np.float32))
    slope = np.einsum("pjk,pk->pj", towards, inner.face)
    reach = height_above[:, None] / np.minimum(slope, -1e-6)
    middle = np.einsum("pj->p", reach)[:, None] / 4
    reach = np.clip(reach, 0.8 * middle, 1.25 * middle)
    quads = eye.astype(np.float32) + towards * reach[..., None]

    s = inner.join(outer)
    pixel = np.concatenate([inner.index, border[outer.index // 4]])
    material = geometry.part_material[s.part]
    colour = shading.albedo(place, table, s, 1 / float(K[0, 0]))
    specular, gloss = table.specular[material], table.gloss[material]
    diffuse, shine = shading.direct(place, scene.lights, s, specular, gloss, quads, quarter)
    light = diffuse + bounce[pixel]
    level = light.mean(0)
    out = colour * (light + table.emission[material][:, None] * level * 1.3) + shine
    mirror = table.mirror[material]
    # Fresnel (Schlick): at grazing angles even a matt varnish mirrors.
    grazing = (1 + np.einsum("ij,ij->i", s.normal, s.view)).clip(0, 1) ** 5
    mirror = mirror + (1 - mirror) * grazing * np.minimum(1.0, specular * 1.2)
    glossy = np.flatnonzero(mirror > 0.025)
    if len(glossy):
        reflected = shading.mirrored(place, table, sun, s.take(glossy), level)
        out[glossy] += mirror[glossy][:, None] * (reflected - 0.6 * out[glossy])
    if np.isfinite(scene.haze):
        air = np.exp(-s.distance / scene.haze)[:, None]
        horizon = np.array(scene.sky.horizon, np.float32) ** shading.GAMMA * scene.sky.brightness
        out = out * air + horizon * (1 - air)

    # Highlights are bounded before averaging, or one of four rays would decide the pixel.
    if len(out):
        out = np.minimum(out, max(float(np.percentile(out, 98)), 6 * float(np.median(out)) + 1e-3))
    image = np.empty((pixels, 3), np.float32)
    inside = len(inner.index)
    image[inner.index] = out[:inside]
    quarters = np.empty((len(border_rays), 3), np.float32)
    quarters[outer.index] = out[inside:]
    missed = np.ones(len(border_rays), bool)
    missed[outer.index] = False
    open_sky = np.flatnonzero((part < 0) & ~edge)
    seen = np.concatenate([rays[open_sky].mean(1), border_rays[missed]])
    if len(seen):
        sky = shading.sky_radiance(place, scene.sky, sun, seen)
        image[open_sky] = sky[: len(open_sky)]
        quarters[missed] = sky[len(open_sky) :]
    image[border] = quarters.reshape(-1, 4, 3).mean(1)
    return image.reshape(height, width, 3)


def _keypoints(
    place: World, K: np.ndarray, pose: np.ndarray, size: tuple[int, int], present: np.ndarray
) -> np.ndarray:
    """Projects the keypoints of all objects that have a pixel in the image."""
    height, width = size
    things = place.scene.things
    names, ids, categories, points, slack = [], [], [], [], []
    for object_id in present:
        if object_id == 0:
            continue
        thing = things[object_id - 1]
        if not thing.keypoints:
            continue
        local = np.array([p for _, p in thing.keypoints]) * thing.scale
        points.append(local @ thing.rotation.T + thing.position)
        names += [name for name, _ in thing.keypoints]
        ids += [int(object_id)] * len(local)
        categories += [thing.category] * len(local)
        low, high = place.boxes[object_id - 1]
        slack += [0.03 + 0.06 * float(np.linalg.norm(high - low))] * len(local)
    table = np.zeros(len(names), KEYPOINT)
    if not names:
        return table
    world_points = np.concatenate(points)
    offset = world_points - pose[:3, 3]
    camera = offset @ pose[:3, :3]
    z = camera[:, 2]
    safe = np.where(np.abs(z) < 1e-6, 1e-6, z)
    x = K[0, 0] * camera[:, 0] / safe + K[0, 2]
    y = K[1, 1] * camera[:, 1] / safe + K[1, 2]
    hits = place.caster.first(pose[:3, 3], offset.astype(np.float32))
    hit = hits.triangle != np.uint32(0xFFFFFFFF)
    owner = np.zeros(len(names), np.int64)
    owner[hit] = place.geometry.part_object[place.geometry.triangle_part[hits.triangle[hit]]] + 1
    distance = np.linalg.norm(offset, axis=1)
    gap = np.where(hit, (1 - hits.distance) * distance, np.inf)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # A keypoint may lie a little inside its part (joints do); what hides it must be its own skin.
    visible = inside & ((gap < 0.01) | ((owner == np.array(ids)) & (gap < np.array(slack))))
    table["name"], table["object_id"], table["category"] = names, ids, categories
    table["x"], table["y"], table["z_cam"], table["visible"] = x, y, z, visible
    return table


def _caption(place: World, object_id: np.ndarray) -> str:
    """Names the few most prominent objects and the place: "a red car and a dog on a street"."""
    scene = place.scene
    ids, counts = np.unique(object_id, return_counts=True)
    ranked = []
    for i, count in zip(ids, counts, strict=True):
        share = count / object_id.size
        if i == 0 or share < 0.01:
            continue
        thing = scene.things[i - 1]
        if thing.salience >= 0.3:
            ranked.append((thing.salience * share**0.5, thing.phrase, thing.category))
    ranked.sort(reverse=True)
    phrases: list[str] = []
    categories: list[str] = []
    for _, phrase, category in ranked:
        if category not in categories:
            if phrase[:2] == "a " and phrase[2] in "aeiou":
                phrase = "an" + phrase[1:]
            phrases.append(phrase)
            categories.append(category)
        if len(phrases) == 3:
            break
    if not phrases:
        return {"in": "a view inside ", "on": "a view "}[scene.place[:2]] + scene.place.removeprefix("in ")
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return f"{listed} {scene.place}"


__all__ = ["NONE", "VIEWS", "Sample", "render_sample", "render_view"]
