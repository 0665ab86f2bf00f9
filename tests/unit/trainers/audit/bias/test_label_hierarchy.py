"""Label hierarchy: a tree small enough to count by hand, and heights against a brute force."""

import numpy as np
import pytest

from datasets import words
from datasets.errors import InputError
from datasets.evaluation.classes import class_names
from datasets.seeding import rng
from tests.unit.trainers.audit.bias.subjects import by_row, noise, pictures, subject
from trainers.audit.bias.label_hierarchy import LabelHierarchy, heights, paths_of, related

NAMES = ("cat", "dog", "eagle", "bird", "oak")
TREE = (("cat", "mammal"), ("dog", "mammal"), ("eagle", "bird"), ("mammal", "animal"), ("bird", "animal"), ("oak", "plant"),
        ("animal", "thing"), ("plant", "thing"))  # fmt: skip
LABEL = [0, 0, 0, 1, 2, 3, 4, 4]
ANSWER = [0, 1, 2, 4, 3, 2, 4, 0]
"""right, sister, cousin, far away, class above, class below, right, far away"""


def found(audit, names=NAMES, label=LABEL, answer=ANSWER, **more):
    given = pictures(noise(len(label)), label)
    return audit.run(subject(given, by_row(given, answer), names, **more))


def told(result):
    return {name.removeprefix("bias/label_hierarchy/"): value for name, value in result.metrics.items()}


def test_a_tree_counted_by_hand():
    result = found(LabelHierarchy(tree=TREE))
    values = told(result)
    expected = {"n": 8, "exact": 100 * 2 / 8, "related": 100 * 4 / 8, "depth": 3, "level/1": 100 * 6 / 8, "level/2": 100 * 5 / 8,
                "level/3": 100 * 2 / 8, "level/1_groups": 2, "level/2_groups": 3, "level/3_groups": 5}  # fmt: skip
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    # heights of mistakes: mammal 1, animal 2, thing 3, bird 1, bird 1, thing 3
    assert result.rows["height"] == [0, 1, 2, 3, 1, 1, 0, 3] and values["mistake_height"] == pytest.approx(11 / 6)
    assert result.rows["related"] == [True, False, False, False, True, True, True, False]
    # of an answer drawn from all five, at level 1: 4/5 for each of six animals, 1/5 for each of two oaks
    assert values["level/1_chance"] == pytest.approx(100 * (6 * 4 / 5 + 2 * 1 / 5) / 8)
    # of one drawn from the other four: cat (1 + 2 + 2 + 3)/4 twice, dog the same, eagle (2 + 2 + 1 + 3)/4, bird the same, oak 3
    assert values["mistake_height_chance"] == pytest.approx((2 + 2 + 2 + 2 + 2 + 3) / 6)


def test_neither_batches_nor_right_answers_trouble_it():
    assert found(LabelHierarchy(tree=TREE), batch_size=1) == found(LabelHierarchy(tree=TREE), batch_size=7)
    assert "mistake_height" not in told(found(LabelHierarchy(tree=TREE), answer=LABEL))


def test_answers_among_several_classes(tmp_path):
    file = tmp_path / "several.csv"
    file.write_text("key,class\nk1,cat\nk1,dog\nk2,cat\nk3,oak\nk5,bird\n")
    values = told(found(LabelHierarchy(tree=TREE, several=str(file))))
    assert values["n_multi_label"] == 4 and values["multi_label"] == 50 and values["multi_label_or_related"] == 75
    for text, message in (
        ("key,class\nk1,cow\n", "names the class 'cow'"),
        ("key,class\nz,cat\n", "lists none of the pictures"),
        ("key,name\nk1,cat\n", "has no column 'class'"),
        ("key,class\nk1,\n", "row 2 has no class"),
        ("key,class\n", "has no rows"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            found(LabelHierarchy(tree=TREE, several=str(file)))


def test_heights_and_kin_are_those_of_a_brute_force():
    for seed in range(5):
        draw = rng("tree", seed)
        parents = {str(i): str(draw.integers(i)) for i in range(1, 40)}
        nodes = [str(i) for i in draw.choice(40, 15, replace=False)]
        above = {}
        for node in map(str, range(40)):
            chain, here = [node], node
            while here in parents:
                here = parents[here]
                chain.append(here)
            above[node] = chain
        paths = paths_of(nodes, parents)
        height_KK, related_KK = heights(paths), related(paths)
        for i, one in enumerate(nodes):
            for j, other in enumerate(nodes):
                lowest = next(node for node in above[one] if node in above[other])
                steps = max(above[node].index(lowest) for node in nodes if lowest in above[node])
                assert height_KK[i, j] == (0 if i == j else steps)
                assert related_KK[i, j] == (one in above[other] or other in above[one])


def test_a_forest_gets_a_root():
    values = told(found(LabelHierarchy(tree=TREE[:-2])))
    assert values["level/1"] == 75 and values["level/1_groups"] == 2


def test_imagenets_tree_needs_no_wordnet(monkeypatch):
    monkeypatch.setattr(words, "wordnet_folder", lambda: None)
    names = class_names("imagenet1k")
    retriever, labrador, banana = (next(i for i, name in enumerate(names) if name.lower() == wanted)
                                   for wanted in ("golden retriever", "labrador retriever", "banana"))  # fmt: skip
    result = found(LabelHierarchy(), names, [retriever, retriever, banana], [retriever, labrador, retriever])
    values = told(result)
    assert values["exact"] == pytest.approx(100 / 3) and result.rows["height"][1] == 1 and result.rows["height"][2] > 8
    assert values["level/1"] == 100 and values[f"level/{values['depth']}_groups"] == 1000
    with pytest.raises(InputError, match="WordNet is not on this machine.*tree of your own"):
        found(LabelHierarchy())


def test_trees_that_are_none():
    for tree, text in (
        ((("a", "b"), ("b", "a")), "in a circle"),
        ((("a", "b"), ("a", "c")), "'a' no parent or more than one"),
        ((), "no parent"),
    ):
        with pytest.raises(InputError, match=text):
            LabelHierarchy(tree=tree)
    with pytest.raises(InputError, match="no class 'oak'"):
        found(LabelHierarchy(tree=TREE[:5]))
    assert np.isfinite(list(told(found(LabelHierarchy(tree=TREE))).values())).all()
