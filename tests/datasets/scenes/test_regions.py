"""Drawn scenes as regions: the boxes are the things', and the features tell what the labels say."""

import random

import numpy as np

from clip_vl.datasets.features.regions import check_regions, normalised_boxes
from clip_vl.datasets.scenes.drawing import draw_scene
from clip_vl.datasets.scenes.regions import LOOKS, OBJECTS, WIDTH, scene_regions
from clip_vl.datasets.scenes.scene import random_scene


def records(count):
    for number in range(count):
        scene = random_scene(random.Random(number))
        yield scene, scene_regions(scene, draw_scene(scene, np.random.default_rng(number)))


def test_boxes_and_labels_are_those_of_the_things():
    for scene, record in records(20):
        check_regions(record)
        assert record["features"].shape == (len(scene.things), WIDTH)
        for thing, box, name, look in zip(
            scene.things, normalised_boxes(record), record["objects_id"], record["attrs_id"]
        ):
            assert (OBJECTS[name], LOOKS[look]) == (thing.shape, thing.color)
            centre = (box[0] + box[2]) / 2 * scene.width, (box[1] + box[3]) / 2 * scene.height
            assert np.allclose(centre, (thing.x, thing.y), atol=0.2)


def test_the_nearest_feature_has_mostly_the_same_colour_and_shape():
    features, names, looks = [], [], []
    for _, record in records(300):
        features.append(record["features"].astype(np.float32))
        names.append(record["objects_id"])
        looks.append(record["attrs_id"])
    features, names, looks = map(np.concatenate, (features, names, looks))
    features = features.astype(np.float64)
    squares = (features**2).sum(1)
    distance = squares[:, None] + squares - 2 * features @ features.T + 1e9 * np.eye(len(features))
    nearest = distance.argmin(1)
    assert (names[nearest] == names).mean() > 0.8 and (looks[nearest] == looks).mean() > 0.7
