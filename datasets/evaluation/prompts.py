"""Class names and prompts of known evaluation sets, as published with CLIP unless stated otherwise.

Sets whose own files hold the names (DTD, Food-101, aircraft, pets, cars, Caltech-101) are not listed: the names are read there.
"""

from __future__ import annotations

NAMES: dict[str, tuple[str, ...]] = {
    name: tuple(text.split("|"))
    for name, text in {
        "cifar10": "airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck",
        "cifar100": (
            "apple|aquarium fish|baby|bear|beaver|bed|bee|beetle|bicycle|bottle|bowl|boy|bridge|bus|butterfly|camel|can|castle|"
            "caterpillar|cattle|chair|chimpanzee|clock|cloud|cockroach|couch|crab|crocodile|cup|dinosaur|dolphin|elephant|flatfish|"
            "forest|fox|girl|hamster|house|kangaroo|keyboard|lamp|lawn mower|leopard|lion|lizard|lobster|man|maple tree|motorcycle|"
            "mountain|mouse|mushroom|oak tree|orange|orchid|otter|palm tree|pear|pickup truck|pine tree|plain|plate|poppy|porcupine|"
            "possum|rabbit|raccoon|ray|road|rocket|rose|sea|seal|shark|shrew|skunk|skyscraper|snail|snake|spider|squirrel|streetcar|"
            "sunflower|sweet pepper|table|tank|telephone|television|tiger|tractor|train|trout|tulip|turtle|wardrobe|whale|"
            "willow tree|wolf|woman|worm"
        ),
        "flowers102": (
            "pink primrose|hard-leaved pocket orchid|canterbury bells|sweet pea|english marigold|tiger lily|moon orchid|"
            "bird of paradise|monkshood|globe thistle|snapdragon|colt's foot|king protea|spear thistle|yellow iris|globe flower|"
            "purple coneflower|peruvian lily|balloon flower|giant white arum lily|fire lily|pincushion flower|fritillary|red ginger|"
            "grape hyacinth|corn poppy|prince of wales feathers|stemless gentian|artichoke|sweet william|carnation|garden phlox|"
            "love in the mist|mexican aster|alpine sea holly|ruby-lipped cattleya|cape flower|great masterwort|siam tulip|lenten rose|"
            "barbeton daisy|daffodil|sword lily|poinsettia|bolero deep blue|wallflower|marigold|buttercup|oxeye daisy|"
            "common dandelion|petunia|wild pansy|primula|sunflower|pelargonium|bishop of llandaff|gaura|geranium|orange dahlia|"
            "pink and yellow dahlia|cautleya spicata|japanese anemone|black-eyed susan|silverbush|californian poppy|osteospermum|"
            "spring crocus|bearded iris|windflower|tree poppy|gazania|azalea|water lily|rose|thorn apple|morning glory|"
            "passion flower|lotus|toad lily|anthurium|frangipani|clematis|hibiscus|columbine|desert-rose|tree mallow|magnolia|"
            "cyclamen|watercress|canna lily|hippeastrum|bee balm|air plant|foxglove|bougainvillea|camellia|mallow|mexican petunia|"
            "bromelia|blanket flower|trumpet creeper|blackberry lily"
        ),
        "gtsrb": (
            "red and white circle 20 kph speed limit|red and white circle 30 kph speed limit|red and white circle 50 kph speed limit|"
            "red and white circle 60 kph speed limit|red and white circle 70 kph speed limit|red and white circle 80 kph speed limit|"
            "end / de-restriction of 80 kph speed limit|red and white circle 100 kph speed limit|"
            "red and white circle 120 kph speed limit|red and white circle red car and black car no passing|"
            "red and white circle red truck and black car no passing|red and white triangle road intersection warning|"
            "white and yellow diamond priority road|red and white upside down triangle yield right-of-way|stop|"
            "empty red and white circle|red and white circle no truck entry|red circle with white horizonal stripe no entry|"
            "red and white triangle with exclamation mark warning|red and white triangle with black left curve approaching warning|"
            "red and white triangle with black right curve approaching warning|"
            "red and white triangle with black double curve approaching warning|red and white triangle rough / bumpy road warning|"
            "red and white triangle car skidding / slipping warning|red and white triangle with merging / narrow lanes warning|"
            "red and white triangle with person digging / construction / road work warning|"
            "red and white triangle with traffic light approaching warning|red and white triangle with person walking warning|"
            "red and white triangle with child and person walking warning|red and white triangle with bicyle warning|"
            "red and white triangle with snowflake / ice warning|red and white triangle with deer warning|"
            "white circle with gray strike bar no speed limit|blue circle with white right turn arrow mandatory|"
            "blue circle with white left turn arrow mandatory|blue circle with white forward arrow mandatory|"
            "blue circle with white forward or right turn arrow mandatory|blue circle with white forward or left turn arrow mandatory|"
            "blue circle with white keep right arrow mandatory|blue circle with white keep left arrow mandatory|"
            "blue circle with white arrows indicating a traffic circle|"
            "white circle with gray strike bar indicating no passing for cars has ended|"
            "white circle with gray strike bar indicating no passing for trucks has ended"
        ),
        "rendered_sst2": "negative|positive",
        "stl10": "airplane|bird|car|cat|deer|dog|horse|monkey|ship|truck",
        "svhn": "0|1|2|3|4|5|6|7|8|9",
    }.items()
}
"""In the order of the labels in the sets' files. A set's spelling is kept, mistakes included: other names would give other results."""

CALTECH101 = {
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}
"""Folders of Caltech-101 whose names are not their class in words."""

_SHOWN = ("{}", "blurry {}", "black and white {}", "low contrast {}", "high contrast {}", "bad {}", "good {}")


def _cifar() -> tuple[str, ...]:
    def of(article: str) -> list[str]:
        plain = [f"a {kind.replace('{}', 'photo')} of {article} {{}}." for kind in _SHOWN]
        return [*plain, *(f"a photo of {article} {size} {{}}." for size in ("small", "big"))]

    return tuple(of("a") + of("the"))


def _caltech() -> tuple[str, ...]:
    of = ("photo", "painting", "/plastic", "sculpture", "sketch", "tattoo", "/toy", "rendition", "/embroidered", "/cartoon",
          "/{} in a video game", "/plushie", "/origami", "art", "graffiti", "drawing", "doodle")  # fmt: skip

    def one(kind: str, article: str) -> str:
        if kind.startswith("/"):
            return f"{article} {kind[1:]}." if "{}" in kind else f"{article} {kind[1:]} {{}}."
        return f"{'' if kind in ('art', 'graffiti') else 'a '}{kind} of {article} {{}}."

    return tuple(one(kind, article) for article in ("a", "the") for kind in of)


PROMPTS: dict[str, tuple[str, ...]] = {
    "cifar10": _cifar(),
    "cifar100": _cifar(),
    "caltech101": _caltech(),
    "dtd": tuple(f"a photo of {article} {{}} {noun}." for article in ("a", "the") for noun in ("texture", "pattern", "thing", "object")),
    "fgvc_aircraft": tuple(f"a photo of {article} {{}}, a type of aircraft." for article in ("a", "the")),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "gtsrb": tuple(f'a {how} photo of a "{{}}" traffic sign.' for how in ("zoomed in", "centered", "close up")),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "rendered_sst2": ("a {} review of a movie.",),
    "cars": (
        *(f"a photo of {article} {{}}." for article in ("a", "the", "my")),
        "i love my {}!",
        *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
    ),
    "stl10": ("a photo of a {}.", "a photo of the {}."),
    "svhn": ('a photo of the number: "{}".',),  # none was published for SVHN: this is MNIST's
}
"""Sets that are not listed take the 80 prompts for ImageNet."""
