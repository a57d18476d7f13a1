"""The bounded dict: it removes the entries that were set longest ago."""

from osiris.core.bounded_dict import BoundedDict


def test_it_holds_the_entries_that_were_set_last():
    known = BoundedDict[str, int](2)
    known["a"] = 1
    known["b"] = 2
    known["a"] = 3
    known["c"] = 4
    assert dict(known) == {"a": 3, "c": 4}
