"""PrimeDepth: affine-invariant depth from a Stable Diffusion preimage."""

from vision3d.pipelines.primedepth.checkpoint import PrimeDepthConfig, load_networks
from vision3d.pipelines.primedepth.network import PredictionHead, PreimageRefiner
from vision3d.pipelines.primedepth.pipeline import PrimeDepth

__all__ = ["PredictionHead", "PreimageRefiner", "PrimeDepth", "PrimeDepthConfig", "load_networks"]
