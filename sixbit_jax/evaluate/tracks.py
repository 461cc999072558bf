"""Objects as one-coloured blobs, and where each is over time."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from sixbit_jax.evaluate.colours import NO_OBJECT, label_colours

# Of the picture, on average over the video. The world's smallest object has 0.01 and its largest 0.15; what fills more
# is a background of the wrong colour.
_LEAST_AREA, _MOST_AREA = 0.004, 0.5
_LEAST_PART = 0.2  # of the largest part of an object; smaller parts are dirt
_CROSS = ndimage.generate_binary_structure(2, 1)[None]  # neighbours within a frame
_CONTACT = 3  # pixels between two objects that count as touching
_LEAST_THERE = 0.25  # of the usual area; with less, the object is not there

# How much of an object has to be seen to know where it is, and what it is.
LOCATED, WHOLE = 0.6, 0.93


@dataclasses.dataclass(frozen=True)
class Track:
    """One object. Lengths are in pixels, y down."""

    colour: int
    masks: Bool[np.ndarray, "t h w"]
    areas: Float[np.ndarray, " t"]
    centres: Float[np.ndarray, "t 2"]
    shown: Float[np.ndarray, " t"]  # how much of the object is to be seen: less than 1 behind another, 0 if not there

    def frames(self, least: float) -> Int[np.ndarray, " frames"]:
        """The frames that show at least so much of the object, or else the best three."""
        best = np.sort(self.shown[self.shown > 0])[-3:]
        return np.flatnonzero(self.shown >= min(least, best[0]))


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
    return Track(colour, masks, areas, _centres(masks, areas), _shown(areas, touched))


def _centres(masks: Bool[np.ndarray, "t h w"], areas: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t 2"]:
    """Centroids (x, y); the origin where there is nothing."""
    x = masks.sum(1) @ np.arange(masks.shape[2], dtype=np.float32)
    y = masks.sum(2) @ np.arange(masks.shape[1], dtype=np.float32)
    return (np.stack([x, y], -1) / np.maximum(areas, 1)[:, None]).astype(np.float32)


def _shown(areas: Float[np.ndarray, " t"], touched: Bool[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """What can be seen, over what there would be: the area between frames in which nothing else is near."""
    times = np.arange(len(areas))
    free = (areas > _LEAST_THERE * np.median(areas)) & ~touched
    whole = np.interp(times, times[free], areas[free]) if free.any() else np.full(len(areas), areas.max())
    shown = np.where(touched, np.minimum(areas / whole, 1), 1)
    return np.where(areas > _LEAST_THERE * np.median(areas), shown, 0).astype(np.float32)
