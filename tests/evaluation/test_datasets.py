from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError
from vision3d.evaluation.datasets import open_dataset
from vision3d.evaluation.datasets.base import read_depth_png
from vision3d.evaluation.datasets.diode import DIODE
from vision3d.evaluation.datasets.eth3d import ETH3D
from vision3d.evaluation.datasets.kitti import KITTIEigen
from vision3d.evaluation.datasets.nyu import NYUv2
from vision3d.evaluation.datasets.procedural import TEST_SEEDS, Procedural
from vision3d.evaluation.datasets.samples import RealSamples
from vision3d.evaluation.datasets.scannet import ScanNet
from vision3d.evaluation.protocols import nyu_eigen_mask


def noise_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, array, fmt="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(array).save(file, fmt)
    return path


def raw_depth(height, width, value, holes=()):
    depth = np.full((height, width), value, np.uint16)
    for row, column in holes:
        depth[row, column] = 0
    return depth


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and "; " in text
    return text


# --- NYUv2 ---


def nyu_folder(root, listed=True):
    for scene, number in (("bathroom", "0045"), ("kitchen", "0002")):
        image = noise_image(480, 640, int(number))
        write(root / "test" / scene / f"rgb_{number}.png", image)
        write(root / "test" / scene / f"depth_{number}.png", raw_depth(480, 640, 2500, [(100, 100)]))
    if listed:
        (root / "filename_list_test.txt").write_text(
            "test/bathroom/rgb_0045.png test/bathroom/depth_0045.png test/bathroom/filled_0045.png\n"
            "\ntest/kitchen/rgb_0002.png test/kitchen/depth_0002.png test/kitchen/filled_0002.png\n"
        )


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("inside", [".", "nyu_labeled_extracted"])
def test_nyu_folder_with_and_without_its_list(tmp_path, listed, inside):
    nyu_folder(tmp_path / inside, listed and inside == ".")
    data = NYUv2(tmp_path)
    assert list(data.names) == ["bathroom/0045", "kitchen/0002"] and data.official_size == 654
    sample = data[0]
    np.testing.assert_array_equal(sample.image, noise_image(480, 640, 45))
    assert sample.group == "bathroom"
    assert sample.depth[200, 200] == np.float32(2.5) and sample.depth[100, 100] == 0
    expected = nyu_eigen_mask(480, 640)
    expected[100, 100] = False
    np.testing.assert_array_equal(sample.valid, expected)
    assert sample.camera.width == 640 and sample.camera.fx == pytest.approx(518.858)


def test_nyu_official_splits_of_other_projects(tmp_path):
    root = tmp_path / "official_splits" / "test" / "office"
    write(root / "rgb_00008.jpg", noise_image(480, 640), "JPEG")
    write(root / "sync_depth_00008.png", raw_depth(480, 640, 12_000))
    sample = NYUv2(tmp_path)[0]
    assert sample.name == "office/00008"
    assert not sample.valid.any()  # 12 m is out of range
    listing = tmp_path / "elsewhere.txt"
    listing.write_text("/office/rgb_00008.jpg /office/sync_depth_00008.png 518.8579\n")
    assert list(NYUv2(tmp_path, split=listing).names) == ["office/00008"]


def test_nyu_labelled_matlab_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    images = np.stack([noise_image(480, 640, seed) for seed in range(3)])
    depths = np.random.default_rng(0).uniform(1, 9, (3, 480, 640)).astype(np.float32)
    depths[2, 60, 50] = 0
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["rawDepths"] = depths.transpose(0, 2, 1)
        kinds = np.zeros((1, 3), dtype=h5py.ref_dtype)
        for i, kind in enumerate(("kitchen", "office", "bathroom")):
            file[f"kind{i}"] = np.array([[ord(c)] for c in kind], np.uint16)
            kinds[0, i] = file[f"kind{i}"].ref
        file["sceneTypes"] = kinds
    with pytest.raises(InputError) as error:
        NYUv2(tmp_path)
    assert "splits.mat" in one_line(error)
    savemat(str(tmp_path / "splits.mat"), {"testNdxs": np.array([[1], [3]]), "trainNdxs": np.array([[2]])})
    data = NYUv2(tmp_path)
    assert list(data.names) == ["0001", "0003"]
    sample = data[1]
    assert sample.group == "bathroom"
    np.testing.assert_array_equal(sample.image, images[2])
    np.testing.assert_array_equal(sample.depth, depths[2])
    assert not sample.valid[60, 50] and sample.valid[60, 51]


# --- KITTI ---

DAY, DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"


def kitti_folder(root, numbers=("0000000069",)):
    for number in numbers:
        write(root / "raw" / DAY / DRIVE / "image_02" / "data" / f"{number}.png", noise_image(375, 1242, 1))
        depth = np.zeros((375, 1242), np.uint16)
        depth[300, 600] = 20 * 256 + 128
        depth[40, 600] = 5 * 256  # above Eigen's part of the crop
        depth[301, 600] = 85 * 256 - 1
        depth[302, 600] = 80 * 256
        write(
            root
            / "data_depth_annotated"
            / "val"
            / DRIVE
            / "proj_depth/groundtruth/image_02"
            / f"{number}.png",
            depth,
        )
    (root / "raw" / DAY / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\n"
        "P_rect_02: 7.215377e+02 0 6.095593e+02 4.485728e+01 "
        "0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2e-03\n"
    )


def kitti_list(root, with_truth, without):
    lines = [
        f"{DAY}/{DRIVE}/image_02/data/{n}.png {DRIVE}/proj_depth/groundtruth/image_02/{n}.png 721.5377"
        for n in with_truth
    ]
    lines += [f"{DAY}/{DRIVE}/image_02/data/{n}.png None 721.5377" for n in without]
    (root / "eigen_test_files_with_gt.txt").write_text("\n".join(lines) + "\n")


def test_kitti_lists_crops_and_masks(tmp_path):
    kitti_folder(tmp_path)
    kitti_list(tmp_path, ["0000000069"], ["0000000012"])
    data = KITTIEigen(tmp_path)
    assert list(data.names) == [f"{DRIVE}/0000000069"] and data.official_size == 652
    sample = data[0]
    assert sample.image.shape == (352, 1216, 3)
    np.testing.assert_array_equal(sample.image, noise_image(375, 1242, 1)[23:, 13:1229])
    assert np.argwhere(sample.valid).tolist() == [[277, 587]]
    assert sample.depth[277, 587] == np.float32(20.5)
    assert sample.camera.fx == pytest.approx(721.5377)
    assert sample.camera.cx == pytest.approx(609.5593 + 0.5 - 13)
    assert sample.camera.cy == pytest.approx(172.854 + 0.5 - 23)


def test_kitti_list_of_frames_leaves_out_what_has_no_ground_truth(tmp_path):
    kitti_folder(tmp_path)
    write(tmp_path / "raw" / DAY / DRIVE / "image_02/data/0000000012.png", noise_image(375, 1242))
    (tmp_path / "test_files.txt").write_text(f"{DAY}/{DRIVE} 0000000069 l\n{DAY}/{DRIVE} 12 l\n")
    assert list(KITTIEigen(tmp_path).names) == [f"{DRIVE}/0000000069"]


def test_kitti_missing_files_are_one_error_that_names_the_first(tmp_path):
    kitti_folder(tmp_path)
    with pytest.raises(InputError) as error:
        KITTIEigen(tmp_path)
    assert "eigen_test_files_with_gt.txt" in one_line(error)
    kitti_list(tmp_path, ["0000000069", "0000000100"], [])
    with pytest.raises(InputError) as error:
        KITTIEigen(tmp_path)
    assert "2 of 4 files" in one_line(error) and "0000000100.png" in one_line(error)


def test_kitti_refuses_resized_images(tmp_path):
    kitti_folder(tmp_path)
    kitti_list(tmp_path, ["0000000069"], [])
    write(tmp_path / "raw" / DAY / DRIVE / "image_02/data/0000000069.png", noise_image(192, 640))
    with pytest.raises(InputError):
        KITTIEigen(tmp_path)[0]


# --- ETH3D ---


@pytest.mark.parametrize(
    ("photo_place", "depth_place"),
    [
        ("courtyard", "courtyard"),
        ("rgb/courtyard", "depth/courtyard_dslr_depth/courtyard"),
        ("courtyard_dslr_jpg/courtyard", "courtyard_dslr_depth/courtyard"),
    ],
)
def test_eth3d_raw_float_depth_in_the_ways_archives_unpack(tmp_path, photo_place, depth_place):
    write(tmp_path / photo_place / "images/dslr_images/DSC_0286.JPG", noise_image(40, 60), "JPEG")
    depth = np.random.default_rng(1).uniform(1, 30, (40, 60)).astype("<f4")
    depth[0, 0] = np.inf
    path = tmp_path / depth_place / "ground_truth_depth/dslr_images/DSC_0286.JPG"
    path.parent.mkdir(parents=True, exist_ok=True)
    depth.tofile(path)
    data = ETH3D(tmp_path)
    sample = data[0]
    assert data.fit_resolution == 1024 and sample.name == "courtyard/DSC_0286"
    np.testing.assert_array_equal(sample.depth[1:], depth[1:])
    assert sample.depth[0, 0] == 0 and not sample.valid[0, 0] and sample.valid.sum() == 40 * 60 - 1
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError) as error:
        data[0]
    assert "9596 bytes" in one_line(error)


# --- ScanNet ---


def test_scannet_reduces_colour_to_the_size_of_depth(tmp_path):
    scan = tmp_path / "scans" / "scene0011_00"
    write(scan / "color" / "000000.jpg", np.full((968, 1296, 3), 90, np.uint8), "JPEG")
    write(scan / "depth" / "000000.png", raw_depth(480, 640, 1500, [(5, 6)]))
    (scan / "intrinsic").mkdir()
    np.savetxt(
        scan / "intrinsic" / "intrinsic_depth.txt",
        [[577, 0, 318, 0], [0, 578, 242, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    (tmp_path / "scannet_sampled_list_800_1.txt").write_text(
        "scene0011_00/color/000000.jpg scene0011_00/depth/000000.png\n"
    )
    sample = ScanNet(tmp_path)[0]
    assert sample.name == "scene0011_00/000000"
    assert sample.image.shape == (480, 640, 3) and abs(int(sample.image.mean()) - 90) <= 1
    assert sample.depth[0, 0] == np.float32(1.5) and not sample.valid[5, 6]
    assert sample.camera.cx == pytest.approx(318.5)


# --- DIODE ---


def test_diode_depth_and_mask(tmp_path):
    for group in ("indoors", "outdoor"):
        scan = tmp_path / "val" / group / "scene_00019" / "scan_00183"
        stem = f"00019_00183_{group}_000_010"
        write(scan / f"{stem}.png", noise_image(768, 1024))
        depth = np.full((768, 1024, 1), 3.0, np.float32)
        depth[0, 0], depth[0, 1] = 0.5, 400
        mask = np.ones((768, 1024))
        mask[0, 2] = 0
        np.save(scan / f"{stem}_depth.npy", depth)
        np.save(scan / f"{stem}_depth_mask.npy", mask)
    data = DIODE(tmp_path)
    assert len(data) == 2 and [data[i].group for i in range(2)] == ["indoors", "outdoor"]
    assert np.argwhere(~data[0].valid).tolist() == [[0, 0], [0, 1], [0, 2]]
    (scan / f"{stem}_depth_mask.npy").unlink()
    with pytest.raises(InputError) as error:
        DIODE(tmp_path)
    assert "1 of 2 masks" in one_line(error)


# --- real samples ---


def samples_folder(root):
    annotation = {"cam_in": [500.0, 501.0, 320.0, 240.0], "depth_scale": 1000.0, "rgb": "a/rgb_00000.jpg"}
    write(root / "nyu" / "rgb_00000.jpg", noise_image(480, 640), "JPEG")
    write(root / "nyu" / "depth_00000.png", raw_depth(480, 640, 2000))
    (root / "nyu" / "annotations.json").write_text(json.dumps({"files": [annotation]}))
    annotation = {"cam_in": [707.0, 707.0, 604.0, 180.0], "depth_scale": 256.0, "rgb": "a/0000000005.png"}
    write(root / "kitti" / "rgb_0000000005.png", noise_image(375, 1242))
    write(root / "kitti" / "depth_0000000005.png", raw_depth(375, 1242, 10 * 256))
    (root / "kitti" / "annotations.json").write_text(json.dumps({"files": [annotation]}))
    for number in "12":
        write(root / "tum_desk" / f"{number}.png", noise_image(480, 640))
        write(root / "tum_desk" / f"{number}_depth.png", raw_depth(480, 640, 6000))
    write(root / "sevenscenes" / "frame-000025.color.jpg", noise_image(480, 640), "JPEG")
    depth = raw_depth(480, 640, 1800, [(0, 0)])
    depth[0, 1] = 65535
    write(root / "sevenscenes" / "frame-000025.depth.png", depth)
    (root / "sevenscenes" / "camera-intrinsics.txt").write_text("585 0 320\n0 585 240\n0 0 1\n")
    write(root / "motorcycle" / "motorcycle_left.png", noise_image(50, 74))
    disparity = np.full((50, 74), 40.0, np.float32)
    disparity[0, 0], disparity[0, 1] = np.inf, np.nan
    np.savez(root / "motorcycle" / "motorcycle_disp.npz", disparity)


def test_real_samples_decode_each_source_its_own_way(tmp_path):
    samples_folder(tmp_path)
    data = RealSamples(tmp_path)
    assert list(data.names) == [
        "nyu/00000",
        "kitti/0000000005",
        "tum_desk/1",
        "tum_desk/2",
        "sevenscenes/frame-000025",
        "motorcycle/motorcycle",
    ]
    by_group = {sample.group: sample for sample in data}
    depths = {group: sample.depth[-1, -1] for group, sample in by_group.items()}
    assert depths["nyu"] == 2 and depths["kitti"] == 10
    assert depths["tum_desk"] == np.float32(1.2) and depths["sevenscenes"] == np.float32(1.8)
    assert depths["motorcycle"] == pytest.approx(994.978 * 0.193001 / (40 + 31.086))
    assert np.argwhere(by_group["sevenscenes"].depth == 0).tolist() == [[0, 0], [0, 1]]
    assert np.argwhere(~by_group["motorcycle"].valid).tolist() == [[0, 0], [0, 1]]
    assert by_group["kitti"].image.shape == (352, 1216, 3)
    assert (data.range_of(by_group["kitti"]).far, data.range_of(by_group["nyu"]).far) == (80, 10)
    assert by_group["nyu"].camera.cx == 320.5 and by_group["sevenscenes"].camera.fx == 585


def test_real_samples_take_what_is_there_but_insist_on_what_is_asked_for(tmp_path):
    samples_folder(tmp_path)
    (tmp_path / "motorcycle" / "motorcycle_disp.npz").unlink()
    assert len(RealSamples(tmp_path)) == 5
    assert len(RealSamples(tmp_path, groups=["tum_desk"])) == 2
    for groups, word in ((["motorcycle"], "motorcycle"), (["moon"], "moon")):
        with pytest.raises(InputError) as error:
            RealSamples(tmp_path, groups=groups)
        assert word in one_line(error)
    (tmp_path / "nyu" / "rgb_00000.jpg").unlink()
    with pytest.raises(InputError) as error:
        RealSamples(tmp_path)
    assert "rgb_00000.jpg" in one_line(error)


def test_the_real_samples_at_hand_agree_with_their_description(shared):
    data = RealSamples(shared / "data")
    groups = [sample.group for sample in data]
    assert {g: groups.count(g) for g in set(groups)} == {
        "nyu": 1, "kitti": 1, "tum_desk": 2, "sevenscenes": 20, "motorcycle": 1,
    }  # fmt: skip
    sample = data[groups.index("motorcycle")]
    assert (sample.depth > 0).mean() == pytest.approx(0.93, abs=0.01)
    kitti = data[groups.index("kitti")]
    measured = kitti.depth[kitti.valid]
    assert measured.min() > 5 and measured.max() < 80


def test_a_disparity_that_was_cut_off_is_named(tmp_path):
    samples_folder(tmp_path)
    path = tmp_path / "motorcycle" / "motorcycle_disp.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError) as error:
        RealSamples(tmp_path, groups=["motorcycle"])[0]
    assert "motorcycle_disp" in one_line(error)


# --- all of them ---


def test_data_sets_of_one_name_are_told_apart(tmp_path):
    seen = []
    for folder in ("one", "two"):
        samples_folder(tmp_path / folder)
        seen.append(RealSamples(tmp_path / folder).identity)
    assert RealSamples(tmp_path / "two").identity == seen[-1]
    (tmp_path / "two" / "tum_desk" / "1_depth.png").write_bytes(b"replaced")
    seen.append(RealSamples(tmp_path / "two").identity)
    first = TEST_SEEDS.start
    for seeds, side in (
        (range(first, first + 2), 32),
        (range(first, first + 2), 48),
        ([first, first + 2], 32),
    ):
        seen.append(Procedural(seeds, size=(side, side)).identity)
    assert len({json.dumps(identity) for identity in seen}) == len(seen) == 6


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes("Büro.png".encode("latin-1"))
    with pytest.raises(InputError, match=r"list\.txt"):
        open_dataset("nyu", tmp_path, split=tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["nyu", "kitti", "eth3d", "scannet", "diode", "samples"])
def test_a_wrong_folder_is_one_clear_line(tmp_path, name):
    for root in (tmp_path, tmp_path / "missing", None):
        with pytest.raises(InputError) as error:
            open_dataset(name, root)
        one_line(error)


def test_unknown_data_sets_and_needless_lists_are_refused(tmp_path):
    with pytest.raises(InputError, match="nyu"):
        open_dataset("nyuv3", tmp_path)
    with pytest.raises(InputError, match="--split"):
        open_dataset("diode", tmp_path, split=tmp_path / "list.txt")


def test_a_picture_of_a_depth_map_is_no_depth_map(tmp_path):
    path = write(tmp_path / "depth.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="16-bit"):
        read_depth_png(path, 1000)
    path.write_bytes(b"no image")
    with pytest.raises(InputError):
        read_depth_png(path, 1000)
