"""Without faults nothing is missed, nothing is polled twice, and moves are exact."""

from tests.simulator.world import World, check_law, check_nothing_is_lost, check_polled_once


def test_every_tick_is_polled_once_and_committed():
    world = World(1, workers=3, slots=60, projects=40)
    world.slow_ms = 20
    world.run_for(20_000)
    world.shut_down()
    horizon = world.processes["coordinator"].core.horizon_ms()
    assert horizon is not None
    figures = check_law(world, horizon)
    check_polled_once(world)
    assert figures["due"] > 300
    assert {entry.reason for entry in world.database.missed} <= {"down"}  # of before the start
    check_nothing_is_lost(world)
