"""The history of the paths: one row a second, bounded, and what was bad stays visible."""

from __future__ import annotations

from jvpnd.observe.samples import COARSE_ROWS, FINE_ROWS, MAX_PATHS, PathSamples, Sample


def row(second: int, loss: float = 0.0) -> Sample:
    return Sample(second * 1_000, 20.0, 0.5, loss, None, loss)


def fed(seconds: int, bad: int = -1) -> PathSamples:
    samples = PathSamples()
    for second in range(seconds):
        loss = 0.7 if second == bad else 0.0
        samples.sample(second * 1_000, lambda s=second, q=loss: {"a": row(s, q)})  # type: ignore[misc]
    return samples


def test_one_row_a_second_however_often_it_is_fed() -> None:
    samples, looks = PathSamples(), 0

    def look() -> dict[str, Sample]:
        nonlocal looks
        looks += 1
        return {"a": row(looks)}

    for tenth in range(100):
        samples.sample(tenth * 100, look)
    assert looks == 10
    assert len(samples.as_json()["a"]) == 10


def test_a_day_is_bounded_and_its_rows_are_in_order() -> None:
    rows = fed(90_000).as_json()["a"]
    assert len(rows) <= FINE_ROWS + COARSE_ROWS
    times = [r[0] for r in rows]
    assert times == sorted(set(times))
    assert times[-1] - times[0] > 80_000 * 1_000


def test_a_bad_second_of_hours_ago_still_shows() -> None:
    assert 0.7 in [r[3] for r in fed(20_000, bad=5_000).as_json()["a"]]


def test_paths_that_come_and_go_do_not_add_up_without_end() -> None:
    samples = PathSamples()
    for second in range(100):
        samples.sample(second * 1_000, lambda s=second: {f"p{s}": row(s)})  # type: ignore[misc]
    assert list(samples.as_json()) == [f"p{n}" for n in range(100 - MAX_PATHS, 100)]
