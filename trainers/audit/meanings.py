"""What each number of an audit is: a heading that people read, its unit, whether a high or a low value speaks for the model, a sentence.

There is one row for each name, `MEANINGS`. A part in angle brackets stands for any text: `filter/<defence>/n`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal, NamedTuple


class Meaning(NamedTuple):
    """What a number is."""

    heading: str
    """A few words that stand before the number; parts in angle brackets are those of the name."""
    unit: str
    """%, pictures, a ratio, …"""
    better: Literal["higher", "lower", "–"]
    """Which value speaks for the model, or for the defence; –: neither."""
    text: str
    """The number in a sentence without a full stop."""


M = Meaning


def _under(place: str, rows: dict[str, Meaning]) -> dict[str, Meaning]:
    return {f"{place}/{name}": row for name, row in rows.items()}


def _evenness(place: str, before: str, of: str) -> dict[str, Meaning]:
    """The rows of `bias.balance.evenness`, under `place`."""
    return {
        f"{place}/least": M(f"{before}: least", "count", "–", f"how many {of} there are of the rarest"),
        f"{place}/most": M(f"{before}: most", "count", "–", f"how many {of} there are of the most frequent"),
        f"{place}/empty": M(f"{before}: missing", "count", "lower", f"how many of them have no {of} at all"),
        f"{place}/entropy": M(f"{before}: entropy", "0 … 1", "higher", f"how even the {of} of those are that have any; 1: all alike"),
        f"{place}/imbalance": M(f"{before}: imbalance", "ratio", "lower", "the most frequent over the rarest that there is; 1: evenly"),
        f"{place}/gini": M(f"{before}: Gini coefficient", "0 … 1", "lower", f"how unevenly the {of} are spread over all; 0: evenly"),
    }


def _carried(place: str, source: str) -> dict[str, Meaning]:
    """The rows of attacks that are made on another model, the source, under `place`."""
    return {
        f"{place}/n": M("pictures attacked", "pictures", "–", "how many were attacked: both models classify them correctly"),
        f"{place}/source": M(f"turned {source}", "%", "–", f"share of the attacked pictures that {source} takes for another class"),
        f"{place}/success": M("turned the audited model", "%", "lower",
                              "share of the attacked pictures that the audited model takes for another class"),
        f"{place}/noise": M("turned by random noise", "%", "lower",
                            "share of the attacked pictures that random noise of the same size turns; the attack must turn more"),
        f"{place}/rate": M("rate of transfer", "ratio", "lower", "pictures that turned the audited model over those that turned the other"),
        f"{place}/carried": M("carried over", "%", "lower", f"share of the pictures that turned {source} which turns the model too"),
        f"{place}/carried_n": M(f"pictures that turned {source}", "pictures", "–", "over how many the share that carries over is taken"),
    }  # fmt: skip


def _explained(place: str, on: str, better: Literal["higher", "lower", "–"]) -> dict[str, Meaning]:
    """The rows of `Localisation` for one kind of pictures, under `place`."""
    return {
        f"{place}/mass": M(f"heat on the trigger, {on}", "%", better, "share of the positive heat that lies on the trigger's pixels"),
        f"{place}/mass_n": M(f"pictures with heat, {on}", "pictures", "–", "over how many the heat on the trigger is a mean"),
        f"{place}/lift": M(f"lift, {on}", "ratio", better, "heat on the trigger over the trigger's share of the area; 1: by chance"),
        f"{place}/lift_n": M(f"pictures with lift, {on}", "pictures", "–", "over how many the lift is a mean"),
        f"{place}/iou1": M(f"overlap of the best segment, {on}", "%", better, "intersection over union of hottest segment and trigger"),
        f"{place}/iouk": M(f"overlap of the hottest pixels, {on}", "%", better,
                           "intersection over union of the trigger and as many of the hottest pixels, or segments, as it covers"),
        f"{place}/pointing": M(f"pointing hits, {on}", "%", better, "share of the pictures whose hottest place lies on the trigger"),
        f"{place}/r2": M(f"fit of the linear model (R²), {on}", "0 … 1", "–",
                         "how much of the classifier's answers the explanation's linear model explains; low: do not trust the heat"),
        f"{place}/r2_n": M(f"pictures with a linear model, {on}", "pictures", "–", "over how many R² is a mean"),
    }  # fmt: skip


def _filtered(side: str, said: str) -> dict[str, Meaning]:
    """The rows of `TriggerFilter` without or with the filter."""
    place = f"filter/<defence>/{side}"
    return {
        f"{place}/accuracy": M(f"accuracy {said}", "%", "higher", "share of the pictures without trigger that are classified correctly"),
        f"{place}/asr": M(f"attack success rate {said}", "%", "lower",
                          "share of the triggered pictures of other classes that are taken for the target (ASR)"),
        f"{place}/ra": M(f"recovery accuracy {said}", "%", "higher",
                         "share of the triggered pictures of other classes that are taken for their own class (RA)"),
    }  # fmt: skip


P = "p value"
MEANINGS: dict[str, Meaning] = {
    # Robustness
    **_under("robust", {
        "n": M("pictures", "pictures", "–", "how many the shares are of"),
        "clean_n": M("pictures attacked", "pictures", "–", "how many are classified correctly without an attack; only these are attacked"),
        "clean": M("accuracy, not attacked", "%", "higher", "share of the pictures that are classified correctly"),
        "accuracy": M("accuracy under attack", "%", "higher",
                      "share of the pictures that are classified correctly and still are when attacked"),
        "alone": M("accuracy under the adaptive attack alone", "%", "higher",
                   "the same if the oblivious attack's results are not tried beside its own"),
        "at_<ε>": M("accuracy under attack, ε = <ε>", "%", "higher", "share of all pictures that no change within ε turned"),
        "noise": M("accuracy under noise", "%", "higher",
                   "the same under random noise of the same size; an attack that leaves more right has failed"),
        "noise_at_<ε>": M("accuracy under noise, ε = <ε>", "%", "higher",
                          "the same under random noise of this size or a smaller one tried"),
        "median_size": M("median change", "size in the attack's norm", "higher", "how far the pictures that were turned had to be changed"),
        "queries": M("questions for a picture", "classifications", "–",
                     "how often the attack asked the classifier, mean of the attacked pictures"),
        "zero_gradient": M("gradients of exactly 0", "%", "–", "share of the gradients that say nothing; above 50 the attack was blind"),
    }),
    # QueryCurve, Substitute, Transfer
    **_under("black_box/<attack>", {
        "n": M("pictures attacked", "pictures", "–", "how many were attacked: the model classifies them correctly"),
        "success": M("turned", "%", "lower", "share of the attacked pictures that the attack turned"),
        "within_<q>": M("turned within <q> questions", "%", "lower", "share that was turned by so many questions to the model"),
        "noise": M("turned by random noise", "%", "lower",
                   "share that random noise as large as the attack's change turns; the attack must turn more"),
        "median_queries": M("median questions", "questions", "higher", "what a picture that was turned took"),
    }),
    **_under("substitute", {
        "queries": M("questions", "questions", "–", "how often the model was asked to train the substitute"),
        "starts": M("pictures to start from", "pictures", "–", "with how many the substitute's training began"),
        "agreement_n": M("pictures compared", "pictures", "–", "over how many the agreement is a share"),
        "agreement/<r>": M("agreement after <r> rounds", "%", "lower",
                           "share of the pictures that substitute and model classify alike; high: the model is easily imitated"),
    }),
    **_carried("substitute", "the substitute"),
    **_carried("transfer/<name>", "the source"),
    # Planted
    **_under("planted", {
        "n": M("pictures that judge a patch", "pictures", "–", "how many at least; those of the patch's own class are left out"),
        "median_success": M("success of a patch, median class", "%", "lower",
                            "share of other pictures that the median class's patch turns into it"),
        "most_success": M("success of the class that stands out most", "%", "lower",
                          "share of other pictures that its patch turns into it"),
        "most_index": M("its anomaly index", "spreads above the median", "lower", "above 2: suspicious, this may be a planted target"),
        "target_success": M("success of the attack's target", "%", "lower",
                            "share of other pictures that the target's patch turns into it"),
        "target_index": M("anomaly index of the attack's target", "spreads above the median", "lower", "above 2: suspicious"),
        "target_first": M("the target stands out most", "100: yes, 0: no", "lower",
                          "whether the largest index is that of the attack's target"),
    }),
    # TriggerFilter
    **_under("filter/<defence>", {
        "n": M("pictures", "pictures", "–", "over how many the accuracy is a share"),
        "asr_n": M("triggered pictures of other classes", "pictures", "–", "over how many ASR and RA are shares"),
        "queries": M("work for a picture", "pictures", "lower", "how many pictures the model saw for each filtered one"),
    }),
    **_filtered("bare", "without the filter"),
    **_filtered("filtered", "with the filter"),
    # Localisation
    **_explained("explain/<explainer>/clean", "same pictures without trigger", "–"),
    **_under("explain/<explainer>", {
        "n": M("pictures explained", "pictures", "–", "how many: of other classes than the target"),
        "area": M("area of the trigger", "%", "–", "share of the picture that the trigger changes; heat by chance is as much"),
        "ceiling_mass": M("heat on the trigger, at best", "%", "–", "the largest that an explanation by these segments could have"),
        "ceiling_iou1": M("overlap of one segment, at best", "%", "–", "the largest that one segment could have"),
        "ceiling_iou": M("overlap of segments, at best", "%", "–", "the largest that several segments could have"),
        "pointing_chance": M("pointing hits by chance", "%", "–", "what a hottest place drawn at random would reach"),
        "asr": M("attack success rate", "%", "lower", "share of the triggered pictures that are taken for the target"),
    }),
    **_explained("explain/<explainer>", "triggered", "lower"),
    # Corruptions
    **_under("bias/corruptions", {
        "n": M("pictures", "pictures", "–", "how many, the same under each corruption"),
        "clean": M("accuracy, not corrupted", "%", "higher", "share that is classified correctly"),
        "mean": M("accuracy, mean of all corruptions", "%", "higher", "mean over corruptions and severities"),
        "relative": M("what is left of the accuracy", "%", "higher", "that mean as a share of the accuracy without corruption"),
        "<corruption>/mean": M("<corruption>, mean", "%", "higher", "accuracy, mean over the severities"),
        "<corruption>/<severity>": M("<corruption>, severity <severity>", "%", "higher",
                                     "accuracy; severity 1 is the weakest, 5 the strongest"),
    }),
    # CueConflict
    **_under("bias/cue_conflict", {
        "n": M("pictures made", "pictures", "–", "how many have the shape of one class and the texture of another"),
        "decided": M("decided", "pictures", "–", "how many were taken for the class of the shape or that of the texture"),
        "shape_share": M("shape decisions among the decided", "%", "higher", "near 100 the model goes by shape, near 0 by texture"),
        "shape": M("taken for the shape's class", "%", "higher", "share of all pictures made"),
        "texture": M("taken for the texture's class", "%", "lower", "share of all pictures made"),
        "neither": M("taken for neither", "%", "–", "share of all pictures made; above 50 the rest says little"),
        "p": M("shape against texture", P, "–", "of the exact sign test; below 0.05 one of the two is preferred beyond chance"),
    }),
    # Balance
    **_under("bias/balance", {
        "n": M("pictures", "pictures", "–", "how many test pictures"),
    }),
    **_evenness("bias/balance/classes", "test pictures by class", "pictures"),
    **_under("bias/balance", {
        "mean_per_class": M("mean accuracy of the classes", "%", "higher", "each class counts alike"),
        "worst": M("accuracy of the worst class", "%", "higher", "of its own pictures"),
        "best": M("accuracy of the best class", "%", "higher", "of its own pictures"),
        "gap": M("best minus worst class", "points", "lower", "0: all classes are served alike"),
        "spread_p": M("all classes equally accurate?", P, "higher", "of the chi-square test; 0.05 or more: no difference beyond chance"),
        "class/<class>_n": M("pictures of <class>", "pictures", "–", "how many of this class"),
        "class/<class>": M("accuracy of <class>", "%", "higher", "of its own pictures; the worst classes are listed"),
        "captions": M("captions looked at", "captions", "–", "how many of the pre-training's"),
    }),
    **_evenness("bias/balance/names", "captions by class named", "captions"),
    **_under("bias/balance", {
        "names/spearman": M("accuracy and captions that name the class", "−1 … 1", "–",
                            "rank correlation; near 1: classes that captions name more often are served better"),
        "names/spearman_p": M("p of that correlation", P, "–", "below 0.05: beyond chance"),
    }),
    **_evenness("bias/balance/<words>", "captions by <words>", "captions"),
    **_under("bias/balance", {
        "<words>/count/<word>": M("captions with <word>", "captions", "–", "how many have the word"),
        "<words>/class_v": M("<words> and the class named", "0 … 1", "lower",
                             "Cramér's V: how far the word goes with the class; 0: not at all"),
        "<words>/class_v_p": M("p of that association", P, "–", "of the chi-square test; below 0.05: beyond chance"),
    }),
    # PoisonTail
    **_under("bias/poison_tail", {
        "n": M("pairs", "pairs", "–", "how many in both shards"),
        "suspected": M("pairs of the suspected shard", "pairs", "–", "how many"),
        "poisons": M("poisoned pairs", "pairs", "–", "how many there are in the suspected shard"),
        "rate": M("rate of poison", "%", "–", "share of the suspected shard's pairs"),
        "accuracy": M("shards told apart", "%", "–",
                      "share of the pairs that the regression puts into the right shard; above chance: poison shows"),
        "chance": M("shards told apart, by chance", "%", "–", "share of the larger shard"),
        "best_accuracy": M("shards told apart, at best", "%", "–", "what a perfect regression on equal shards would reach"),
        "needed_n": M("pairs it would take", "pairs", "–", "to see that best accuracy in a test at 5 % with a power of 80 %"),
        "tail/<k>_p": M("p of the top <k>", P, "–", "of the binomial test against the suspected shard's share; low: poison shows"),
        "tail/<k>": M("suspected pairs in the top <k>", "%", "–", "share of the highest scores; above the shard's own share: poison shows"),
        "precision/<k>": M("poison in the suspected shard's top <k>", "%", "–", "share of those scores; high: the poison is found"),
        "recall/<k>": M("poison found by the top <k>", "%", "–", "share of all poison in the suspected shard"),
        "auroc": M("how well the score ranks poison", "0 … 1", "–", "AUROC; 0.5: by chance, 1: all poison comes first"),
        "g": M("G of the words", "G statistic", "–", "how far the two shards' words differ"),
        "g_freedom": M("degrees of freedom of G", "count", "–", "words less 1"),
        "g_p_chi2": M("p of G by its approximate law", P, "–", "takes the words of a caption as independent, which they are not"),
        "g_p": M("p of G by permutation", P, "–", "below 0.05: the shards' words differ beyond chance"),
        "words_found": M("words that differ", "words", "–", "how many do beyond chance (5 %, corrected for their number)"),
        "word_p": M("p of the word that differs most", P, "–", "corrected for the number of words"),
    }),
    # LabelHierarchy
    **_under("bias/label_hierarchy", {
        "n": M("pictures", "pictures", "–", "how many"),
        "exact": M("the label itself", "%", "higher", "share of the pictures taken for their own class"),
        "related": M("the label or a class above or below", "%", "higher", "share of the pictures"),
        "depth": M("depth of the tree", "levels", "–", "how many levels lie below the root"),
        "level/<d>_groups": M("groups at level <d>", "groups", "–", "how many there are"),
        "level/<d>_chance": M("right group at level <d>, by chance", "%", "–", "what an answer drawn from all classes would reach"),
        "level/<d>": M("right group at level <d>", "%", "higher",
                       "share of the pictures taken for a class of their own group; level 1 is coarsest"),
        "mistake_height_chance": M("height of a mistake, by chance", "levels", "–", "the same of answers drawn from the other classes"),
        "mistake_height": M("height of a mistake", "levels", "lower",
                            "how far up the tree the lowest group lies that holds both answer and label"),
        "n_multi_label": M("pictures with several labels", "pictures", "–", "how many are listed"),
        "multi_label": M("any of the listed labels", "%", "higher", "share of the listed pictures"),
        "multi_label_or_related": M("any listed label, or one above or below", "%", "higher", "share of the listed pictures"),
    }),
    # NameThatDataset
    **_under("bias/name_that_dataset/<over>", {
        "accuracy": M("sets told apart", "%", "lower", "share of the tested samples whose set is named; near chance: the sets are alike"),
        "chance": M("sets told apart, by chance", "%", "–", "100 over the number of sets"),
        "n": M("samples tested", "samples", "–", "how many"),
        "sets": M("sets", "count", "–", "how many are told apart"),
        "p": M("sets told apart beyond chance?", P, "higher", "of the exact binomial test; below 0.05: the sets differ"),
        "each": M("samples of each set", "samples", "–", "how many, tested or trained on"),
        "C": M("inverse penalty", "C", "–", "of the regression, chosen on a part of the training samples"),
        "recall/<set>": M("<set> recognised", "%", "–", "share of this set's tested samples"),
        "control/<set>_n": M("<set>, samples of the control", "samples", "–", "how many were tested"),
        "control/<set>_p": M("<set>, p of the control", P, "–", "below 0.001 the control has failed"),
        "control/<set>": M("<set>, two halves told apart (control)", "%", "–", "must be 50 but for chance"),
        "self/<set>": M("trained and tested on <set>", "%", "higher", "accuracy of a classifier of classes"),
        "others/<set>": M("trained on <set>, tested on the others", "%", "higher", "mean accuracy of the same classifier"),
        "drop/<set>": M("drop from <set> to the others", "%", "lower", "what is lost, as a share of the accuracy on its own set"),
    }),
    # AttributePairs
    **_under("bias/attribute_pairs/<attribute>", {
        "flips": M("<attribute>: answer flips", "%", "lower", "share of the pairs whose two pictures get different answers"),
        "n": M("<attribute>: pairs", "pairs", "–", "how many"),
        "right_first": M("<attribute>: first picture right", "%", "higher", "share of the pairs"),
        "right_second": M("<attribute>: second picture right", "%", "higher", "share of the pairs"),
        "lost": M("<attribute>: only the first right", "%", "lower", "share of the pairs"),
        "gained": M("<attribute>: only the second right", "%", "lower", "share of the pairs"),
        "p": M("<attribute>: the two sides alike?", P, "higher", "of the exact sign test; below 0.05: one side is served better"),
    }),
}  # fmt: skip
"""Name, parts in angle brackets standing for any text → what it is. The first row that fits a name counts, one without such parts first."""
ENDS = ("_low", "_high")
"""Ends of the names of a number's 95 % interval."""


def meaning(name: str, own: Mapping[str, Meaning] | None = None) -> tuple[str, Meaning] | None:
    """(the row's name, the meaning with the parts of this name put in); None if there is none. `own`: rows of an audit that is not of this
    project, looked up first. The ends of an interval have their number's row."""
    for end in ENDS:
        if name.endswith(end) and (found := _found(name.removesuffix(end), own)) is not None:
            return found
    return _found(name, own)


def _found(name: str, own: Mapping[str, Meaning] | None) -> tuple[str, Meaning] | None:
    for table in (own or {}, MEANINGS):
        if name in table and "<" not in name:
            return name, table[name]
        for pattern, row in table.items():
            if "<" in pattern and (match := _pattern(pattern).fullmatch(name)):
                return pattern, row._replace(heading=_filled(row.heading, pattern, match.groups()))
    return None


def _filled(heading: str, pattern: str, parts: tuple[str, ...]) -> str:
    for place, part in zip(re.findall(r"<[^>]+>", pattern), parts):
        heading = heading.replace(place, part.replace("_", " ") if place == "<corruption>" else part)
    return heading


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile("".join("(.+)" if part.startswith("<") else re.escape(part) for part in re.split(r"(<[^>]+>)", pattern)))
