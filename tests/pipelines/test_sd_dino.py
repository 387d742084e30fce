"""SD+DINO: projection, fusion and matching against NumPy and SciPy, and what the pipeline promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from scipy.spatial.distance import cdist
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, DINOv3ViTConfig, DINOv3ViTModel

from vision3d.backbone.backbone import Backbone
from vision3d.backbone.featurecache import FeatureCache
from vision3d.errors import InputError, WeightsError
from vision3d.matches import Matches
from vision3d.pipelines.sd_dino import SDDino, matching, swap
from vision3d.pipelines.sd_dino.canvas import Canvas, CellGrid, square
from vision3d.pipelines.sd_dino.captioner import ImplicitCaptioner
from vision3d.pipelines.sd_dino.features import read_features, sample_map, tile_boxes
from vision3d.pipelines.sd_dino.fusion import Metric, fuse, similarity
from vision3d.pipelines.sd_dino.options import MatchOptions, SDDinoConfig
from vision3d.pipelines.sd_dino.pca import DatasetPCA, co_pca, principal_axes, project, stack_layers
from vision3d.pipelines.sd_dino.pipeline import LoadingPlan
from vision3d.weights import MINI


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pipeline(sd_dino_folder: Path) -> SDDino:
    return SDDino.from_pretrained(sd_dino_folder, cache=False)


# Projection and fusion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 80), (200, 24)])
def test_exact_directions_are_those_of_the_svd_with_fixed_signs(shape: tuple[int, int]) -> None:
    rows = random(*shape) * torch.linspace(3, 0.2, shape[1])
    rows = rows - rows.mean(0)
    axes = principal_axes(rows, 10)
    expected = np.linalg.svd(rows.double().numpy())[2][:10].T
    signs = np.sign(expected[np.abs(expected).argmax(0), range(10)])
    np.testing.assert_allclose(axes.numpy(), expected * signs, atol=2e-4)
    assert torch.equal(axes, principal_axes(rows, 10))


def test_directions_without_variance_are_orthogonal_to_the_others() -> None:
    rows = random(8, 80) * 30
    rows = rows - rows.mean(0)
    axes = principal_axes(rows, 16)
    assert axes.shape == (80, 8)
    np.testing.assert_allclose(axes.T @ axes, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(rows @ axes[:, 7], np.zeros(8), atol=1e-3)


def test_a_projection_keeps_distances_when_no_direction_is_dropped() -> None:
    first, second = {"s4": random(6, 4, 4)}, {"s4": random(6, 4, 4, seed=1)}
    a, b = co_pca(first, second, {"s4": 99})
    before = torch.cdist(first["s4"].flatten(1).T, second["s4"].flatten(1).T)
    after = torch.cdist(a["s4"].flatten(1).T, b["s4"].flatten(1).T)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_the_randomised_projection_repeats_under_a_seed_and_leaves_the_generator_alone(
    pipeline: SDDino, picture: np.ndarray
) -> None:
    options = MatchOptions(projection="lowrank", seed=4)
    image = pipeline.encode(picture)
    state = torch.get_rng_state()
    one, two = (pipeline.describe(image, image, options)[0].cells for _ in range(2))
    other = pipeline.describe(image, image, MatchOptions(projection="lowrank", seed=5))[0].cells
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_data_sets_directions_are_those_of_all_its_rows() -> None:
    images = [{"s3": random(5, 3, 4, seed=i) + i} for i in range(4)]
    sums = DatasetPCA({"s3": 3})
    for image in images:
        sums.update(image)
    bases = sums.fit()
    rows = np.concatenate([image["s3"].flatten(1).T.numpy() for image in images])
    centred = rows - rows.mean(0)
    axes = np.linalg.svd(centred)[2][:3]
    ours = project(images[2], bases)["s3"].flatten(1).T.numpy()
    theirs = (images[2]["s3"].flatten(1).T.numpy() - rows.mean(0)) @ axes.T
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-4)


def test_layers_are_stacked_finest_first() -> None:
    layers = {
        "s5": torch.full((1, 2, 2), 5.0),
        "s4": torch.full((1, 4, 4), 4.0),
        "s3": torch.full((1, 8, 8), 3.0),
    }
    stacked = stack_layers(layers)
    assert stacked.shape == (3, 8, 8) and stacked[:, 4, 4].tolist() == [3.0, 4.0, 5.0]


def test_fused_halves_have_their_weights_as_lengths() -> None:
    fused = fuse(random(7, 6), random(7, 4, seed=1), half_weights=(0.5, 2.0))
    torch.testing.assert_close(fused[:, :6].norm(dim=1), torch.full((7,), 0.5))
    torch.testing.assert_close(fused[:, 6:].norm(dim=1), torch.full((7,), 2.0))


@pytest.mark.parametrize(
    ("metric", "theirs"), [("l2", "euclidean"), ("l1", "cityblock"), ("cosine", "cosine")]
)
def test_similarities_are_scipys_distances(metric: str, theirs: str) -> None:
    a, b = random(12, 9), random(15, 9, seed=1)
    expected = cdist(a.numpy(), b.numpy(), theirs)
    expected = 1 - expected if metric == "cosine" else -expected
    np.testing.assert_allclose(similarity(a, b, metric).numpy(), expected, atol=5e-5)  # type: ignore[arg-type]


# Matching ------------------------------------------------------------------------------------------------------


def test_nearest_cells_both_ways_whatever_the_block_size() -> None:
    a, b = random(30, 8), random(42, 8, seed=1)
    distance = cdist(a.numpy(), b.numpy())
    for rows in (7, 1000):
        found = matching.nearest_cells(a, b, (6, 7), rows=rows)
        assert found.forward.tolist() == distance.argmin(1).tolist()
        assert found.backward.tolist() == distance.argmin(0).tolist()
        mutual = distance.argmin(0)[distance.argmin(1)] == np.arange(30)
        assert found.mutual.tolist() == mutual.tolist()
    assert ((found.share >= 0) & (found.share <= 1 + 1e-6)).all()


def test_masked_cells_are_nobodys_nearest() -> None:
    a, b = random(30, 8), random(30, 8, seed=1)
    allowed = torch.arange(30) % 3 == 0
    found = matching.nearest_cells(a, b, (5, 6), first_mask=allowed, second_mask=allowed, rows=8)
    distance = cdist(a.numpy(), b.numpy())
    distance[:, ~allowed.numpy()] = np.inf
    assert found.forward.tolist() == distance.argmin(1).tolist()
    assert allowed[found.backward].all()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.05, 1.0), (3.0, 0.2)])
@pytest.mark.parametrize("metric", ["l2", "l2_norm"])
def test_distances_become_cosines_whatever_the_weights_of_the_halves(
    metric: Metric, weights: tuple[float, float]
) -> None:
    g = torch.Generator().manual_seed(0)
    halves = [F.normalize(torch.randn(30, 8, generator=g), dim=-1) * w for w in weights]
    cells = torch.cat(halves, 1)
    length = matching.squared_length(cells, metric)
    found = matching.as_cosine(matching.query_rows(cells, cells, metric), metric, length)
    expected = F.cosine_similarity(cells[:, None], cells[None], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_places_between_cells_lie_where_the_weight_is() -> None:
    peak = torch.full((1, 25), -1.0)
    peak[0, 12] = peak[0, 13] = 1.0  # two equal neighbours in a row
    place = matching.between_cells(peak, torch.tensor([12]), (5, 5))
    torch.testing.assert_close(place, torch.tensor([[3.0, 2.5]]), atol=1e-4, rtol=0)


# Canvases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 83), (83, 50), (64, 64), (1, 1)])
def test_points_come_back_from_the_canvas(size: tuple[int, int]) -> None:
    canvas = Canvas(*size, 96)
    points = np.random.default_rng(0).uniform(0, 1, (20, 2)) * size[::-1]
    np.testing.assert_allclose(canvas.to_image(canvas.to_canvas(points)), points, atol=1e-9)
    rows, columns = canvas.window
    assert (rows.stop - rows.start, columns.stop - columns.start) == canvas.shape


def test_the_image_lies_in_the_canvas_window() -> None:
    image = np.full((30, 60, 3), 200, np.uint8)
    canvas = square(image, 96)
    window = Canvas(30, 60, 96).window
    assert (canvas[window] == 200).all() and canvas.sum() == 200 * 3 * 96 * 48


def test_cells_of_overlapping_patches_have_their_middles_where_the_patches_are() -> None:
    grid = CellGrid(Canvas(96, 96, 96), (23, 23), 4, 4.0)  # patch 8, stride 4
    np.testing.assert_allclose(grid.to_image(np.array([[0.5, 1.5]])), [[4.0, 8.0]])
    assert grid.nearest(np.array([[4.0, 8.0]])).tolist() == [23]


def test_cells_inside_a_mask_have_their_middle_in_it_or_are_touched() -> None:
    grid = CellGrid(Canvas(40, 80, 80), (8, 8), 10, 5.0)
    assert grid.inside().reshape(8, 8).sum(1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    mask = np.zeros((40, 80), bool)
    mask[:10, 10:30] = True
    assert np.flatnonzero(grid.inside(mask)).tolist() == [2 * 8 + 1, 2 * 8 + 2]
    mask[:] = False
    mask[1, 1] = True
    assert np.flatnonzero(grid.inside(mask)).tolist() == [2 * 8]


def test_sampling_at_even_middles_is_resizing() -> None:
    features = random(3, 6, 6)
    middles = (torch.arange(12) + 0.5) / 12 * 60
    sampled = sample_map(features, (middles, middles), 60)
    resized = torch.nn.functional.interpolate(features[None], size=(12, 12), mode="bilinear")[0]
    torch.testing.assert_close(sampled, resized, atol=1e-5, rtol=1e-5)


def test_tiles_cover_the_image() -> None:
    for height, width in ((960, 960), (576, 1344), (512, 512)):
        seen = np.zeros((height, width), bool)
        for top, left, h, w in tile_boxes(height, width):
            seen[top : top + h, left : left + w] = True
        assert seen.all()


# Pipeline ----------------------------------------------------------------------------------------------------------


def test_early_exit_gives_the_same_bits_and_runs_nothing_after_the_tap(pipeline: SDDino) -> None:
    from vision3d.backbone.unet import denoise, walk

    with pipeline.backbone.running("unet") as unet, torch.no_grad():
        latents, context = (
            random(2, unet.config.in_channels, 16, 16),
            random(1, 77, unet.config.cross_attention_dim, seed=1),
        )
        whole = {tap.name: tap.tensor for tap in walk(unet, latents, 100, context)}
        calls: list[str] = []
        handles = [
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
            for name, module in unet.named_modules()
        ]
        found = read_features(unet, latents, 100, context)
        for handle in handles:
            handle.remove()
        assert denoise(unet, latents, 100, context).shape == latents.shape
    for name, place in (("s5", "u0r1"), ("s4", "u1a1"), ("s3", "u2a1")):
        assert torch.equal(found[name], whole[place])
    after = ("up_blocks.2.resnets.2", "up_blocks.2.upsamplers", "up_blocks.3", "conv_out")
    assert calls and not [name for name in calls if name.startswith(after)]


def test_an_image_matches_itself_in_place(pipeline: SDDino, picture: np.ndarray) -> None:
    found = pipeline.match(picture, picture, dense=True)
    cell = 96 / 12
    assert len(found) > 20 and found.mutual.all() and (found.cycle_error == 0).all()
    assert np.abs(found.points_a - found.points_b).max() < cell
    assert found.flow_ab is not None and np.abs(found.flow_ab).max() < 1e-3
    assert (np.diff(found.confidence) <= 1e-6).all()
    points = np.array([[20.0, 30.0], [70.0, 50.0]])
    exact = pipeline.match(picture, picture, points, subcell=False)
    assert np.abs(exact.points_b - points).max() <= cell / 2 and np.allclose(exact.points_a, points)


def test_flow_leads_to_where_an_image_was_pasted(pipeline: SDDino, picture: np.ndarray) -> None:
    """A copy twice as large on another canvas: flow is measured in pixels of each image."""
    large = picture.repeat(2, 0).repeat(2, 1)
    found = pipeline.match(picture, large, dense=True, features="dino")
    assert found.flow_ab is not None and found.flow_ba is not None
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    assert np.median(np.abs(found.flow_ab - np.stack([x, y], -1))) < 1.0
    y, x = np.mgrid[: large.shape[0], : large.shape[1]] + 0.5
    assert np.median(np.abs(found.flow_ba + np.stack([x, y], -1) / 2)) < 1.0


def test_masks_bound_both_ends(pipeline: SDDino, picture: np.ndarray) -> None:
    first, second = np.zeros(picture.shape[:2], bool), np.zeros(picture.shape[:2], bool)
    first[:, :40], second[:, 50:] = True, True
    found = pipeline.match(picture, picture, masks=(first, second), subcell=False)
    assert len(found) and (found.points_a[:, 0] <= 44).all() and (found.points_b[:, 0] >= 46).all()


def test_features_are_computed_once_and_read_back_equal(
    sd_dino_folder: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    pipeline = SDDino.from_pretrained(sd_dino_folder, cache=cache)
    first = pipeline.encode(picture)
    again = SDDino.from_pretrained(sd_dino_folder, cache=cache)
    again._compute_taps = None  # type: ignore[assignment, method-assign]
    again.backbone.dino = None  # type: ignore[assignment, method-assign]
    second = again.encode(picture)
    assert all(torch.equal(first.sd[name], second.sd[name]) for name in first.sd)
    assert torch.equal(first.dino, second.dino) and cache.hits == 2  # type: ignore[arg-type]
    other = SDDino.from_pretrained(sd_dino_folder, cache=cache, timestep=50)
    assert not torch.equal(other.encode(picture).sd["s3"], first.sd["s3"])


def test_networks_without_a_file_are_not_cached(
    sd_dino_folder: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    pipeline = SDDino.from_pretrained(sd_dino_folder, cache=cache)
    pipeline.backbone.dino_network._weight_source = None  # type: ignore[union-attr, assignment]
    pipeline.encode(picture, MatchOptions(features="dino"))
    assert cache.size() == 0


def captioning(pipeline: SDDino, width: int | None = None) -> dict[str, Any]:
    """An untrained captioner and image tower for the pipeline's prior."""
    unet = pipeline.backbone.sd.unet  # type: ignore[union-attr]
    torch.manual_seed(0)
    captioner = ImplicitCaptioner(
        8, width or unet.config.cross_attention_dim, unet.time_embedding.linear_2.out_features
    )
    for parameter in captioner.parameters():
        torch.nn.init.normal_(parameter)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=8,
    )  # fmt: skip
    return {"captioner": captioner, "clip": CLIPVisionModelWithProjection(vision).eval()}


def test_the_captioner_leaves_the_empty_prompt_alone(
    pipeline: SDDino, picture: np.ndarray, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    captioned = SDDino(pipeline.backbone, pipeline.config, cache=cache, **captioning(pipeline))

    def taps(method: SDDino, **how: Any) -> torch.Tensor:
        return method.encode(picture, MatchOptions(features="sd", **how)).sd["s3"]

    plain = taps(pipeline).half().float()
    assert torch.equal(plain, taps(captioned, conditioning="empty"))
    kept = cache.size()
    assert kept and torch.equal(plain, taps(captioned, conditioning="empty"))
    told, text = taps(captioned), taps(captioned, conditioning="text", prompt="")
    assert not torch.equal(plain, told) and not torch.equal(plain, text) and not torch.equal(told, text)
    assert cache.size() == kept, "an image tower without a file cannot be told from another in the cache"


def test_a_captioner_of_other_widths_is_refused(pipeline: SDDino) -> None:
    with pytest.raises(WeightsError, match="text to be 32 wide, it is 64"):
        SDDino(pipeline.backbone, pipeline.config, **captioning(pipeline, 32))


def test_dino_replaces_the_weights_own_and_nothing_else(sd_dino_folder: Path) -> None:
    other = sd_dino_folder / "dino"
    whole, plan = LoadingPlan.of(sd_dino_folder), LoadingPlan.of(sd_dino_folder, dino=other)
    assert plan.sd == whole.sd
    replaced = {"dino_size": 480, "dino_stride": 8, "dino_facet": "key"}
    assert plan.config.to_dict() == {**whole.config.to_dict(), **replaced}
    defaults = LoadingPlan.of(None, dino=other)
    assert defaults.sd == LoadingPlan.of().sd and defaults.dino == other
    alone = LoadingPlan.of(None, dino=other, features="dino")
    assert alone.sd is None and alone.config.dino_size == 224


def test_dinov3_matches_is_kept_and_saved(picture: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=16,
        num_register_tokens=2,
    )  # fmt: skip
    network = DINOv3ViTModel(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(tmp_path / "dinov3")
    cache = FeatureCache(tmp_path / "cache")
    pipeline = SDDino.from_pretrained(
        dino=tmp_path / "dinov3", features="dino", dino_size=192, cache=cache, memory="low"
    )
    assert pipeline.config.dino_norm and "dinov3" in repr(pipeline)
    points = np.array([[20.0, 30.0], [70.0, 50.0]])
    for hits in (0, 2):
        found = pipeline.match(picture, picture, points, features="dino", subcell=False)
        assert np.abs(found.points_b - points).max() <= 96 / 12 / 2
        assert cache.hits == hits + 1, "the second image of a pair, then both"
    pipeline.save_pretrained(tmp_path / "saved")
    again = SDDino.from_pretrained(tmp_path / "saved", cache=False)
    options = MatchOptions(features="dino")
    one, two = (p.encode(picture, options).dino for p in (pipeline, again))
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)


def test_texts_condition_a_prior_by_the_layer_it_was_trained_with(
    pipeline: SDDino, picture: np.ndarray
) -> None:
    backbone, config = pipeline.backbone, pipeline.config
    assert backbone.sd is not None
    second = Backbone(replace(backbone.sd, family="sd2"), backbone.text_encoder, device="cpu")
    options = MatchOptions(features="sd", prompt="a red car")
    found = SDDino(second, config).encode(picture, options).sd["s3"]
    asked = SDDino(backbone, config.changed(text_layer="penultimate")).encode(picture, options).sd["s3"]
    assert torch.equal(found, asked)
    assert not torch.equal(found, pipeline.encode(picture, options).sd["s3"])


@pytest.mark.parametrize("part", ["sd", "dino"])
def test_one_network_alone_is_saved_and_loaded(
    pipeline: SDDino, picture: np.ndarray, tmp_path: Path, part: Literal["sd", "dino"]
) -> None:
    whole = pipeline.backbone
    only = (
        Backbone(whole.sd, whole.text_encoder, device="cpu")
        if part == "sd"
        else Backbone(dino=whole.dino_network, device="cpu")
    )
    SDDino(only, pipeline.config).save_pretrained(tmp_path)
    again = SDDino.from_pretrained(tmp_path, cache=False).encode(picture, MatchOptions(features=part))
    before = pipeline.encode(picture, MatchOptions(features=part))
    found, expected = (f.dino if part == "dino" else f.sd["s3"] for f in (again, before))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_saved_weights_give_the_same_matches(pipeline: SDDino, picture: np.ndarray, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = SDDino.from_pretrained(tmp_path / "saved", cache=False)
    assert again.config.to_dict() == pipeline.config.to_dict()
    points = [(30.0, 30.0), (60.0, 40.0)]
    one, two = (p.match(picture, picture[::-1].copy(), points) for p in (pipeline, again))
    # rounding differs with the memory layout, and projections of nearly equal variance turn with it
    np.testing.assert_allclose(one.points_b, two.points_b, atol=0.3)


def test_a_common_projection_matches_as_well(pipeline: SDDino, picture: np.ndarray) -> None:
    images = [pipeline.encode(picture), pipeline.encode(picture[:, ::-1].copy())]
    bases = pipeline.common_basis(images)
    a, b = (pipeline.describe_in(images[0], bases) for _ in range(2))
    found = pipeline.match_described(images[0].photo, images[0].photo, (a, b))
    assert found.mutual.all() and np.abs(found.points_a - found.points_b).max() < 8


def test_tokens_of_dino_may_be_projected_as_the_layers_are(
    pipeline: SDDino, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [pipeline.encode(picture), pipeline.encode(picture[:, ::-1].copy())]
    assert images[0].dino is not None
    options = MatchOptions(features="dino")
    whole = pipeline.describe(images[0], images[1], options)
    assert whole[0].cells.shape[1] == images[0].dino.shape[0]
    monkeypatch.setattr(pipeline, "config", replace(pipeline.config, dino_dims=4))
    few = pipeline.describe(images[0], images[1], options)
    assert few[0].cells.shape == (len(whole[0].cells), 4)
    both = pipeline.describe(images[0], images[1])
    assert both[0].cells.shape[1] > 4
    with pytest.raises(InputError, match="dino_dims"):
        pipeline.describe_in(images[0], {})


def test_texts_condition_the_prior(pipeline: SDDino, picture: np.ndarray) -> None:
    plain = pipeline.encode(picture).sd["s3"]
    told = pipeline.encode(picture, MatchOptions(prompt="a red car")).sd["s3"]
    empty = pipeline.encode(picture, MatchOptions(conditioning="text", prompt="")).sd["s3"]
    assert torch.equal(plain, empty) and not torch.equal(plain, told)
    with pytest.raises(WeightsError, match="captioner"):
        pipeline.encode(picture, MatchOptions(conditioning="implicit"))


def test_the_heat_map_is_hottest_at_the_match(pipeline: SDDino, picture: np.ndarray) -> None:
    heat = pipeline.heat_map(picture, picture, (60.0, 30.0))
    assert heat.shape == picture.shape[:2] and heat.max() <= 1.0 + 1e-6
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert np.hypot(column + 0.5 - 60, row + 0.5 - 30) < 8


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(500, 3)], "outside"),
        ("abc", "pairs of x and y"),
        ([(1, 2, 3)], "pairs of x and y"),
        ([(-1, 3)], "outside"),
    ],
)
def test_points_that_cannot_be_matched_are_named(
    pipeline: SDDino, picture: np.ndarray, points: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.match(picture, picture, points)


@pytest.mark.parametrize(
    "settings",
    [
        {"sd_size": 100},
        {"tile": 65},
        {"taps": ("s9",)},
        {"timestep": 1000},
        {"dino_facet": "keys"},
        {"colour": 1},
    ],
)
def test_settings_that_cannot_work_are_named(sd_dino_folder: Path, settings: dict) -> None:
    with pytest.raises(InputError):
        SDDino.from_pretrained(sd_dino_folder, **settings)


def test_published_settings_follow_the_network() -> None:
    assert SDDinoConfig.for_dino(2, 24).dino_layer == 23
    v1 = SDDinoConfig.for_dino(1, 12)
    assert (v1.dino_size, v1.dino_stride, v1.dino_layer, v1.dino_facet) == (480, 8, 9, "key")
    assert SDDinoConfig.for_dino(1, 12, alone=True).dino_size == 224


# Swap, video, retrieval -----------------------------------------------------------------------------------------


def test_a_swap_changes_nothing_outside_the_mask_and_itself_little(
    pipeline: SDDino, picture: np.ndarray
) -> None:
    mask = np.zeros(picture.shape[:2], bool)
    mask[20:60, 20:70] = True
    other = 255 - picture
    result = pipeline.swap(picture, other, (mask, mask))
    assert np.array_equal(result.picture[~mask], picture[~mask])
    assert not np.array_equal(result.picture[mask], picture[mask])
    same = pipeline.swap(picture, picture, (mask, mask))
    change = np.abs(same.picture.astype(int) - picture)[mask].mean()
    assert change < 0.5 * np.abs(picture[mask].astype(int) - picture[mask].mean(0)).mean()
    published = pipeline.swap(picture, other, (mask, mask), published=True, resolution=24)
    assert np.array_equal(published.picture[~mask], picture[~mask])


def test_refinement_keeps_what_lies_outside(pipeline: SDDino, picture: np.ndarray) -> None:
    mask = np.zeros(picture.shape[:2], bool)
    mask[20:60, 20:70] = True
    result = pipeline.swap(picture, picture[:, ::-1].copy(), (mask, mask), refine=0.3, refine_steps=4)
    assert result.is_refined and np.array_equal(result.picture[~mask], picture[~mask])
    again = pipeline.swap(picture, picture[:, ::-1].copy(), (mask, mask), refine=0.3, refine_steps=4)
    assert np.array_equal(result.picture, again.picture)


def test_outside_the_object_its_nearest_colours_go_on() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    mask = np.zeros((12, 15), bool)
    mask[4:7, 5:9] = True
    filled = swap.fill_outside(image, mask)
    rows, columns = np.nonzero(mask)
    for y, x in ((0, 0), (11, 14), (5, 0), (2, 7)):
        distance = np.hypot(rows - y, columns - x)
        nearest = np.flatnonzero(distance == distance.min())
        assert any(np.array_equal(filled[y, x], image[rows[i], columns[i]]) for i in nearest)
    assert np.array_equal(filled[mask], image[mask])


def test_labels_travel_with_what_moves(pipeline: SDDino, picture: np.ndarray) -> None:
    from vision3d.pipelines.sd_dino.video import propagate_labels

    frames = [np.roll(picture, 8 * step, axis=1) for step in range(3)]
    labels = np.zeros(picture.shape[:2], np.uint8)
    labels[24:56, 24:48] = 1
    maps = list(propagate_labels(pipeline, frames, labels, options=MatchOptions(features="dino")))
    assert np.array_equal(maps[0], labels)
    moved = np.roll(labels, 16, axis=1) > 0
    found = maps[2] > 0
    overlap = (found & moved).sum() / (found | moved).sum()
    still = (found & (labels > 0)).sum() / (found | (labels > 0)).sum()
    assert overlap > 0.6 and overlap > still


def test_labels_far_apart_cost_no_more_than_their_number(pipeline: SDDino, picture: np.ndarray) -> None:
    import tracemalloc

    from vision3d.pipelines.sd_dino.video import propagate_labels

    frames = [picture, np.roll(picture, 8, axis=1)]
    labels = np.zeros(picture.shape[:2], np.uint8)
    labels[24:56, 24:48], labels[:16, :16] = 1, 2
    named = np.array([0, 7, 255])
    options = MatchOptions(features="dino")
    near = list(propagate_labels(pipeline, frames, labels, options=options))
    tracemalloc.start()
    try:
        far = list(propagate_labels(pipeline, frames, named[labels], options=options))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(far[1], named[near[1]]) and set(np.unique(far[1])) == {0, 7, 255}
    assert peak < 100 * labels.size * 4, "as 100 maps in single precision"


def test_retrieval_puts_the_image_itself_first(pipeline: SDDino, picture: np.ndarray) -> None:
    from vision3d.io.photo import Photo
    from vision3d.pipelines.sd_dino.retrieval import retrieve

    noise = np.random.default_rng(1).integers(0, 256, picture.shape, dtype=np.uint8)
    images = [Photo(noise, "noise"), Photo(picture, "itself"), Photo(255 - picture, "negative")]
    assert retrieve(pipeline, picture, images)[0].name == "itself"
    best = retrieve(pipeline, picture, images, point=(60.0, 30.0))[0]
    assert (
        best.name == "itself"
        and best.point is not None
        and np.hypot(best.point[0] - 60, best.point[1] - 30) < 8
    )


# Other ways to read Stable Diffusion, and the mirror image -----------------------------------------------------------


def test_dift_is_the_mean_of_noisy_passes_to_the_second_level(pipeline: SDDino, picture: np.ndarray) -> None:
    options = MatchOptions(features="dift")
    found = pipeline.encode(picture, options)
    backbone = pipeline.backbone
    image = torch.from_numpy(square(picture, 128)).permute(2, 0, 1)[None].float() / 255
    latents = backbone.encode(image)
    expected = backbone.features(latents, 261, backbone.text(""), taps=("dift1",), ensemble=8)["dift1"]
    assert set(found.sd) == {"dift1"} and found.dino is None
    torch.testing.assert_close(found.sd["dift1"], expected.tensor[0], atol=1e-4, rtol=1e-4)
    assert options.resolved_projection == "none" and options.resolved_metric == "cosine"
    matches = pipeline.match(picture, picture, [(31.0, 40.0)], options=options)
    np.testing.assert_allclose(matches.points_b, [[31, 40]], atol=8)
    assert matches.provenance.settings["config"]["timestep"] == 261


def test_clean_features_hold_no_noise(pipeline: SDDino, picture: np.ndarray) -> None:
    found = pipeline.encode(picture, MatchOptions(features="clean"))
    image = torch.from_numpy(square(picture, 128)).permute(2, 0, 1)[None].float() / 255
    backbone = pipeline.backbone
    with torch.no_grad():
        expected = read_features(backbone.sd.unet, backbone.encode(image), 0, backbone.text(""))  # type: ignore[union-attr]
    torch.testing.assert_close(found.sd["s4"], expected["s4"][0], atol=1e-5, rtol=1e-5)
    both = pipeline.encode(picture, MatchOptions(features="clean+dino"))
    assert torch.equal(both.sd["s3"], found.sd["s3"]) and both.dino is not None


def test_a_tuned_unet_takes_the_place_of_the_weights_own(
    sd_dino_folder: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    unet = UNet2DConditionModel.from_pretrained(MINI / "primedepth" / "unet")
    with torch.no_grad():
        unet.conv_in.weight += 0.1  # type: ignore[union-attr]
    unet.save_pretrained(tmp_path / "tuned")
    file = tmp_path / "tuned" / "diffusion_pytorch_model.safetensors"
    own, tuned = (
        SDDino.from_pretrained(sd_dino_folder, unet=place, cache=False) for place in (None, file.parent)
    )
    assert own.weights_sha256 != tuned.weights_sha256
    clean = MatchOptions(features="clean")
    assert not torch.equal(own.encode(picture, clean).sd["s4"], tuned.encode(picture, clean).sd["s4"])
    foreign = UNet2DConditionModel.from_pretrained(MINI / "stablenormal" / "unet")
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(WeightsError, match="another size"):
        SDDino.from_pretrained(sd_dino_folder, unet=tmp_path / "foreign")
    with pytest.raises(WeightsError, match="no UNet"):
        SDDino.from_pretrained(sd_dino_folder, unet=MINI / "primedepth" / "vae")


@pytest.mark.parametrize("features", ["sd+dino", "sd", "dino", "dift"])
def test_a_mirrored_image_is_matched_in_the_mirrored_pose(
    pipeline: SDDino, picture: np.ndarray, features: Any
) -> None:
    points = np.array([[20.0, 30.0], [70.0, 50.0], [45.0, 62.0]])
    turned = np.ascontiguousarray(picture[:, ::-1])
    options = MatchOptions(features=features, flip=True)
    same, other = (pipeline.match(picture, b, points, options=options) for b in (picture, turned))
    assert (same.mirrored, other.mirrored) == (False, True)
    width = picture.shape[1]
    np.testing.assert_allclose(same.points_b, points, atol=6)
    # the networks see the very same canvas in both images
    np.testing.assert_allclose(other.points_b, np.column_stack([width - points[:, 0], points[:, 1]]), atol=6)
    assert other.similarity == pytest.approx(same.similarity, abs=1e-3)


def test_features_of_a_mirror_image_lie_at_their_own_places(pipeline: SDDino, picture: np.ndarray) -> None:
    turned = np.ascontiguousarray(picture[:, ::-1])
    here, there = pipeline.encode(picture, mirrored=True), pipeline.encode(turned)
    for name, values in there.sd.items():
        torch.testing.assert_close(here.sd[name], values.flip(-1))
    assert here.dino is not None and there.dino is not None
    torch.testing.assert_close(here.dino, there.dino.flip(-1))


def test_what_flip_found_is_saved(pipeline: SDDino, picture: np.ndarray, tmp_path: Path) -> None:
    turned = np.ascontiguousarray(picture[:, ::-1])
    found = pipeline.match(picture, turned, options=MatchOptions(flip=True, dense=True))
    found.save(tmp_path)
    assert Matches.load(tmp_path).mirrored and found.describe()["mirrored"]
    assert found.flow_ab is not None
    middle = picture.shape[0] // 2, picture.shape[1] // 4
    assert found.flow_ab[middle][0] > picture.shape[1] / 4  # to the other side


def test_a_mirror_image_needs_a_canvas_that_strides_divide(sd_dino_folder: Path, picture: np.ndarray) -> None:
    pipeline = SDDino.from_pretrained(sd_dino_folder, cache=False, dino_stride=5)
    with pytest.raises(InputError, match="left over"):
        pipeline.encode(picture, mirrored=True)
