import os
import signal

import pytest

from tunesmith.core.errors import Interrupted
from tunesmith.training.guard import SpikeWatch, stopping_on_signals


def test_a_leap_is_measured_against_the_median():
    watch = SpikeWatch()
    assert [watch.ratio(2.0) for _ in range(10)] == [0.0] * 10  # too few to judge
    assert watch.ratio(18.0) == 9.0
    assert watch.ratio(2.0) == 1.0  # one leap does not move the median


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number):
    announced = []
    with pytest.raises(Interrupted), stopping_on_signals(lambda: announced.append(1)) as request:
        assert not request.is_made
        os.kill(os.getpid(), number)
        assert request.is_made and announced == [1]
        os.kill(os.getpid(), number)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
