"""The figures: what stands in the table, and where each image lies in the picture."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.card.cards import card, choices, metric, metrics

from unveil.evaluation.card.card import Card
from unveil.evaluation.card.figures import (
    COLUMNS,
    TITLE_HEIGHT,
    neighbours_figure,
    plot_data,
    summary,
    write_comparison,
)
from unveil.evaluation.metrics.guidance import AtScale


def test_distances_has_a_row_for_the_samples_and_each_control() -> None:
    assert json.loads(plot_data(card())["distances.json"]) == [
        {"set": "samples", "distance": 12.3181, "kernel_distance": 0.0083727},
        {"set": "real, held out", "distance": 1.9, "kernel_distance": -1.25e-05},
        {"set": "uniform noise", "distance": 400.1, "kernel_distance": 0.41},
        {"set": "jpeg-75", "distance": 6.2, "kernel_distance": 0.003},
        {"set": "blur-1", "distance": 25.0, "kernel_distance": 0.02},
        {"set": "undamaged", "distance": 5.5, "kernel_distance": 0.0},
    ]


def test_distances_without_a_kernel_distance_or_controls() -> None:
    rows = json.loads(plot_data(card({"fid": 3.5}))["distances.json"])
    assert rows[0] == {"set": "samples", "distance": 3.5, "kernel_distance": None}
    assert [row["set"] for row in rows] == ["samples", "jpeg-75", "blur-1", "undamaged"]


def test_by_size_has_a_row_for_each_number_of_samples() -> None:
    (part,) = card().by_size
    lines = "images,distance,extrapolated\n5000,16.1,11.9\n50000,12.3181,11.9\n"
    assert plot_data(card())["by_size.csv"] == lines
    bare = card(by_size=[part.model_copy(update={"extrapolation": None})])
    assert plot_data(bare)["by_size.csv"] == lines.replace("11.9", "nan")
    assert plot_data(card(by_size=[]))["by_size.csv"] == "images,distance,extrapolated\n"


def test_by_nfe_has_one_point_or_none() -> None:
    assert plot_data(card())["by_nfe.csv"] == "nfe,distance\n35,12.3181\n"
    unsaid = Card.of(metrics(), choices() | {"sampling": {}})
    assert plot_data(unsaid)["by_nfe.csv"] == "nfe,distance\n"


def test_precision_recall_has_a_row_for_each_features() -> None:
    header = "features,precision,recall,density,coverage\n"
    assert plot_data(card())["precision_recall.csv"] == f"{header}inception,0.71,0.52,0.9,0.81\n"
    names = {"fid": "inception", "precision": "inception", "recall_dinov2": "dinov2"}
    more = [metric(name, {name: 0.5}, n=9, n_reference=9, features=on) for name, on in names.items()]
    both = choices()
    both["features"]["dinov2"] = both["features"]["inception"] | {"extractor": "dinov2"}
    rows = plot_data(Card.of(more, both))["precision_recall.csv"].splitlines()[1:]
    assert rows == ["inception,0.5,nan,nan,nan", "dinov2,nan,0.5,nan,nan"]
    assert plot_data(card({"fid": 3.5}))["precision_recall.csv"] == header


def test_by_guidance_has_a_row_for_each_scale() -> None:
    header = "scale,distance,precision,recall,accuracy\n"
    assert plot_data(card())["by_guidance.csv"] == header
    points = [AtScale(0.0, 500, 30.5, 0.5, 0.75), AtScale(2.0, 500, 20.25, 0.75, 0.5, 0.99)]
    rows = plot_data(card(by_guidance=list(map(asdict, points))))["by_guidance.csv"]
    assert rows == f"{header}0.0,30.5,0.5,0.75,nan\n2.0,20.25,0.75,0.5,0.99\n"


def _coloured(count: int, channel: int) -> torch.Tensor:
    """Images of 8 x 8 whose one channel holds 7 times their place."""
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    images[:, channel] = (7 * torch.arange(count))[:, None, None]
    return images


@pytest.mark.parametrize("count", [1, 5, 36])
def test_comparison_shows_real_above_samples_in_order(tmp_path: Path, count: int) -> None:
    path = tmp_path / "figure.png"
    write_comparison(path, _coloured(count, 0), _coloured(count, 2), card())
    picture = np.asarray(Image.open(path).convert("RGB"))
    side, columns = 96, min(count, COLUMNS)
    rows = count // columns
    assert picture.shape == (2 * (rows * side + TITLE_HEIGHT), columns * side, 3)
    for channel, top in ((0, TITLE_HEIGHT), (2, rows * side + 2 * TITLE_HEIGHT)):
        for place in range(rows * columns):
            row, column = divmod(place, columns)
            centre = picture[top + row * side + side // 2, column * side + side // 2]
            expected = np.zeros(3)
            expected[channel] = 7 * place
            np.testing.assert_array_equal(centre, expected)


def test_comparison_takes_no_more_than_it_shows_spread_over_all(tmp_path: Path) -> None:
    write_comparison(tmp_path / "a.png", _coloured(72, 0), _coloured(36, 0), card())
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    side = 96
    shown = picture[TITLE_HEIGHT + side // 2, side // 2 :: side, 0]
    np.testing.assert_array_equal(shown, (14 * np.arange(COLUMNS)) % 256)


def test_comparison_has_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_comparison(tmp_path / name, _coloured(30, 0), _coloured(30, 1), card())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_comparison_does_without_a_fraction(tmp_path: Path) -> None:
    bare = card({"fid": 12.5})
    write_comparison(tmp_path / "a.png", _coloured(3, 0), _coloured(3, 1), bare)
    assert (tmp_path / "a.png").exists()
    assert "of the way" not in summary(bare)


def test_summary_is_a_small_aligned_table() -> None:
    lines = summary(card()).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:10]}
    assert rows["fid"] == ["12.3181", "±", "0.061", "1.9", "400.1"]
    assert rows["kid"] == ["0.0083727", "±", "0.00021", "-1.25e-05", "0.41"]
    assert rows["recall"] == ["0.52"]
    assert lines[1].index("1.9") + 3 == lines[2].index("-1.25e-05") + 9  # flush right
    assert "fid: 0.026 of the way from floor to scale" in lines and "No copies were found." in lines
    assert lines[-1] == "50000 samples, 1500 held out, 50000 noise, against 162770 real images"


def test_neighbours_are_beside_their_samples_with_their_distances() -> None:
    samples, nearest = _coloured(3, 0), _coloured(6, 1).reshape(3, 2, 3, 8, 8)
    figure = neighbours_figure(samples, nearest, np.array([[0.0, 1.5], [2.0, 2.5], [3.0, 3.25]]))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    expected = [image for row in range(3) for image in (samples[row], *nearest[row])]
    assert len(shown) == 9
    for found, image in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), image.permute(1, 2, 0).numpy())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["", "0", "1.5", "", "2", "2.5", "", "3", "3.25"]
    with pytest.raises(ValueError, match="neighbours_figure: found shapes"):
        neighbours_figure(samples[:2], nearest, np.zeros((3, 2)))
