"""The 150 classes of the ADE20K scene-parsing benchmark, in the benchmark's own order.

Source: Zhou et al., "Scene Parsing through ADE20K Dataset" (CVPR 2017), objectInfo150; index 0 here is
the benchmark's class 1 ("wall"), as segmentation heads number them.
"""

from __future__ import annotations

NONE = 255
"""Index of a pixel that belongs to no class."""

_NAMES = """
wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door
table mountain plant curtain chair car water painting sofa shelf house sea mirror rug field armchair
seat fence desk rock wardrobe lamp bathtub railing cushion base box column signboard
chest_of_drawers counter sand sink skyscraper fireplace refrigerator grandstand path stairs runway
case pool_table pillow screen_door stairway river bridge bookcase blind coffee_table toilet flower
book hill bench countertop stove palm kitchen_island computer swivel_chair boat bar arcade_machine
hovel bus towel light truck tower chandelier awning streetlight booth television airplane dirt_track
apparel pole land bannister escalator ottoman bottle buffet poster stage van ship fountain
conveyer_belt canopy washer plaything swimming_pool stool barrel basket waterfall tent bag minibike
cradle oven ball food step tank trade_name microwave pot animal bicycle lake dishwasher screen
blanket sculpture hood sconce vase traffic_light tray ashcan fan pier crt_screen plate monitor
bulletin_board shower radiator glass clock flag
"""
CLASSES: tuple[str, ...] = tuple(_NAMES.split())

INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
"""Class name (underscores for spaces) to index; ``INDEX["wall"] == 0``."""


def index(name: str | None) -> int:
    """The index of a class; ``None`` gives :data:`NONE`. Raises ``KeyError`` for a name that is no class."""
    return NONE if name is None else INDEX[name]
