"""Lanes of a job take units from each other's reach, and get back what was theirs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from framescribe.storage.claims import Lane, order_units, remove_claims
from framescribe.storage.output import open_output

SIZES = {f"unit-{number:03d}": 1000 + number for number in range(40)}


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    place = str(tmp_path / "out") if request.param == "disk" else f"memory://{tmp_path.name}"
    return open_output(place)


def test_lanes_at_once_take_each_unit_once(tmp_path):
    store = open_output(str(tmp_path))  # in memory nothing keeps two writers apart; real stores: test_real_stores.py
    lanes = [Lane(store, "start", number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda lane: list(lane.take_units(SIZES)), lanes))
    assert sorted(unit_id for units in taken for unit_id in units) == sorted(SIZES)


def test_a_slow_lane_keeps_only_what_it_has_begun(store):
    slow = Lane(store, "start", 0).take_units(SIZES)
    begun = list(islice(slow, 2))
    fast = list(Lane(store, "start", 1).take_units(SIZES))
    assert sorted([*begun, *fast]) == sorted(SIZES)
    assert list(slow) == []


def test_a_lane_that_is_started_again_begins_with_what_it_had_taken(store):
    lost = set(islice(Lane(store, "start", 0).take_units(SIZES), 3))
    list(Lane(store, "start", 1).take_units(SIZES))
    assert set(Lane(store, "start", 0).take_units(SIZES)) == lost


def test_a_lane_that_was_lost_before_it_had_a_unit_takes_it_when_it_is_started_again(store):
    store.put("_framescribe/claims/start/lanes/000000/unit-007", b"")
    assert next(Lane(store, "start", 0).take_units(SIZES)) == "unit-007"


def test_a_lane_that_is_started_again_begins_with_all_it_had_taken_though_others_were_faster_elsewhere(store):
    fast = next(Lane(store, "start", 1).take_units({"unit-000": 1}))
    lost = Lane(store, "start", 0).take_units({"unit-000": 3, "unit-001": 2, "unit-002": 1})
    taken = [next(lost), next(lost)]
    assert sorted([fast, *taken]) == ["unit-000", "unit-001", "unit-002"]
    assert sorted(Lane(store, "start", 0).take_units(SIZES))[:2] == taken


def test_what_an_earlier_try_took_is_taken_over_though_other_lanes_took_units_too(store):
    sizes = dict(list(SIZES.items())[:6])
    later = Lane(store, "start", 0).take_units(sizes)
    first = next(later)
    earlier = Lane(store, "start", 0).take_units(sizes)
    of_earlier = [next(earlier), next(earlier)]
    of_others = list(Lane(store, "start", 1).take_units(sizes))
    assert sorted([first, *later, *of_others]) == sorted(sizes)
    assert {first, *of_earlier}.isdisjoint(of_others)


def test_what_an_earlier_try_of_a_lane_took_meanwhile_is_taken_over_in_the_end(store):
    earlier, later = Lane(store, "start", 0).take_units(SIZES), Lane(store, "start", 0).take_units(SIZES)
    first = next(later)
    of_earlier = set(islice(earlier, 5))
    assert {first, *later} == set(SIZES)
    assert of_earlier <= set(SIZES)


def test_another_start_takes_everything_anew_and_nothing_is_left_behind(store):
    assert len(list(Lane(store, "first", 0).take_units(SIZES))) == len(SIZES)
    assert len(list(Lane(store, "second", 0).take_units(SIZES))) == len(SIZES)
    remove_claims(store)
    remove_claims(store)
    assert (
        store.list_files("_framescribe/claims/first/units"),
        store.local_path is None or not (store.local_path / "_framescribe" / "claims").exists(),
    ) == ([], True)


def test_large_units_are_taken_first_and_lanes_differ_in_the_rest():
    sizes = {**SIZES, "hour": 900_000}
    first, second = order_units(sizes, 0), order_units(sizes, 1)
    assert (first[0], second[0]) == ("hour", "hour")
    assert first != second
    assert sorted(first) == sorted(second) == sorted(sizes)
