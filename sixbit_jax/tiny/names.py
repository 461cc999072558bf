"""The closed lists that scenes, captions and measurements share, and the palettes.

Objects are vivid and backgrounds muted: no shade of a background comes near an object's colour, so what is an object
can be told from one pixel alone.
"""

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
SIZES = ("small", "medium", "large")
SMALL, MEDIUM, LARGE = range(len(SIZES))
SPEEDS = ("slow", "fast", "none")
SLOW, FAST, NO_SPEED = range(len(SPEEDS))
FINISHES = ("solid", "striped")
SOLID, STRIPED_FINISH = range(len(FINISHES))

MOTIONS = ("linear", "bounce", "orbit", "grow", "shrink", "still")
LINEAR, BOUNCE, ORBIT, GROW, SHRINK, STILL = range(len(MOTIONS))

# Compass directions go round in steps of 45 degrees, seen on the screen.
COMPASS = ("right", "upper right", "up", "upper left", "left", "lower left", "down", "lower right")
DIRECTIONS = (*COMPASS, "horizontal", "vertical", "clockwise", "counterclockwise", "none")
HORIZONTAL, VERTICAL, CLOCKWISE, COUNTERCLOCKWISE, NOWHERE = range(len(COMPASS), len(DIRECTIONS))
# The directions that a kind of motion can have: first, and how many from there.
FIRST_DIRECTION = np.array([0, HORIZONTAL, CLOCKWISE, NOWHERE, NOWHERE, NOWHERE], np.int32)
DIRECTION_COUNT = np.array([len(COMPASS), 2, 2, 1, 1, 1], np.int32)

BACKGROUNDS = ("plain", "gradient", "striped", "checkered", "dotted", "noisy")
PLAIN, GRADIENT, STRIPED, CHECKERED, DOTTED, NOISY = range(len(BACKGROUNDS))

_OBJECT_COLOURS = {
    "red": (224, 38, 42),
    "orange": (255, 142, 22),
    "yellow": (252, 224, 44),
    "green": (38, 172, 62),
    "cyan": (36, 226, 240),
    "blue": (38, 78, 232),
    "purple": (162, 36, 190),
    "pink": (255, 104, 190),
    "white": (246, 246, 246),
    "black": (16, 16, 18),
}
_BACKGROUND_COLOURS = {
    "gray": (128, 128, 128),
    "brown": (146, 100, 74),
    "olive": (132, 136, 72),
    "green": (94, 140, 88),
    "teal": (78, 128, 134),
    "blue": (80, 110, 164),
    "purple": (128, 92, 152),
    "pink": (148, 100, 116),
}

COLOURS = tuple(_OBJECT_COLOURS)
BACKGROUND_COLOURS = tuple(_BACKGROUND_COLOURS)
PALETTE = np.array(list(_OBJECT_COLOURS.values()), np.float32) / 255
BACKGROUND_PALETTE = np.array(list(_BACKGROUND_COLOURS.values()), np.float32) / 255

# A darker white, black or cyan would look like something else.
TAKES_STRIPES = np.array([colour not in ("white", "black", "cyan") for colour in COLOURS])
# How bright the dark stripes of a striped object are, and the darkest and brightest shade of a background,
# as factors of the palette colour.
STRIPE_SHADE = 0.84
TEXTURE_SHADES = (0.8, 1.2)
GRADIENT_SHADES = (0.68, 1.32)
