"""Tests of the limits on what each client uses, without a network."""

import asyncio

from service.http.client_quotas import Clients, ResourceLimits


class IdleConnection:
    turn_cost = 1

    def evict_if_idle(self) -> bool:
        return True

    def begin_waiting_request(self) -> None:
        raise AssertionError


class BusyConnection(IdleConnection):
    def evict_if_idle(self) -> bool:
        return False


def test_one_client_can_use_at_most_three_quarters_of_a_limit() -> None:
    clients = Clients(ResourceLimits(connections=8, buffered_bytes=800, requests=8))
    accepted = [clients.connect("10.0.0.1", BusyConnection()) for _ in range(10)]
    assert [each is not None for each in accepted] == [True] * 6 + [False] * 4
    greedy, other = accepted[0], clients.connect("10.0.0.2", BusyConnection())
    assert greedy
    assert other
    assert clients.add_buffered_bytes(greedy, 600)
    assert not clients.add_buffered_bytes(greedy, 1)
    assert clients.add_buffered_bytes(other, 100)
    for _ in range(6):
        assert clients.admits(greedy)
        clients.begin_request(greedy)
    assert not clients.admits(greedy)
    assert clients.admits(other)


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    clients = Clients(ResourceLimits(8, 8, 8))
    hosts = ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "::ffff:10.0.0.1", "10.0.0.1")
    found = [clients.connect(host, IdleConnection()) for host in hosts]
    assert found[0] is found[1] is not found[2]
    assert found[3] is found[4]


def test_client_below_its_equal_share_is_admitted_when_a_limit_is_reached() -> None:
    clients = Clients(ResourceLimits(connections=8, buffered_bytes=800, requests=8))
    one, other, late = (clients.connect(f"10.0.0.{each}", IdleConnection()) for each in range(3))
    assert one
    assert other
    assert late
    for client in (one, other):
        for _ in range(4):
            assert clients.admits(client)
            clients.begin_request(client)
        assert clients.add_buffered_bytes(client, 400)
    assert not clients.admits(one)
    assert clients.admits(late)
    assert clients.add_buffered_bytes(late, 200)
    assert not clients.add_buffered_bytes(one, 1)


def test_client_with_most_connections_loses_one_when_all_are_taken() -> None:
    evicted: list[str] = []

    class NamedConnection(IdleConnection):
        def __init__(self, name: str) -> None:
            self.name = name

        def evict_if_idle(self) -> bool:
            evicted.append(self.name)
            return True

    clients = Clients(ResourceLimits(connections=6, buffered_bytes=8, requests=8))
    for number in range(4):
        assert clients.connect("10.0.0.1", NamedConnection(f"greedy {number}"))
    for number in range(3):
        assert clients.connect("10.0.0.2", NamedConnection(f"good {number}"))
    assert evicted == ["greedy 0"]


def test_waiting_connections_begin_their_requests_in_order_of_arrival() -> None:
    """Newer requests do not overtake waiting ones, and no iteration exceeds its quota."""
    begun: list[tuple[int, int]] = []
    iteration = 0

    class WaitingConnection(IdleConnection):
        def __init__(self, number: int) -> None:
            self.number = number

        def begin_waiting_request(self) -> None:
            begun.append((iteration, self.number))

    async def send_requests() -> None:
        nonlocal iteration
        loop = asyncio.get_running_loop()
        client = clients.connect("10.0.0.1", IdleConnection())
        assert client
        for number in range(150):
            if client.may_begin_request(loop):
                begun.append((iteration, number))
            else:
                client.waiting_connections.append(WaitingConnection(number))
        while client.waiting_connections:
            iteration += 1
            await asyncio.sleep(0)
            assert not client.waiting_connections or not client.may_begin_request(loop)

    clients = Clients(ResourceLimits(connections=8, buffered_bytes=800, requests=8))
    asyncio.run(send_requests())
    assert [number for _, number in begun] == list(range(150))
    iterations = [each for each, _ in begun]
    assert max(iterations.count(each) for each in iterations) == 64


def test_urgent_request_does_not_wait_behind_others_of_its_client() -> None:
    async def send_requests() -> list[bool]:
        loop = asyncio.get_running_loop()
        client = clients.connect("10.0.0.1", IdleConnection())
        assert client
        while client.may_begin_request(loop):
            pass
        return [client.may_begin_request(loop, is_urgent=True) for _ in range(100)]

    clients = Clients(ResourceLimits(connections=8, buffered_bytes=800, requests=8))
    may_begin = asyncio.run(send_requests())
    assert may_begin[0]
    assert 0 < sum(may_begin) < 10
