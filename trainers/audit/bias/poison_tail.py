"""Is a shard of pairs poisoned? Three ways to tell it from a clean one.

* A classifier of shards ("name that data set", Torralba and Efros 2011). Poison in a share r of a shard raises its accuracy by r/2 at most,
  so that it takes millions of pairs to see a small r.
* The pairs that this classifier is surest of. Poison may fill the top of the list, which shows with thousands of pairs.
* The words of the captions. They show poison where the words of its captions are rare otherwise.

Shape suffixes: N pairs, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Interval
from scipy import stats

from datasets.component import Count, Positive
from datasets.errors import InputError
from datasets.feed.loader import make_batch
from datasets.index.pairs import Pairs
from datasets.seeding import hash64, rng
from trainers.audit.base import Audit, Findings, Subject
from trainers.audit.bias.shared import image_features, logistic, text_features
from trainers.audit.bias.words_of import compared
from trainers.audit.shares import share


@dataclass(frozen=True, kw_only=True)
class PoisonTail(Audit):
    """Deals the pre-training's pairs into two shards and tries to tell them apart: the trusted one has no poison, the suspected one keeps
    what fell to it.

    A logistic regression on the pairs' features gives each pair a score, the probability that it is of the suspected shard. The pairs are
    cut into folds, and a pair is scored by a regression that was fitted on the other folds. Which pairs are poisoned is used to make the
    trusted shard and to count; neither the regression nor the test of words is told.
    """

    group: ClassVar[str] = "bias"

    over: Literal["pairs", "captions"] = "pairs"
    """What the regression sees: the features of picture and caption, or of the caption alone."""
    count: Annotated[int, Ge(100)] = 20_000
    """Pairs of both shards together, those with the smallest hashes of their keys; all if there are no more."""
    trusted: Annotated[float, Interval(ge=0.1, le=0.9)] = 0.5
    """Share of the pairs dealt to the trusted shard, by the hash of their keys."""
    strength: Positive = 0.1
    """Inverse penalty C of the regression."""
    folds: Annotated[int, Interval(ge=2, le=20)] = 5
    """Parts of the pairs, by the hash of their keys."""
    top: tuple[Count, ...] = (10, 30, 100)
    """How many of the highest scores to look at."""
    least: Count = 5
    """Words in fewer captions are left out."""
    permutations: Count = 999
    """Permutations of the captions; p is at least 1 / (permutations + 1)."""
    seed: int = 0
    """Seed of all choices, which go by key, and of the permutations."""

    def run(self, subject: Subject) -> Findings:
        """Metrics under bias/poison_tail/, shares in percent; _low and _high are Wilson's interval of 95 %.

        Shards: n (pairs of both), suspected (pairs of that shard), poisons (among them), rate (their share of them).

        Accuracy of the regression: accuracy, _low, _high; chance (the larger shard's share); best_accuracy (50 + rate/2, of a perfect
        classifier of equal shards); needed_n (how many pairs a one-sided test at 5 % needs to see that accuracy with a power of 80 %).

        The k highest scores: tail/<k> is the suspected shard's share of them, with _low, _high and _p (exact binomial test, one-sided,
        against its share of all pairs). Of the k highest in the suspected shard, precision/<k> is the share of poisons, with _low and
        _high, and recall/<k> the share of all its poisons that are among them. auroc (0 … 1) is how well the score ranks them.

        Words: g, g_freedom, g_p_chi2 and g_p (by permutation) of the G-test; words_found (at 5 %, corrected for their number); word_p (the
        smallest corrected p).

        InputError without pairs, without their recipe if pictures are looked at, or for shards of fewer than 20 pairs.
        """
        pairs = subject.pairs
        if pairs is None:
            raise InputError("PoisonTail needs the pre-training's pairs, and this checkpoint has none.")
        if self.over == "pairs" and subject.recipe is None:
            raise InputError("PoisonTail.over is 'pairs', which needs the pre-training's views and triggers; accepted here: 'captions'.")
        records, suspected_N = self._shards(pairs)
        poisoned_N = records["poisoned"].to_numpy()
        keys, captions = records["key"].to_pylist(), records["caption"].to_pylist()
        score_N = self._scores(self._columns(subject, records), suspected_N, keys)
        metrics, notes = self._accuracy(score_N, suspected_N, poisoned_N)
        tie_N = np.array([hash64(self.seed, "tie", key) for key in keys], np.uint64)  # equal captions have equal scores
        order_N = np.lexsort((tie_N, -score_N))
        metrics |= self._tail(score_N, suspected_N, poisoned_N, order_N)
        words = compared(captions, suspected_N, self.permutations, rng(self.seed, "poison tail", "words"), self.least)
        if words is not None:
            metrics |= {"g": words.g, "g_freedom": words.freedom, "g_p_chi2": words.p_chi2, "g_p": words.p}
            metrics |= {"words_found": int((words.p_V <= 0.05).sum()), "word_p": float(words.p_V.min())}
            told = [f"{word} (G {g:.1f}, {100 * more:+.2f} points, corrected p {p:.2g})"
                    for word, g, more, p in list(zip(words.words, words.g_V, words.more_V, words.p_V))[:5]]  # fmt: skip
            notes.append(f"Words that deviate most in the suspected shard: {', '.join(told)}.")
        rows = {"key": keys, "suspected": suspected_N.tolist(), "poisoned": poisoned_N.tolist(), "score": score_N.tolist()}
        found = {f"bias/poison_tail/{name}": value for name, value in metrics.items()}
        return Findings(found, rows, self._shown(subject, records, order_N[suspected_N[order_N]][:6]), notes=tuple(notes))

    def _shards(self, pairs: Pairs) -> tuple[pa.Table, np.ndarray]:
        """(records of both shards, by position; which are of the suspected one, bool [N])."""
        records = pairs.records(pairs.smallest(self.count, self.seed, "poison tail"))
        dealt_N = np.array([hash64(self.seed, "trusted", key) / 2**64 for key in records["key"].to_pylist()])
        suspected_N = dealt_N >= self.trusted
        kept_N = suspected_N | ~records["poisoned"].to_numpy()
        records, suspected_N = records.filter(pa.array(kept_N)), suspected_N[kept_N]
        if min(suspected_N.sum(), (~suspected_N).sum()) < 20:
            raise InputError(f"PoisonTail needs at least 20 pairs in each shard; there are {suspected_N.sum()} and {(~suspected_N).sum()}.")
        return records, suspected_N

    def _columns(self, subject: Subject, records: pa.Table) -> np.ndarray:
        text_ND = text_features(subject, records["caption"].to_pylist())
        if self.over == "captions":
            return text_ND
        starts = range(0, len(records), subject.batch_size)
        image_ND = np.concatenate([
            image_features(subject, _pictures(subject, records.slice(start, subject.batch_size))) for start in starts
        ])  # fmt: skip
        return np.concatenate([image_ND, text_ND], axis=1)

    def _scores(self, x_ND: np.ndarray, suspected_N: np.ndarray, keys: list[str]) -> np.ndarray:
        """The probability that each pair is of the suspected shard, by a regression on the other folds, rounded."""
        fold_N = np.array([hash64(self.seed, "fold", key) % self.folds for key in keys])
        score_N = np.zeros(len(keys))
        for fold in np.unique(fold_N):
            here_N = fold_N == fold
            model = logistic(x_ND[~here_N], suspected_N[~here_N].astype(int), [], (self.strength,))
            score_N[here_N] = model.scores(x_ND[here_N])[:, 1]
        return score_N.round(6)

    def _accuracy(self, score_N: np.ndarray, suspected_N: np.ndarray, poisoned_N: np.ndarray) -> tuple[dict[str, float], list[str]]:
        n, suspected, poisons = len(score_N), int(suspected_N.sum()), int(poisoned_N.sum())
        metrics = {"n": n, "suspected": suspected, "poisons": poisons, "rate": 100 * poisons / suspected}
        metrics |= share("accuracy", int(((score_N >= 0.5) == suspected_N).sum()), n) | {"chance": 100 * max(suspected, n - suspected) / n}
        if not poisons:
            return metrics, ["No poison fell into the suspected shard: only the false alarms of the tests are measured."]
        needed = needed_n(poisons / suspected)
        metrics |= {"best_accuracy": 50 + 50 * poisons / suspected, "needed_n": needed}
        rate, best = metrics["rate"], metrics["best_accuracy"]
        note = (f"At a poison rate of {rate:.3g} % a perfect classifier of equal shards is right in {best:.3f} %: a test of its accuracy "
                f"needs about {needed:.2g} pairs to see that, and here are {n}.")  # fmt: skip
        return metrics, [note]

    def _tail(self, score_N: np.ndarray, suspected_N: np.ndarray, poisoned_N: np.ndarray, order: np.ndarray) -> dict[str, float]:
        own = order[suspected_N[order]]
        metrics: dict[str, float] = {}
        for k in self.top:
            if k <= len(own):
                count, hits = int(suspected_N[order[:k]].sum()), int(poisoned_N[own[:k]].sum())
                p = float(stats.binomtest(count, k, 1 - self.trusted, alternative="greater").pvalue)
                metrics |= share(f"tail/{k}", count, k) | {f"tail/{k}_p": p} | share(f"precision/{k}", hits, k)
                if poisoned_N.any():
                    metrics[f"recall/{k}"] = 100 * hits / int(poisoned_N.sum())
        if poisoned_N.any() and not poisoned_N[own].all():
            from sklearn.metrics import roc_auc_score

            metrics["auroc"] = float(roc_auc_score(poisoned_N[own], score_N[own]))
        return metrics

    def _shown(self, subject: Subject, records: pa.Table, order: np.ndarray) -> dict[str, np.ndarray]:
        if subject.recipe is None:
            return {}
        return {"highest scores": _pictures(subject, records.take(pa.array(order)))}


def needed_n(rate: float) -> float:
    """With how many samples a one-sided test at 5 % sees an accuracy of ½ + rate/2 with a power of 80 %: ((z.95 + z.80) / rate)²."""
    return float(((stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) / rate) ** 2)


def _pictures(subject: Subject, records: pa.Table) -> Any:
    """uint8 [N, S, S, 3]: the pictures as in training, not augmented."""
    recipe = subject.recipe
    assert recipe is not None
    return make_batch(records, 0, replace(recipe, views=replace(recipe.views, crop=None, flip=False), two_views=False))["image"]
