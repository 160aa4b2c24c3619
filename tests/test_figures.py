"""Each figure from made-up numbers: it returns what it draws, repeats its bytes, and clips no label."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapterfusion import figures, methods, stats, study_figures

TARGETS = ["recommend", "reactions", "kinds", "reports", "faq", "petitions"]
METHODS = {name: row.title for name, row in methods.METHODS.items()}
LEVEL = dict(zip(METHODS, [58, 66, 72, 72.5, 68, 70, 78, 82, 80], strict=True))
TRAINED = dict(
    zip(METHODS, [1e3, 2.2e7, 1.2e5, 2.4e5, 2.2e7, 2.3e7, 1.2e5, 2.8e6, 2.8e6], strict=True)
)
STORED = dict(zip(METHODS, [1e3, 2.2e7, 1.2e5, 2.4e5, 2.3e6, 3e6, 2.4e5, 4e6, 6e6], strict=True))
SECONDS = dict(zip(METHODS, [2, 9, 6, 7, 14, 16, 11, 9, 10], strict=True))
CONTROLS = ["own_only", "st_continued", "without_own", "average_outputs", "average_parameters"]
CONTROLS += ["random_others", "concatenation", "scalars", "static", "no_last", "no_penalty"]
CONTROLS += ["frozen_value"]


@pytest.fixture(autouse=True)
def whole_study(monkeypatch):
    """Every method on every target, with no prepared data to look at."""
    for module in (figures, study_figures):
        monkeypatch.setattr(module, "tasks_of", lambda config, method: list(config.targets))
    yield
    plt.close("all")


def config(targets: list[str]) -> SimpleNamespace:
    return SimpleNamespace(targets=targets, data=SimpleNamespace(validation=0.2))


def records(tasks: list[str], seeds: int) -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for method in METHODS:
        for i, task in enumerate(tasks):
            for seed in range(1, seeds + 1):
                accuracy = (LEVEL[method] - 4 * i + rng.normal(0, 1.5)) / 100
                found.append(
                    {
                        "method": method,
                        "task": task,
                        "seed": seed,
                        "metrics": {"held_out": {"accuracy": accuracy}},
                        "data": {
                            "metrics": ["accuracy"],
                            "rows": {"train": 80, "validation": 20, "dev": 200},
                        },
                        "epochs": [{"evaluation_seconds": rng.uniform(0.5, 0.8)} for _ in range(4)],
                        "parameters": {
                            "trainable": int(TRAINED[method]),
                            "stored": int(STORED[method]),
                        },
                        "seconds": {
                            "train": SECONDS[method] * rng.uniform(0.8, 1.2),
                            "evaluation": 100.0,  # more than the epochs': not what is drawn
                        },
                    }
                )
    return found


def low_resource_frame(tasks: list[str], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        (m, t, n, s, 50 + 6 * np.log2(n / 16) + gain * 64 / n + rng.normal(0, 2))
        for m, gain in (("st_adapter", 0), ("fusion_st", 12))
        for t in tasks
        for n in (64, 128, 256, 512)
        for s in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["method", "task", "rows", "seed", "score"])


def forgetting_frame(tasks: list[str], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = []
    for target in tasks:
        for seed in range(seeds):
            before = 92 + rng.normal(0, 1)
            for method, lost in (
                ("full", 25),
                ("sequential", 12),
                ("st_adapter", 0),
                ("fusion_st", 0),
            ):
                after = before - lost * rng.uniform(0.5, 1.4)
                rows.append(("opinions", target, method, seed, before, after))
    return pd.DataFrame(rows, columns=["source", "target", "method", "seed", "before", "after"])


def faithfulness_frame(tasks: list[str], seeds: int, layers: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for target in tasks:
        for adapter in ["opinions", "verdicts", "uses", "wording", *TARGETS]:
            for seed in range(seeds):
                for layer in range(1, max(1, layers) + 1):
                    mass = rng.dirichlet([1, 6])[0]
                    change = 1.2 * mass + rng.normal(0, 0.08)
                    rows.append((target, layer, adapter, seed, mass, change))
    columns = ["target", "layer", "adapter", "seed", "mass", "loss_change"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame if layers else frame.drop(columns="layer")


def ranks_frame(tasks: list[str], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    rows = [(m, t, LEVEL[m] + rng.normal(0, 4)) for m in METHODS for t in tasks]
    return stats.ranks(pd.DataFrame(rows, columns=["method", "task", "score"]))


def ablations_frame(tasks: list[str], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rows = []
    for i, control in enumerate(CONTROLS):
        by_task = 2 - 1.1 * i + rng.normal(0, 3, len(tasks))
        mean = by_task.mean()
        rows.append((control, "mean", mean, mean - 1.8, mean + 1.7))
        rows += [(control, t, d, d - 4, d + 4) for t, d in zip(tasks, by_task, strict=True)]
    return pd.DataFrame(rows, columns=["control", "task", "difference", "low", "high"])


def pruning_frame(tasks: list[str], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(6)
    rows = [
        (t, s, k, 80 - 3 * i - 14 / k**1.5 + rng.normal(0, 0.7), 0.6 + 0.05 * k + 0.1 * i)
        for i, t in enumerate(tasks)
        for s in range(seeds)
        for k in (1, 2, 3, 5, 10)
    ]
    return pd.DataFrame(rows, columns=["target", "seed", "k", "accuracy", "seconds"])


FRAMES = {
    "rank_plot": ranks_frame,
    "ablations": ablations_frame,
    "low_resource": low_resource_frame,
    "forgetting": forgetting_frame,
    "faithfulness": faithfulness_frame,
    "pruning": pruning_frame,
}


def draw(name: str, tasks: list[str], seeds: int) -> tuple[Figure, pd.DataFrame]:
    if name == "cost":
        return study_figures.cost(config(tasks), records(tasks, seeds))
    if name == "relative_to_full":
        return figures.relative_to_full(config(tasks), records(tasks, seeds))
    if name == "faithfulness_by_layer":
        return study_figures.faithfulness(faithfulness_frame(tasks, seeds, layers=6))
    return getattr(study_figures, name)(FRAMES[name](tasks, seeds))


ALL = ["cost", "relative_to_full", "faithfulness_by_layer", *FRAMES]
SIZES = [(TARGETS, 3), (TARGETS[:1], 1), (TARGETS[:4], 1)]


def panels(figure: Figure) -> list[Axes]:
    """The visible axes, colour bars left out."""
    return [a for a in figure.axes if a.get_visible() and a.get_label() != "<colorbar>"]


def drawn(axis: Axes) -> set[tuple[float, float]]:
    """Every point of every line, and of every scatter, in an axis."""
    points = [xy for line in axis.lines for xy in line.get_xydata()]
    points += [xy for cloud in axis.collections for xy in cloud.get_offsets()]
    return {(round(float(x), 6), round(float(y), 6)) for x, y in points}


def pairs(x, y) -> set[tuple[float, float]]:
    return {(round(float(a), 6), round(float(b), 6)) for a, b in zip(x, y, strict=True)}


# ---- every figure, in three sizes: all targets and seeds, one of each, a last row of one panel ----


def check_layout(figure: Figure) -> None:
    """No label is clipped, no two tick labels of an axis overlap, no legend lies over data."""
    figure.canvas.draw()
    renderer, page = figure.canvas.get_renderer(), figure.bbox
    legends = [legend.get_window_extent(renderer) for legend in figure.legends]
    for axis in panels(figure):
        assert not any(box.overlaps(axis.bbox) for box in legends), "the legend lies over the data"
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            ticks = side.get_major_ticks() + side.get_minor_ticks()
            labels = [t.label1 for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()]
            boxes = [t.get_window_extent(renderer) for t in labels if not t.get_rotation()]
            for i, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[:i]), "tick labels overlap"
    texts = [t for axis in figure.axes for t in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    boxes = legends + [t.get_window_extent(renderer) for t in texts if t.get_text()]
    boxes += [a.get_tightbbox(renderer) for a in panels(figure)]
    for box in boxes:
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, "clipped left or right"
        assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, "clipped above or below"


@pytest.mark.parametrize(("tasks", "seeds"), SIZES, ids=["full", "one", "four"])
@pytest.mark.parametrize("name", ALL)
def test_labels_are_inside_apart_and_off_the_data(name, tasks, seeds):
    figure, _ = draw(name, tasks, seeds)
    check_layout(figure)


@pytest.mark.parametrize("spread", [1.0, 1.5, 5, 29, 31, 300, 1e6])
def test_costs_of_any_spread_have_readable_ticks(spread):
    """Methods between 12,000 and so many times more parameters, and 7 and so many more seconds."""
    found = records(TARGETS[:1], 1)
    for record, factor in zip(found, np.geomspace(1, spread, len(found)), strict=True):
        record["parameters"] = dict.fromkeys(("trainable", "stored"), 12_000 * factor)
        record["seconds"] = {"train": 7 * factor, "evaluation": 2.5}
    figure, _ = study_figures.cost(config(TARGETS[:1]), found)
    check_layout(figure)
    for axis in panels(figure):
        low, high = axis.get_xlim()
        labelled = [t for t in axis.xaxis.get_major_ticks() if t.label1.get_text()]
        assert any(low <= t.get_loc() <= high for t in labelled)


@pytest.mark.parametrize("name", ALL)
def test_bytes_repeat(name, tmp_path):
    for folder in ("a", "b"):
        figure, data = draw(name, TARGETS[:2], 2)
        figures.save(figure, data, tmp_path / folder, name)
    for suffix in ("png", "csv"):
        first, second = ((tmp_path / f / f"{name}.{suffix}").read_bytes() for f in "ab")
        assert first == second
    read = pd.read_csv(tmp_path / "a" / f"{name}.csv")
    assert list(read.columns) == list(data.columns)
    assert len(read) == len(data) > 0


@pytest.mark.parametrize("name", FRAMES)
def test_frames_come_back_as_they_were_given(name):
    frame = FRAMES[name](TARGETS[:3], 2)
    before = frame.copy()
    _, data = getattr(study_figures, name)(frame)
    pd.testing.assert_frame_equal(data, before)


def test_every_method_looks_different():
    for look in (figures.COLOURS, figures.MARKERS, figures.HATCHES):
        assert list(look) == list(METHODS)
    assert len(set(figures.COLOURS.values())) == len(set(figures.MARKERS.values())) == len(METHODS)
    in_bars = [figures.HATCHES[m] for m in METHODS if m not in ("st_adapter", "fusion_st")]
    assert len(set(in_bars)) == len(in_bars)  # these two are plain, and of unlike lightness


# ---- what is drawn is what is returned ----


def test_cost_draws_means_over_shared_targets():
    found = records(TARGETS[:3], 2)
    found = [r for r in found if (r["method"], r["task"]) != ("mt_adapter", "kinds")]
    for r in found:
        if r["method"] == "multitask_full":
            r["joint"] = TARGETS
    figure, data = study_figures.cost(config(TARGETS[:3]), found)
    assert (data["targets"] == 2).all()  # MT-A lacks kinds, so that no method's mean has it
    assert data["method"].tolist() == list(METHODS)
    of = [r for r in found if r["method"] == "full" and r["task"] != "kinds"]
    row = data.set_index("method").loc["full"]
    accuracies = [100 * r["metrics"]["held_out"]["accuracy"] for r in of]
    assert row["accuracy"] == pytest.approx(np.mean(accuracies))
    assert row["seconds"] == pytest.approx(np.mean([r["seconds"]["train"] for r in of]))
    assert (row["trained"], row["stored"]) == (TRAINED["full"], STORED["full"])
    of_row = [
        1000 * np.mean([e["evaluation_seconds"] for e in r["epochs"]]) / held_out(r) for r in of
    ]
    assert row["inference"] == pytest.approx(np.mean(of_row))
    columns = ["trained", "stored", "seconds", "inference"]
    for axis, column in zip(panels(figure), columns, strict=True):
        valued = data.dropna(subset=column)
        points = {point for point in drawn(axis) if not np.isnan(point[0])}
        assert points == pairs(valued[column], valued["accuracy"])
    untold = data[data["inference"].isna()]["method"].tolist()
    assert untold == ["head", "multitask_full"]  # remembered features; rows of all tasks


def held_out(record: dict) -> int:
    rows = record["data"]["rows"]
    return rows.get("validation", 0) + rows["dev"]


def test_relative_to_full_draws_its_differences():
    found = [
        r for r in records(TARGETS[:3], 2) if (r["method"], r["task"]) != ("sequential", "kinds")
    ]
    figure, data = figures.relative_to_full(config(TARGETS[:3]), found)
    heights = [bar.get_height() for bar in panels(figure)[0].patches]
    assert heights == pytest.approx(data["difference"].tolist())
    assert len(data) == 7 * 3 - 1  # all but head and full, and sequential lacks a task

    def mean(method: str) -> float:
        of = [r for r in found if r["method"] == method and r["task"] == "recommend"]
        return 100 * np.mean([r["metrics"]["held_out"]["accuracy"] for r in of])

    row = data.query("method == 'fusion_st' and task == 'recommend'").iloc[0]
    assert row["difference"] == pytest.approx(mean("fusion_st") - mean("full"))


def test_rank_plot_draws_its_frame():
    figure, data = draw("rank_plot", TARGETS, 1)
    (axis,) = panels(figure)
    y = range(len(data))
    expected = pairs(data["rank"], y) | pairs(data["low"], y) | pairs(data["high"], y)
    assert drawn(axis) == expected
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [METHODS[m] for m in data["method"]]


def test_ablations_draw_their_frame():
    figure, data = draw("ablations", TARGETS, 1)
    is_mean = data["task"] == "mean"
    y = data["control"].map(CONTROLS.index) - 0.25 * ~is_mean  # targets stand above their mean
    expected = pairs(data["difference"], y)
    expected |= pairs(data["low"][is_mean], y[is_mean]) | pairs(data["high"][is_mean], y[is_mean])
    (axis,) = panels(figure)
    zero = axis.lines[-1]  # the line at zero, drawn last
    assert drawn(axis) == expected | pairs(*zero.get_data())


def test_low_resource_draws_seeds_and_means():
    figure, data = draw("low_resource", TARGETS[:4], 3)
    for axis, task in zip(panels(figure), TARGETS, strict=False):
        part = data[data["task"] == task]
        means = part.groupby(["method", "rows"], as_index=False)["score"].mean()
        expected = pairs(part["rows"], part["score"]) | pairs(means["rows"], means["score"])
        assert drawn(axis) == expected
        assert axis.get_title() == task


def test_forgetting_draws_before_and_after():
    figure, data = draw("forgetting", TARGETS[:2], 3)
    (axis,) = panels(figure)
    means = data.groupby(["target", "method"])[["before", "after"]].mean()
    xs = {round(float(x), 6) for line in axis.lines for x in line.get_xdata()}
    for column in ("before", "after"):
        assert set(means[column].round(6)) <= xs
    assert set(data["after"].round(6)) <= xs
    kept = [
        line
        for line in axis.lines
        if line.get_marker() == "o" and line.get_color() == figures.COLOURS["fusion_st"]
    ]
    mean = means.loc[("recommend", "fusion_st")]
    assert kept[0].get_xdata()[0] == pytest.approx(mean["before"]) == pytest.approx(mean["after"])


@pytest.mark.parametrize("layers", [0, 3])
def test_faithfulness_draws_every_point_and_its_correlation(layers):
    data = faithfulness_frame(TARGETS[:2], 2, layers)
    figure, _ = study_figures.faithfulness(data)
    for axis, target in zip(panels(figure), TARGETS[:2], strict=True):
        part = data[data["target"] == target]
        clouds = [xy for cloud in axis.collections for xy in cloud.get_offsets()]
        assert pairs(*np.array(clouds).T) == pairs(part["mass"], part["loss_change"])
        assert len(axis.collections[1].get_offsets()) == 2 * max(1, layers)  # its own adapter
        rho = np.corrcoef(part["mass"].rank(), part["loss_change"].rank())[0, 1]
        most = part.groupby("adapter")["loss_change"].mean().idxmax()
        assert axis.get_title() == f"{target}: ρ = {rho:+.2f}\ncostliest to lose: {most}"


def test_faithfulness_without_variation_has_no_correlation():
    data = faithfulness_frame(TARGETS[:1], 1).assign(mass=0.1)
    figure, _ = study_figures.faithfulness(data)
    assert panels(figure)[0].get_title().startswith("recommend: ρ not defined")


def test_pruning_draws_targets_and_their_mean():
    figure, data = draw("pruning", TARGETS[:3], 2)
    for axis, column in zip(panels(figure), ["accuracy", "seconds"], strict=True):
        means = data.groupby(["target", "k"])[column].mean().reset_index()
        overall = means.groupby("k")[column].mean()
        assert drawn(axis) == pairs(means["k"], means[column]) | pairs(overall.index, overall)


def test_learning_curves_name_their_methods_if_there_are_several():
    epochs = [{"dev": {"accuracy": a}, "train_loss": 1 - a} for a in (0.5, 0.6)]
    found = [
        {"method": m, "task": "cb", "seed": 1, "metrics": {"held_out": {"epoch": 2}}}
        | {"epochs": epochs}
        for m in ("fusion_st", "fusion_mt")
    ]
    alone, _ = figures.learning_curves(found[:1])
    assert not alone.legends
    both, _ = figures.learning_curves(found)
    (legend,) = both.legends
    said = {
        t.get_text(): line.get_color()
        for t, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert list(said) == ["Fusion w/ ST-A", "Fusion w/ MT-A"]
    axis, _ = panels(both)
    assert set(said.values()) == {
        line.get_color() for line in axis.lines if line.get_marker() == "."
    }
    assert len(set(said.values())) == 2
