"""The packages of the wheel: qos_jax, and under its name the launchers and the data, which lie beside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["qos_jax", "qos_jax.*"]), "qos_jax.launch", "qos_jax.data"],
    package_dir={"qos_jax.launch": "launch", "qos_jax.data": "data"},
    package_data={
        "qos_jax.data": [
            f"{folder}/*" for folder in ("calibration", "examples", "fleets", "lengths", "rates")
        ]
    },
    include_package_data=False,
)
