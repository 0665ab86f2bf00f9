"""How robust a zero-shot classifier is against an attack, with or without a defence.

Shape suffixes: B pictures, N all pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from datasets.component import since
from datasets.errors import InputError
from trainers.audit.attacks.base import Attack, Attacked, lengths, margin
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.bias.shared import by_hash
from trainers.audit.classifier import Classifier, as_bytes
from trainers.audit.defences.adaptive import EOT, adaptive
from trainers.audit.defences.base import Defence
from trainers.audit.defences.halves import halves
from trainers.audit.shares import beyond_chance, share
from trainers.audit.tables import attack_rows, noisy

MASKED = 50.0
"""More pictures than this share (in percent) with a zero gradient, and the attack says nothing."""
LOOKED_AT = 64
"""Pictures, at most, on which an attack looks for reasons against its result; chosen by the hashes of their keys."""
SHOWN = 6
"""Pictures in the gallery."""


@dataclass(frozen=True, kw_only=True)
class Robustness(Audit):
    """Accuracy under an attack: the share of all pictures that are classified correctly, and still are when attacked.

    Only pictures that are classified correctly are attacked; the others count as fooled. Noise of the same size, drawn uniformly from the
    sphere (L2) or the corners of the box (L∞), is tried beside the attack; beside a minimal attack noise as large as its change, and as
    large as each of the radii. An attack that is weaker than noise beyond chance has failed.
    """

    attack: Attack
    defence: Defence | None = None
    """What stands before the classifier."""
    mode: Literal["oblivious", "adaptive"] = "oblivious"
    """The attacker knows the bare classifier alone, or also the defence (EOT and BPDA). Without a defence both are the same."""
    eot: EOT = EOT()
    """How an adaptive attacker averages over what is random."""
    radii: tuple[float, ...] = since(())
    """Of a minimal attack: the ε at which robust accuracy is read off."""
    worst: bool = since(False)
    """Of an adaptive attack: the oblivious one is made too, and for each picture that one of the two results is taken that fools the
    defended classifier more, in the attacker's own draws (`worse`)."""

    def __post_init__(self) -> None:
        if self.defence is None and self.mode == "adaptive":
            raise InputError("Robustness.mode is adaptive, but there is no defence to adapt to; give a defence, or oblivious.")
        if self.worst and self.mode != "adaptive":
            raise InputError("Robustness.worst is true, and Robustness.mode is oblivious; accepted: adaptive, whose result is compared.")
        if self.attack.minimal and not self.radii:
            raise InputError(f"Robustness.radii is empty; {self.attack.label} finds the smallest change: name the ε to read off.")
        if not self.attack.minimal and not hasattr(self.attack, "eps"):
            raise InputError(f"Robustness.attack is {self.attack.label}, which no ε bounds; accepted: attacks within ε, and minimal ones. "
                             "A patch is audited by Planted.")

    @property
    def group(self) -> str:  # type: ignore[override]
        """The part of the page."""
        return "defences" if self.defence is not None else "black box" if self.attack.black_box else "attacks"

    @property
    def label(self) -> str:
        norm = " L2" if self.attack.norm == "l2" else ""
        return self.attack.label + norm + (f" on {self.defence.label}, {self.mode}" if self.defence is not None else "")

    @property
    def slug(self) -> str:
        return "robustness"

    def check(self, subject_classes: int, triggered: bool) -> None:
        self.attack.check(subject_classes)

    def run(self, subject: Subject) -> Findings:
        bare = subject.classifier
        rows: dict[str, list[Any]] = {}
        shown: list[tuple[np.ndarray, np.ndarray]] = []
        whole: list[tuple[np.ndarray, Defence | None]] = [(np.arange(len(subject.pictures)), None)]
        for at_n, defence in whole if self.defence is None else halves(self.defence, subject.pictures):
            judge = bare if defence is None else defence.guard(bare)
            seen = adaptive(defence, bare, self.eot) if defence is not None and self.mode == "adaptive" else bare
            for part in replace(subject, pictures=subject.pictures.part(at_n)).batches():
                for name, values in self._batch(part, bare, defence, judge, seen, subject, shown).items():
                    rows.setdefault(name, []).extend(values)
        gallery = {}
        if shown:
            clean_nHWC, adversarial_nHWC = (np.stack(side) for side in zip(*shown))
            gallery = {"clean": clean_nHWC, "change, magnified": magnified(clean_nHWC, adversarial_nHWC), self.label: adversarial_nHWC}
        metrics = self._metrics(rows)
        notes = [*self._notes(metrics), *(f"{self.label}: {text}" for text in self._warnings(subject))]
        return Findings(metrics, rows, gallery, failures=tuple(self._failures(metrics, rows)), notes=tuple(notes))

    def _batch(
        self, part: Pictures, bare: Classifier, defence: Defence | None, judge: Classifier, seen: Classifier, subject: Subject,
        shown: list[Any],
    ) -> Mapping[str, Sequence[Any]]:
        clean_BCHW, label_B, keys = part.floats(bare), part.labels(bare), part.keys
        before_B = judge.predict(clean_BCHW, keys)
        right = (before_B == label_B).nonzero()[:, 0]
        found_BCHW, after_B, noise_B = clean_BCHW.clone(), before_B.clone(), before_B.clone()
        queries, zero = torch.zeros(len(part), dtype=torch.int64), torch.full((len(part),), float("nan"))
        noise_size_B = torch.full((len(part),), float("nan"), dtype=torch.float64)
        alone_B = before_B.clone() if self.worst else None
        if len(right):
            own = [keys[i] for i in right.tolist()]
            attacked: Attacked = self.attack.perturb(seen, clean_BCHW[right], label_B[right], own)
            first_bCHW = attacked.picture_BCHW.detach().to(found_BCHW)
            found_BCHW[right] = first_bCHW
            if alone_B is not None and defence is not None:
                oblivious = self.attack.perturb(bare, clean_BCHW[right], label_B[right], own)
                second_bCHW = oblivious.picture_BCHW.detach().to(found_BCHW)
                first, second = (
                    looked_at(defence, bare, self.eot, x_bCHW, label_B[right], own, lengths(x_bCHW - clean_BCHW[right], self.attack.norm))
                    for x_bCHW in (first_bCHW, second_bCHW)
                )
                second_b = worse(first, second, self.attack.minimal)
                found_BCHW[right] = torch.where(second_b[:, None, None, None], second_bCHW, first_bCHW)
                attacked = replace(attacked, queries_B=attacked.queries_B + oblivious.queries_B + 2)
            after_B[right] = judge.predict(found_BCHW[right], own)
            if alone_B is not None and defence is not None:  # by the same draws, so that the same picture is judged alike
                alone_B[right] = defence.guard(bare, first=1).predict(first_bCHW, own)
            queries[right.cpu()], zero[right.cpu()] = attacked.queries_B.cpu(), attacked.zero_gradient_B.float().cpu()
            change_bCHW = found_BCHW[right] - clean_BCHW[right]
            eps_b = torch.full((len(right),), float(getattr(self.attack, "eps", 0.0))).to(clean_BCHW)
            size_b = lengths(change_bCHW, self.attack.norm) if self.attack.minimal else eps_b
            noise_B[right] = self._under_noise(judge, clean_BCHW[right], size_b, own)
            for radius in sorted(self.radii, reverse=True) if self.attack.minimal else ():
                got_b = self._under_noise(judge, clean_BCHW[right], torch.full_like(size_b, radius), own)
                noise_size_B[right[got_b != label_B[right]].cpu()] = radius
        fooled_B = (before_B == label_B) & (after_B != label_B)
        for i in fooled_B.nonzero()[:, 0].tolist()[: SHOWN - len(shown)]:
            shown.append((part.image_NHWC[i], as_bytes(found_BCHW[i : i + 1])[0].numpy()))
        per_B = {
            "y": label_B, "clean_prediction": before_B, "prediction": after_B, "success": fooled_B, "queries": queries,
            "zero_gradient_share": zero, "noise_prediction": noise_B, "noise_size": noise_size_B,
            **({} if alone_B is None else {"alone_prediction": alone_B}),
        }  # fmt: skip
        behind, mode = (self.defence.label, self.mode) if self.defence is not None else (None, None)
        return attack_rows(self.attack, subject, keys, clean_BCHW, found_BCHW, per_B, behind, mode)

    def _under_noise(self, judge: Classifier, picture_BCHW: torch.Tensor, size_B: torch.Tensor, keys_B: Sequence[str]) -> torch.Tensor:
        """What the pictures are taken for with random noise of these sizes, int64 [B]."""
        return judge.predict(noisy(picture_BCHW, size_B, self.attack.norm, self.attack.seed, keys_B), keys_B)

    def _metrics(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        """robust/…: clean accuracy, robust accuracy, accuracy under noise, each with Wilson's 95 % interval, n, and what it took."""
        n = len(rows["key"])
        if not n:
            raise InputError("there are no pictures to audit; accepted: at least one.")
        correct_N = np.array(rows["clean_prediction"]) == np.array(rows["y"])
        found: dict[str, float] = {"robust/n": n, "robust/clean_n": int(correct_N.sum())}
        found |= share("robust/clean", int(correct_N.sum()), n)
        for eps, attacked_N in self.right_under_attack(rows).items():
            found |= share(f"robust/at_{eps:g}" if self.attack.minimal else "robust/accuracy", int(attacked_N.sum()), n)
        if self.attack.minimal:
            size_N, fooled_N = np.array(rows[self.attack.norm], float), np.array(rows["success"], bool)
            found["robust/median_size"] = float(np.median(size_N[fooled_N])) if fooled_N.any() else float("nan")
            for eps, noisy_N in self.right_under_noise(rows).items():
                found |= share(f"robust/noise_at_{eps:g}", int(noisy_N.sum()), n)
        if self.worst and not self.attack.minimal:  # of a minimal attack the rows tell more: which size fooled each picture
            alone_N = np.array(rows["alone_prediction"]) == np.array(rows["y"])
            found |= share("robust/alone", int((correct_N & alone_N).sum()), n)
        noise_N = np.array(rows["noise_prediction"]) == np.array(rows["y"])
        found |= share("robust/noise", int((correct_N & noise_N).sum()), n)
        attacked = np.array(rows["queries"])[correct_N]
        found["robust/queries"] = float(attacked.mean()) if len(attacked) else 0.0
        zero_N = np.array(rows["zero_gradient_share"], float)[correct_N]
        known_N = zero_N[~np.isnan(zero_N)]
        if len(known_N):
            found["robust/zero_gradient"] = 100 * float(known_N.mean())
        return found

    def right_under_attack(self, rows: Mapping[str, Sequence[Any]]) -> dict[float, np.ndarray]:
        """ε → which pictures are classified correctly under attack, bool [N]: at the attack's ε, or at each of the radii."""
        correct_N = np.array(rows["clean_prediction"]) == np.array(rows["y"])
        if not self.attack.minimal:
            return {self.attack.eps: correct_N & (np.array(rows["prediction"]) == np.array(rows["y"]))}  # type: ignore[attr-defined]
        fooled_N, size_N = np.array(rows["success"], bool), np.array(rows[self.attack.norm], float)
        return {radius: correct_N & ~(fooled_N & (size_N <= radius)) for radius in self.radii}

    def right_under_noise(self, rows: Mapping[str, Sequence[Any]]) -> dict[float, np.ndarray]:
        """The same for random noise of that size. As a minimal attack may end anywhere within a radius, so may noise: it counts if its size
        is this radius or a smaller one of them."""
        correct_N = np.array(rows["clean_prediction"]) == np.array(rows["y"])
        if not self.attack.minimal:
            return {self.attack.eps: correct_N & (np.array(rows["noise_prediction"]) == np.array(rows["y"]))}  # type: ignore[attr-defined]
        size_N = np.array(rows["noise_size"], float)  # NaN: no noise turned it
        return {radius: correct_N & ~(size_N <= radius) for radius in self.radii}

    def _failures(self, metrics: Mapping[str, float], rows: Mapping[str, Sequence[Any]]) -> list[str]:
        found = []
        noise = self.right_under_noise(rows)
        for eps, attacked_N in self.right_under_attack(rows).items():
            if beyond_chance(int((attacked_N & ~noise[eps]).sum()), int((noise[eps] & ~attacked_N).sum())):
                at = f" within {eps:g}" if self.attack.minimal else ""
                found.append(
                    f"{self.label}: the attack leaves {100 * attacked_N.mean():.1f} % of the pictures right{at}, random noise of the same "
                    f"size {100 * noise[eps].mean():.1f} %: the attack does not work."
                )
        if metrics.get("robust/zero_gradient", 0.0) > MASKED:
            found.append(f"{self.label}: {metrics['robust/zero_gradient']:.0f} % of the gradients are exactly 0: it saw nothing to follow.")
        return found

    def _warnings(self, subject: Subject) -> Sequence[str]:
        """What the attack itself says against its result on this classifier."""
        part = subject.pictures.part(by_hash(subject.pictures.keys, self.attack.seed, "warnings")[:LOOKED_AT])
        return self.attack.warnings(subject.classifier, part.floats(subject.classifier), part.keys)

    def _notes(self, metrics: Mapping[str, float]) -> list[str]:
        if not metrics["robust/clean_n"]:
            return [f"{self.label}: no picture is classified correctly, so there was nothing to attack."]
        return []


class Look(NamedTuple):
    """What an attacker sees of attacked pictures before the defence does."""

    fooled_B: torch.Tensor
    """Share of the draws in which the defended classifier is fooled, 0 … 1."""
    margin_B: torch.Tensor
    """Best other logit minus the label's, mean of the draws."""
    size_B: torch.Tensor
    """How far the pictures were changed, in the attack's norm."""


def looked_at(
    defence: Defence, bare: Classifier, eot: EOT, picture_BCHW: torch.Tensor, label_B: torch.Tensor, keys_B: Sequence[str],
    size_B: torch.Tensor,
) -> Look:  # fmt: skip
    """A look at the pictures by draws that neither the attack nor the defence has: as many as `eot`'s, or one if nothing is random."""
    once = adaptive(defence, bare, EOT(draws=1, seed=eot.seed + 1))
    with torch.no_grad():
        margin_kB = torch.stack([margin(once(picture_BCHW, keys_B), label_B) for _ in range(eot.draws if defence.random else 1)])
    return Look((margin_kB > 0).double().mean(0), margin_kB.mean(0), size_B)


def worse(first: Look, second: Look, minimal: bool) -> torch.Tensor:
    """Of which pictures the second attacked version is the worse one for the classifier, bool [B].

    That is the one that fools in more draws, and of two alike the one with the larger mean margin. For a `minimal` attack, of two that fool
    in more than half of the draws it is the smaller change. The defence's own draws decide nothing: with those the attacker would have two
    throws where the defence has one.
    """
    worse_B = (second.fooled_B > first.fooled_B) | ((second.fooled_B == first.fooled_B) & (second.margin_B > first.margin_B))
    if not minimal:
        return worse_B
    return torch.where((first.fooled_B > 0.5) & (second.fooled_B > 0.5), second.size_B < first.size_B, worse_B)


def magnified(clean_NHWC: np.ndarray, other_NHWC: np.ndarray) -> np.ndarray:
    """The change of each picture around mid-grey, scaled so that its largest value just fits; uint8."""
    change_NHWC = other_NHWC.astype(float) - clean_NHWC
    most_N = np.abs(change_NHWC).reshape(len(change_NHWC), -1).max(1).clip(1)
    return (127.5 + 127.5 * change_NHWC / most_N[:, None, None, None]).round().astype(np.uint8)
