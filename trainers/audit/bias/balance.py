"""How evenly classes and groups are represented, and how evenly the model serves them.

Shape suffixes: N pictures, K classes, G groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse, stats

from datasets.component import Count, Natural
from datasets.errors import InputError
from datasets.index.pairs import Pairs
from trainers.audit.base import Audit, Findings, Subject
from trainers.audit.bias.shared import answers
from trainers.audit.shares import share


@dataclass(frozen=True, kw_only=True)
class Balance(Audit):
    """Counts of the test pictures' classes, accuracy by class, and counts of words in the pre-training's captions."""

    group: ClassVar[str] = "bias"

    groups: tuple[tuple[str, ...], ...] = ()
    """Sets of words, such as (("man", "woman"), ("red", "green", "blue")): how many captions of the pre-training have each."""
    captions: Count = 100_000
    """Captions to look at, those of the pairs with the smallest hashes of their keys; all if there are no more."""
    listed: Natural = 20
    """How many classes, the least accurate first, get metrics of their own."""

    def __post_init__(self) -> None:
        for words in self.groups:
            if len(words) < 2 or len(set(words)) < len(words) or not all(map(_words, words)):
                raise InputError(f"Balance.groups holds {words}; accepted: at least two different words, none empty.")

    def run(self, subject: Subject) -> Findings:
        """bias/balance/….

        Of the test pictures' classes: classes/… as `evenness`, and n. Of accuracy by class, in percent: mean_per_class, worst and best with
        _low and _high (Wilson), gap (best − worst), spread_p (chi-square test that all classes are equally accurate), class/<name> of the
        `listed` worst, with _low, _high and _n.

        Of captions, where the pre-training's pairs are there: captions (how many), names/… (captions that have each class's name, as
        `evenness`) and names/spearman with _p (rank correlation of accuracy with that count); and for each of `groups`, under its words
        joined by -, the same, <words>/count/<word>, and <words>/class_v with _p: how far the word goes with the class named (Cramér's V,
        bias-corrected, 0 … 1; chi-square p), over the captions with one word of the group and one class's name."""
        given, names = subject.pictures, subject.class_names
        answer_N = answers(subject, given)
        n_K = np.bincount(given.label_N, minlength=len(names))
        right_K = np.bincount(given.label_N[answer_N == given.label_N], minlength=len(names))
        metrics: dict[str, float] = {"n": len(given), **_under("classes", evenness(n_K)), **self._by_class(names, n_K, right_K)}
        notes = []
        if metrics["spread_p"] >= 0.05:
            notes.append("The classes' accuracies differ no more than chance allows; the worst and the best class say little.")
        if subject.pairs is not None:
            captions = self._captions(subject.pairs)
            named_NK = holding(names, captions)
            metrics |= {"captions": len(captions), **self._names(named_NK, n_K, right_K)}
            for words in self.groups:
                metrics |= self._group(words, holding(words, captions), named_NK[:, [names.index(name) for name in dict.fromkeys(names)]])
        elif self.groups:
            notes.append("There are no pre-training captions here, so the groups are not counted.")
        rows = {"key": given.keys, "label": given.label_N.tolist(), "answer": answer_N.tolist(),
                "right": (answer_N == given.label_N).tolist()}  # fmt: skip
        return Findings({f"bias/balance/{name}": value for name, value in metrics.items()}, rows, notes=tuple(notes))

    def _captions(self, pairs: Pairs) -> list[str]:
        chosen = pairs.smallest(self.captions, "balance")
        return pairs.captions(chosen).to_pylist()

    def _by_class(self, names: tuple[str, ...], n_K: np.ndarray, right_K: np.ndarray) -> dict[str, float]:
        present = np.flatnonzero(n_K)
        order = present[np.argsort(right_K[present] / n_K[present], kind="stable")]
        worst, best = order[0], order[-1]
        metrics = {"mean_per_class": 100 * float((right_K[present] / n_K[present]).mean())}
        metrics |= share("worst", int(right_K[worst]), int(n_K[worst])) | share("best", int(right_K[best]), int(n_K[best]))
        table = np.stack([right_K[present], n_K[present] - right_K[present]])
        degenerate = len(present) < 2 or not table.sum(1).all()
        metrics |= {"gap": metrics["best"] - metrics["worst"]}
        metrics["spread_p"] = 1.0 if degenerate else float(stats.chi2_contingency(table, correction=False).pvalue)
        for k in order[: self.listed]:
            name = names[k] if names.count(names[k]) == 1 else f"{names[k]}@{k}"
            metrics |= share(f"class/{name}", int(right_K[k]), int(n_K[k])) | {f"class/{name}_n": int(n_K[k])}
        return metrics

    def _names(self, named_NK: Any, n_K: np.ndarray, right_K: np.ndarray) -> dict[str, float]:
        count_K = np.asarray(named_NK.sum(0), np.int64)[0]
        metrics = _under("names", evenness(count_K))
        present = np.flatnonzero(n_K)
        share_K = right_K[present] / n_K[present]
        if len(present) > 2 and np.ptp(share_K) > 0 and np.ptp(count_K[present]) > 0:
            found = stats.spearmanr(share_K, count_K[present])
            metrics |= {"names/spearman": float(found.statistic), "names/spearman_p": float(found.pvalue)}
        return metrics

    def _group(self, words: tuple[str, ...], held_NG: Any, named_NK: Any) -> dict[str, float]:
        prefix = "-".join(words).replace("/", " ")
        count_G = np.asarray(held_NG.sum(0), np.int64)[0]
        metrics = _under(prefix, evenness(count_G))
        metrics |= {f"{prefix}/count/{word}": int(count) for word, count in zip(words, count_G)}
        one_N = np.asarray((held_NG.sum(1) == 1) & (named_NK.sum(1) == 1))[:, 0]
        table = (held_NG[one_N].T @ named_NK[one_N]).toarray()
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        if min(table.shape) > 1:
            found, n = stats.chi2_contingency(table, correction=False), int(table.sum())
            metrics |= {f"{prefix}/class_v": cramer(float(found.statistic), n, *table.shape), f"{prefix}/class_v_p": float(found.pvalue)}
        return metrics


def evenness(count_G: np.ndarray) -> dict[str, float]:
    """least and most (counts), empty (groups without any); of the rest: entropy (0 … 1, a share of the largest possible), imbalance (most
    over least); of all: gini (0: all equal)."""
    held = count_G[count_G > 0].astype(float)
    out: dict[str, float] = {"least": int(count_G.min()), "most": int(count_G.max()), "empty": int((count_G == 0).sum())}
    if not len(held):
        return out
    part = held / held.sum()
    rising, g = np.sort(count_G).astype(float), len(count_G)
    out["entropy"] = float(-(part * np.log(part)).sum() / np.log(len(part))) if len(part) > 1 else 1.0
    out["imbalance"] = float(held.max() / held.min())
    out["gini"] = float((2 * np.arange(1, g + 1) - g - 1) @ rising / (g * rising.sum()))
    return out


def cramer(chi2: float, n: int, rows: int, columns: int) -> float:
    """Cramér's V with Bergsma's (2013) correction, without which it grows with the number of cells."""
    if n < 2:
        return 0.0
    phi = max(0.0, chi2 / n - (rows - 1) * (columns - 1) / (n - 1))
    least = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return float(np.sqrt(phi / least)) if least > 0 else 0.0


def holding(terms: Sequence[str], captions: Sequence[str]) -> Any:
    """Sparse matrix of 0 and 1 [N, terms]: which caption has which term, its words one after the other; case and signs do not count."""
    number: dict[tuple[str, ...], list[int]] = {}
    for i, term in enumerate(terms):
        number.setdefault(tuple(_words(term)), []).append(i)
    lengths = sorted({len(words) for words in number})
    rows, columns = [], []
    for row, caption in enumerate(captions):
        words = _words(caption)
        runs = {tuple(words[start : start + length]) for length in lengths for start in range(len(words) - length + 1)}
        found = sorted({i for run in runs for i in number.get(run, ())})
        rows += [row] * len(found)
        columns += found
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(captions), len(terms)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _under(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
