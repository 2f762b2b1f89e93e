"""Pictures as in the paper's Fig. 4-7, and attacks step by step."""

from collections.abc import Sequence

from stages.report import words
from stages.report.contents import Contents
from stages.report.document import Gallery, Strip, Tile
from stages.report.images import amplified, png

ROWS = {
    "clean": "clean",
    "restored_clean": "clean, restored",
    "adversarial": "adversarial",
    "restored": "adversarial, restored",
}
PICTURES_A_BAND, STEPS_A_BAND = 8, 11  # what fits beside each other on a page at a size at which one sees something


def picture_gallery(contents: Contents) -> Gallery:
    """Clean, adversarial and restored images, and the perturbation amplified, with what the classifier says of each."""
    pictures = contents.pictures
    assert pictures is not None
    predictions, factor = pictures.predictions, pictures.amplification
    kinds = [kind for kind in ROWS if getattr(pictures, kind) is not None]
    strips = []
    for place, label in enumerate(pictures.labels.tolist()):
        true = _class(contents, label)
        tiles = []
        for kind in kinds:
            said = int(predictions[kind][place]) if kind in predictions else None
            says = f"{ROWS[kind]} image {place + 1}, truly {true}{_says(contents, said)}"
            caption, mark = _judged(contents, said, label)
            image = png(getattr(pictures, kind)[place])
            tiles.append(
                Tile(gallery="pictures", of=kind, number=place, says=says, png=image, caption=caption, mark=mark)
            )
        change = png(amplified(pictures.adversarial[place] - pictures.clean[place], factor))
        says = f"perturbation of image {place + 1}, multiplied by {factor:g}"
        tiles.append(Tile(gallery="pictures", of="perturbation", number=place, says=says, png=change))
        strips.append(Strip(head=true, tiles=tuple(tiles)))
    asked = "Below each: what the classifier says when it is given that image. " if predictions else ""
    return Gallery(
        title=f"Images under {pictures.attack}",
        note=f"{asked}Perturbations are multiplied by {factor:g} around mid grey.",
        corner="true class",
        rows=(*(ROWS[kind] for kind in kinds), f"perturbation ×{factor:g}"),
        bands=_bands(strips, PICTURES_A_BAND),
    )


def trajectory_gallery(contents: Contents, number: int) -> Gallery:
    """The states of one attack, each with what the adapter makes of it and what the attacked model says."""
    each, gallery = contents.trajectories[number], f"trajectory-{number}"
    restored, distances = each.restored, each.distances(contents.threat.norm)
    strips = []
    for place, state in enumerate(each.states):
        t = each.first + place
        said = None if each.predictions is None else int(each.predictions[place])
        caption, mark = _judged(contents, said, each.label)
        away = f"{distances[place]:.3g}"
        says = f"state {t}, {away} from the clean image"
        if restored is None:
            says += _says(contents, said)
            tiles = [Tile(gallery=gallery, of="state", number=t, says=says, png=png(state), caption=caption, mark=mark)]
        else:
            after, below = f"state {t} restored{_says(contents, said)}", png(restored[place])
            tiles = [
                Tile(gallery=gallery, of="state", number=t, says=says, png=png(state), caption=away),
                Tile(gallery=gallery, of="restored", number=t, says=after, png=below, caption=caption, mark=mark),
            ]
        strips.append(Strip(head=f"x{_subscript(t)}", tiles=tuple(tiles)))
    clean = Tile(gallery=gallery, of="clean", number=0, says="the clean image", png=png(each.clean), caption="clean")
    below = "Below each state: how far it is from the clean image. " if restored is not None else ""
    asked = "Last line: what the attacked model says of that state." if each.predictions is not None else ""
    return Gallery(
        title=f"Step by step: {each.name}, truly {_class(contents, each.label)}",
        note=f"x is the clean image, x{_subscript(each.first)} the first state. {below}{asked}".strip(),
        corner="state",
        rows=("state",) if restored is None else ("state", "restored"),
        bands=_bands([Strip(head="x", tiles=(clean,)), *strips], STEPS_A_BAND),
        steps=True,
    )


def _judged(contents: Contents, said: int | None, label: int) -> tuple[str, str]:
    """Caption and mark of a picture."""
    return ("", "") if said is None else (_class(contents, said), "right" if said == label else "wrong")


def _says(contents: Contents, said: int | None) -> str:
    return "" if said is None else f"; said to be {_class(contents, said)}"


def _class(contents: Contents, number: int) -> str:
    return contents.classes[number] if contents.classes else words.cell(number)


def _bands(strips: Sequence[Strip], most: int) -> tuple[tuple[Strip, ...], ...]:
    """Groups of at most ``most``, as equal as they can be."""
    count = -(-len(strips) // most)
    length = -(-len(strips) // count)
    return tuple(tuple(strips[first : first + length]) for first in range(0, len(strips), length))


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
