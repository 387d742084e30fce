"""DM-Calib: the camera of one photograph by diffusion, and its metric depth (Deng et al., ICCV 2025).

A Stable Diffusion UNet that sees the photograph's latents denoises the latents of a Camera Image
(:mod:`.camera_image`), from which the intrinsics are read. A second one takes the photograph and the Camera Image,
without noise, and gives metric depth in a single pass: the camera settles what a wide room and a near wall have
in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone import loading
from vision3d.backbone.residency import Residency
from vision3d.backbone.schedule import (
    PredictionType,
    add_noise,
    ddim_step,
    ddim_timesteps,
    to_epsilon,
    to_x0,
)
from vision3d.backbone.sharing import share, shared_moments
from vision3d.backbone.vae import decode_features, encode_moments
from vision3d.camera import Intrinsics
from vision3d.device import resolve_device, resolve_dtype
from vision3d.errors import InputError, WeightsError
from vision3d.io.files import atomic_write_json
from vision3d.memory import in_batches
from vision3d.pipelines.dmcalib import checkpoint as files
from vision3d.pipelines.dmcalib.camera_image import (
    CameraFit,
    angles_to_channels,
    decode_intrinsics,
    encode_angles,
    grey_channel,
)
from vision3d.pipelines.dmcalib.options import INDEX, CalibrationOptions, DMCalibConfig
from vision3d.pipelines.dmcalib.preprocess import Canvas, resize_image, to_tensor, working_size
from vision3d.progress import say, warn

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.results import CameraPrediction, DepthPrediction

PREDICTION: Final[PredictionType] = "v_prediction"
TRAIN_STEPS = 1000
DEPTH_TIMESTEP = 1000.0
"""One past the last training step: the depth UNet never sees noise, and its step says so."""

Probe = Callable[[str, Tensor], None]


def depth_from_output(output: Tensor, scale_10: bool) -> Tensor:
    """Depth as a share of the domain's range ``(B, H, W)`` in [0, 1] of the decoder's output ``(B, 3, H, W)``."""
    limit = 10.0 if scale_10 else 1.0
    return (output.float().mean(dim=1).clamp(-limit, limit) / limit + 1) / 2


def display_depth(depth: Tensor) -> Tensor:
    """Depth ``(H, W)`` stretched from its 2 % to its 98 % quantile to [0, 1], to look at only."""
    low, high = torch.quantile(depth.flatten(), torch.tensor([0.02, 0.98]).to(depth))
    return ((depth - low) / (high - low).clamp_min(1e-8)).clamp(0, 1)


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PIL's bicubic resize of a float map (h, w) to ``size`` (width, height); it may overshoot."""
    return np.asarray(Image.fromarray(depth.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


class DMCalib(Residency):
    """Intrinsics, and optionally metric depth, of photographs.

    Args:
        vae: Stable Diffusion autoencoder.
        unet: calibration UNet, [noisy camera latents | photograph latents] to v.
        depth_unet: depth UNet, [photograph latents | camera latents] to depth latents; may be absent.
        depth_decoder: decoder of the depth latents; may be absent.
        contexts: text contexts of the prompts.
        config: what belongs to the weights.
        camera_decoder: decoder of the camera latents in place of the autoencoder's: small autoencoders do not hold
            the colours of Camera Images.
        photo_encoder, depth_encoder: encoders of the photograph that were tuned with the calibration and the depth
            UNet, in place of the autoencoder's: small ones lose the thin lines that show a perspective.
    """

    pixel_networks: ClassVar[tuple[str, ...]] = (
        "vae",
        "depth_decoder",
        "camera_decoder",
        "photo_encoder",
        "depth_encoder",
    )

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        depth_unet: UNet2DConditionModel | None = None,
        depth_decoder: Decoder | None = None,
        contexts: files.Contexts | None = None,
        config: DMCalibConfig | None = None,
        camera_decoder: Decoder | None = None,
        photo_encoder: AutoencoderKL | None = None,
        depth_encoder: AutoencoderKL | None = None,
    ) -> None:
        self.vae, self.unet, self.camera_decoder = vae, unet, camera_decoder
        self.depth_unet, self.depth_decoder = depth_unet, depth_decoder
        self.photo_encoder, self.depth_encoder = photo_encoder, depth_encoder
        self.contexts = contexts or files.Contexts()
        self.config = config or DMCalibConfig()
        self.weights_name = "given networks"
        self.weights_sha256: str | None = None
        self._device = next((p.device for p in unet.parameters()), torch.device("cpu"))
        for network in self.networks.values():
            network.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self._device

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are there, by name."""
        found = {
            "vae": self.vae,
            "unet": self.unet,
            "depth_unet": self.depth_unet,
            "depth_decoder": self.depth_decoder,
            "camera_decoder": self.camera_decoder,
            "photo_encoder": self.photo_encoder,
            "depth_encoder": self.depth_encoder,
        }
        return {name: network for name, network in found.items() if network is not None}

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        base: str | Path | None = None,
        calib_subfolder: str | None = None,
        depth_subfolder: str | None = None,
        embeddings: str | Path | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: str = "auto",
        memory: str | int = "auto",
    ) -> DMCalib:
        """Loads the pipeline from the released folder or one written by :meth:`save_pretrained`.

        Args:
            pretrained_model_name_or_path: folder; None takes the pulled weights, else those that ship with the
                package.
            base: Stable Diffusion 2.1 folder or file with the autoencoder and the text tower; by default the
                folder itself, else the pulled one.
            calib_subfolder: calibration UNet; by default the first of ``calib``, ``calib/unet``, ``calib2``.
            depth_subfolder: depth networks; by default the first of ``depth_safe``, ``depth``.
            embeddings: safetensors file of the prompts' embeddings, which replaces the text tower.
            torch_dtype: floating dtype; by default fp32 on CPU, bf16 or fp16 on CUDA.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            memory: budget such as ``6.5G``; below what everything resident needs, networks are loaded when their
                turn comes and let go after it.

        Raises:
            WeightsError: missing, damaged or foreign weights.
        """
        from vision3d.weights import resolve

        place = resolve_device(device)
        dtype = resolve_dtype(torch_dtype if torch_dtype is not None else "auto", place)
        root, name = resolve("dmcalib", pretrained_model_name_or_path)
        if not root.is_dir():
            raise WeightsError(f"{root}: DM-Calib is a folder, not a file", "give the folder around calib/")
        config = DMCalibConfig.read(root)
        calib = files.subfolder(root, files.CALIBRATION_FOLDERS, calib_subfolder, "calibration UNet")
        if calib is None:
            raise WeightsError(
                f"{root}: no calibration UNet in this folder",
                f"expected one of {', '.join(f'{c}/config.json' for c in files.CALIBRATION_FOLDERS)}",
            )
        where = files.find_base(root, base)
        vae = share(files.load_vae(where, dtype))
        unet = files.load_unet(calib, "calibration UNet", dtype)
        depth = files.subfolder(root, files.DEPTH_FOLDERS, depth_subfolder, "depth UNet")
        depth_unet = decoder = camera_decoder = None
        if (calib / files.DECODER_FILES[0]).is_file():
            camera_decoder = files.load_decoder(calib / files.DECODER_FILES[0], vae.config, dtype)
        if depth is not None:
            depth_unet = files.load_unet(depth, "depth UNet", dtype)
            decoder = files.load_decoder(files.find_decoder(depth), vae.config, dtype)
        encoders: list[AutoencoderKL | None] = [
            files.load_encoder(place / files.ENCODER_FILE, vae.config, dtype)
            if place is not None and (place / files.ENCODER_FILE).is_file()
            else None
            for place in (calib, depth)
        ]
        contexts = files.Contexts.find(root, where, embeddings)
        pipeline = cls(vae, unet, depth_unet, decoder, contexts, config, camera_decoder, *encoders)
        pipeline.weights_name = name if calib_subfolder is None else f"{name}, {calib_subfolder}"
        pipeline.weights_sha256 = fingerprint(root, where, calib_subfolder, depth_subfolder)
        say(f"DM-Calib weights: {pipeline.weights_name}")
        pipeline.place(place, memory, *pipeline.networks.values())
        return pipeline

    @override
    def _save(self, folder: Path) -> None:  # type: ignore[override]
        """The released layout, with autoencoder, embeddings of the prompts, and an index."""
        from safetensors.torch import save_file

        for network in self.networks.values():
            loading.load_weights(network)
        self.vae.save_pretrained(folder / "vae")
        self.unet.save_pretrained(folder / "calib")
        if self.depth_unet is not None:
            self.depth_unet.save_pretrained(folder / "depth_safe")
        for decoder, place in ((self.camera_decoder, "calib"), (self.depth_decoder, "depth_safe")):
            if decoder is not None:
                tensors = {name: value.contiguous() for name, value in decoder.state_dict().items()}
                save_file(tensors, folder / place / files.DECODER_FILES[0])
        for encoder, place in ((self.photo_encoder, "calib"), (self.depth_encoder, "depth_safe")):
            if encoder is not None:
                tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
                save_file(tensors, folder / place / files.ENCODER_FILE)
        domains = self.config.ranges if self.depth_unet is not None else {"any": 0.0}
        self.contexts.save(
            folder / files.EMBEDDINGS, list(dict.fromkeys(["", *map(files.prompt_of, domains)]))
        )
        config = replace(self.config, base=None)
        atomic_write_json(folder / INDEX, {"_class_name": "DMCalib", **asdict(config)})

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> DMCalib:
        """Moves and casts all networks; those of other pipelines are not cast."""
        self.cast_networks(self.networks, dtype)
        for network in self.networks.values():
            loading.load_weights(network, self._device if device is None else device)
        self._device = next(self.unet.parameters()).device
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the computation."""
        return next(self.unet.parameters()).dtype

    @property
    def latent_scale(self) -> float:
        """Factor from the autoencoder's latents to the UNets'."""
        return float(self.vae.config.scaling_factor)

    # ------------------------------------------------------------------ networks

    @torch.no_grad()
    def encode(self, images: Tensor, encoder: AutoencoderKL | None = None) -> Tensor:
        """Unscaled latents (posterior mode) ``(B, 4, h/8, w/8)`` of images ``(B, 3, h, w)`` in [0, 1].

        ``encoder`` takes the autoencoder's place, where there is one. An image that a pipeline with the same
        autoencoder has encoded is not encoded again.
        """

        vae = encoder or self.vae

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            with self.resident(vae):
                return encode_moments(vae, batch)

        return shared_moments(vae, images.to(self.device), encode=run)[0]

    @torch.no_grad()
    def denoise(
        self,
        image_latents: Tensor,  # [N, 4, h, w], scaled
        latents: Tensor,  # [N, 4, h, w], what denoising starts from
        context: Tensor,  # [1, tokens, width]
        timesteps: np.ndarray,
        *,
        finish: bool = False,
        step: Callable[[Tensor, int, Tensor], Tensor] | None = None,
        probe: Probe | None = None,
    ) -> Tensor:
        """Scaled latents ``(N, 4, h, w)`` of Camera Images, by DDIM without guidance.

        Args:
            image_latents: of the photographs.
            latents: noise, or zeros.
            context: of the empty prompt.
            timesteps: descending.
            finish: return the clean latents that the last step sees, rather than stepping to the schedule's own end,
                where a little noise is left (the published scheduler does the latter).
            step: of another schedule: takes the UNet's output, the timestep and the latents, gives the next latents.
            probe: called with a name and a tensor for every step's output and result.
        """
        context = context.to(self.device, self.dtype).expand(len(latents), -1, -1)
        image_latents = image_latents.to(self.device, self.dtype)
        steps = len(timesteps)
        with self.resident(self.unet):
            for i, t in enumerate(int(t) for t in timesteps):
                inputs = torch.cat([latents.to(image_latents), image_latents], dim=1)
                out = self.unet(inputs, t, encoder_hidden_states=context).sample.float()
                if probe is not None:
                    probe(f"unet_step{i}", out)
                latents = latents.to(out)
                if step is not None:
                    latents = step(out, t, latents)
                elif finish and i + 1 == steps:
                    latents = to_x0(out, latents, t, PREDICTION)
                elif finish:
                    x0 = to_x0(out, latents, t, PREDICTION)
                    noise = to_epsilon(out, latents, t, PREDICTION)
                    latents = add_noise(x0, noise, int(timesteps[i + 1]))
                else:
                    latents = ddim_step(out, t, latents, steps, PREDICTION)[0]
                if probe is not None:
                    probe(f"latents_step{i + 1}", latents)
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(N, 3, 8h, 8w)`` in [0, 1] of scaled latents."""
        decoder = self.camera_decoder or self.vae.decoder
        with self.resident(self.vae, decoder):
            unscaled = latents.to(self.device, self.vae.post_quant_conv.weight.dtype) / self.latent_scale
            pictures = decode_features(decoder, self.vae.post_quant_conv(unscaled))
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def depth_output(
        self,
        images: Tensor,  # [B, 3, H, W] in [0, 1]
        camera_images: Tensor,  # [B, 3, H, W] in [-1, 1]
        context: Tensor,  # [1, tokens, width]
        probe: Probe | None = None,
    ) -> Tensor:
        """The depth decoder's output ``(B, 3, 8⌊H/8⌋, 8⌊W/8⌋)``, from one UNet pass.

        Raises:
            WeightsError: these weights have no depth networks.
        """
        if self.depth_unet is None or self.depth_decoder is None:
            raise WeightsError("these weights have no depth networks", "use a folder with depth_safe/")
        latents = torch.cat(
            [self.encode(images, self.depth_encoder), self.encode((camera_images + 1) / 2)], dim=1
        )
        latents = latents.to(self.dtype) * self.latent_scale
        step = torch.full((len(latents),), DEPTH_TIMESTEP, device=self.device)
        context = context.to(self.device, self.dtype).expand(len(latents), -1, -1)
        with self.resident(self.depth_unet):
            out = self.depth_unet(latents, step, encoder_hidden_states=context).sample
        if probe is not None:
            probe("unet_in", latents)
            probe("unet_out", out)
        with self.resident(self.vae, self.depth_decoder):
            unscaled = out.to(self.vae.post_quant_conv.weight.dtype) / self.latent_scale
            raw = decode_features(self.depth_decoder, self.vae.post_quant_conv(unscaled))
        if probe is not None:
            probe("decoder_raw", raw)
        return raw

    # ------------------------------------------------------------------ calibration

    def calibrate(
        self,
        photos: Sequence[Photo],
        options: CalibrationOptions | None = None,
        *,
        generator: torch.Generator | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> list[CameraPrediction]:
        """Cameras (and depth, if the options ask for it) of photographs, in order; all run as one batch.

        Args:
            photos: loaded photographs, of any sizes.
            options: settings of the run.
            generator: draws the noise instead of the seed; must live on the CPU.
            provenance: further settings to record.

        Returns:
            Intrinsics for each photograph's own size. With ``shared``, all have the median of the cameras.

        Raises:
            InputError: an option is out of range, no sample shows a camera, or photographs of different sizes are
                to share one.
            WeightsError: depth without depth networks.
        """
        options = self._recorded(options or CalibrationOptions())
        if options.depth:
            self.config.range_of(str(options.domain))
            if self.depth_unet is None:
                raise WeightsError("these weights have no depth networks", "run without depth")
        if options.shared:
            _check_same_size(photos)
        origin = options.provenance(self.weights_name, self.weights_sha256, **(provenance or {}))
        predictions = []
        for photo, pictures in zip(photos, self.camera_images(photos, options, generator), strict=True):
            predictions.append(self._camera(photo, pictures, options, origin))
        if options.shared:
            predictions = share_camera(predictions)
        if options.depth:
            for prediction in predictions:
                assert prediction.photo is not None
                prediction.depth = self.depth(prediction.photo, prediction.intrinsics, options)
                prediction.depth.provenance = origin
                prediction.depth_noise = self.config.depth_noise
        return predictions

    def camera_images(
        self,
        photos: Sequence[Photo],
        options: CalibrationOptions,
        generator: torch.Generator | None = None,
    ) -> list[np.ndarray]:
        """Predicted Camera Images ``(E, 3, h, w)`` float32 in [0, 1] of photographs, without padding."""
        options = options.completed(self.config)
        side, ensemble = int(options.max_size or 0), int(options.ensemble or 1)
        steps = int(options.steps or 1)
        canvases, padded = [], []
        for photo in photos:
            height, width = photo.size
            w, h = working_size(width, height, side)
            canvas = Canvas.fit(h, w, side, side)
            canvases.append(canvas)
            padded.append(canvas.pad(to_tensor(resize_image(photo.rgb8, (w, h)))))
        images = torch.cat(padded)
        views = (images, images.flip(-1)) if options.mirrors else (images,)
        encoded = [self.encode(view, self.photo_encoder) * self.latent_scale for view in views]
        image_latents = torch.stack([encoded[i % len(views)] for i in range(ensemble)], dim=1).flatten(0, 1)
        shape = (ensemble, self.vae.config.latent_channels, side // 8, side // 8)
        if options.noise == "zeros":
            start = torch.zeros(shape)
        else:
            source = generator or torch.Generator().manual_seed(options.seed)
            start = torch.randn(shape, generator=source)
        trailing = options.spacing == "trailing"
        timesteps = ddim_timesteps(steps, spacing="trailing" if trailing else "leading")
        latents = self.denoise(
            image_latents,
            start.repeat(len(photos), 1, 1, 1).to(self.device),
            self.contexts[""],
            timesteps,
            finish=trailing,
        )
        pictures = self.decode(latents)
        if options.mirrors:
            pictures[1::2] = mirrored_camera_image(pictures[1::2])
        if options.quantize:
            pictures = (pictures * 255).round() / 255
        stacks = pictures.cpu().split(ensemble)
        return [canvas.crop(stack).numpy() for canvas, stack in zip(canvases, stacks, strict=True)]

    def _camera(
        self, photo: Photo, pictures: np.ndarray, options: CalibrationOptions, origin: Any
    ) -> CameraPrediction:
        """The camera of a photograph (at its own size) from the pictures (E, 3, h, w) of an ensemble."""
        from vision3d.results import CameraPrediction

        height, width = photo.size
        if options.mode == "reference":
            found = decode_intrinsics(pictures.mean(axis=0), mode="reference")
            # the published regression counts columns and rows from whole numbers
            found = replace(found, cx=found.cx + 0.5, cy=found.cy + 0.5)
            fits = [found.resized(width, height)]
        else:
            h, w = pictures.shape[-2:]
            focal = options.focal or (photo.focal_px if options.use_exif else None)
            fits = []
            for picture in pictures:
                fit = decode_intrinsics(
                    picture,
                    square_pixels=options.square_pixels,
                    centered=options.centered,
                    focal=None if focal is None else (focal * w / width, focal * h / height),
                    pixel_aspect=(h / height) / (w / width),
                )
                fits.append(fit.resized(width, height))
        fit = combine(fits)
        source = "estimated by DM-Calib"
        if options.mode != "reference" and (options.focal or (options.use_exif and photo.focal_px)):
            source += " with a known focal length"
        return CameraPrediction(
            covariance=fit.covariance,
            inlier_ratio=fit.inlier_ratio,
            samples=np.array([f.values for f in fits]),
            camera_image=pictures.mean(axis=0),
            photo=photo,
            camera=fit.intrinsics,
            camera_source=source,
            provenance=origin,
        )

    # ------------------------------------------------------------------ depth

    def depth(
        self, photo: Photo, camera: Intrinsics, options: CalibrationOptions | None = None
    ) -> DepthPrediction:
        """Metric depth of a photograph whose camera is known.

        Args:
            photo: loaded photograph.
            camera: its intrinsics, for any size of it.
            options: settings; ``domain``, ``scale_10``, ``exact_size``, ``max_size``, ``noise`` and ``ensemble``
                matter.

        Returns:
            z-depth in metres at the photograph's size.

        Raises:
            InputError: a domain that these weights do not know.
            WeightsError: no depth networks.
        """
        from vision3d.results import DepthPrediction

        options = options or CalibrationOptions(depth=True)
        own_size = options.max_size if options.max_size != self.config.max_size else None
        options = options.completed(self.config)
        domain = str(options.domain)
        span = self.config.range_of(domain)
        height, width = photo.size
        side = own_size or self.config.depth_max_size
        size = working_size(width, height, side)
        small = resize_image(photo.rgb8, size)
        lens, prompt = camera.resized(*size), files.prompt_of(domain)
        share_of_range = self.depth_share(small, lens, prompt, options)
        if options.mirrors and options.exact_size:
            turned = np.ascontiguousarray(small[:, ::-1])
            other = self.depth_share(turned, lens.mirrored(), prompt, options)
            share_of_range = (share_of_range + other.flip(-1)) / 2
        full = np.clip(resize_depth(share_of_range.numpy(), (width, height)), 0, 1) * np.float32(span)
        return DepthPrediction(
            depth=full,
            space="metric depth",
            valid=photo.opaque,
            photo=photo,
            camera=camera.resized(width, height),
            camera_source="estimated by DM-Calib",
            provenance=options.provenance(self.weights_name, self.weights_sha256),
        )

    def depth_share(
        self,
        image: np.ndarray,  # (h, w, 3) uint8
        camera: Intrinsics,
        prompt: str,
        options: CalibrationOptions,
        probe: Probe | None = None,
    ) -> Tensor:
        """Depth as a share of the domain's range ``(h', w')`` at the size of an image.

        With ``exact_size``, what is no multiple of 8 is padded (the picture by its edge, the Camera Image by the rays
        that go on there) and cropped after; otherwise ``h'`` and ``w'`` are the multiples of 8 below.
        """
        height, width = image.shape[:2]
        tall, wide = (8 * math.ceil(n / 8) if options.exact_size else n for n in (height, width))
        pixels = np.pad(image, ((0, tall - height), (0, wide - width), (0, 0)), mode="edge")
        channels = angles_to_channels(encode_angles(camera.cropped(0, 0, wide, tall)))
        images = to_tensor(pixels)
        grey = grey_channel(images[0].permute(1, 2, 0).numpy())
        camera_image = torch.from_numpy(np.concatenate([channels, grey[None]]))[None]
        raw = self.depth_output(
            images.to(self.device), camera_image.to(self.device), self.contexts[prompt], probe
        )
        share_of_range = depth_from_output(raw, bool(options.scale_10))[0].cpu()
        return share_of_range[:height, :width] if options.exact_size else share_of_range

    # ------------------------------------------------------------------ face

    def stream(
        self,
        photos: Iterable[Photo],
        options: CalibrationOptions | None = None,
        *,
        batch_size: int = 1,
        **extras: Any,
    ) -> Iterator[CameraPrediction]:
        """Predictions one after the other, reading ``photos`` only as far as the next batch.

        When memory runs out, batches get smaller; a line on screen says so.
        """

        def process(batch: Sequence[Photo]) -> list[CameraPrediction]:
            return self.calibrate(batch, options, **extras)

        return in_batches(process, photos, batch_size, generator=extras.get("generator"))

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> CameraPrediction | list[CameraPrediction]:
        """Cameras of whatever holds images.

        Args:
            images: a path, folder, glob, video, PIL image, array or tensor, or a list of these.
            batch_size: images per pass, of any sizes.
            generator: draws the noise instead of ``seed``; must live on the CPU.
            options: fields of :class:`CalibrationOptions` (``depth``, ``domain``, ``steps``, ``square_pixels``, ...).

        Returns:
            One prediction for one image, else a list of them in order.

        Raises:
            InputError: nothing there that can be read as an image, or an option is out of range.
        """
        from vision3d.io.images import holds_many, iter_photos, load_photo

        chosen = CalibrationOptions(**options)
        if not isinstance(images, (list, tuple)) and not holds_many(images):
            return self.calibrate([load_photo(images)], chosen, generator=generator)[0]
        photos = (reference.load() for reference in iter_photos(images))
        if chosen.shared:
            single = replace(chosen, shared=False, depth=False)
            predictions = list(self.stream(photos, single, batch_size=batch_size, generator=generator))
            return self.finish_shared(predictions, chosen)
        return list(self.stream(photos, chosen, batch_size=batch_size, generator=generator))

    def _recorded(self, options: CalibrationOptions) -> CalibrationOptions:
        """Options as results record them: checked, with the weights' own values and the floating type of the run."""
        options.check()
        return replace(options, dtype=str(self.dtype).removeprefix("torch.")).completed(self.config)

    def finish_shared(
        self, predictions: list[CameraPrediction], options: CalibrationOptions
    ) -> list[CameraPrediction]:
        """Predictions made one by one, brought to their shared camera; then their depth, if asked for."""
        _check_same_size([p.photo for p in predictions if p.photo is not None])
        options = self._recorded(options)
        origin = options.provenance(self.weights_name, self.weights_sha256)
        predictions = share_camera(predictions)
        for prediction in predictions:
            prediction.provenance = origin
            if options.depth:
                assert prediction.photo is not None
                prediction.depth = self.depth(prediction.photo, prediction.intrinsics, options)
                prediction.depth.provenance = origin
                prediction.depth_noise = self.config.depth_noise
        return predictions

    def __repr__(self) -> str:
        depth = "with" if self.depth_unet is not None else "without"
        return f"DMCalib ({self.weights_name}), {depth} metric depth, on {self.device}"


def fingerprint(
    root: Path, base: Path, calib_subfolder: str | None = None, depth_subfolder: str | None = None
) -> str:
    """SHA-256 that identifies the weights that :meth:`DMCalib.from_pretrained` would load."""
    import hashlib

    parts = []
    for candidates, chosen in (
        (files.CALIBRATION_FOLDERS, calib_subfolder),
        (files.DEPTH_FOLDERS, depth_subfolder),
    ):
        folder = files.subfolder(root, candidates, chosen, "network")
        parts.append("" if folder is None else loading.fingerprint(folder))
    vae = base / "vae" if (base / "vae").is_dir() else base
    parts.append(loading.fingerprint(vae))
    for name in (INDEX, files.EMBEDDINGS):
        parts.append(loading.fingerprint(root / name) if (root / name).is_file() else "")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def mirrored_camera_image(pictures: Tensor) -> Tensor:
    """Camera Images (..., 3, H, W) in [0, 1] as the mirrored camera has them: left is right."""
    return torch.cat([1 - pictures[..., :1, :, :], pictures[..., 1:, :, :]], dim=-3).flip(-1)


def combine(fits: Sequence[CameraFit]) -> CameraFit:
    """The camera of an ensemble: the median of its samples' cameras, number by number.

    The covariance is what the samples say of themselves on average, plus how they scatter. Samples that show a
    mirrored camera are left out.

    Raises:
        InputError: all of them do.
    """
    upright = [fit for fit in fits if not fit.mirrored]
    if not upright:
        return fits[0]  # whose use as a camera says what is wrong
    if len(upright) < len(fits):
        warn(f"{len(fits) - len(upright)} of {len(fits)} samples show a mirrored camera and are left out")
    values = np.array([fit.values for fit in upright])
    fx, fy, cx, cy = np.median(values, axis=0).tolist()
    within = [fit.covariance for fit in upright if fit.covariance is not None]
    covariance = None
    if within:
        covariance = np.mean(within, axis=0)
        if len(upright) > 1:
            covariance = covariance + np.cov(values.T)
    first = upright[0]
    noise = np.mean([fit.noise_degrees for fit in upright], axis=0)
    ratio = float(np.mean([fit.inlier_ratio for fit in upright]))
    return CameraFit(
        fx, fy, cx, cy, first.width, first.height, covariance, ratio, (float(noise[0]), float(noise[1]))
    )


def share_camera(predictions: Sequence[CameraPrediction]) -> list[CameraPrediction]:
    """The same predictions with one camera for all: the median of theirs, which one bad photograph does not move.

    The covariance of the median follows from the scatter between photographs and their own covariances.

    Raises:
        InputError: their sizes differ.
    """
    from dataclasses import replace as changed

    cameras = [p.intrinsics for p in predictions]
    sizes = {(c.width, c.height) for c in cameras}
    if len(sizes) > 1:
        raise InputError(
            f"photographs of {len(sizes)} sizes cannot share one camera", "give photographs of one size"
        )
    values = np.array([[c.fx, c.fy, c.cx, c.cy] for c in cameras])
    fx, fy, cx, cy = np.median(values, axis=0).tolist()
    count = len(values)
    known = [p.covariance for p in predictions if p.covariance is not None]
    covariance = None
    if known:
        scatter = np.cov(values.T) if count > 1 else np.zeros((4, 4))
        # A median of n has pi/2 times the variance of their mean.
        inflation = math.pi / 2 if count > 2 else 1.0
        covariance = inflation * (np.mean(known, axis=0) + scatter) / count
    camera = Intrinsics(fx, fy, cx, cy, cameras[0].width, cameras[0].height)
    source = f"estimated by DM-Calib, median of {count} photographs"
    return [
        changed(p, camera=camera, covariance=covariance, shared_by=count, camera_source=source)
        for p in predictions
    ]


def _check_same_size(photos: Sequence[Photo]) -> None:
    sizes = {photo.size for photo in photos}
    if len(sizes) > 1:
        shown = ", ".join(f"{w}×{h}" for h, w in sorted(sizes)[:3])
        raise InputError(
            f"photographs of {len(sizes)} sizes ({shown}) cannot share one camera",
            "give photographs of one size, or calibrate them separately",
        )
