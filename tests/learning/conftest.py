import pytest

from qos_jax import devices


@pytest.fixture
def take_turns(monkeypatch):
    """A function after which lanes take turns; it returns a list that gets whether each mapping does."""

    def begin():
        taken, runs = [], devices.vmap_runs

        def vmap_runs(*given, in_turn):
            taken.append(in_turn)
            return runs(*given, in_turn=in_turn)

        monkeypatch.setattr(devices, "small_loops_joined", lambda: True)
        monkeypatch.setattr(devices, "vmap_runs", vmap_runs)
        return taken

    return begin
