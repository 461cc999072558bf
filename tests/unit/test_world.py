"""The world's promises: what is sampled can be seen, told apart and described, and is drawn as it says."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import draw, sample_scenes, single, truths

from sixbit_jax.tiny import names
from sixbit_jax.tiny.attributes import HELD_OUT, is_held_out
from sixbit_jax.tiny.motion import REACH, poses
from sixbit_jax.tiny.outlines import OUTLINES
from sixbit_jax.tiny.render import render
from sixbit_jax.tiny.scene import Scene


@pytest.fixture(scope="module")
def scenes() -> Scene:
    return sample_scenes(0)


@pytest.fixture(scope="module")
def paths(scenes: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Centres (b, t, o, 2) and radii (b, t, o) of every scene."""
    return jax.device_get(jax.jit(jax.vmap(poses, (0, None)))(scenes.objects, jnp.linspace(0.0, 1.0, 33)))


def changed(scene: Scene, **fields) -> Scene:
    """The scene with these fields of its first object."""
    objects = {name: getattr(scene.objects, name).copy() for name in fields}
    for name, value in fields.items():
        objects[name][0] = value
    return dataclasses.replace(scene, objects=dataclasses.replace(scene.objects, **objects))


def with_present(scene: Scene, *present: bool) -> Scene:
    return dataclasses.replace(scene, objects=dataclasses.replace(scene.objects, present=np.array(present)))


def test_every_kind_occurs(scenes: Scene):
    objects, background = scenes.objects, scenes.background
    for field, choices in (
        (objects.shape, names.SHAPES),
        (objects.colour, names.COLOURS),
        (objects.finish, names.FINISHES),
        (objects.size, names.SIZES),
        (objects.motion, names.MOTIONS),
        (objects.direction, names.DIRECTIONS),
        (objects.speed, names.SPEEDS),
        (background.kind, names.BACKGROUNDS),
        (background.colour, names.BACKGROUND_COLOURS),
    ):
        assert set(np.unique(field)) == set(range(len(choices)))
    assert objects.present[:, 0].all()
    assert 0.25 < objects.present[:, 1].mean() < 0.45  # 0.35 ± 5 standard deviations of 512 draws


@pytest.mark.parametrize("held_out", [False, True])
def test_the_split_is_kept(held_out: bool):
    assert {is_held_out(truth) for truth in truths(sample_scenes(0, held_out=held_out))} == {held_out}


def test_a_tenth_is_held_out_and_nothing_wholly():
    assert 0.05 < HELD_OUT.mean() < 0.15
    # Of each object with its motion, and of each background.
    for axes in ((3, 4), (0, 1, 2)):
        assert (HELD_OUT.mean(axes) > 0.04).all()
        assert (HELD_OUT.mean(axes) < 0.2).all()


def test_the_split_never_changes():
    """Published results rest on it; the checksum of the table is that of the first release."""
    assert zlib.crc32(np.packbits(HELD_OUT).tobytes()) == 1388717452


def test_objects_stay_in_the_picture(scenes: Scene, paths):
    centres, radii = paths
    seen = scenes.objects.present[:, None, :, None]
    reach = REACH * radii[..., None]
    assert np.where(seen, centres - reach, 0.5).min() > 0
    assert np.where(seen, centres + reach, 0.5).max() < 1


def test_objects_hide_each_other_only_in_passing(scenes: Scene, paths):
    centres, radii = paths
    distance = np.linalg.norm(centres[:, :, 0] - centres[:, :, 1], axis=-1)
    hidden = (distance < radii.max(-1)) & scenes.objects.present[:, 1][:, None]
    touching = (distance < radii.sum(-1)) & scenes.objects.present[:, 1][:, None]
    assert hidden.mean(1).max() < 0.5
    assert touching.any(1).mean() > 0.02  # but it happens


def test_names_tell_things_apart(scenes: Scene):
    for truth in truths(scenes):
        colours = [thing.colour for thing in truth.objects]
        assert len(set(colours)) == len(colours)
        assert truth.background_colour not in colours


@pytest.mark.parametrize("direction", range(len(names.COMPASS)))
def test_lines_go_where_they_say(scenes: Scene, paths, direction: int):
    chosen = (scenes.objects.motion == names.LINEAR) & (scenes.objects.direction == direction)
    way = (paths[0][:, -1] - paths[0][:, 0])[chosen]
    angle = direction * math.pi / 4
    expected = np.array([math.cos(angle), -math.sin(angle)])
    lengths = way @ expected
    np.testing.assert_allclose(way, lengths[:, None] * expected, atol=1e-5)
    assert lengths.min() > 0.21


def test_motions_on_the_spot_do_not_travel(scenes: Scene, paths):
    centres, radii = paths
    moved = np.ptp(centres, axis=1).max(-1)
    growth = radii[:, -1] / radii[:, 0]
    motion = scenes.objects.motion
    assert moved[motion >= names.GROW].max() == 0
    assert moved[motion < names.GROW].min() > 0.14
    assert growth[motion == names.GROW].min() > 1.49
    assert growth[motion == names.SHRINK].max() < 1 / 1.49
    np.testing.assert_array_equal(growth[(motion < names.GROW) | (motion == names.STILL)], 1)


def test_orbits_turn_as_they_say(scenes: Scene, paths):
    chosen = scenes.objects.motion == names.ORBIT
    centres = np.moveaxis(paths[0], 2, 1)[chosen] - scenes.objects.centre[chosen][:, None]
    angles = np.unwrap(np.arctan2(centres[..., 1], centres[..., 0]), axis=1)
    clockwise = scenes.objects.direction[chosen] == names.CLOCKWISE  # on the screen, where y points down
    turned = (angles[:, -1] - angles[:, 0]) / (2 * math.pi)
    np.testing.assert_allclose(turned, np.where(clockwise, 1, -1) * scenes.objects.turns[chosen], atol=1e-4)


def test_the_sense_of_an_orbit_shows_on_average(scenes: Scene, paths):
    """They begin near the top, so a clockwise one is to the right of the others a little later."""
    chosen = scenes.objects.motion == names.ORBIT
    centres = np.moveaxis(paths[0], 2, 1)[chosen] - scenes.objects.centre[chosen][:, None]
    assert centres[:, 0, 1].max() < 0
    clockwise = scenes.objects.direction[chosen] == names.CLOCKWISE
    early = centres[:, centres.shape[1] // 4, 0]
    assert early[clockwise].mean() > 0.1
    assert early[~clockwise].mean() < -0.1


@pytest.mark.parametrize("name", names.SHAPES)
def test_outlines_are_distances_within_reach(name: str):
    grid = jnp.linspace(-1.5, 1.5, 301)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1)
    outline = OUTLINES[name]
    distance = np.asarray(outline(points))
    inside = np.asarray(points)[distance < 0]
    assert np.abs(inside).max() <= REACH
    assert 1.0 < (distance < 0).mean() * 9 < 3.2  # of comparable weight, in squared radii
    slope = np.linalg.norm(jax.vmap(jax.vmap(jax.grad(outline)))(points), axis=-1)
    # Exact but for points beside creases, where two edges are equally near.
    near = slope[np.abs(distance) < 0.02]
    assert (np.abs(near - 1) < 1e-3).mean() > 0.98


def test_a_disc_covers_its_area(scenes: Scene):
    """Antialiasing keeps areas: the sum of coverages is that of the disc, to a part in a thousand."""
    scene = changed(
        single(scenes, 0), shape=0, radius=0.2, growth=0.0, finish=names.SOLID, motion=names.STILL, tint=1.0
    )
    scene = with_present(scene, True, False)
    background = dataclasses.replace(scene.background, kind=np.int32(names.PLAIN), tint=np.zeros(3, np.float32))
    video = draw(dataclasses.replace(scene, background=background), frames=1)
    np.testing.assert_allclose((video[0, ..., 0] + 1).sum() / 2 / 128**2, math.pi * (0.96 * 0.2) ** 2, rtol=1e-3)


def test_videos_are_in_range_and_repeat(scenes: Scene):
    video = draw(single(scenes, 1))
    assert video.shape == (17, 128, 128, 3) and video.dtype == np.float32
    assert video.min() >= -1 and video.max() <= 1 and np.ptp(video) > 0.3
    np.testing.assert_array_equal(video, draw(single(scenes, 1)))


def test_more_frames_show_the_same_motion(scenes: Scene):
    np.testing.assert_allclose(draw(single(scenes, 2), frames=33)[::2], draw(single(scenes, 2)), atol=1e-4)


def test_wider_frames_show_more_background(scenes: Scene):
    for index in range(6):
        wide = draw(single(scenes, index), frames=3, height=64, width=96)
        np.testing.assert_allclose(
            wide[:, :, 16:80], draw(single(scenes, index), frames=3, height=64, width=64), atol=1e-3
        )


def test_every_pattern_is_drawn_in_its_own_shades(scenes: Scene):
    """The mean of a background is its tint, give or take the share of light in its pattern."""
    base = with_present(single(scenes, 0), False, False)
    for kind, name in enumerate(names.BACKGROUNDS):
        background = dataclasses.replace(base.background, kind=np.int32(kind))
        image = (draw(dataclasses.replace(base, background=background), frames=1)[0] + 1) / 2
        shade = image / background.tint
        assert abs(shade.mean() - 1) < 0.12, name
        low, high = names.GRADIENT_SHADES if kind == names.GRADIENT else names.TEXTURE_SHADES
        assert low - 1e-3 < shade.min() and shade.max() < high + 1e-3, name
        assert (np.ptp(shade) < 1e-5) == (kind == names.PLAIN), name


def test_videos_can_be_rendered_in_batches(scenes: Scene):
    pair = jax.tree.map(lambda leaf: leaf[:2], scenes)
    videos = jax.jit(jax.vmap(lambda scene: render(scene, frames=3, height=64, width=64)))(pair)
    np.testing.assert_allclose(videos[1], draw(single(scenes, 1), frames=3, height=64, width=64), atol=1e-4)
