"""Self-distillation: what the teacher does, what patches are compared with, and that a run resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vision3d.backbone.dino import load_dino
from vision3d.errors import InputError, WeightsError
from vision3d.pipelines.sd_dino import training
from vision3d.pipelines.sd_dino.training import (
    CropBatches,
    DinoTask,
    cell_weights,
    common_keypoints,
    keypoint_label,
    match_loss,
    partners,
    places_in,
)
from vision3d.synthetic.objects import category_pairs, instances, same_place, square_window
from vision3d.synthetic.sample import KEYPOINT
from vision3d.training.task import TaskOptions
from vision3d.training.trainer import Trainer, TrainerSettings

TINY = replace(
    training.MINI, width=16, depth=2, heads=2, crop=32, table=32, local_crop=16, locals=1, batch=3, hidden=16,
    prototypes=12, bottleneck=8, warmup=1, teacher_warmup=2, freeze_last=1, momentum=0.5, momentum_steps=100,
    world=(32, 32),
)  # fmt: skip


class Things:
    """Smooth pictures with one object and three keypoints."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> SimpleNamespace:
        rng = np.random.default_rng(index)
        image = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        owner = np.zeros((48, 64), np.int32)
        owner[10:34, 12:40] = 7
        rows = [
            (n, 7, "cat", x, y, 1.0, True)
            for n, x, y in (("left_ear", 15, 12), ("nose", 25, 20), ("tail", 38, 30))
        ]
        return SimpleNamespace(
            image=image, object_id=owner, keypoints=np.array(rows, KEYPOINT), seed=3 * index
        )

    def describe(self) -> dict:
        return {"source": "things"}


def task(recipe: training.DinoRecipe = TINY, **options: object) -> DinoTask:
    made = DinoTask(recipe, Things(), TaskOptions(**options))  # type: ignore[arg-type]
    made._held = []
    return made


def test_only_the_student_learns_and_the_teacher_follows_once_a_step() -> None:
    run = task()
    model = run.build()
    batch = run.batches()[0]
    assert batch["large"].shape == (6, 3, 32, 32) and batch["small"].shape == (3, 3, 16, 16)
    loss, metrics = run.loss(batch, 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss) and set(metrics) == {"cls", "prototypes", "patch", "match", "koleo"}
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {"student", "student_cls_head", "student_patch_head"}
    # the prototypes are frozen at first
    assert model["student_cls_head"].last_layer.grad is None  # type: ignore[index, union-attr]
    with torch.no_grad():
        for parameter in model["student"].parameters():  # type: ignore[index]
            parameter.add_(1.0)
    before = model["teacher"].norm.bias.clone()  # type: ignore[index, union-attr]
    run.follow(1)
    moved = model["teacher"].norm.bias - before  # type: ignore[index, union-attr]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), atol=1e-3, rtol=0)
    run.follow(1)
    assert torch.equal(model["teacher"].norm.bias - before, moved)  # type: ignore[index, union-attr]


def test_assignments_are_balanced_over_prototypes_and_keep_their_order() -> None:
    logits = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 5  # one prototype would take all
    shares = training.balanced(logits, iterations=50)
    torch.testing.assert_close(shares.sum(1), torch.ones(60))
    torch.testing.assert_close(shares.sum(0), torch.full((6,), 10.0), atol=1e-3, rtol=0)
    # scaling rows and columns only: cross ratios are those of the softmax
    ratio = shares[0, 1] * shares[1, 2] / (shares[0, 2] * shares[1, 1])
    expected = (logits[0, 1] + logits[1, 2] - logits[0, 2] - logits[1, 1]).exp()
    torch.testing.assert_close(ratio, expected, atol=1e-3, rtol=1e-3)


def test_the_spreading_term_is_least_for_distant_tokens() -> None:
    close = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]])
    apart = torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]])
    torch.testing.assert_close(
        training.koleo_loss(apart), torch.tensor(-np.log(3**0.5)).float(), atol=1e-2, rtol=0
    )
    assert training.koleo_loss(close) > training.koleo_loss(apart)


def test_the_teachers_centre_follows_its_outputs() -> None:
    run = task(replace(TINY, centring="mean"))
    run.build()
    scores = torch.zeros(4, 12)
    scores[:, 0] = 1.0
    first = run._teach(scores, "cls", 5)
    assert first[0].argmax() == 0
    for _ in range(60):
        last = run._teach(scores, "cls", 5)
    torch.testing.assert_close(last, torch.full_like(last, 1 / 12), atol=0.02, rtol=0)  # centred away


def test_patches_are_compared_with_their_place_in_the_other_crop() -> None:
    maps = torch.arange(32.0).reshape(2, 1, 4, 4)

    def patches_at(
        maps: torch.Tensor, here: torch.Tensor, there: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places, inside = places_in(here, there, grid)
        return cell_weights(places, grid) @ maps.flatten(2).transpose(1, 2), inside

    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(2, 4)
    values, inside = patches_at(maps, box, box, (4, 4))
    assert inside.all() and torch.allclose(values[..., 0], maps.flatten(1))
    shifted = box + torch.tensor([0.0, 2.0, 0.0, 2.0])  # the other crop begins one patch further right
    values, inside = patches_at(maps, box, shifted, (4, 4))
    columns = inside.reshape(2, 4, 4).all(1)
    assert columns.tolist() == [[False, True, True, True]] * 2
    assert torch.allclose(values.reshape(2, 4, 4)[:, :, 1:], maps[:, 0, :, :3])


def test_batches_depend_on_their_index_alone_and_keep_keypoints_in_place() -> None:
    recipe = replace(TINY, keypoint_weight=1.0, flip=False, objects=1.0)
    batches = CropBatches(Things(), recipe, 4, seed=1)
    one, two = batches[5], CropBatches(Things(), recipe, 4, seed=1)[5]
    assert all(torch.equal(one[name], two[name]) for name in one)
    table = one["keypoints"]
    nose = keypoint_label("cat", "nose")
    found = table[table[..., 2] == nose]
    assert len(found) and ((found[:, :2] > 0) & (found[:, :2] < 1)).all()


def test_mirroring_swaps_left_and_right() -> None:
    assert keypoint_label("cat", "left_ear", mirrored=True) == keypoint_label("cat", "right_ear")
    assert keypoint_label("cat", "nose", mirrored=True) == keypoint_label("cat", "nose")
    assert keypoint_label("cat", "nose") != keypoint_label("dog", "nose")


def test_a_place_is_shared_by_the_cells_around_it() -> None:
    shares = cell_weights(torch.tensor([[0.375, 0.5], [0.0, 1.0]]), (2, 4)).unflatten(1, (2, 4))
    torch.testing.assert_close(shares[0], torch.tensor([[0.0, 0.5, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]]))
    torch.testing.assert_close(shares[1], torch.tensor([[0.0] * 4, [1.0, 0.0, 0.0, 0.0]]))


def test_matches_cost_least_where_they_are() -> None:
    others = torch.eye(16)[None]
    places = torch.tensor([[[0.875, 0.125], [0.1, 0.1]]])  # the top right of 4 x 4 cells
    there = torch.tensor([[True, False]])
    wanted = cell_weights(places, (4, 4))

    def cost(cell: int) -> float:
        return float(match_loss(others[:, [cell, 0]], others, wanted, there, 0.05))

    assert cost(3) < 1e-3 and cost(12) > 15
    assert float(match_loss(others[:, :2], others, wanted, there & False, 0.05)) == 0


def test_matches_cost_the_cross_entropy_of_a_softmax_over_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, others = (torch.randn(2, count, 6, generator=generator) for count in (5, 8))
    wanted = torch.rand(2, 5, 8, generator=generator).softmax(-1)
    there = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    cosines = torch.nn.functional.cosine_similarity(patches[:, :, None], others[:, None], dim=-1)
    costs = torch.nn.functional.cross_entropy(
        (cosines / 0.07).flatten(0, 1), wanted.flatten(0, 1), reduction="none"
    )
    expected = costs[there.flatten()].mean()
    torch.testing.assert_close(match_loss(patches, others, wanted, there, 0.07), expected)
    # patches that are not there may be left away
    fewer, shares, flags = training.foremost(there, patches, wanted, there[..., None])
    assert fewer.shape[1] == 3 and flags[..., 0].sum(1).tolist() == [3, 1]
    torch.testing.assert_close(match_loss(fewer, others, shares, flags[..., 0], 0.07), expected)


def test_keypoints_are_found_in_the_partner_by_their_class() -> None:
    table = torch.zeros(4, 3, 3)
    table[0, 0] = torch.tensor([0.1, 0.2, 5.0])
    table[0, 1] = torch.tensor([0.3, 0.4, 6.0])
    table[1, 2] = torch.tensor([0.7, 0.8, 5.0])
    table[3, 0] = torch.tensor([0.9, 0.9, 6.0])  # of another pair
    partner = partners(table, 2, 1)
    assert torch.equal(partner, table[[1, 0, 3, 2]])
    places, there = common_keypoints(table, partner)
    assert there.nonzero().tolist() == [[0, 0], [1, 2]]
    torch.testing.assert_close(places[0, 0], torch.tensor([0.7, 0.8]))
    torch.testing.assert_close(places[1, 2], torch.tensor([0.1, 0.2]))


def test_groups_are_different_objects_of_one_category() -> None:
    recipe = replace(TINY, keypoint_weight=1.0, batch=4)
    batches = CropBatches(Things(), recipe, 4, seed=1)
    for k in range(8):
        found = [batches._one_of_a_group(4 * k + j) for j in range(4)]
        assert len({number for _, number, _ in found}) == 4 and {i.object_id for _, _, i in found} == {7}
    run = task(recipe)
    run.build()
    loss, metrics = run.loss(run.batches()[0], 0, torch.Generator().manual_seed(0))
    assert torch.isfinite(loss) and float(metrics["keypoints"]) > 0
    with pytest.raises(InputError, match="multiple"):
        task(replace(recipe, batch=3))
    with pytest.raises(InputError, match="1 large crops"):
        task(replace(recipe, views=1))
    rendered = DinoTask.from_options(TaskOptions(preset="mini-keypoints"))
    with pytest.raises(InputError, match="rendered"):
        rendered.batches()[0]


def test_an_image_is_compared_with_some_of_its_group() -> None:
    def cost(compared: int, seed: int) -> float:
        recipe = replace(
            TINY, batch=4, views=1, locals=0, cls_weight=0.0, koleo=0.0, keypoint_weight=1.0, patch_weight=0.0,
            match_weight=0.0, flip=False, objects=1.0, compared=compared,
        )  # fmt: skip
        run = task(recipe)
        torch.manual_seed(0)
        run.build()
        batch = run.batches()[0]
        assert len(batch["large"]) == len(batch["boxes"]) == len(batch["keypoints"]) == 4
        return run.loss(batch, 0, torch.Generator().manual_seed(seed))[0].item()

    assert cost(0, 0) == pytest.approx(cost(3, 1), rel=1e-5)
    ones = {round(cost(1, seed), 5) for seed in range(12)}
    assert len(ones) == 3 and min(ones) < cost(0, 0) < max(ones)


def test_a_share_of_the_patches_holds_the_keypoints_and_then_the_object() -> None:
    recipe = replace(
        TINY, crop=64, table=64, batch=4, views=1, locals=0, cls_weight=0.0, koleo=0.0, keypoint_weight=1.0,
        patch_weight=0.0, match_weight=0.0, objects=1.0, crop_scale=(0.99, 1.0), kept=0.5,
    )  # fmt: skip
    run = task(recipe)
    torch.manual_seed(0)
    run.build()
    batch = run.batches()[0]
    generator = torch.Generator().manual_seed(0)
    batch["places"] = torch.zeros(4, 64, 4)
    batch["places"][:, 20:30, 3] = 1
    keep = run._drawn(batch, (8, 8), generator)
    assert keep.shape == (4, 32) and all(len(set(row.tolist())) == 32 for row in keep)
    cells = training.keypoint_cells(batch["keypoints"], (8, 8))
    named = batch["keypoints"][..., 2] > 0
    for row, wanted, there in zip(keep, cells, named, strict=True):
        assert set(wanted[there].tolist()) <= set(row.tolist()) and set(range(20, 30)) <= set(row.tolist())
    assert not torch.equal(keep.sort(1).values, run._drawn(batch, (8, 8), generator).sort(1).values)
    del batch["places"]

    # all patches in another order cost what they cost
    tokens = torch.randn(4, 64, 16)
    order = torch.stack([torch.randperm(64) for _ in range(4)])
    seen = SimpleNamespace(patches=tokens, grid=(8, 8))
    mixed = SimpleNamespace(patches=tokens.take_along_dim(order[..., None], 1), grid=(8, 8))
    plain = run._keypoint_loss(seen, batch["keypoints"], torch.Generator().manual_seed(3))
    kept = run._keypoint_loss(mixed, batch["keypoints"], torch.Generator().manual_seed(3), order)
    torch.testing.assert_close(kept, plain)
    # a part is found among that part
    some = SimpleNamespace(patches=tokens.take_along_dim(keep[..., None], 1), grid=(8, 8))
    part = run._keypoint_loss(some, batch["keypoints"], torch.Generator().manual_seed(3), keep)
    assert torch.isfinite(part) and not torch.isclose(part, plain)

    costs = [run.loss(batch, step, torch.Generator().manual_seed(1))[0].item() for step in range(9)]
    assert costs[0] == costs[4] == costs[8] and costs[0] not in costs[1:4]  # every fourth step is whole
    with pytest.raises(InputError, match="keep 1"):
        task(replace(TINY, kept=0.5))


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def train(folder: Path, steps: int, resume: bool = False) -> dict:
        settings = TrainerSettings(
            steps=steps, lr=1e-3, ema=0.0, warmup=1, device="cpu", log_every=1, final_lr=1.0
        )
        trainer = Trainer(task(), settings, folder)
        trainer.run(resume=resume)
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 4, resume=True)
    assert int(parts["followed"]) == int(whole["followed"])
    for name, value in whole.items():
        if name.startswith("teacher") or name.endswith("centre"):
            torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5)


def test_exports_load_as_a_pipeline_and_go_on(tmp_path: Path) -> None:
    from vision3d.pipelines.sd_dino.options import SDDinoConfig

    run = task()
    run.build()
    run.export(tmp_path)
    network = load_dino(tmp_path / "dino")
    assert network.config.heads == 2 and network.config.grid == 4 and network.pos_embed.dtype == torch.float16
    config, places = SDDinoConfig.read(tmp_path)
    assert config.dino_layer == 1 and places == {"sd": "../primedepth", "dino": "dino"}
    again = task(init=tmp_path)
    model = again.build()
    assert torch.equal(model["student"].cls_token.half(), network.cls_token)  # type: ignore[index, union-attr]
    with pytest.raises(WeightsError, match="sizes"):
        task(replace(TINY, width=32), init=tmp_path).build()
    kept = task(replace(TINY, depth=1), init=tmp_path)  # no block of what it goes on from is dropped
    assert len(kept.build()["student"].blocks) == 2  # type: ignore[index, arg-type]
    assert kept.describe()["recipe"]["depth"] == 2
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shallow, deep = (
        task(replace(TINY, depth=depth), init=tmp_path).build()["student"](pixels)[0].all  # type: ignore[index]
        for depth in (2, 4)
    )
    torch.testing.assert_close(deep, shallow)


def test_pairs_are_of_different_scenes_and_one_category() -> None:
    found = [i for index in range(8) for i in instances(Things()[index])]
    pairs = category_pairs(found, 100)
    assert len(pairs) == 28 and all(a.seed // 3 != b.seed // 3 for a, b, _ in pairs)
    assert all(names == ["left_ear", "nose", "tail"] for _, _, names in pairs)
    assert [p[0].seed for p in pairs] == [p[0].seed for p in category_pairs(found, 100)]


def test_windows_stay_in_the_image_and_places_in_the_box() -> None:
    assert square_window((0, 0, 10, 20), (40, 60), 1.5) == (0, 0, 30, 30)
    top, left, bottom, right = square_window((50, 30, 60, 40), (40, 60), 2.0)
    assert bottom - top == right - left == 20 and right <= 60 and bottom <= 40
    assert same_place(np.array([[5.0, 5.0]]), (0, 0, 10, 10), (20, 20, 40, 60)).tolist() == [[30.0, 40.0]]


def test_patches_are_found_by_their_place_on_the_shape() -> None:
    here = torch.tensor([[[0.0, 0, 0, 1], [1, 0, 0, 1], [5, 0, 0, 1], [1, 0, 0, 0]]])
    there = torch.tensor([[[1.0, 0, 0, 1], [0.05, 0, 0, 1], [0, 0, 0, 0], [-0.05, 0, 0, 1]]])
    shares, found = training.nearest_places(here, there)
    assert found.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(shares[0, 0], torch.tensor([0.0, 0.5, 0.0, 0.5]))
    torch.testing.assert_close(shares[0, 1], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    nobody = there.clone()
    nobody[..., 3] = 0
    shares, found = training.nearest_places(here, nobody)
    assert torch.isfinite(shares).all() and not found.any()


def test_places_of_crops_follow_the_picture_and_its_mirror_image() -> None:
    from vision3d.synthetic import render_sample

    class World:
        samples = tuple(render_sample(seed, size=(96, 128)) for seed in range(8))

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> object:
            return self.samples[index]

    recipe = replace(
        TINY, batch=4, group=2, keypoint_weight=1.0, shape_weight=1.0, cls_weight=0.0, locals=0, patch=4,
        crop_scale=(0.9, 1.0),
    )  # fmt: skip
    batches = CropBatches(World(), recipe, 4, seed=2)
    offsets = []
    for index in range(10):
        batch = batches[index]
        assert batch["places"].shape == (8, 64, 4)
        for e in range(4):
            category, _, instance = batches._one_of_a_group(4 * index + e)
            shape = batches.shapes[category]
            classes = {keypoint_label(instance.category, name): point for name, point in shape.items()}
            for x, y, label in batch["keypoints"][e][batch["keypoints"][e][:, 2] > 0].tolist():
                place = batch["places"][e, int(y * 8) * 8 + int(x * 8)]
                if place[3]:
                    offsets.append(float(np.linalg.norm(place[:3].numpy() - classes[int(label)])))
    # within about a patch, and on the right side: mirrored keypoints have the other side's class
    assert len(offsets) > 20 and np.median(offsets) < 0.45
    run = DinoTask(recipe, World(), TaskOptions())
    run.build()
    loss, metrics = run.loss(batches[0], 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert set(metrics) == {"patch", "match", "keypoints", "shape", "koleo"} and float(metrics["shape"]) > 0
