"""The words of captions: for each slot of a sentence and each attribute that fills it, the phrases to choose from."""

OPENINGS = {
    "sentence": [""],
    "fragment": ["", "a video of", "a clip of", "an animation of", "there is"],
}
JOINTS = {"sentence": ["and", "while", "as"], "fragment": ["and", "with"]}
PREPOSITIONS = ["over", "on", "against", "in front of", "across"]
COMMA, CLOSINGS = ",", ["", "", "", "."]

SIZES = {
    "small": ["small", "little", "tiny"],
    "medium": ["medium", "medium sized"],
    "large": ["large", "big", "huge"],
}
FINISHES = {"solid": [""], "striped": ["striped"]}
COLOURS = {
    "red": ["red"],
    "orange": ["orange"],
    "yellow": ["yellow"],
    "green": ["green"],
    "cyan": ["cyan", "turquoise"],
    "blue": ["blue"],
    "purple": ["purple", "violet"],
    "pink": ["pink"],
    "white": ["white"],
    "black": ["black"],
}
SHAPES = {
    "circle": ["circle", "disc", "ball"],
    "square": ["square", "box"],
    "triangle": ["triangle"],
    "star": ["star"],
    "ring": ["ring", "hoop"],
    "cross": ["cross", "plus sign"],
    "heart": ["heart"],
    "crescent": ["crescent", "moon", "crescent moon"],
}

# Each verb as "a circle drifts" and as "a circle drifting".
VERBS = {
    "linear": [
        ("drifts", "drifting"),
        ("moves", "moving"),
        ("slides", "sliding"),
        ("glides", "gliding"),
        ("travels", "traveling"),
        ("floats", "floating"),
        ("flies", "flying"),
    ],
    "bounce": [("bounces", "bouncing"), ("is bouncing", "that bounces")],
    "orbit": [
        ("orbits", "orbiting"),
        ("circles", "circling"),
        ("moves in a circle", "moving in a circle"),
        ("goes around", "going around"),
    ],
    "grow": [("grows", "growing"), ("gets bigger", "getting bigger"), ("expands", "expanding")],
    "shrink": [("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("contracts", "contracting")],
    "still": [
        ("stands still", "standing still"),
        ("stays still", "staying still"),
        ("does not move", "not moving"),
        ("stays in place", "staying in place"),
        ("rests", "resting"),
    ],
}
ADVERBS = {"slow": ["slowly"], "fast": ["quickly", "fast", "rapidly"], "none": [""]}


def _straight(word: str) -> list[str]:
    return (
        [word, f"{word}ward"]
        if word in ("up", "down")
        else [word, f"to the {word}", f"{word}ward", f"toward the {word}"]
    )


def _diagonal(vertical: str, horizontal: str) -> list[str]:
    step = {"upper": "up", "lower": "down"}[vertical]
    place = {"upper": "top", "lower": "bottom"}[vertical]
    return [
        f"to the {vertical} {horizontal}",
        f"toward the {vertical} {horizontal}",
        f"towards the {vertical} {horizontal}",
        f"to the {place} {horizontal}",
        f"{step} and to the {horizontal}",
        f"diagonally {step} and {horizontal}",
    ]


DIRECTIONS = {
    "right": _straight("right"),
    "upper right": _diagonal("upper", "right"),
    "up": _straight("up"),
    "upper left": _diagonal("upper", "left"),
    "left": _straight("left"),
    "lower left": _diagonal("lower", "left"),
    "down": _straight("down"),
    "lower right": _diagonal("lower", "right"),
    "horizontal": ["from side to side", "left and right", "horizontally"],
    "vertical": ["up and down", "vertically"],
    "clockwise": ["clockwise", "clockwise"],
    "counterclockwise": ["counterclockwise", "anticlockwise"],
    "none": [""],
}

BACKGROUND_COLOURS = {
    "gray": ["gray", "grey"],
    "brown": ["brown"],
    "olive": ["olive"],
    "green": ["green"],
    "teal": ["teal"],
    "blue": ["blue"],
    "purple": ["purple", "violet"],
    "pink": ["pink"],
}
# Each kind with a place for the article and colour.
BACKGROUNDS = {
    "plain": ["{a} background", "a plain {colour} background", "{a} backdrop"],
    "gradient": ["{a} gradient background", "{a} gradient", "a gradient {colour} background"],
    "striped": ["{a} striped background", "a striped {colour} background", "{a} background with stripes"],
    "checkered": ["{a} checkered background", "a checkered {colour} background", "{a} checkerboard"],
    "dotted": ["{a} dotted background", "a dotted {colour} background", "{a} background with dots"],
    "noisy": ["{a} noisy background", "a noisy {colour} background", "{a} mottled background"],
}


def background_phrases(kind: str, colour: str) -> list[str]:
    """Every way to name one background.

    >>> background_phrases("gradient", "olive")
    ['an olive gradient background', 'an olive gradient', 'a gradient olive background']
    """
    return [
        frame.format(a=with_article(word), colour=word)
        for frame in BACKGROUNDS[kind]
        for word in BACKGROUND_COLOURS[colour]
    ]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def with_article(word: str) -> str:
    """
    >>> with_article("orange")
    'an orange'
    """
    return f"{article(word)} {word}"
