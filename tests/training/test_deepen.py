"""A deeper UNet that starts as the shallower one."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from vision3d.backbone.unet import denoise, walk
from vision3d.errors import InputError
from vision3d.training.deepen import transformer_layers, with_transformer_layers


@pytest.fixture
def unet():
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        block_out_channels=(16, 24),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    return network.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 10, 12, generator=generator), torch.randn(2, 7, 8, generator=generator)


def test_every_intermediate_is_the_same_before_training(unet, inputs):
    latents, context = inputs
    deeper = with_transformer_layers(unet, (3, 2))
    assert transformer_layers(deeper) == (3, 2) and transformer_layers(unet) == (1, 1)
    assert len(deeper.mid_block.attentions[0].transformer_blocks) == 2
    with torch.no_grad():
        before = list(walk(unet, latents, 1, context, attention_maps=True))
        after = list(walk(deeper, latents, 1, context, attention_maps=True))
    assert [tap.name for tap in before] == [tap.name for tap in after]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.tensor, other.tensor, rtol=1e-5, atol=1e-5)
        assert (one.maps is None) == (other.maps is None)
        if one.maps is not None:
            torch.testing.assert_close(one.maps, other.maps, rtol=1e-5, atol=1e-6)


def test_new_layers_learn_from_the_first_step_on(unet, inputs):
    latents, context = inputs
    deeper = with_transformer_layers(unet, (2, 1)).train()
    denoise(deeper, latents, 1, context).square().mean().backward()
    block = deeper.down_blocks[0].attentions[0].transformer_blocks[0]
    for projection in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[-1]):
        assert not projection.weight.any() and projection.weight.grad.abs().max() > 0


def test_layers_in_a_row_give_what_diffusers_computes_and_the_maps_of_the_last(unet, inputs):
    latents, context = inputs
    deeper = with_transformer_layers(unet, (3, 2))
    with torch.no_grad():
        for parameter in deeper.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        stock = deeper(latents, 1, encoder_hidden_states=context).sample
        taps = {tap.name: tap for tap in walk(deeper, latents, 1, context, attention_maps=True)}
        plain = {tap.name: tap for tap in walk(deeper, latents, 1, context)}
    torch.testing.assert_close(taps["out"].tensor, stock, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain["out"].tensor, stock, rtol=1e-4, atol=1e-4)
    assert taps["d1"].maps.shape == (2, 2 * (64 + 7), 10, 12)


def test_more_layers_come_on_top_of_more_layers(unet, inputs):
    latents, context = inputs
    with torch.no_grad():
        once = with_transformer_layers(with_transformer_layers(unet, (2, 1)), (4, 2))
        assert transformer_layers(once) == (4, 2)
        torch.testing.assert_close(
            denoise(once, latents, 1, context), denoise(unet, latents, 1, context), rtol=1e-5, atol=1e-5
        )


def test_enough_layers_leave_it_alone_and_fewer_are_refused(unet):
    assert with_transformer_layers(unet, (1, 1)) is unet
    deeper = with_transformer_layers(unet, (2, 1))
    with pytest.raises(InputError, match=r"\(1, 1\) where the UNet has \(2, 1\)"):
        with_transformer_layers(deeper, (1, 1))
    with pytest.raises(InputError, match="where the UNet has"):
        with_transformer_layers(unet, (2, 2, 1))
