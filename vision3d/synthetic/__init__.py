"""Part of vision3d."""
