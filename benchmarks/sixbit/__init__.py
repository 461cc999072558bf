"""What 6Bit-Diffusion's parts are worth: routes, refresh, cache and its formats, each beside its rivals."""
