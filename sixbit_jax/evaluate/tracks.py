"""Objects as one-coloured blobs, and where each is over time."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from sixbit_jax.evaluate.colours import NO_OBJECT, label_colours

# Of the picture, on average over the video. The world's smallest object has 0.012 and its largest 0.2; what fills more
# is a background of the wrong colour.
_LEAST_AREA, _MOST_AREA = 0.004, 0.5
_LEAST_PART = 0.2  # of the largest part of an object; smaller parts are dirt
_CROSS = ndimage.generate_binary_structure(2, 1)[None]  # neighbours within a frame
_CONTACT = 3  # pixels between two objects that count as touching


@dataclasses.dataclass(frozen=True)
class Track:
    """One object. Lengths are in pixels, y down. `clear` frames show it whole: there, and apart from other objects."""

    colour: int
    masks: Bool[np.ndarray, "t h w"]
    areas: Float[np.ndarray, " t"]
    centres: Float[np.ndarray, "t 2"]
    clear: Bool[np.ndarray, " t"]


def find_tracks(video: UInt8[np.ndarray, "t h w 3"]) -> list[Track]:
    """The objects of a video, the largest first. Each colour is at most one object."""
    labels = label_colours(video)
    blobs = {}
    counts = np.bincount(labels.reshape(-1), minlength=NO_OBJECT + 1) / labels.size
    for colour in np.flatnonzero(counts[:NO_OBJECT] > _LEAST_AREA):
        masks = _without_dirt(labels == colour)
        if _LEAST_AREA < masks.mean() < _MOST_AREA:
            blobs[int(colour)] = masks
    tracks = [_track(colour, masks, blobs) for colour, masks in blobs.items()]
    return sorted(tracks, key=lambda track: -track.areas.sum())


def _without_dirt(masks: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Drop thin edges and specks; an object may be in several parts when another crosses it."""
    parts, count = ndimage.label(ndimage.binary_opening(masks, _CROSS), _in_frame())
    if count == 0:
        return np.zeros_like(masks)
    areas = np.bincount(parts.reshape(-1))
    areas[0] = 0
    largest = areas[parts].max((1, 2), keepdims=True)
    return (parts > 0) & (areas[parts] >= _LEAST_PART * largest)


def _in_frame() -> Bool[np.ndarray, "3 3 3"]:
    """Neighbours of a pixel, none of them in another frame."""
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True
    return structure


def _track(colour: int, masks: Bool[np.ndarray, "t h w"], blobs: dict[int, Bool[np.ndarray, "t h w"]]) -> Track:
    areas = masks.sum((1, 2)).astype(np.float32)
    others = np.zeros_like(masks)
    for other, other_masks in blobs.items():
        if other != colour:
            others |= other_masks
    touched = (ndimage.binary_dilation(others, _CROSS, iterations=_CONTACT) & masks).any((1, 2))
    there = areas > 0.25 * np.median(areas)
    return Track(colour, masks, areas, _centres(masks, areas), _clear(there, touched))


def _centres(masks: Bool[np.ndarray, "t h w"], areas: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t 2"]:
    """Centroids (x, y); where there is nothing, that of no pixels at the origin, which `clear` leaves out."""
    x = masks.sum(1) @ np.arange(masks.shape[2], dtype=np.float32)
    y = masks.sum(2) @ np.arange(masks.shape[1], dtype=np.float32)
    return (np.stack([x, y], -1) / np.maximum(areas, 1)[:, None]).astype(np.float32)


def _clear(there: Bool[np.ndarray, " t"], touched: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
    """Frames to trust: those without contact, unless too few are left."""
    clear = there & ~touched
    return clear if clear.sum() >= max(3, len(clear) // 3) else there
