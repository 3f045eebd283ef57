from benchmarks.processor_time import seconds_from_turn_to_turn


def test_work_that_a_service_does_after_its_turn_is_counted() -> None:
    """`log` takes 1 s for its requests, and writes them, 2 s more, in the next turn of another."""
    spent = {"plain": 0.0, "log": 0.0}
    unwritten: list[float] = []
    order = []

    def take_turn(name: str) -> None:
        order.append(name)
        if name == "log":
            spent["log"] += 1.0
            unwritten.append(2.0)
        else:
            spent["plain"] += 1.0
            spent["log"] += sum(unwritten)
            unwritten.clear()

    clocks = {name: lambda name=name: spent[name] for name in spent}
    found = seconds_from_turn_to_turn(clocks, take_turn, turns=4)
    assert [each["plain"] for each in found] == [1.0] * 4
    assert sum(each["log"] for each in found) == 4 * (1.0 + 2.0)
    assert order[:4] == ["plain", "log", "log", "plain"]
