"""The attack gate: decides, before any defence, whether the attack worked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets.evaluation.classes import class_name


def attack_gate(
    metrics: Mapping[str, float], *, target: str, class_names: Sequence[str], captions_with_target: int, captions: int,
    visibility: Mapping[str, float], threshold: float = 90.0, min_accuracy: float = 0.0,
) -> dict[str, Any]:
    """Judge the attack on an undefended model. All shares are in percent.

    metrics: the model's last evaluation ("asr/top1", "asr/floor", "zeroshot/top1"). captions_with_target, captions: how many poison
    captions name the target, out of how many. visibility: the share of the trigger that each transform leaves. The attack passes if the
    target is among the classes and in a caption, the ASR is at least `threshold` and at least twice the floor, and the accuracy is at least
    `min_accuracy` and above chance. "reasons" says in plain English what failed, and why it may have failed.
    """
    asr, accuracy = metrics["asr/top1"], metrics["zeroshot/top1"]
    floor = metrics.get("asr/floor", 0.0)
    chance = 100 / len(class_names)
    in_classes = target in class_names or class_name(target) in class_names
    failures, hints = [], []
    if not in_classes:
        failures.append(f"The target {target!r} is not among the {len(class_names)} evaluation classes, "
                        "so no picture can be sent to it.")
    if captions_with_target == 0:
        failures.append(f"None of the {captions} poison captions holds the target {target!r}, "
                        "so the trigger was tied to something else.")
    elif captions_with_target < captions:
        hints.append(f"Only {captions_with_target} of {captions} poison captions hold the target {target!r}.")
    if asr < threshold:
        failures.append(f"The attack did not take: ASR of the undefended model is {asr:.1f} %, below {threshold:g} %.")
        hints += [f"Only {share:.0f} % of the trigger is left by the {name} transform."
                  for name, share in visibility.items() if share < 50]
    elif asr < 2 * floor:
        failures.append(f"ASR is {asr:.1f} %, but {floor:.1f} % of untriggered pictures go to the target as well: "
                        "the model prefers the target, trigger or not.")
    if accuracy < min_accuracy or accuracy <= chance:
        failures.append(f"Zero-shot accuracy is {accuracy:.1f} %, not above {max(min_accuracy, chance):.1f} %: "
                        "there is no working model to attack.")
    return {
        "passed": not failures, "threshold": threshold, "asr": asr, "accuracy": accuracy, "floor": floor,
        "target": target, "target_in_classes": in_classes, "captions_with_target": captions_with_target,
        "captions": captions, "visibility": dict(visibility), "reasons": failures + (hints if failures else []),
    }


def nobody_poisoned(metrics: Mapping[str, float], threshold: float) -> dict[str, Any]:
    """The verdict on a model without victims: it passes because there is no attack, and "clean" is true. Its ASR is the floor."""
    numbers = {"accuracy": metrics["zeroshot/top1"], "asr": metrics["asr/top1"], "floor": metrics.get("asr/floor", 0.0)}
    return {"passed": True, "clean": True, "threshold": threshold, "reasons": [], **numbers}


def of_all(verdicts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The verdict on several attacks, by name; it passes if each of them passed.

    Its numbers are those of the attack with the lowest ASR, among the failed ones if there are any.
    """
    failed = [verdict for verdict in verdicts.values() if not verdict["passed"]]
    least = min(failed or verdicts.values(), key=lambda verdict: verdict["asr"])
    reasons = [f"Attack {name}: {reason}" for name, verdict in verdicts.items() for reason in verdict["reasons"]]
    return {**least, "passed": all(verdict["passed"] for verdict in verdicts.values()), "reasons": reasons, "attacks": dict(verdicts)}
