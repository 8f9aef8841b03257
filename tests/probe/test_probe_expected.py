import pytest

from worker.probe.expected import parse_expected


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("200", {200}, {199, 201}),
        ("2xx", {200, 250, 299}, {199, 300}),
        ("5XX", {500, 599}, {499}),
        ("200-299,301", {200, 299, 301}, {300, 302}),
        (" 200 - 204 , 404 ", {200, 204, 404}, {205, 403}),
        ("599", {599}, {598}),
    ],
)
def test_a_set_holds_what_it_names(text, inside, outside):
    statuses = parse_expected(text)
    assert inside <= statuses
    assert not outside & statuses


@pytest.mark.parametrize("text", ["", ",", "200,", "20", "2000", "6xx", "x", "200-", "-200", "200 201", "+200", "²00"])
def test_what_is_no_set_is_refused_by_name(text):
    with pytest.raises(ValueError, match="expected status"):
        parse_expected(text)


def test_a_backward_range_is_refused():
    with pytest.raises(ValueError, match="ends before it begins"):
        parse_expected("299-200")
