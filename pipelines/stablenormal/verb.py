"""``vision3d normals``: photographs and videos to surface normals with StableNormal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vision3d.engines import EngineName, engine_of
from vision3d.errors import InputError
from vision3d.io.files import DAMAGED
from vision3d.progress import say
from vision3d.runs import Process, RunSummary, check_run, photo_refs, run_folder

if TYPE_CHECKING:
    import numpy as np

    from vision3d.io.images import Photo
    from vision3d.pipelines.stablenormal.options import NormalOptions
    from vision3d.prediction import Prediction

FrameName = Literal["opencv", "opengl", "directx", "stablenormal", "marigold", "world"]


def normals(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    out: Path,
    weights: str | None = None,
    turbo: bool = False,
    steps: int | None = None,
    frame: FrameName = "opencv",
    pose: Path | None = None,
    formats: tuple[Literal["exr", "png8", "npz"], ...] = (),
    mode: Literal["object", "indoor", "outdoor"] = "indoor",
    mask: Path | None = None,
    matting: str | None = None,
    resolution: int | None = None,
    processing_resolution: int | None = None,
    match_input: bool = True,
    tile: int | None = None,
    stabilise: float = 0.5,
    ensemble: int = 1,
    seed: int = 0,
    prompt: str | None = None,
    refine_prompt: str | None = None,
    t_start: int | None = None,
    semantic: Literal["dino", "none"] = "dino",
    first_stage: str | None = None,
    dino: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 1,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    memory: str = "auto",
    engine: EngineName = "local",
    recursive: bool = False,
    overwrite: bool = False,
) -> RunSummary:
    """Estimate the surface normals of photographs and videos (StableNormal).

    For each input, OUT/NAME/ gets normals.npy (float32, unit vectors), normals.png (16 bits), preview.png and
    result.json, which says what everything means; with an ensemble also uncertainty.npy. Inputs whose results are
    complete and right are skipped; a bad file does not stop the others.

    Args:
        inputs: photographs, folders, patterns such as 'photos/*.jpg', or videos.
        out: output folder.
        weights: "mini" (the embedded ones), a pulled name, or a folder (the refinement's, a one-step one, or both
            in one); by default the official ones if they were pulled, else the embedded ones.
        turbo: one step, without the refinement.
        steps: network calls of the refinement, by default the weights' own (10 for the published ones).
        frame: axes of the files: opencv (x right, y down, z forward), opengl (x right, y up, z to the viewer),
            directx (x right, y down, z to the viewer), stablenormal (x left, y up, z to the viewer, as published),
            marigold (as opengl), or world, which needs --pose.
        pose: text or .npy file with the 4 x 4 camera-to-world matrix (OpenCV axes) for --frame world.
        formats: further files to write.
        mode: what counts where neither a mask nor transparency says so: the object or everything but sky and
            vegetation, both by the --matting model, or everything (indoor).
        mask: picture of what counts (bright, or opaque where it is transparent elsewhere), or a folder of pictures
            named like the inputs.
        matting: folder or name of a model that finds the object (BiRefNet) or sky and vegetation (Mask2Former of
            Cityscapes).
        resolution: longest side to which photographs are brought first, in multiples of 64, as published (1024); 0
            for none.
        processing_resolution: longest side in pixels that the networks see (published: 768); 0 for all there is.
        match_input: results at the photographs' size; otherwise at the networks'.
        tile: side in pixels of the tiles that larger photographs are processed in.
        stabilise: for videos, share of the frame before that is kept where it fits; 0 for none. A stopped run that
            goes on begins anew there: a small jump, which --overwrite avoids.
        ensemble: predictions from different noise to average; more than one also gives an uncertainty.
        seed: of the noise.
        prompt: text of the first stage; the weights' own by default.
        refine_prompt: text of the refinement; the weights' own by default.
        t_start: timestep of the first stage; the weights' own by default.
        semantic: whether DINO features guide the refinement.
        first_stage: one-step folder or name that released refinement weights start from.
        dino: file or folder of DINOv2 ViT-L/14; by default the pulled one.
        trust_remote_code: run the Python files of the semantic branch and of the matting model that come with them.
        batch_size: photographs of one size that are processed together.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: precision; auto is 16 bits on CUDA, else fp32.
        memory: budget such as 4G; what does not fit at once is loaded in turn.
        engine: local works in this process, ray in processes of the Ray cluster at RAY_ADDRESS, else of this machine.
        recursive: look into nested folders.
        overwrite: compute again what is there.
    """
    from vision3d.device import dtype_name
    from vision3d.pipelines.stablenormal.options import NormalOptions

    total = check_run(inputs, out, recursive=recursive, batch_size=batch_size, memory=memory)
    if mode != "indoor" and matting is None and mask is None:
        say(f"mode {mode}: without --matting or --mask only transparent photographs are masked")
    if matting is not None and mode == "indoor":
        raise InputError("a matting model indoors, where everything counts", "give --mode object or outdoor")
    if frame == "world" and pose is None:
        raise InputError("frame world without a pose", "give --pose with the camera-to-world matrix")
    matrix = None if pose is None else read_pose(pose)
    options = NormalOptions(
        turbo=turbo,
        steps=steps,
        t_start=t_start,
        prompt=prompt,
        refine_prompt=refine_prompt,
        resolution=resolution,
        processing_resolution=processing_resolution,
        match_input=match_input,
        mode=mode,
        semantic=semantic == "dino",
        ensemble=ensemble,
        tile=tile,
        stabilise=stabilise if total is None else 0.0,
        seed=seed,
        mask=None if mask is None else mask_digest(mask),
        matting=None if matting is None else Path(matting).name,
        dtype=dtype_name(dtype, device),
    )
    options.check()
    if options.stabilise and engine != "local":
        raise InputError(
            "frames of a video, each steadied by the one before, in several processes",
            "give --stabilise 0 or --engine local",
        )
    loader = Loader(
        weights,
        options,
        device,
        memory,
        frame=frame,
        pose=None if matrix is None else matrix.tolist(),
        mask=mask,
        matting=matting,
        first_stage=first_stage,
        dino=dino,
        trust_remote_code=trust_remote_code,
    )
    # The same words that the finished results are recorded under, known without loading a network.
    from vision3d.pipelines.stablenormal.origin import foreseen

    provenance = foreseen(options, weights, first_stage=first_stage, dino=dino, frame=frame, pose=loader.pose)
    return run_folder(
        lambda failed: photo_refs(list(inputs), recursive=recursive, failed=failed),
        loader,
        out,
        kind="normals",
        fingerprint=provenance.fingerprint,
        formats=formats,
        batch_size=1 if options.stabilise else batch_size,
        engine=engine_of(engine),
        overwrite=overwrite,
        total=total,
        description="normals",
    )


def read_pose(path: Path) -> np.ndarray:
    """A 4 × 4 (or 3 × 4) camera-to-world matrix from a text or ``.npy`` file.

    Raises:
        InputError: no such file, no such matrix, or its rotation is none.
    """
    import numpy as np

    from vision3d.geometry.normals import rotate_normals

    if not path.is_file():
        raise InputError(f"no such file: {path}", "give a text or .npy file with the pose")
    try:
        matrix = np.load(path) if path.suffix == ".npy" else np.loadtxt(path)
    except DAMAGED as error:
        raise InputError(f"{path} holds no matrix ({error})", "write 4 lines of 4 numbers") from error
    if matrix.shape not in ((4, 4), (3, 4)):
        raise InputError(f"{path} holds a matrix of shape {matrix.shape}", "write 4 lines of 4 numbers")
    rotate_normals(np.zeros((1, 1, 3), np.float32), matrix)
    return np.vstack([matrix[:3], [0, 0, 0, 1]])


def mask_files(source: Path) -> list[Path]:
    """The mask files of a file or folder.

    Raises:
        InputError: nothing there.
    """
    if source.is_file():
        return [source]
    found = (
        sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
        if source.is_dir()
        else []
    )
    if not found:
        raise InputError(
            f"{source}: no masks there", "give a picture, or a folder of pictures named like the inputs"
        )
    return found


def mask_digest(source: Path) -> str:
    """What a person's masks are, as text for provenance: a checksum of their names and contents."""
    import hashlib

    from vision3d.io.files import sha256_file

    digest = hashlib.sha256()
    for file in mask_files(source):
        digest.update(f"{file.name}|{sha256_file(file)}|".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Masks:
    """A person's masks by the name of the photograph.

    Attributes:
        source: one picture for all, or a folder.
    """

    source: Path

    def __call__(self, photo: Photo) -> np.ndarray | None:
        """The mask (H, W) or, with transparency, (H, W, 2) of a photograph; None if the folder has none for it."""
        import numpy as np
        from PIL import Image, UnidentifiedImageError

        names = {photo.name.replace("/", "_"), photo.path.stem if photo.path else photo.name}
        for file in mask_files(self.source):
            if self.source.is_file() or file.stem in names:
                try:
                    with Image.open(file) as image:
                        return np.asarray(image.convert("LA" if image.mode in ("RGBA", "LA") else "L"))
                except (OSError, UnidentifiedImageError) as error:
                    raise InputError(
                        f"{file} cannot be read as a mask ({error})", "give a picture"
                    ) from error
        return None


@dataclass(frozen=True)
class Loader:
    """Makes the loaded method; plain data, so that another process can make it, too.

    Attributes:
        weights, device, memory, frame, mask, matting, first_stage, dino, trust_remote_code: as the verb takes them.
        options: settings of the run.
        pose: camera-to-world matrix as nested lists, or None.
    """

    weights: str | None
    options: NormalOptions
    device: str
    memory: str
    frame: str = "opencv"
    pose: Any = None
    mask: Path | None = None
    matting: str | None = None
    first_stage: str | None = None
    dino: str | None = None
    trust_remote_code: bool = False

    def __call__(self) -> Process:
        """The method, its networks loaded."""
        import numpy as np

        from vision3d.pipelines.stablenormal.matting import Matting
        from vision3d.pipelines.stablenormal.origin import placed
        from vision3d.pipelines.stablenormal.pipeline import StableNormal

        pipeline = StableNormal.from_pretrained(
            self.weights,
            turbo=self.options.turbo,
            first_stage=self.first_stage,
            dino=self.dino,
            semantic="dino" if self.options.semantic else "none",
            trust_remote_code=self.trust_remote_code,
            torch_dtype=self.options.dtype,
            device=self.device,
            memory=self.memory,
        )
        matte = None
        if self.matting is not None:
            matte = Matting.from_pretrained(
                self.matting, self.options.mode, pipeline.device, trust_remote_code=self.trust_remote_code
            )
        find = Masks(self.mask) if self.mask is not None else None
        predict = pipeline.predictor(self.options, matting=matte)
        pose = None if self.pose is None else np.array(self.pose)

        def process(photos: Sequence[Photo]) -> Sequence[Prediction]:
            masks = [find(photo) if find is not None else None for photo in photos]
            return [placed(result, self.frame, pose) for result in predict(photos, masks)]

        return process
