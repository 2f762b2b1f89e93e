"""Pictures as in the paper's Fig. 4-7, and attacks step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.report import words
from stages.report.contents import Contents
from stages.report.document import Gallery, Strip, Tile
from stages.report.png import amplified, png

ROWS = {"clean": "clean", "adversarial": "adversarial", "restored": "restored"}  # Fig. 4-6
ROWS_CLEAN = {"clean": "clean", "restored_clean": "restored"}  # Fig. 7
PERTURBATION = "perturbation"
PICTURES_A_BAND, STEPS_A_BAND = 8, 12  # what fits beside each other on a page at a size at which one sees something


def picture_galleries(contents: Contents) -> list[Gallery]:
    """The images under attack, and the clean images restored, where they are there."""
    pictures = contents.pictures
    if pictures is None:
        return []
    factor = pictures.amplification
    asked = "Below each: what the classifier says when it is given that image. " if pictures.predictions else ""
    attacked = _gallery(contents, f"Images under {pictures.attack}", ROWS, amplification=factor)
    galleries = [replace(attacked, note=f"{asked}Perturbations are multiplied by {factor:g} around mid grey.")]
    if pictures.restored_clean is not None:
        gallery = _gallery(contents, "Clean images, and what the adapter makes of them", ROWS_CLEAN)
        galleries.append(replace(gallery, note=asked.strip()))
    return galleries


def _gallery(contents: Contents, title: str, rows: Mapping[str, str], *, amplification: float | None = None) -> Gallery:
    pictures = contents.pictures
    assert pictures is not None
    kinds = [kind for kind in rows if getattr(pictures, kind) is not None]
    strips = []
    for place, label in enumerate(pictures.labels.tolist()):
        tiles = []
        for kind in kinds:
            said = int(pictures.predictions[kind][place]) if kind in pictures.predictions else None
            says = f"{kind.replace('_', ' ')} image {place + 1}, truly {_class(contents, label)}{_says(contents, said)}"
            tile = Tile(gallery="pictures", of=kind, number=place, says=says, png=png(getattr(pictures, kind)[place]))
            tiles.append(replace(tile, **_judged(contents, said, label)))
        if amplification is not None:
            change = png(amplified(pictures.adversarial[place] - pictures.clean[place], amplification))
            says = f"perturbation of image {place + 1}, multiplied by {amplification:g}"
            tiles.append(Tile(gallery="pictures", of=PERTURBATION, number=place, says=says, png=change))
        strips.append(Strip(head=_class(contents, label), tiles=tuple(tiles)))
    last = () if amplification is None else (f"{PERTURBATION} \N{MULTIPLICATION SIGN} {amplification:g}",)
    names = (*(rows[kind] for kind in kinds), *last)
    return Gallery(title=title, note="", corner="true class", rows=names, bands=_bands(strips, PICTURES_A_BAND))


def trajectory_gallery(contents: Contents, number: int) -> Gallery:
    """The states of one attack, each with what the adapter makes of it and what the attacked model says."""
    each, gallery = contents.trajectories[number], f"trajectory-{number}"
    restored, distances = each.restored, each.distances(contents.threat.norm)
    strips = []
    for place, state in enumerate(each.states):
        t = each.first + place
        said = None if each.predictions is None else int(each.predictions[place])
        judged, away = _judged(contents, said, each.label), f"{distances[place]:.3g}"
        says = f"state {t}, {away} from the clean image"
        first = Tile(gallery=gallery, of="state", number=t, says=says, png=png(state), caption=away)
        if restored is None:
            tiles = (replace(first, says=says + _says(contents, said), **judged),)
        else:
            says = f"state {t} restored{_says(contents, said)}"
            below = Tile(gallery=gallery, of="restored", number=t, says=says, png=png(restored[place]))
            tiles = (first, replace(below, **judged))
        strips.append(Strip(head=f"x{_subscript(t)}", tiles=tiles))
    clean = Tile(gallery=gallery, of="clean", number=0, says="the clean image", png=png(each.clean), caption="clean")
    below = "Below each state: how far it is from the clean image. " if restored is not None else ""
    asked = "Last line: what the attacked model says of that state." if each.predictions is not None else ""
    return Gallery(
        title=f"Step by step: {each.name}, truly {_class(contents, each.label)}",
        note=f"x is the clean image, x{_subscript(each.first)} the first state. {below}{asked}".strip(),
        corner="step",
        rows=("state",) if restored is None else ("state", "restored"),
        bands=_bands([Strip(head="x", tiles=(clean,)), *strips], STEPS_A_BAND),
        steps=True,
    )


def _judged(contents: Contents, said: int | None, label: int) -> dict[str, str]:
    """Caption and mark of a picture of which the classifier says something."""
    if said is None:
        return {}
    return {"caption": _class(contents, said), "mark": "right" if said == label else "wrong"}


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
