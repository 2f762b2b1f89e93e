import base64
import doctest
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from example_contents import HOSTILE, everything, hostile, least, pictures
from PIL import Image

import stages.report.contents
import stages.report.page
import stages.report.png
import stages.report.words
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Check
from stages.rap.threat import ThreatModel
from stages.report import words
from stages.report.page import write_report
from stages.report.png import SIDE, amplification, png
from stages.report.record import as_json


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_report(everything(), tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("module", ["contents", "page", "png", "words"])
def test_examples_in_docstrings_run(module):
    found = doctest.testmod(getattr(stages.report, module))
    assert found.attempted
    assert not found.failed


def test_the_same_contents_give_the_same_bytes(full, tmp_path):
    write_report(everything(), tmp_path)
    first = {path.relative_to(full.page.parent): path.read_bytes() for path in full.page.parent.rglob("*.*")}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert first == again


def test_the_page_needs_nothing_beside_it(full):
    page = full.page.read_text()
    tags = Tags(page)
    assert not tags.named("script")
    assert not [each for each in tags.named("link") if each["rel"] != "icon"]
    sources = [attributes["src"] for _, attributes in tags.tags if "src" in attributes]
    assert sources
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    links = [
        attributes[name] or "" for _, attributes in tags.tags for name in ("href", "xlink:href") if name in attributes
    ]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_every_image_has_a_text_and_every_id_is_there_once(full):
    tags = Tags(full.page.read_text())
    assert all(each.get("alt") for each in tags.named("img"))
    assert all(each.get("role") == "img" and each.get("aria-label") for each in tags.named("svg"))
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_headline_and_verdict_are_said_in_every_form(full):
    says = "Of 128 test images, 54 remain robust to everything that was run on them: 42.2 % [34.0, 50.8]."
    verdict = "18 of 19 checks passed; 1 warns: Square against white-box; 1 does not apply."
    assert says in full.page.read_text()
    assert verdict in full.page.read_text()
    assert f"**{says}**" in full.markdown.read_text()
    assert verdict in full.markdown.read_text()
    numbers = json.loads(full.numbers.read_text())
    assert (numbers["says"], numbers["verdict"]["says"]) == (says, verdict)


def test_markdown_and_page_hold_the_numbers_of_the_json(full):
    numbers = json.loads(full.numbers.read_text())
    accuracies = [numbers["clean"], numbers["robust_accuracy"], numbers["undefended_robust_accuracy"]]
    accuracies += [each[kind] for each in numbers["attacks"] for kind in ("robust", "undefended") if each[kind]]
    accuracies += [accuracy for curve in numbers["curves"] for _, accuracy in curve["points"]]
    accuracies += [line["judge"]["robust"] for line in numbers["training"] if "judge" in line]
    assert "| clean |" in full.markdown.read_text()  # as in the terminal
    for text in (full.markdown.read_text(), full.page.read_text()):
        for each in accuracies:
            assert str(Accuracy(each["correct"], each["images"])) in text
        for attack, count in numbers["broken"][0]["by"].items():
            assert attack == "clean" or re.search(rf"{attack}\D+{count}\D", text)


def test_markdown_finds_its_images(full):
    linked = re.findall(r"!\[(?:[^\]\\]|\\.)*\]\(([^)]+)\)", full.markdown.read_text())
    there = {str(path.relative_to(full.page.parent)) for path in full.page.parent.glob("report_images/*")}
    assert set(linked) == there
    assert len(linked) > 40


def test_json_comes_back_as_it_was_made(full):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    numbers = json.loads(full.numbers.read_text(), parse_constant=refuse)
    files = {"pictures": numbers["pictures"]["files"], "trajectory-0": numbers["trajectories"][0]["files"]}
    assert numbers == as_json(everything(), files)
    assert all(
        (full.page.parent / path).exists() for kinds in files.values() for paths in kinds.values() for path in paths
    )
    assert numbers["training"][3]["reconstruction"] is None
    assert numbers["checks"][18]["evidence"] == {"by": [1, 2, 3], "ratio": None, "counts": [0, 1, 2]}
    assert numbers["pictures"]["amplification"] == 2.5


def test_what_has_no_place_in_json_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"recipe.attack.loss is a function"):
        write_report(least(recipe={"attack": {"loss": lambda: 0}}), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_sections_without_content_are_left_out(full, tmp_path):
    files = write_report(least(), tmp_path)
    assert re.findall(r"^## (.*)", files.markdown.read_text(), re.M) == [
        "Results",
        "Is the robust accuracy to be believed?",
    ]
    assert len(re.findall("<h2", files.page.read_text())) == 2
    assert len(re.findall("<h2", full.page.read_text())) == 10
    for text in (files.page.read_text(), files.markdown.read_text()):
        assert "No checks were run" in text
        assert "undefended classifier" not in text
    assert [path.name for path in tmp_path.glob("report_images/*")] == ["glance.svg"]


def test_images_of_an_earlier_report_do_not_stay(tmp_path):
    write_report(least(pictures=pictures(1, 8)), tmp_path)
    write_report(least(), tmp_path)
    assert [path.name for path in tmp_path.glob("report_images/*")] == ["glance.svg"]


def test_hostile_text_stays_text(tmp_path):
    files = write_report(hostile(), tmp_path)
    page, markdown = files.page.read_text(), files.markdown.read_text()
    tags = Tags(page)
    assert not tags.named("script")
    assert all((each["src"] or "").startswith("data:") for each in tags.named("img"))
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page
    assert "49" not in "".join(re.findall(r"<h1>(.*?)</h1>", page, re.S))
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert "](javascript" not in re.sub(r"\\\]", "", markdown)
    assert json.loads(files.numbers.read_text())["title"] == HOSTILE


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"trials": []}},
        {"training": ({"round": 0, "updates": 6},)},
        {"training": ({"round": 0, "updates": 6, "loss": float("nan"), "lag": None, "age": {}, "judge": None},)},
        {"search": {"trials": [{"trial": 0, "settings": {}, "robust": None, "error": "out of memory"}]}},
        {"seconds": {"nothing": 0.0}},
        {"broken": (stages.report.Broken(model="m", images=2, by={}),)},
        {"recipe": {"nothing": {}}},
        {"alarms": ("collapse",)},
    ],
)
def test_gaps_do_not_stop_a_report(changes, tmp_path):
    write_report(least(**changes), tmp_path)


def test_a_report_of_another_model_has_no_restored_images(tmp_path):
    given = pictures(3, 32)
    plain = stages.report.Pictures(attack="APGD", clean=given.clean, adversarial=given.adversarial, labels=given.labels)
    text = write_report(least(pictures=plain), tmp_path).markdown.read_text()
    assert "restored" not in text
    assert "perturbation × 2.5" in text  # noqa: RUF001


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 224)])
def test_pictures_are_enlarged_by_whole_pixels(channels, size):
    image = np.random.default_rng(0).integers(0, 256, (channels, size, size)).astype(np.float32) / 255
    shown = np.asarray(Image.open(io.BytesIO(png(image)))).reshape(-1, *([3] if channels == 3 else [1]))
    side = int(len(shown) ** 0.5)
    assert side % size == 0
    assert side >= min(SIDE, size)
    back = shown.reshape(side, side, channels)[:: side // size, :: side // size].transpose(2, 0, 1)
    assert np.array_equal(back, np.round(image * 255).astype(np.uint8))


def test_pictures_on_the_page_are_those_that_were_given(full):
    tags = Tags(full.page.read_text())
    source = next(each["src"] for each in tags.named("img") if (each["alt"] or "").startswith("adversarial image 2"))
    assert source is not None
    assert base64.b64decode(source.split(",")[1]) == png(everything().pictures.adversarial[1])  # type: ignore[union-attr]


def test_perturbations_are_amplified_until_they_would_be_clipped():
    for radius in (0.2, 8 / 255, 0.3, 1.0):
        factor = amplification(np.array([radius, -radius / 2], np.float32))
        assert 0.45 < factor * radius <= 0.5 + 1e-6
    assert amplification(np.zeros(3)) == 1


def verdicts(*kinds: str) -> list[Check]:
    return [Check(i, f"c{i}", kind, "", images=1, says="") for i, kind in enumerate(kinds)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "worst", "says"),
    [
        ((), "none", "No checks were run"),
        (("pass", "pass"), "pass", "2 of 2 checks passed."),
        (("pass", "warn", "warn"), "warn", "1 of 3 checks passed; 2 warn: c1, c2."),
        (
            ("warn", "fail", "not applicable"),
            "fail",
            "0 of 2 checks passed; 1 failed: c1; 1 warns: c0; 1 does not apply. The",
        ),
        (("not applicable",), "none", "None of the 1 checks applies."),
    ],
)
def test_the_verdict_names_what_did_not_pass(kinds, worst, says):
    assert words.worst_verdict(verdicts(*kinds)) == worst
    assert words.verdict(verdicts(*kinds)).startswith(says)


def test_the_ball_is_named_as_people_write_it():
    assert words.ball(ThreatModel(norm="Linf", radius=0.3)) == "L-inf 0.3"
    assert words.ball(ThreatModel(norm="Linf", radius=8 / 255)) == "L-inf 8/255"
    assert words.ball(ThreatModel(norm="L2", radius=0.5)) == "L2 0.5"
