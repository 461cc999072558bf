"""A route: how one group of linears multiplies at one step. The precision policy picks, the model obeys."""

import dataclasses

# Width of the activations of each format; None: as they come.
ACTIVATION_BITS = {None: 16, "int8": 8, "int4": 4, "nvfp4": 4}


@dataclasses.dataclass(frozen=True)
class Route:
    """`act`: format of the activations (`None`: as they come).

    `implementation`: a name of `linear.implementations()`, or the fastest.
    """

    act: str | None = None
    implementation: str | None = None

    @property
    def bits(self) -> int:
        """Width of the activations.

        >>> Route("nvfp4").bits
        4
        """
        return ACTIVATION_BITS[self.act]
