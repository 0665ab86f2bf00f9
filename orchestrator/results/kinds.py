"""Which objective and which cleaning method a stage ran, by the component's class and by its label.

Labels are for people, and two classes may have the same one. So `kind_of` decides which stages belong together, and `study_objective` and
`study_method` recognise what the study of CleanCLIP tried; the latter look at classes and weights, never at labels.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import Any

from datasets.component import Component
from orchestrator.experiment.fingerprint import ID, LABEL
from orchestrator.experiment.source_code import path_of
from orchestrator.results.outcome import StageResult, TrialResult

Node = dict[str, Any]
"""A component as JSON: its class, its label if it was stored, and its fields."""
Kind = tuple[str, ...]
"""The label, then the classes behind it. Our own components have no classes here, because their labels name their losses."""


@cache
def own() -> dict[str, type[Component]]:
    """Path → class of the objectives and cleaning methods that come with the project."""
    from trainers.methods.deep_clustering import DeepClustering
    from trainers.methods.finetune import CleanCLIP, FineTune, MMCLFineTune, SSLFineTune
    from trainers.methods.pseudo_labels import PseudoLabels
    from trainers.methods.shrink_perturb import ShrinkPerturb
    from trainers.objectives.clustering import Clustering
    from trainers.objectives.contrastive import MMCL, MMCLSSL, SSL, Contrastive
    from trainers.objectives.siglip import SigLIP

    contrastive = (Contrastive, MMCL, MMCLSSL, SSL, SigLIP, Clustering)
    cleaning = (FineTune, MMCLFineTune, CleanCLIP, SSLFineTune, ShrinkPerturb, DeepClustering, PseudoLabels)
    paths = {path_of(cls): cls for cls in (*contrastive, *cleaning)}
    return paths | {path.replace("trainers.methods.", "trainers.cleaning."): cls for path, cls in paths.items()}  # former paths


@cache
def reserved() -> frozenset[str]:
    """Labels of the project's own components; any other class with such a label is always shown with its class."""
    return frozenset({"MMCL", "SSL", "MMCL+SSL", "CleanCLIP", "SigLIP", "deep-clustering", "pseudo-labels"})


def objective_node(stage: StageResult) -> Node:
    """The pre-training objective, or the given model; empty if the configuration has neither."""
    pretrain = _node(stage.config, "pretrain")
    return _node(stage.config, "pretrain", "objective") or (pretrain if "checkpoint" in pretrain else {})


def method_node(stage: StageResult) -> Node:
    """The cleaning method; the configuration in a manifest is that of the cleaning alone."""
    return _node(stage.config, "clean", "method") or ({} if "clean" in stage.config else _node(stage.config, "method"))


def component_of(stage: StageResult) -> Node:
    """The method of a cleaning, the objective of any other training."""
    return method_node(stage) if isinstance(stage, TrialResult) else objective_node(stage)


def attack_text(stage: StageResult) -> str:
    """Trigger and target of each attack that a training's data have: "Blended → banana"; empty where nobody is poisoned."""
    several = stage.config.get("attacks") or ()
    attacks = [attack for attack in (stage.config.get("poison"), *several) if isinstance(attack, dict) and attack.get("count") != 0]
    return ", ".join(f"{label_of(_node(attack, 'trigger'))} → {attack.get('target')}" for attack in attacks)


def label_of(node: Node) -> str:
    """The component's label; if it was not stored, the one that its class would give, or the class's name."""
    if isinstance(node.get(LABEL), str):
        return node[LABEL]
    path = str(node.get("class", ""))
    return _bare(node).label if path in own() else path.rpartition(".")[2]


def kind_of(node: Node) -> Kind:
    """Equal for two components if they are the same objective or method, possibly with other settings."""
    return (label_of(node), *(path for path in _classes(node) if path not in own()))


def names(stages: Sequence[StageResult]) -> dict[str, str]:
    """Fingerprint → name of the stage's component: its label, and its class if another class has the same label."""
    nodes = {stage.fingerprint: component_of(stage) for stage in stages}
    alike: dict[str, set[Kind]] = {}
    for node in nodes.values():
        alike.setdefault(label_of(node), set()).add(kind_of(node))
    return {s.fingerprint: s.called or name_of(nodes[s.fingerprint], alike[label_of(nodes[s.fingerprint])]) or s.name for s in stages}


def name_of(node: Node, alike: Collection[Kind] = ()) -> str:
    """The component's label. Its class is added if it is not ours and the label also belongs to ours or to another of the kinds `alike`."""
    label, *classes = kind_of(node)
    shown = classes if len(alike) > 1 else [path for path in classes if _is_reserved(node, path)]
    others = {path for kind in alike for path in kind[1:]} | set(own())
    return f"{label} ({', '.join(ending(path, others) for path in shown)})" if shown else label


def is_a(node: Node, *classes: type[Component]) -> bool:
    """Whether a component's class is one of these; a derived class is not."""
    return node.get("class") in [path_of(cls) for cls in classes]


def study_objective(stage: StageResult) -> str:
    """The objective as the study calls it ("MMCL", "MMCL+SSL", "SSL"), by class and weights; empty for any other class."""
    return _losses(objective_node(stage), "trainers.objectives.contrastive", ("Contrastive", "MMCL", "MMCLSSL", "SSL"))


def study_method(stage: StageResult) -> str:
    """The cleaning as the study calls it ("CleanCLIP", "MMCL", "SSL"), by class and weights; empty for any other class."""
    losses = _losses(method_node(stage), "trainers.methods.finetune", ("FineTune", "MMCLFineTune", "CleanCLIP", "SSLFineTune"))
    return "CleanCLIP" if losses == "MMCL+SSL" else losses


def _losses(node: Node, module: str, classes: Sequence[str]) -> str:
    from trainers.objectives.contrastive import losses

    if node.get("class") not in [f"{module}.{name}" for name in classes]:
        return ""
    return losses(node.get("clip_weight", 0), node.get("inmodal_weight", 0))


def _node(config: Any, *path: str) -> Node:
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, dict) and "class" in config else {}


def _classes(node: Node) -> Iterator[str]:
    """The component's class, and those of the parts that its label names."""
    yield str(node.get("class", ""))
    for part in node.values():
        if isinstance(part, dict) and "class" in part and label_of(part) in label_of(node):
            yield from _classes(part)


def _is_reserved(node: Node, path: str) -> bool:
    """Whether this class, of the component or of a part of it, has the label of one of ours."""
    parts = [part for part in node.values() if isinstance(part, dict) and "class" in part]
    return (node.get("class") == path and label_of(node) in reserved()) or any(_is_reserved(part, path) for part in parts)


def ending(path: str, others: Collection[str]) -> str:
    """The shortest ending of a class's path that no other path has."""
    parts = path.split(".")
    endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    clash = set(others) - {path}
    return next((end for end in endings if not any(f".{other}".endswith(f".{end}") for other in clash)), path)


def _bare(node: Node) -> Component:
    """A component of ours made from the fields of a configuration, to ask for its label."""
    cls = own()[node["class"]]
    component = object.__new__(cls)
    for name, value in node.items():
        if name not in ("class", ID):
            inner = isinstance(value, dict) and "class" in value
            object.__setattr__(component, name, (_bare(value) if value["class"] in own() else _Named(label_of(value))) if inner else value)
    return component


class _Named:
    """A stand-in for a component of which only the label is known."""

    def __init__(self, label: str):
        self.label = label
