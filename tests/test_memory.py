import ctypes
import weakref

import pytest

from qos_jax.memory import return_freed


def test_the_c_library_is_asked_to_return_all_that_was_freed(monkeypatch):
    asked = []

    class Glibc:
        @staticmethod
        def malloc_trim(pad):
            asked.append(pad.value)
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc)
    assert return_freed()
    assert asked == [0]


def test_what_only_a_cycle_keeps_is_freed():
    class Ring:
        pass

    ring = Ring()
    ring.itself = ring
    kept = weakref.ref(ring)
    del ring
    assert kept() is not None
    return_freed()
    assert kept() is None


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_a_system_without_that_function_is_left_alone(monkeypatch, error):
    def missing(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not return_freed()
