"""One small fit per head, shared by the tests that ask it."""

import pytest

from qos_jax.predictors import Predictor, PredictorConfig, fit_predictor
from tests.predictors.texts import EXPERTS, Texts, make_texts

SMALL = {
    "hash_bits": 12,
    "components": 24,
    "hidden": (16,),
    "heads": 2,
    "members": 1,
    "max_epochs": 25,
    "buckets": 24,
    "dropout": 0.1,
}


def config_of(head: str, **changes) -> PredictorConfig:
    return PredictorConfig(head=head, **(SMALL | changes))


@pytest.fixture(scope="session")
def texts() -> Texts:
    return make_texts(500)


@pytest.fixture(scope="session")
def unseen() -> Texts:
    return make_texts(300, seed=1)


@pytest.fixture(scope="session", params=["mlp", "linear", "neighbours"])
def fitted(request, texts) -> Predictor:
    return fit_predictor(config_of(request.param), texts.prompts, texts.quality, texts.output_tokens, EXPERTS)
