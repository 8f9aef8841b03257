"""Benchmarks run only when they are asked for: ``pytest -m bench``."""


def pytest_collection_modifyitems(config, items):
    if "bench" in (config.option.markexpr or ""):
        return
    asked_for = [item for item in items if item.get_closest_marker("bench") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(asked_for)])
    items[:] = asked_for
